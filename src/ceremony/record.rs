//! The files of a ceremony, read with limits and nothing else decided.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::plan::MAX_PLAN_BYTES;
use super::transcript::MAX_TRANSCRIPT_BYTES;
use super::{PLAN, PUBLIC_KEY, SIGNATURE_ENDING, TRANSCRIPT, WITNESSES};
use crate::governance::key::{MAX_KEY_TEXT, MAX_SIGNATURE_TEXT};

/// As many as a plan can name, and some that do not belong there.
const MAX_SIGNATURES: usize = 200;

/// What a ceremony left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The plan's copy.
    pub plan: Vec<u8>,
    /// The public key.
    pub public_key: Vec<u8>,
    /// The transcript.
    pub transcript: Vec<u8>,
    /// The text of each signature, by the name of the witness.
    pub signatures: BTreeMap<String, Vec<u8>>,
    /// What else lies among the signatures.
    pub strays: Vec<String>,
}

/// Why there is no record to judge.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Something could not be read.
    #[error("couldn't read {}: {source}", path.display())]
    Read {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that is larger than any of its kind.
    #[error("{} is larger than any such file can be", .0.display())]
    TooLarge(PathBuf),
}

impl Record {
    /// Reads the directory. A file that is not there is empty here: its absence is for
    /// [`super::verify`] to find, in its turn.
    ///
    /// # Errors
    /// When the directory, or something in it that is there, cannot be read.
    pub fn read(dir: &Path) -> Result<Self, RecordError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| RecordError::Read { path, source }
        };
        // Without this a slip in the path would look like a fraud.
        std::fs::read_dir(dir).map_err(failed(dir))?;
        let mut record = Record {
            plan: read(&dir.join(PLAN), MAX_PLAN_BYTES)?,
            public_key: read(&dir.join(PUBLIC_KEY), MAX_KEY_TEXT)?,
            transcript: read(&dir.join(TRANSCRIPT), MAX_TRANSCRIPT_BYTES)?,
            ..Record::default()
        };
        let witnesses = dir.join(WITNESSES);
        let entries = match std::fs::read_dir(&witnesses) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(record),
            entries => entries.map_err(failed(&witnesses))?,
        };
        for entry in entries.take(MAX_SIGNATURES) {
            let entry = entry.map_err(failed(&witnesses))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match name.strip_suffix(SIGNATURE_ENDING) {
                Some(witness) => {
                    let text = read(&entry.path(), MAX_SIGNATURE_TEXT + 1)?;
                    record.signatures.insert(witness.to_owned(), text);
                }
                None => record.strays.push(name),
            }
        }
        record.strays.sort();
        Ok(record)
    }
}

fn read(path: &Path, limit: usize) -> Result<Vec<u8>, RecordError> {
    let failed = |source| RecordError::Read { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        // A pipe would hang whoever opens it.
        Ok(found) if !found.is_file() => return Err(failed(io::Error::other("not a regular file"))),
        _ => {}
    }
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limit { Err(RecordError::TooLarge(path.to_owned())) } else { Ok(bytes) }
}
