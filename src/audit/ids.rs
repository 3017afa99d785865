//! Whether entry ids are unique and dependencies name earlier entries, for a ledger of any length
//! in flat memory: an external merge sort of small records.
//!
//! Records are held in memory up to a limit; then they are sorted and appended, as a run, to an
//! unlinked temporary file. At the end the runs are merged, which brings all records of one id
//! together in the order of their lines. Nothing depends on ids being random, so a hostile ledger
//! cannot make it use more.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::ledger::code::Code;
use crate::ledger::entry::EntryId;

/// Records held before they are written out: 8 MiB of them.
const HELD: usize = 1 << 18;

/// What all buffers of a merge take together, as long as each has its least.
const MERGE_BYTES: usize = 8 << 20;
const LEAST_BUFFER: usize = 4 << 10;
const MOST_BUFFER: usize = 64 << 10;

/// One mention of an id. The order of the members is the order of the sort: of one line the
/// dependencies come first, so an entry that depends on itself is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mention {
    pub(super) id: EntryId,
    /// Which entry mentions it, counted from the first that was read.
    pub(super) line: u64,
    /// Whether it is the entry's own id, or else a dependency.
    pub(super) own: bool,
}

impl Mention {
    const BYTES: usize = 25;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.id.0);
        bytes[16..24].copy_from_slice(&self.line.to_le_bytes());
        bytes[24] = u8::from(self.own);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let (mut id, mut line) = ([0; 16], [0; 8]);
        id.copy_from_slice(&bytes[..16]);
        line.copy_from_slice(&bytes[16..24]);
        Mention { id: EntryId(id), line: u64::from_le_bytes(line), own: bytes[24] != 0 }
    }
}

/// All mentions so far.
pub(super) struct Ids {
    held: Vec<Mention>,
    limit: usize,
    file: Option<File>,
    /// Where each run ends in the file, in bytes.
    ends: Vec<u64>,
}

impl Ids {
    pub(super) fn new() -> Self {
        Self::holding(HELD)
    }

    fn holding(limit: usize) -> Self {
        Ids { held: Vec::new(), limit, file: None, ends: Vec::new() }
    }

    pub(super) fn extend(&mut self, mentions: impl IntoIterator<Item = Mention>) -> io::Result<()> {
        for mention in mentions {
            if self.held.len() >= self.limit {
                self.spill()?;
            }
            self.held.push(mention);
        }
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        self.held.sort_unstable();
        let bytes: Vec<u8> = self.held.iter().flat_map(|mention| mention.to_bytes()).collect();
        let start = self.ends.last().copied().unwrap_or(0);
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(temporary_file()?),
        };
        file.write_all_at(&bytes, start)?;
        self.ends.push(start + bytes.len() as u64);
        self.held.clear();
        Ok(())
    }

    /// The first line with an id that occurs before, or with a dependency that is not an earlier
    /// entry. In a range that is not the `whole` ledger a dependency may lie outside.
    pub(super) fn judge(mut self, whole: bool) -> io::Result<Option<(u64, Code, EntryId)>> {
        self.held.sort_unstable();
        let mut first: Option<(u64, Code, EntryId)> = None;
        let mut blame = |line: u64, code, id| {
            if first.is_none_or(|(earliest, ..)| line < earliest) {
                first = Some((line, code, id));
            }
        };
        // Of the id at hand: whether its entry has come, and who wanted it before that.
        let mut id = None;
        let (mut defined, mut wanted) = (false, None);
        let mut merged = Merge::new(&self)?;
        loop {
            let mention = merged.next()?;
            if mention.map(|m| m.id) != id {
                if let (Some(id), Some(line), false, true) = (id, wanted, defined, whole) {
                    blame(line, Code::Dependency, id);
                }
                id = mention.map(|m| m.id);
                (defined, wanted) = (false, None);
            }
            let Some(mention) = mention else { break };
            match (mention.own, defined) {
                (true, true) => blame(mention.line, Code::DuplicateEntryId, mention.id),
                (true, false) => {
                    defined = true;
                    if let Some(line) = wanted {
                        blame(line, Code::Dependency, mention.id);
                    }
                }
                (false, false) => wanted = wanted.or(Some(mention.line)),
                (false, true) => {}
            }
        }
        Ok(first)
    }
}

