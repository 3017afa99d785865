//! The bundle: what a ledger, or a range of it, is handed to an outsider as. A directory, or the
//! same files in a tar, in this order:
//!
//! ```text
//! entries.jsonl     each entry its canonical form and one line feed
//! public-key.pem    the first key, for convenience: trust comes from outside
//! manifest.json     {"count":2,"files":{"entries.jsonl":{"bytes":2891,"sha256":"…"},…},"first":0,…}
//! ```
//!
//! Writers put the manifest last, so what broke off has none. The reader takes a tar as a stream
//! and refuses whatever is not in the table. Whether the entries are sound is the work of
//! [`crate::audit`]; this module says whether the files around them are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::audit::{Expectations, Fault, Interruption, Verdict, audit};
use crate::ledger::canonical::MAX_ENTRY_BYTES;
use crate::ledger::code::Code;
use crate::ledger::hash::{Digest, Hasher};
use crate::ledger::json;
use crate::ledger::key::{PublicKey, is_origin};

/// The entries.
pub const ENTRIES: &str = "entries.jsonl";
/// The first key.
pub const PUBLIC_KEY: &str = "public-key.pem";
/// What the other files are.
pub const MANIFEST: &str = "manifest.json";
/// The files of a bundle, in the order of the tar.
pub const FILES: [&str; 3] = [ENTRIES, PUBLIC_KEY, MANIFEST];

const FORMAT: &str = "attestd-bundle/1";

/// No file but `entries.jsonl` is larger; they are held in memory.
const MAX_SMALL_FILE_BYTES: u64 = 64 << 10;

/// One read of this many bytes costs little beside hashing them.
const BUFFER_BYTES: usize = 256 << 10;

/// A tar consists of blocks of this size.
const BLOCK: usize = 512;

/// `manifest.json`. It is not signed: what it says is held against what is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The ledger's name.
    pub origin: String,
    /// Sequence number of the first entry.
    pub first: u64,
    /// Number of entries.
    pub count: u64,
    /// The other files by name.
    pub files: BTreeMap<String, Measure>,
}

/// What a file is, byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    /// Its SHA-256.
    pub sha256: Digest,
    /// Its size in bytes.
    pub bytes: u64,
}

impl Manifest {
    /// The content of the file: canonical JSON and a line feed.
    #[must_use]
    pub fn to_line(&self) -> String {
        let files: Vec<String> = self
            .files
            .iter()
            .map(|(name, file)| format!(r#""{name}":{{"bytes":{},"sha256":"{}"}}"#, file.bytes, file.sha256))
            .collect();
        format!(
            "{{\"count\":{},\"files\":{{{}}},\"first\":{},\"format\":\"{FORMAT}\",\"origin\":\"{}\"}}\n",
            self.count,
            files.join(","),
            self.first,
            self.origin,
        )
    }

    /// Reads the content of the file.
    ///
    /// # Errors
    /// [`Code::Manifest`] for anything but what [`Manifest::to_line`] gives.
    pub fn parse(text: &[u8]) -> Result<Self, Fault> {
        let wrong = |detail: String| Fault::new(Code::Manifest).within(MANIFEST).because(detail);
        let line = text.strip_suffix(b"\n").ok_or_else(|| wrong("no line feed at its end".into()))?;
        let line = json::canonicalize(line)
            .map_err(|fault| wrong(fault.to_string()))
            .and_then(|line| if line.starts_with('{') { Ok(line) } else { Err(wrong("no object".into())) })?;
        Self::read(&line)
            .filter(|manifest| manifest.to_line().as_bytes() == text)
            .ok_or_else(|| wrong("not canonical, or its members are not those of the format".into()))
    }

    /// What a canonical object seems to say. Members that are not of the format go unseen here,
    /// and make the caller's comparison fail.
    fn read(object: &str) -> Option<Self> {
        let text = |name| json::member(object, name).map(|value| json::unquote(value.as_bytes()));
        let number = |object, name| json::member(object, name)?.parse().ok();
        let list = json::member(object, "files").filter(|files| files.starts_with('{'))?;
        let mut files = BTreeMap::new();
        for name in [ENTRIES, PUBLIC_KEY] {
            let file = json::member(list, name).filter(|file| file.starts_with('{'))?;
            let sha256 = json::unquote(json::member(file, "sha256")?.as_bytes());
            let measure =
                Measure { sha256: Digest::from_hex(sha256.as_bytes())?, bytes: number(file, "bytes")? };
            files.insert(name.into(), measure);
        }
        let origin = text("origin").filter(|origin| is_origin(origin) && !origin.contains(['"', '\\']))?;
        Some(Manifest { origin, first: number(object, "first")?, count: number(object, "count")?, files })
    }
}

/// A bundle on disk.
#[derive(Debug)]
pub struct Bundle {
    source: Source,
    bytes: u64,
}

impl Bundle {
    /// Finds the bundle at `path`: a directory, or else a tar.
    ///
    /// # Errors
    /// When there is nothing at `path` that can be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        if metadata.is_dir() {
            // Not to be allowed to look is different from there being nothing.
            fs::read_dir(path)?;
            let bytes = fs::metadata(path.join(ENTRIES)).map_or(0, |metadata| metadata.len());
            return Ok(Bundle { source: Source::Directory(path.into()), bytes });
        }
        Ok(Bundle { source: Source::Tar(Tar::new(File::open(path)?)), bytes: metadata.len() })
    }

