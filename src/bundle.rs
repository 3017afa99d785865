//! The bundle: what a ledger, or a range of it, is handed to an outsider as. A directory, or the
//! same files in a tar, in this order:
//!
//! ```text
//! entries.jsonl      each entry its canonical form and one line feed
//! public-key.pem     the first key, for convenience: trust comes from outside
//! checkpoint         the newest checkpoint, a signed note
//! checkpoints.jsonl  every checkpoint that an entry's signature is of: each line a JSON string
//! proofs.json        only for a part: what ties it to the checkpoint
//! manifest.json      {"count":2,"files":{"checkpoint":{"bytes":193,"sha256":"…"},…},"first":0,…}
//! ```
//!
//! Writers put the manifest last, so what broke off has none. The reader refuses whatever is not in
//! the table. Whether the entries are sound is the work of [`crate::audit`]; this module says
//! whether the files around them are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::audit::{
    Before, Expectations, Fault, Grown, Interruption, Notes, TrustedKeys, Verdict, check_entry, check_known,
    check_newest, origin_of, read_note, rebuild,
};
use crate::governance::governor::Governor;
use crate::ledger::canonical::MAX_ENTRY_BYTES;
use crate::ledger::checkpoint::{MAX_NOTE_BYTES, Note};
use crate::ledger::code::Code;
use crate::ledger::entry::{EntryView, Sequence};
use crate::ledger::hash::{Digest, Hasher};
use crate::ledger::json;
use crate::ledger::key::{PublicKey, is_origin};
use crate::ledger::merkle::{Frontier, NodeHash, Root, TreeSize, verify_inclusion};

/// The entries.
pub const ENTRIES: &str = "entries.jsonl";
/// The first key.
pub const PUBLIC_KEY: &str = "public-key.pem";
/// The newest checkpoint.
pub const CHECKPOINT: &str = "checkpoint";
/// The checkpoints that entries refer to.
pub const CHECKPOINTS: &str = "checkpoints.jsonl";
/// What ties a part of a ledger to the checkpoint; the only file that not every bundle has.
pub const PROOFS: &str = "proofs.json";
/// What the other files are.
pub const MANIFEST: &str = "manifest.json";
/// The files of a bundle, in the order of the tar.
pub const FILES: [&str; 6] = [ENTRIES, PUBLIC_KEY, CHECKPOINT, CHECKPOINTS, PROOFS, MANIFEST];

const FORMAT: &str = "attestd-bundle/1";

/// Files that are held in memory are no larger: notes, a key, the manifest.
const MAX_SMALL_FILE_BYTES: u64 = 4 << 20;

/// The proofs may be larger, for the entries in them: 16 MiB of lines, which in a JSON string become
/// twice as much at most, and of each the path in the largest tree that there will be.
const MAX_PROOFS_BYTES: u64 = 96 << 20;

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
        for name in FILES.into_iter().filter(|name| *name != MANIFEST) {
            let file = match json::member(list, name) {
                None if name == PROOFS => continue,
                file => file.filter(|file| file.starts_with('{'))?,
            };
            let sha256 = json::unquote(json::member(file, "sha256")?.as_bytes());
            let measure =
                Measure { sha256: Digest::from_hex(sha256.as_bytes())?, bytes: number(file, "bytes")? };
            files.insert(name.into(), measure);
        }
        let origin = text("origin").filter(|origin| is_origin(origin) && !origin.contains(['"', '\\']))?;
        Some(Manifest { origin, first: number(object, "first")?, count: number(object, "count")?, files })
    }
}

/// `proofs.json`: what ties a range that does not begin at 0, or that ends before the newest
/// checkpoint, to that checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proofs {
    /// The complete subtrees of the tree before the first entry, largest first.
    pub left: Vec<NodeHash>,
    /// The consistency proof between the range's end and the newest checkpoint, where the range does
    /// not reach from one to the other.
    pub consistency: Vec<NodeHash>,
    /// The consistency proof from the range's end to the checkpoint that signs its last entries, where
    /// the range ends within a commit.
    pub commit: Option<Vec<NodeHash>>,
    /// The entries from outside the range that are needed to judge it, in their order.
    pub context: Vec<Context>,
}