/// A file without a name, in `TMPDIR` or `/tmp`, that goes when it is closed.
fn temporary_file() -> io::Result<File> {
    let mut attempt = 0u32;
    loop {
        let path = std::env::temp_dir().join(format!("attestd-ids-{}-{attempt}", std::process::id()));
        match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1_000 => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

/// All mentions in order: the runs of the file and what is held.
struct Merge<'a> {
    runs: Vec<Run<'a>>,
    held: std::slice::Iter<'a, Mention>,
    /// The next of each source; the source `runs.len()` is what is held.
    next: BinaryHeap<Reverse<(Mention, usize)>>,
}

impl<'a> Merge<'a> {
    fn new(ids: &'a Ids) -> io::Result<Self> {
        let mut runs = Vec::with_capacity(ids.ends.len());
        if let Some(file) = &ids.file {
            let buffer = (MERGE_BYTES / ids.ends.len().max(1)).clamp(LEAST_BUFFER, MOST_BUFFER);
            let buffer = buffer / Mention::BYTES * Mention::BYTES;
            let mut start = 0;
            for end in &ids.ends {
                runs.push(Run { file, start, end: *end, buffer: Vec::new(), at: 0, capacity: buffer });
                start = *end;
            }
        }
        let mut merge = Merge { runs, held: ids.held.iter(), next: BinaryHeap::new() };
        for source in 0..=merge.runs.len() {
            merge.refill(source)?;
        }
        Ok(merge)
    }

    fn next(&mut self) -> io::Result<Option<Mention>> {
        let Some(Reverse((mention, source))) = self.next.pop() else { return Ok(None) };
        self.refill(source)?;
        Ok(Some(mention))
    }

    fn refill(&mut self, source: usize) -> io::Result<()> {
        let mention = match self.runs.get_mut(source) {
            Some(run) => run.next()?,
            None => self.held.next().copied(),
        };
        self.next.extend(mention.map(|mention| Reverse((mention, source))));
        Ok(())
    }
}

struct Run<'a> {
    file: &'a File,
    start: u64,
    end: u64,
    buffer: Vec<u8>,
    at: usize,
    capacity: usize,
}

impl Run<'_> {
    fn next(&mut self) -> io::Result<Option<Mention>> {
        if self.at == self.buffer.len() {
            let left = usize::try_from(self.end - self.start).unwrap_or(usize::MAX);
            self.buffer.resize(left.min(self.capacity), 0);
            self.file.read_exact_at(&mut self.buffer, self.start)?;
            self.start += self.buffer.len() as u64;
            self.at = 0;
        }
        let record = self.buffer.get(self.at..self.at + Mention::BYTES);
        self.at += record.map_or(0, <[u8]>::len);
        Ok(record.map(Mention::from_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> EntryId {
        EntryId::from_random([n; 16])
    }

    fn own(line: u64, n: u8) -> Mention {
        Mention { id: id(n), line, own: true }
    }

    fn needs(line: u64, n: u8) -> Mention {
        Mention { id: id(n), line, own: false }
    }

    fn judge(limit: usize, whole: bool, mentions: &[Mention]) -> Option<(u64, Code)> {
        let mut ids = Ids::holding(limit);
        ids.extend(mentions.iter().copied()).expect("a temporary file");
        ids.judge(whole).expect("a temporary file").map(|(line, code, _)| (line, code))
    }

    /// However few are held, the verdict is the same.
    #[test]
    fn the_first_fault_is_found_with_and_without_spilling() {
        let sound = [own(0, 1), own(1, 2), needs(1, 1), own(2, 3), needs(2, 1), needs(2, 2), needs(2, 2)];
        let cases: [(&[Mention], _); 6] = [
            (&[], None),
            (&[own(3, 1), own(4, 4)], Some((3, Code::DuplicateEntryId))),
            (&[own(3, 4), needs(3, 4)], Some((3, Code::Dependency))),
            (&[own(3, 4), needs(3, 5), own(4, 5)], Some((3, Code::Dependency))),
            (&[own(3, 4), needs(3, 9), own(4, 4)], Some((3, Code::Dependency))),
            (&[own(3, 4), own(4, 4), needs(5, 9)], Some((4, Code::DuplicateEntryId))),
        ];
        for limit in [1, 2, 3, 100] {
            for (more, expected) in &cases {
                assert_eq!(judge(limit, true, &[&sound, *more].concat()), *expected, "{limit} {more:?}");
            }
        }
    }

    #[test]
    fn a_range_may_depend_on_what_lies_outside() {
        let mentions = [own(0, 1), needs(0, 9), own(1, 2), needs(1, 3), own(2, 3)];
        assert_eq!(judge(2, false, &mentions[..3]), None);
        assert_eq!(judge(2, false, &mentions), Some((1, Code::Dependency)));
        assert_eq!(judge(2, true, &mentions), Some((0, Code::Dependency)));
    }
}