    /// About how many bytes [`Bundle::verify`] will read.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Checks the entries, then the files around them. `on_read` hears of bytes read.
    ///
    /// # Errors
    /// When it could not look, because a file cannot be read. A bundle that is wrong gets a [`Verdict`].
    pub fn verify(
        mut self,
        expectations: &Expectations,
        mut on_read: impl FnMut(u64),
    ) -> io::Result<Verdict> {
        let mut verdict = Verdict::unseen(&expectations.keys);
        match self.check(expectations, &mut on_read, &mut verdict) {
            Ok(()) => {}
            Err(Interruption::Faulty(fault)) => verdict.fail(fault),
            Err(Interruption::Unreadable(error)) => return Err(error),
        }
        Ok(verdict)
    }

    fn check(
        &mut self,
        expectations: &Expectations,
        on_read: &mut dyn FnMut(u64),
        verdict: &mut Verdict,
    ) -> Result<(), Interruption> {
        self.source.check_names()?;
        let entries = {
            let part = self.source.open(ENTRIES, on_read)?;
            let mut lines = Lines(BufReader::with_capacity(BUFFER_BYTES, part));
            *verdict = audit(&mut lines, expectations)?;
            if let Some(fault) = &mut verdict.fault {
                fault.file = Some(ENTRIES.into());
                return Ok(());
            }
            lines.0.into_inner().measure()
        };
        let (pem, public_key) = self.source.open(PUBLIC_KEY, on_read)?.into_text()?;
        let (manifest, _) = self.source.open(MANIFEST, on_read)?.into_text()?;
        self.source.finish()?;

        let manifest = Manifest::parse(&manifest)?;
        for (name, found) in [(ENTRIES, entries), (PUBLIC_KEY, public_key)] {
            if manifest.files.get(name) != Some(&found) {
                let detail = format!("{} bytes with SHA-256 {}", found.bytes, found.sha256);
                return Err(Fault::new(Code::BundleFile).within(name).because(detail).into());
            }
        }
        let disagreement = |member| Fault::new(Code::Manifest).within(MANIFEST).at(member);
        if verdict.origin.as_ref().is_some_and(|origin| *origin != manifest.origin) {
            return Err(disagreement("/origin").into());
        }
        if verdict.first != Some(manifest.first) {
            return Err(disagreement("/first").into());
        }
        if verdict.count != manifest.count {
            return Err(disagreement("/count").into());
        }
        if expectations.origin.as_ref().is_some_and(|origin| *origin != manifest.origin) {
            return Err(Fault::new(Code::Origin).within(MANIFEST).at("/origin").into());
        }
        let key = std::str::from_utf8(&pem).ok().and_then(|pem| PublicKey::from_pem(pem).ok());
        if key.as_ref() != Some(expectations.keys.first()) {
            return Err(Fault::new(Code::GenesisKey).within(PUBLIC_KEY).into());
        }
        verdict.origin.get_or_insert(manifest.origin);
        verdict.checked.push("the bundle's files are those that its manifest names, byte for byte".into());
        Ok(())
    }
}

/// The lines of `entries.jsonl`, without their line feeds. However long a line is, little more
/// than the longest entry is held of it.
struct Lines<'a>(BufReader<Part<'a>>);

impl Iterator for Lines<'_> {
    type Item = Result<Vec<u8>, Interruption>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::with_capacity(2_048);
        let longest = MAX_ENTRY_BYTES as u64 + 1;
        match (&mut self.0).take(longest).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(end_of_line(line).map_err(Interruption::from)),
            Err(error) => Some(Err(error.into())),
        }
    }
}