/// An entry from outside the range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Its canonical line.
    pub entry: String,
    /// Its sequence number.
    pub index: u64,
    /// Its inclusion path in the tree of the newest checkpoint.
    pub path: Vec<NodeHash>,
}

impl Proofs {
    /// The content of the file: canonical JSON and a line feed.
    #[must_use]
    pub fn to_line(&self) -> String {
        let hashes = |hashes: &[NodeHash]| {
            let quoted: Vec<String> = hashes.iter().map(|hash| format!("\"{hash}\"")).collect();
            format!("[{}]", quoted.join(","))
        };
        let context: Vec<String> = self
            .context
            .iter()
            .map(|Context { entry, index, path }| {
                format!(r#"{{"entry":{},"index":{index},"path":{}}}"#, quote(entry), hashes(path))
            })
            .collect();
        format!(
            "{{\"commit\":{},\"consistency\":{},\"context\":[{}],\"left\":{}}}\n",
            self.commit.as_deref().map_or_else(|| "null".into(), hashes),
            hashes(&self.consistency),
            context.join(","),
            hashes(&self.left),
        )
    }

    /// Reads the content of the file.
    ///
    /// # Errors
    /// [`Code::TreeProof`] for anything but what [`Proofs::to_line`] gives.
    pub fn parse(text: &[u8]) -> Result<Self, Fault> {
        let wrong = |detail: String| Fault::new(Code::TreeProof).within(PROOFS).because(detail);
        let line = text.strip_suffix(b"\n").ok_or_else(|| wrong("no line feed at its end".into()))?;
        let line = json::canonicalize(line).map_err(|fault| wrong(fault.to_string()))?;
        Self::read(&line)
            .filter(|proofs| proofs.to_line().as_bytes() == text)
            .ok_or_else(|| wrong("not canonical, or its members are not those of the format".into()))
    }

    /// What a canonical text seems to say.
    fn read(text: &str) -> Option<Self> {
        let object = |text: &str| text.starts_with('{').then_some(());
        let elements = |text: &'_ str| text.starts_with('[').then(|| text.to_owned());
        let hashes = |text: &str| -> Option<Vec<NodeHash>> {
            let digest = |hash: &str| Digest::from_hex(json::unquote(hash.as_bytes()).as_bytes());
            json::elements(&elements(text)?)
                .map(|hash| hash.starts_with('"').then(|| digest(hash).map(NodeHash)).flatten())
                .collect()
        };
        object(text)?;
        let commit = match json::member(text, "commit")? {
            "null" => None,
            path => Some(hashes(path)?),
        };
        let mut context = Vec::new();
        for element in json::elements(&elements(json::member(text, "context")?)?) {
            object(element)?;
            let entry = json::member(element, "entry").filter(|entry| entry.starts_with('"'))?;
            context.push(Context {
                entry: json::unquote(entry.as_bytes()),
                index: json::member(element, "index")?.parse().ok()?,
                path: hashes(json::member(element, "path")?)?,
            });
        }
        Some(Proofs {
            left: hashes(json::member(text, "left")?)?,
            consistency: hashes(json::member(text, "consistency")?)?,
            commit,
            context,
        })
    }
}

/// The line of `checkpoints.jsonl` that holds `note`, with its line feed.
#[must_use]
pub fn checkpoint_line(note: &Note) -> String {
    quote(note.as_str()) + "\n"
}

fn quote(text: &str) -> String {
    let mut quoted = Vec::with_capacity(text.len() + 16);
    json::write_string(text, &mut quoted);
    json::into_string(quoted)
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
        if !metadata.is_file() {
            let detail = "a tar must be a file: save what comes through a pipe first";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, detail));
        }
        let source = Source::Tar { file: File::open(path)?, parts: Vec::new() };
        Ok(Bundle { source, bytes: metadata.len() })
    }

    /// About how many bytes [`Bundle::verify`] will read.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The note in `checkpoint` and the key in `public-key.pem`, as they are: nothing is verified.
    ///
    /// # Errors
    /// When they are not there, or are none.
    pub fn claims(&mut self) -> Result<(Note, PublicKey), Interruption> {
        self.source.find()?;
        let (note, _) = self.source.open(CHECKPOINT, &mut |_| {})?.into_text()?;
        let note = parse_note(&note)?;
        let (pem, _) = self.source.open(PUBLIC_KEY, &mut |_| {})?.into_text()?;
        let key = read_pem(&pem).ok_or_else(|| Fault::new(Code::GenesisKey).within(PUBLIC_KEY))?;
        Ok((note, key))
    }

    /// Checks the entries, then the files around them. `on_read` hears of bytes read.
    ///
    /// # Errors
    /// When it could not look, because a file cannot be read. A bundle that is wrong gets a [`Verdict`].
    pub fn verify(self, expectations: &Expectations, on_read: impl FnMut(u64)) -> io::Result<Verdict> {
        self.verify_with_roots(expectations, &[], on_read).map(|(verdict, _)| verdict)
    }

    /// [`Bundle::verify`] that also gives the roots that the tree had at `sizes`, as far as the
    /// entries show them.
    ///
    /// # Errors
    /// As [`Bundle::verify`].
    pub fn verify_with_roots(
        mut self,
        expectations: &Expectations,
        sizes: &[TreeSize],
        mut on_read: impl FnMut(u64),
    ) -> io::Result<(Verdict, Vec<Root>)> {
        let mut verdict = Verdict::unseen(&expectations.keys);
        let mut roots = Vec::new();
        match self.check(expectations, sizes, &mut on_read, &mut verdict, &mut roots) {
            Ok(()) => {}
            Err(Interruption::Faulty(fault)) => verdict.fail(fault),
            Err(Interruption::Unreadable(error)) => return Err(error),
        }
        Ok((verdict, roots))
    }

    fn check(
        &mut self,
        expectations: &Expectations,
        sizes: &[TreeSize],
        on_read: &mut dyn FnMut(u64),
        verdict: &mut Verdict,
        roots: &mut Vec<Root>,
    ) -> Result<(), Interruption> {
        let has_proofs = self.source.find()?;
        let (pem, pem_measure) = self.source.open(PUBLIC_KEY, on_read)?.into_text()?;
        let (note, note_measure) = self.source.open(CHECKPOINT, on_read)?.into_text()?;
        let (manifest, _) = self.source.open(MANIFEST, on_read)?.into_text()?;
        let mut measures =
            BTreeMap::from([(PUBLIC_KEY.to_owned(), pem_measure), (CHECKPOINT.to_owned(), note_measure)]);
        let mut expectations = expectations.clone();
        let mut proofs = None;
        if has_proofs {
            let (text, measure) = self.source.open(PROOFS, on_read)?.into_text_up_to(MAX_PROOFS_BYTES)?;
            measures.insert(PROOFS.to_owned(), measure);
            let found = Proofs::parse(&text)?;
            let manifest = Manifest::parse(&manifest)?;
            expectations.before = found.before(&manifest, &note, &expectations)?;
            proofs = Some(found);
        }
        let proofs = proofs.as_ref();

        // Whether it is to be believed is looked at when the entries have shown whose it is.
        let newest = Note::parse(&note).ok().map(|note| note.checkpoint().root().size);
        let known = expectations.known.as_ref().map(|note| note.checkpoint().root().size);
        let wanted = sizes.iter().copied().chain(newest).chain(known).collect();
        let may_go_on = proofs.is_some_and(|proofs| proofs.commit.is_some());
        let grown = {
            let part = self.source.open(ENTRIES, on_read)?;
            let mut lines = Lines(BufReader::with_capacity(BUFFER_BYTES, part));
            let (found, grown) = rebuild(&mut lines, &expectations, wanted, may_go_on)?;
            *verdict = found;
            if let Some(fault) = &mut verdict.fault {
                fault.file = Some(ENTRIES.into());
                return Ok(());
            }
            measures.insert(ENTRIES.to_owned(), lines.0.into_inner().measure());
            grown.ok_or_else(|| Fault::new(Code::Empty).within(ENTRIES))?
        };
        if let Some(before) = &expectations.before {
            verdict.origin.get_or_insert_with(|| before.origin.clone());
            verdict
                .checked
                .push(format!("the genesis of {}, and that the range is of its ledger", before.origin));
        } else if verdict.first != Some(0) {
            let detail = "missing, and so is all that ties this part to the ledger";
            return Err(Fault::new(Code::TreeProof).within(PROOFS).because(detail).into());
        }

        // Notes are judged by all keys up to the newest checkpoint, also by those after the range.
        let keys = match proofs {
            Some(proofs) => &proofs.keys_after(&grown, verdict.origin.as_deref(), &note)?,
            None => &grown.keys.clone(),
        };
        let origin = verdict.origin.clone();
        let origin = origin.as_deref();
        let end = grown.root.map_or(TreeSize::EMPTY, |root| root.size);
        let newest = read_note(&note, origin, keys)
            .and_then(|(note, _)| {
                let root = note.checkpoint().root();
                let path = proofs.map(|proofs| &proofs.consistency[..]);
                check_newest(root, &grown, path, verdict, keys).map(|()| root)
            })
            .map_err(|fault| fault.within(CHECKPOINT))?;
        if has_proofs && verdict.first == Some(0) && newest.size <= end {
            return Err(strange(PROOFS, "a bundle from 0 to its checkpoint has none"));
        }
        roots.extend(grown.passed.iter().map(|passed| passed.root));
        if let Some(known) = &expectations.known {
            check_known(known, &grown, Some(newest), verdict, keys)?;
        }
        let commit = proofs.and_then(|proofs| proofs.commit.as_deref());
        let measure = self.check_notes(keys, origin, end, on_read, |notes| notes.finish(grown, commit))?;
        measures.insert(CHECKPOINTS.to_owned(), measure);

        let manifest = Manifest::parse(&manifest)?;
        if let Some(name) = FILES.iter().find(|name| manifest.files.get(**name) != measures.get(**name)) {
            let detail = match measures.get(*name) {
                Some(found) => format!("{} bytes with SHA-256 {}", found.bytes, found.sha256),
                None => "the manifest names it".into(),
            };
            return Err(Fault::new(Code::BundleFile).within(name).because(detail).into());
        }
        let disagreement = |member| Fault::new(Code::Manifest).within(MANIFEST).at(member);
        if origin != Some(&manifest.origin) {
            return Err(disagreement("/origin").into());
        }
        if verdict.first != Some(manifest.first) {
            return Err(disagreement("/first").into());
        }
        if verdict.count != manifest.count {
            return Err(disagreement("/count").into());
        }
        if read_pem(&pem).as_ref() != Some(expectations.keys.first()) {
            return Err(Fault::new(Code::GenesisKey).within(PUBLIC_KEY).into());
        }
        verdict.checked.push("the bundle's files are those that its manifest names, byte for byte".into());
        Ok(())
    }

    /// Checks `checkpoints.jsonl`, one note after the other.
    fn check_notes(
        &mut self,
        keys: &TrustedKeys,
        origin: Option<&str>,
        end: TreeSize,
        on_read: &mut dyn FnMut(u64),
        finish: impl FnOnce(Notes) -> Result<(), Fault>,
    ) -> Result<Measure, Interruption> {
        let part = self.source.open(CHECKPOINTS, on_read)?;
        let mut lines = Lines(BufReader::with_capacity(BUFFER_BYTES, part));
        let mut notes = Notes::default();
        for (number, line) in (1..).zip(&mut lines) {
            let at = |mut fault: Fault| {
                fault.line = Some(number);
                fault.within(CHECKPOINTS)
            };
            let line = line.map_err(|interruption| match interruption {
                Interruption::Faulty(fault) => at(fault).into(),
                unreadable => unreadable,
            })?;
            unquote_note(&line).and_then(|note| notes.add(note.as_bytes(), origin, keys, end)).map_err(at)?;
        }
        finish(notes).map_err(|fault| fault.within(CHECKPOINTS))?;
        Ok(lines.0.into_inner().measure())
    }
}

