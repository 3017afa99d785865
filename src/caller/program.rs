//! Which program a process runs: its path in the daemon's own view, and its hash where rules use it.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::is_recordable;
use crate::ledger::hash::{Digest, Hasher};

/// A larger program has no hash: reading it would hold a thread for seconds.
const HASHED_BYTES: u64 = 256 << 20;
/// Programs whose hashes are kept; a host's callers run a handful.
const HASHES_KEPT: usize = 256;

/// The program of a process.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: Option<String>,
    pub(super) sha256: Option<Digest>,
}

impl Program {
    /// Reads it. Another user's takes CAP_SYS_PTRACE; without it nothing is known.
    pub(super) fn read(pid: i32, hash: bool) -> Self {
        let link = format!("/proc/{pid}/exe");
        // The open file stays the one that it is, whatever the process executes meanwhile.
        let Ok(file) = File::open(&link) else { return Program::default() };
        let Ok(found) = file.metadata() else { return Program::default() };
        let path = fs::read_link(&link).ok().and_then(|path| path.into_os_string().into_string().ok());
        let path = path.filter(|path| is_recordable(path) && is_there(path, &found));
        Program { path, sha256: if hash { hash_of(file, &found) } else { None } }
    }
}

/// Whether `path` names the same file here: in a mount namespace of its own a process can put
/// anything in the place of a program. What was deleted since cannot be looked for; the kernel says so
/// at the end of its path, with which no rule can name a program.
fn is_there(path: &str, found: &Metadata) -> bool {
    match fs::metadata(path) {
        Ok(here) => (here.dev(), here.ino()) == (found.dev(), found.ino()),
        Err(_) => path.ends_with(" (deleted)"),
    }
}

/// What changes whenever the content of a file does.
type Version = (u64, u64, u64, (i64, i64), (i64, i64));

fn hash_of(mut file: File, found: &Metadata) -> Option<Digest> {
    static HASHES: OnceLock<Mutex<HashMap<Version, Digest>>> = OnceLock::new();
    let hashes = || HASHES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let version = |metadata: &Metadata| {
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        (metadata.dev(), metadata.ino(), metadata.len(), modified, changed)
    };
    if found.len() > HASHED_BYTES {
        return None;
    }
    if let Some(hash) = hashes().get(&version(found)) {
        return Some(*hash);
    }
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer).ok()? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    let hash = hasher.finish();
    // Nobody writes to a program that runs, but a file system that is not the kernel's own could.
    if version(&file.metadata().ok()?) != version(found) {
        return None;
    }
    let mut hashes = hashes();
    if hashes.len() >= HASHES_KEPT {
        hashes.clear();
    }
    hashes.insert(version(found), hash);
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_known_by_its_path_and_its_bytes() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        let path = std::env::current_exe().expect("this program");
        let expected = Digest::of(&fs::read(&path).expect("readable"));
        for _ in 0..2 {
            let program = Program::read(own, true);
            assert_eq!(program.path.as_deref(), path.to_str());
            assert_eq!(program.sha256, Some(expected));
        }
        assert_eq!(Program::read(own, false).sha256, None);
    }

    #[test]
    fn another_file_under_the_name_is_not_the_program() {
        let found = fs::metadata(std::env::current_exe().expect("this program")).expect("there");
        assert!(!is_there("/proc/self/status", &found) && !is_there("/nonexistent", &found));
        assert!(is_there("/usr/bin/gone (deleted)", &found));
    }
}