fn end_of_line(mut line: Vec<u8>) -> Result<Vec<u8>, Fault> {
    let wrong = |detail| Err(Fault::new(Code::LineEnding).because(detail));
    match line.pop() {
        Some(b'\n') => {}
        _ if line.len() >= MAX_ENTRY_BYTES => return Err(Fault::new(Code::EntryTooLarge)),
        _ => return wrong("the last line has none"),
    }
    match line.last() {
        None => wrong("an empty line"),
        Some(b'\r') => wrong("a carriage return before the line feed"),
        Some(_) => Ok(line),
    }
}

/// Where the files come from, which are opened in the order of [`FILES`], each read to its end.
#[derive(Debug)]
enum Source {
    Directory(PathBuf),
    Tar(Tar<File>),
}

impl Source {
    /// Refuses a directory that holds anything but the files of the table. (A tar's names are
    /// seen as they come.)
    fn check_names(&self) -> Result<(), Interruption> {
        let Source::Directory(dir) = self else { return Ok(()) };
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            found.push((entry.file_name().to_string_lossy().into_owned(), entry.file_type()?));
        }
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (name, kind) in &found {
            if !FILES.contains(&name.as_str()) {
                return Err(strange(name, "no file of a bundle"));
            }
            if !kind.is_file() {
                return Err(strange(name, "not a regular file"));
            }
        }
        match FILES.iter().find(|file| !found.iter().any(|(name, _)| name == *file)) {
            Some(missing) => Err(strange(missing, "missing")),
            None => Ok(()),
        }
    }

    fn open<'a>(&'a mut self, name: &str, on_read: &'a mut dyn FnMut(u64)) -> Result<Part<'a>, Interruption> {
        let reader: Box<dyn Read + 'a> = match self {
            Source::Directory(dir) => Box::new(File::open(dir.join(name))?),
            Source::Tar(tar) => {
                tar.open(name)?;
                Box::new(tar)
            }
        };
        Ok(Part { reader, hasher: Hasher::new(), bytes: 0, on_read })
    }

    fn finish(&mut self) -> Result<(), Interruption> {
        match self {
            Source::Directory(_) => Ok(()),
            Source::Tar(tar) => tar.finish(),
        }
    }
}

fn strange(name: &str, detail: &str) -> Interruption {
    Fault::new(Code::BundleFile).within(name).because(detail).into()
}

/// One file of a bundle, measured as it is read.
struct Part<'a> {
    reader: Box<dyn Read + 'a>,
    hasher: Hasher,
    bytes: u64,
    on_read: &'a mut dyn FnMut(u64),
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        (self.on_read)(count as u64);
        Ok(count)
    }
}

impl Part<'_> {
    fn measure(self) -> Measure {
        Measure { sha256: self.hasher.finish(), bytes: self.bytes }
    }

    /// The whole of a small file.
    fn into_text(mut self) -> Result<(Vec<u8>, Measure), Interruption> {
        let mut text = Vec::new();
        (&mut self).take(MAX_SMALL_FILE_BYTES + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MAX_SMALL_FILE_BYTES {
            return Err(Fault::new(Code::BundleFile).because("a file that is too large").into());
        }
        Ok((text, self.measure()))
    }
}

/// A tar that is read from front to back: regular files with the names of the table, in its order,
/// zeros between and behind them, and nothing else. Extended headers, links and folders have no
/// place in it, so there is no name or size that two programs could understand differently.
#[derive(Debug)]
struct Tar<R> {
    reader: R,
    /// Bytes of the current file that were not read yet, and of the zeros that fill its last block.
    left: u64,
    padding: usize,
}

impl<R: Read> Tar<R> {
    fn new(reader: R) -> Self {
        Tar { reader, left: 0, padding: 0 }
    }

    /// Goes on to the file `name`, which must come next.
    fn open(&mut self, name: &str) -> Result<(), Interruption> {
        let block = self.next_block()?;
        let header = tar::Header::from_byte_slice(&block);
        if block == [0; BLOCK] {
            return Err(strange(name, "missing"));
        }
        if !has_sound_checksum(&block) {
            return Err(strange(name, "no tar header with a sound checksum stands in its place"));
        }
        let found = String::from_utf8_lossy(&header.path_bytes()).into_owned();
        if found != name {
            return Err(strange(&found, &format!("found where {name} should stand")));
        }
        if header.entry_type() != tar::EntryType::Regular {
            return Err(strange(name, "not a regular file"));
        }
        self.left = header.entry_size().map_err(|_| strange(name, "its size is not a number"))?;
        self.padding = (BLOCK - (self.left % BLOCK as u64) as usize) % BLOCK;
        Ok(())
    }

    /// Makes sure that nothing follows.
    fn finish(&mut self) -> Result<(), Interruption> {
        let mut block = self.next_block()?;
        loop {
            if block.iter().any(|byte| *byte != 0) {
                return Err(strange("", "something follows the last file of the tar"));
            }
            match self.reader.read(&mut block)? {
                0 => return Ok(()),
                count => block[count..].fill(0),
            }
        }
    }