/// The note in a line of `checkpoints.jsonl`.
fn unquote_note(line: &[u8]) -> Result<String, Fault> {
    let wrong = |detail: String| Fault::new(Code::Note).because(detail);
    if line.len() > 2 * MAX_NOTE_BYTES {
        return Err(wrong("too long".into()));
    }
    let canonical = json::canonicalize(line).map_err(|fault| wrong(fault.to_string()))?;
    if canonical.as_bytes() != line || !canonical.starts_with('"') {
        return Err(wrong("the line is not a JSON string in canonical form".into()));
    }
    Ok(json::unquote(line))
}

fn read_pem(pem: &[u8]) -> Option<PublicKey> {
    std::str::from_utf8(pem).ok().and_then(|pem| PublicKey::from_pem(pem).ok())
}

impl Proofs {
    /// What came before the first entry, where that is not entry 0: shown by the genesis, which must be
    /// under the checkpoint `note`. That `left` is right only the root of the range can show.
    fn before(
        &self,
        manifest: &Manifest,
        note: &[u8],
        expectations: &Expectations,
    ) -> Result<Option<Before>, Fault> {
        let wrong = |detail: String| Fault::new(Code::TreeProof).within(PROOFS).because(detail);
        let range = manifest.first..manifest.first.saturating_add(manifest.count);
        if manifest.first > 0 && self.context.first().is_none_or(|context| context.index != 0) {
            return Err(wrong("the genesis is missing in `context`".into()));
        }
        let mut next = 0;
        let mut genesis = None;
        let mut governor = Governor::new();
        // By whom it must be signed is known when all entries were read.
        let note = parse_note(note)?;
        for context in &self.context {
            let index = context.index;
            if index < next || range.contains(&index) {
                return Err(wrong(format!("entry {index} is out of order, or not outside the range")));
            }
            next = index.saturating_add(1);
            if index >= range.end {
                continue;
            }
            let keys = TrustedKeys::following(&governor.standing().keys);
            let entry = context.check(keys.as_ref().unwrap_or(&expectations.keys), &note)?;
            governor.follow(&entry).map_err(|refusal| context.blame(refusal.into()))?;
            if index == 0 {
                let origin = origin_of(&entry).unwrap_or_default();
                for expected in
                    expectations.origin.iter().map(String::as_str).chain([note.checkpoint().origin()])
                {
                    if origin != expected {
                        let detail = format!("`{origin}` instead of `{expected}`");
                        return Err(Fault::new(Code::Origin).within(PROOFS).because(detail));
                    }
                }
                if expectations.genesis.is_some_and(|expected| expected != entry.entry_hash) {
                    return Err(Fault::new(Code::GenesisHash).within(PROOFS));
                }
                genesis = Some(origin);
            }
        }
        let tree = TreeSize::new(manifest.first)
            .and_then(|size| Frontier::from_peaks(size, self.left.clone()))
            .ok_or_else(|| {
                wrong(format!("`left` has {} hashes for a tree of {}", self.left.len(), manifest.first))
            })?;
        // A range that begins at 0 has nothing before it.
        Ok(genesis.map(|origin| Before { origin, tree, governor }))
    }