    /// The block behind the current file.
    fn next_block(&mut self) -> Result<[u8; BLOCK], Interruption> {
        let mut block = [0; BLOCK];
        let padding = std::mem::take(&mut self.padding);
        for part in [padding, BLOCK] {
            if self.left > 0 || !fill(&mut self.reader, &mut block[..part])? {
                return Err(strange("", "the tar breaks off"));
            }
            if part == padding && block[..part].iter().any(|byte| *byte != 0) {
                return Err(strange("", "something is hidden between the files of the tar"));
            }
        }
        Ok(block)
    }
}

impl<R: Read> Read for Tar<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.reader.read(&mut buffer[..most])?;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Whether a header's checksum is the sum of its bytes, in one of the two spellings that there are:
/// GNU's and POSIX's, or that of the `tar` crate.
fn has_sound_checksum(block: &[u8; BLOCK]) -> bool {
    const FIELD: std::ops::Range<usize> = 148..156;
    // The field itself counts as spaces.
    let outside: u32 = block.iter().map(|byte| u32::from(*byte)).sum::<u32>()
        - block[FIELD].iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let sum = outside + 8 * u32::from(b' ');
    [format!("{sum:06o}\0 "), format!("{sum:07o}\0")].iter().any(|text| text.as_bytes() == &block[FIELD])
}

/// Fills `buffer`; false when the source ends before.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a bundle as a directory. Until [`DirectoryWriter::finish`] has returned there is no
/// manifest in it, so a reader cannot take the unfinished for a bundle.
pub struct DirectoryWriter {
    dir: PathBuf,
    first: u64,
    count: u64,
    entries: NewFile,
}

impl DirectoryWriter {
    /// Begins a bundle, of entries from sequence number `first` on, in the new or empty directory `dir`.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] when `dir` is anything else; else what the system says.
    pub fn create(dir: &Path, first: u64) -> io::Result<Self> {
        let entries = NewFile::create(&new_directory(dir)?, ENTRIES)?;
        Ok(DirectoryWriter { dir: dir.into(), first, count: 0, entries })
    }

    /// Adds the next entry's line, without line feed.
    ///
    /// # Errors
    /// What the system says.
    pub fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.entries.write_all(line)?;
        self.entries.write_all(b"\n")?;
        self.count += 1;
        Ok(())
    }

    /// Writes the other files, the manifest last. When it returns, the bundle is durable.
    ///
    /// # Errors
    /// What the system says. The directory then holds no manifest.
    pub fn finish(self, origin: &str, key: &PublicKey) -> io::Result<Manifest> {
        let entries = self.entries.commit()?;
        let mut pem = NewFile::create(&self.dir, PUBLIC_KEY)?;
        pem.write_all(key.to_pem().as_bytes())?;
        let pem = pem.commit()?;
        let manifest = Manifest::of(origin, self.first, self.count, entries, pem);
        let mut file = NewFile::create(&self.dir, MANIFEST)?;
        file.write_all(manifest.to_line().as_bytes())?;
        file.commit()?;
        Ok(manifest)
    }
}

/// Writes a bundle as a tar. The same entries always make the same bytes.
pub struct TarWriter<W> {
    out: W,
    first: u64,
    count: u64,
    /// What was promised in the header.
    size: u64,
    bytes: u64,
    hasher: Hasher,
}

impl<W: Write> TarWriter<W> {
    /// Begins a bundle of entries from sequence number `first` on, whose lines have `size` bytes
    /// with their line feeds.
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(mut out: W, first: u64, size: u64) -> io::Result<Self> {
        out.write_all(tar_header(ENTRIES, size).as_bytes())?;
        Ok(TarWriter { out, first, count: 0, size, bytes: 0, hasher: Hasher::new() })
    }