    /// The keys up to the newest checkpoint: those of the range, and those that entries after it name.
    fn keys_after(&self, grown: &Grown, origin: Option<&str>, note: &[u8]) -> Result<TrustedKeys, Fault> {
        let end = grown.root.map_or(0, |root| root.size.leaves());
        let mut keys = grown.keys.clone();
        for context in self.context.iter().filter(|context| context.index >= end) {
            let entry = context.check(&keys, &parse_note(note)?)?;
            let mut ring = (**keys.keyring()).clone();
            if entry.is_daemons() {
                ring.follow(&entry, origin.unwrap_or_default())
                    .map_err(|refusal| context.blame(refusal.into()))?;
            }
            keys = TrustedKeys::following(&Arc::new(ring)).unwrap_or(keys);
        }
        let newest = Note::parse(note).map_or(0, |note| note.checkpoint().root().size.leaves());
        let waits = keys.keyring().terms().last().filter(|_| keys.keyring().is_waiting());
        match waits.filter(|term| term.first.0 < newest) {
            Some(term) => Err(Fault::new(Code::KeyActivation)
                .within(PROOFS)
                .because(format!("entry {}, which the checkpoint covers, is not shown", term.first))),
            None => Ok(keys),
        }
    }
}

impl Context {
    /// The entry, if it is sound by itself and under the checkpoint `note`, which nobody has believed yet.
    fn check(&self, keys: &TrustedKeys, note: &Note) -> Result<EntryView<'_>, Fault> {
        let Context { entry, index, path } = self;
        let wrong = |detail: String| Fault::new(Code::TreeProof).within(PROOFS).because(detail);
        let entry = check_entry(entry.as_bytes(), keys).map_err(|fault| self.blame(fault))?;
        if entry.sequence_number != Sequence(*index) {
            return Err(wrong(format!("entry {} as entry {index}", entry.sequence_number)));
        }
        verify_inclusion(entry.entry_hash, *index, path, &note.checkpoint().root())
            .map_err(|fault| wrong(format!("that entry {index} is under the checkpoint: {fault}")))?;
        Ok(entry)
    }

    fn blame(&self, fault: Fault) -> Fault {
        Fault { sequence_number: Some(self.index), ..fault.within(PROOFS) }
    }
}