    /// Adds the next entry's line, without line feed.
    ///
    /// # Errors
    /// What `out` says, or [`io::ErrorKind::InvalidInput`] when the lines are more than promised.
    pub fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.bytes += line.len() as u64 + 1;
        if self.bytes > self.size {
            return Err(broken_promise());
        }
        self.count += 1;
        for part in [line, b"\n"] {
            self.hasher.update(part);
            self.out.write_all(part)?;
        }
        Ok(())
    }

    /// Writes the other files, the manifest last, and gives `out` back.
    ///
    /// # Errors
    /// What `out` says, or [`io::ErrorKind::InvalidInput`] when the lines are fewer than promised.
    pub fn finish(mut self, origin: &str, key: &PublicKey) -> io::Result<W> {
        if self.bytes != self.size {
            return Err(broken_promise());
        }
        pad(&mut self.out, self.size)?;
        let entries = Measure { sha256: self.hasher.finish(), bytes: self.bytes };
        let pem = key.to_pem();
        let measure = Measure { sha256: Digest::of(pem.as_bytes()), bytes: pem.len() as u64 };
        let manifest = Manifest::of(origin, self.first, self.count, entries, measure);
        for (name, text) in [(PUBLIC_KEY, pem), (MANIFEST, manifest.to_line())] {
            self.out.write_all(tar_header(name, text.len() as u64).as_bytes())?;
            self.out.write_all(text.as_bytes())?;
            pad(&mut self.out, text.len() as u64)?;
        }
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Unpacks a tar into the new or empty directory `dir`, the manifest last, and holds the files
/// against it. Whether the entries are sound is not looked at. `on_read` hears of what was read,
/// by the name of the file. After an error `dir` is as it was.
///
/// # Errors
/// When the tar is not a bundle's, or when it cannot be read or the files cannot be written.
pub fn unpack(
    tar: impl Read,
    dir: &Path,
    on_read: impl FnMut(&str, &[u8]),
) -> Result<Manifest, Interruption> {
    let existed = dir.exists();
    let dir = new_directory(dir)?;
    let unpacked = unpack_into(Tar::new(tar), &dir, on_read);
    if unpacked.is_err() {
        for name in FILES {
            // What was not written yet need not be removed.
            let _ = fs::remove_file(dir.join(name));
        }
        if !existed {
            let _ = fs::remove_dir(&dir);
        }
    }
    unpacked
}

fn unpack_into(
    mut tar: Tar<impl Read>,
    dir: &Path,
    mut on_read: impl FnMut(&str, &[u8]),
) -> Result<Manifest, Interruption> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut measures = BTreeMap::new();
    for name in [ENTRIES, PUBLIC_KEY] {
        tar.open(name)?;
        let mut file = NewFile::create(dir, name)?;
        loop {
            match tar.read(&mut buffer)? {
                0 => break,
                count => {
                    file.write_all(&buffer[..count])?;
                    on_read(name, &buffer[..count]);
                }
            }
        }
        measures.insert(name.to_owned(), file.commit()?);
    }
    tar.open(MANIFEST)?;
    let mut text = Vec::new();
    (&mut tar).take(MAX_SMALL_FILE_BYTES).read_to_end(&mut text)?;
    tar.finish()?;
    let manifest = Manifest::parse(&text)?;
    if manifest.files != measures {
        return Err(Fault::new(Code::BundleFile).because("the files do not match the manifest").into());
    }
    let mut file = NewFile::create(dir, MANIFEST)?;
    file.write_all(&text)?;
    file.commit()?;
    Ok(manifest)
}

impl Manifest {
    fn of(origin: &str, first: u64, count: u64, entries: Measure, pem: Measure) -> Self {
        let files = BTreeMap::from([(ENTRIES.into(), entries), (PUBLIC_KEY.into(), pem)]);
        Manifest { origin: origin.into(), first, count, files }
    }
}

/// Makes `dir`, or finds it empty.
fn new_directory(dir: &Path) -> io::Result<PathBuf> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !dir.is_dir() || fs::read_dir(dir)?.next().is_some() {
                return Err(error);
            }
        }
        outcome => outcome?,
    }
    Ok(dir.into())
}

/// A file under a temporary name until it is durable.
struct NewFile {
    out: BufWriter<File>,
    temporary: PathBuf,
    path: PathBuf,
    hasher: Hasher,
    bytes: u64,
}

impl NewFile {
    fn create(dir: &Path, name: &str) -> io::Result<Self> {
        let temporary = dir.join(format!(".{name}.partial"));
        let file = File::create_new(&temporary)?;
        let out = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(NewFile { out, temporary, path: dir.join(name), hasher: Hasher::new(), bytes: 0 })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Gives the file its name. The content is durable before the name is, and the name after.
    fn commit(mut self) -> io::Result<Measure> {
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        fs::rename(&self.temporary, &self.path)?;
        if let Some(dir) = self.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(Measure { sha256: std::mem::take(&mut self.hasher).finish(), bytes: self.bytes })
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Gone already where it was given its name.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn tar_header(name: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    // The names of the table are far shorter than the 100 bytes of the field.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    header
}

fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    out.write_all(&[0; BLOCK][..(BLOCK - (size % BLOCK as u64) as usize) % BLOCK])
}

fn broken_promise() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the entries have another size than the tar's header says")
}