fn parse_note(note: &[u8]) -> Result<Note, Fault> {
    Note::parse(note).map_err(|fault| Fault::new(Code::Note).within(CHECKPOINT).because(fault))
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

/// Where the files come from.
#[derive(Debug)]
enum Source {
    Directory(PathBuf),
    Tar {
        file: File,
        /// Where each file begins and how long it is, once [`Source::find`] has looked.
        parts: Vec<(&'static str, u64, u64)>,
    },
}

impl Source {
    /// Refuses anything but the files of the table, and says whether the one is there that need not be.
    fn find(&mut self) -> Result<bool, Interruption> {
        match self {
            Source::Directory(dir) => check_names(dir),
            Source::Tar { file, parts } => {
                *parts = index(file)?;
                Ok(parts.iter().any(|(name, ..)| *name == PROOFS))
            }
        }
    }

    /// Opens a file that was found.
    fn open<'a>(&'a self, name: &str, on_read: &'a mut dyn FnMut(u64)) -> Result<Part<'a>, Interruption> {
        let reader: Box<dyn Read + 'a> = match self {
            Source::Directory(dir) => Box::new(File::open(dir.join(name))?),
            Source::Tar { file, parts } => {
                let part = parts.iter().find(|(found, ..)| *found == name);
                let (_, at, bytes) = part.ok_or_else(|| strange(name, "missing"))?;
                Box::new(At { file, at: *at }.take(*bytes))
            }
        };
        Ok(Part { reader, hasher: Hasher::new(), bytes: 0, on_read })
    }
}

fn check_names(dir: &Path) -> Result<bool, Interruption> {
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
    let is_there = |file: &str| found.iter().any(|(name, _)| name == file);
    match FILES.iter().find(|file| **file != PROOFS && !is_there(file)) {
        Some(missing) => Err(strange(missing, "missing")),
        None => Ok(is_there(PROOFS)),
    }
}

/// Finds the files of a tar without reading what is in them.
fn index(file: &File) -> Result<Vec<(&'static str, u64, u64)>, Interruption> {
    let length = file.metadata()?.len();
    let mut tar = Tar::new(At { file, at: 0 });
    let mut parts = Vec::new();
    while let Some(name) = tar.open_next(&FILES[parts_seen(&parts)..])? {
        if tar.left > length.saturating_sub(tar.reader.at) {
            return Err(strange(name, "the tar breaks off"));
        }
        parts.push((name, tar.reader.at, tar.left));
        tar.reader.at += std::mem::take(&mut tar.left);
    }
    tar.finish()?;
    Ok(parts)
}

/// How many of [`FILES`] may not come any more.
fn parts_seen(parts: &[(&'static str, u64, u64)]) -> usize {
    parts.last().and_then(|(last, ..)| FILES.iter().position(|name| name == last)).map_or(0, |at| at + 1)
}

/// A file from some place on, whatever others read of it.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
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
    fn into_text(self) -> Result<(Vec<u8>, Measure), Interruption> {
        self.into_text_up_to(MAX_SMALL_FILE_BYTES)
    }

    fn into_text_up_to(mut self, limit: u64) -> Result<(Vec<u8>, Measure), Interruption> {
        let mut text = Vec::new();
        (&mut self).take(limit + 1).read_to_end(&mut text)?;
        if text.len() as u64 > limit {
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

    /// Goes on to the next file, which must be the first of `names`, or the one after that where it
    /// need not be there. `None` where `names` is empty.
    fn open_next(&mut self, names: &[&'static str]) -> Result<Option<&'static str>, Interruption> {
        let Some(name) = names.first().copied() else { return Ok(None) };
        let block = self.next_block()?;
        let header = tar::Header::from_byte_slice(&block);
        if block == [0; BLOCK] {
            return Err(strange(name, "missing"));
        }
        if !has_sound_checksum(&block) {
            return Err(strange(name, "no tar header with a sound checksum stands in its place"));
        }
        let found = String::from_utf8_lossy(&header.path_bytes()).into_owned();
        let name = match names {
            [PROOFS, after, ..] if found == *after => after,
            _ if found == name => name,
            _ => return Err(strange(&found, &format!("found where {name} should stand"))),
        };
        if header.entry_type() != tar::EntryType::Regular {
            return Err(strange(name, "not a regular file"));
        }
        self.left = header.entry_size().map_err(|_| strange(name, "its size is not a number"))?;
        self.padding = (BLOCK - (self.left % BLOCK as u64) as usize) % BLOCK;
        Ok(Some(name))
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

/// What a bundle holds beside its entries and the checkpoints that they refer to.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The ledger's name.
    pub origin: String,
    /// The ledger's first key.
    pub key: PublicKey,
    /// Sequence number of the first entry.
    pub first: u64,
    /// The newest checkpoint.
    pub checkpoint: Note,
    /// For a range that does not begin at 0, or that ends before the checkpoint.
    pub proofs: Option<Proofs>,
}

impl Contents {
    /// The files that come between entries and checkpoints, and those that come after.
    fn small_files(&self) -> [(&'static str, Option<String>); 3] {
        [
            (PUBLIC_KEY, Some(self.key.to_pem())),
            (CHECKPOINT, Some(self.checkpoint.as_str().to_owned())),
            (PROOFS, self.proofs.as_ref().map(Proofs::to_line)),
        ]
    }

    fn manifest(&self, count: u64, files: BTreeMap<String, Measure>) -> Manifest {
        Manifest { origin: self.origin.clone(), first: self.first, count, files }
    }
}

/// Writes a bundle as a directory: first the entries, then the checkpoints. Until
/// [`DirectoryWriter::finish`] has returned there is no manifest in it, so a reader cannot take the
/// unfinished for a bundle.
pub struct DirectoryWriter {
    dir: PathBuf,
    contents: Contents,
    count: u64,
    entries: NewFile,
    checkpoints: NewFile,
}

impl DirectoryWriter {
    /// Begins a bundle in the new or empty directory `dir`.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] when `dir` is anything else; else what the system says.
    pub fn create(dir: &Path, contents: Contents) -> io::Result<Self> {
        let dir = new_directory(dir)?;
        let (entries, checkpoints) = (NewFile::create(&dir, ENTRIES)?, NewFile::create(&dir, CHECKPOINTS)?);
        Ok(DirectoryWriter { dir, contents, count: 0, entries, checkpoints })
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

    /// Adds the next checkpoint that entries refer to.
    ///
    /// # Errors
    /// What the system says.
    pub fn append_checkpoint(&mut self, note: &Note) -> io::Result<()> {
        self.checkpoints.write_all(checkpoint_line(note).as_bytes())
    }

    /// Writes the other files, the manifest last. When it returns, the bundle is durable.
    ///
    /// # Errors
    /// What the system says. The directory then holds no manifest.
    pub fn finish(self) -> io::Result<Manifest> {
        let mut measures = BTreeMap::from([
            (ENTRIES.to_owned(), self.entries.commit()?),
            (CHECKPOINTS.to_owned(), self.checkpoints.commit()?),
        ]);
        for (name, text) in self.contents.small_files() {
            if let Some(text) = text {
                measures.insert(name.to_owned(), NewFile::write(&self.dir, name, &text)?);
            }
        }
        let manifest = self.contents.manifest(self.count, measures);
        NewFile::write(&self.dir, MANIFEST, &manifest.to_line())?;
        Ok(manifest)
    }
}

/// How many bytes the large files of a tar have, which it has to say before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// The entries' lines, with their line feeds.
    pub entries: u64,
    /// What [`checkpoint_line`] gives for each checkpoint that they refer to.
    pub checkpoints: u64,
}

/// Writes a bundle as a tar: first the entries, then the checkpoints. The same content always makes
/// the same bytes.
pub struct TarWriter<W> {
    out: W,
    contents: Contents,
    sizes: Sizes,
    count: u64,
    /// What was promised of the file at hand and not written yet, and its hash so far.
    left: u64,
    hasher: Hasher,
    measures: BTreeMap<String, Measure>,
}

impl<W: Write> TarWriter<W> {
    /// Begins a bundle.
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(mut out: W, contents: Contents, sizes: Sizes) -> io::Result<Self> {
        out.write_all(tar_header(ENTRIES, sizes.entries).as_bytes())?;
        Ok(TarWriter {
            out,
            contents,
            sizes,
            count: 0,
            left: sizes.entries,
            hasher: Hasher::new(),
            measures: BTreeMap::new(),
        })
    }

    /// Adds the next entry's line, without line feed.
    ///
    /// # Errors
    /// What `out` says, or [`io::ErrorKind::InvalidInput`] when the lines are more than promised.
    pub fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if !self.measures.is_empty() {
            return Err(broken_promise());
        }
        self.count += 1;
        self.write(line)?;
        self.write(b"\n")
    }

    /// Adds the next checkpoint that entries refer to, after the last entry.
    ///
    /// # Errors
    /// As [`TarWriter::append`].
    pub fn append_checkpoint(&mut self, note: &Note) -> io::Result<()> {
        self.end_entries()?;
        self.write(checkpoint_line(note).as_bytes())
    }

    /// Writes the other files, the manifest last, and gives `out` back.
    ///
    /// # Errors
    /// What `out` says, or [`io::ErrorKind::InvalidInput`] when the lines are fewer than promised.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_entries()?;
        self.end(CHECKPOINTS, self.sizes.checkpoints)?;
        let [_, _, proofs] = self.contents.small_files();
        self.whole(proofs)?;
        let manifest = self.contents.manifest(self.count, std::mem::take(&mut self.measures));
        self.whole((MANIFEST, Some(manifest.to_line())))?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(broken_promise)?;
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }

    /// Goes on from the entries to the checkpoints, unless that is done.
    fn end_entries(&mut self) -> io::Result<()> {
        if !self.measures.is_empty() {
            return Ok(());
        }
        self.end(ENTRIES, self.sizes.entries)?;
        let [key, checkpoint, _] = self.contents.small_files();
        self.whole(key)?;
        self.whole(checkpoint)?;
        self.out.write_all(tar_header(CHECKPOINTS, self.sizes.checkpoints).as_bytes())?;
        self.left = self.sizes.checkpoints;
        Ok(())
    }

    /// Ends the file at hand.
    fn end(&mut self, name: &str, size: u64) -> io::Result<()> {
        if self.left != 0 {
            return Err(broken_promise());
        }
        let hasher = std::mem::take(&mut self.hasher);
        self.measures.insert(name.to_owned(), Measure { sha256: hasher.finish(), bytes: size });
        pad(&mut self.out, size)
    }

    /// Writes a small file from its header to its end.
    fn whole(&mut self, (name, text): (&str, Option<String>)) -> io::Result<()> {
        let Some(text) = text else { return Ok(()) };
        let size = text.len() as u64;
        self.out.write_all(tar_header(name, size).as_bytes())?;
        self.left = size;
        self.write(text.as_bytes())?;
        self.end(name, size)
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
    let mut names = &FILES[..];
    loop {
        let name = tar.open_next(names)?.unwrap_or(MANIFEST);
        if name == MANIFEST {
            break;
        }
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
        let at = FILES.iter().position(|file| *file == name).map_or(FILES.len(), |at| at + 1);
        names = &FILES[at..];
    }
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

    /// The whole of a small file.
    fn write(dir: &Path, name: &str, text: &str) -> io::Result<Measure> {
        let mut file = NewFile::create(dir, name)?;
        file.write_all(text.as_bytes())?;
        file.commit()
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
    io::Error::new(io::ErrorKind::InvalidInput, "a file has another size than the tar's header says")
}
