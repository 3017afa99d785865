//! The published tree: the ledger's checkpoint, tiles and entry hashes as files that any static
//! web server can serve, laid out as `c2sp.org/tlog-tiles` wants them.
//!
//! ```text
//! checkpoint                 the newest checkpoint that is published, a signed note
//! tile/0/000                 256 leaf hashes
//! tile/1/000.p/17            17 hashes, each over a full tile of level 0
//! tile/entries/000           for each of 256 entries 0x0020 and its 32 bytes of entry_hash
//! ```
//!
//! Nothing of an entry's content is in it. Where the files come from is a closure's business, so
//! that the daemon publishes from its store, attestctl from the socket, and that a check reads a
//! directory or a web server. What the closure gives is believed only as far as the checkpoint's
//! root vouches for it: from the root downwards each tile is held against the one above, so that
//! a fault is found in the file that has it and that memory stays flat.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::ledger::checkpoint::{MAX_NOTE_BYTES, Note, NoteFault};
use crate::ledger::hash::Digest;
use crate::ledger::key::{KeyId, PublicKey};
use crate::ledger::merkle::{NodeHash, Root, TreeSize};
use crate::ledger::tile::{Tile, TileBytes, Tree, TreeError};

/// Where the checkpoint is published.
pub const CHECKPOINT: &str = "checkpoint";

/// An entry in a bundle: its length as two bytes, and its `entry_hash`.
const BUNDLED: usize = 2 + NodeHash::BYTES;
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
/// `tile/entries/x001/x234/067.p/8` is eight deep at most, with 2^63−1 entries.
const MAX_DEPTH: usize = 16;

/// Whose tree is believed.
#[derive(Debug, Clone, Copy)]
pub struct Trust<'k> {
    /// The keys of which one must have signed the checkpoint.
    pub keys: &'k [PublicKey],
    /// The ledger, where the keys alone do not tell.
    pub origin: Option<&'k str>,
}

/// Why a tree is not believed.
#[derive(Debug, thiserror::Error)]
pub enum TreeFault<E> {
    /// It could not be had.
    #[error("couldn't read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: E,
    },
    /// The checkpoint demands it.
    #[error("{path} is missing")]
    Missing {
        /// The file.
        path: String,
    },
    /// The checkpoint is not one that is trusted.
    #[error("checkpoint: {0}")]
    Note(#[from] NoteFault),
    /// The checkpoint is of another ledger.
    #[error("checkpoint: it is of the ledger `{found}`, not of `{expected}`")]
    Origin {
        /// Whose is trusted.
        expected: String,
        /// Whose it is.
        found: String,
    },
    /// As many hashes as the tree has there are as many bytes, no more and no fewer.
    #[error("{path} has {found} bytes instead of {expected}")]
    Length {
        /// The file.
        path: String,
        /// What the checkpoint's size demands.
        expected: usize,
        /// What there is; of a longer one, what was read of it.
        found: usize,
    },
    /// The partial tiles together give the root.
    #[error("{} not lead to the root of the checkpoint", do_or_does(paths))]
    Edge {
        /// The partial tiles.
        paths: Vec<String>,
    },
    /// A full tile has one hash, which is in the tile above.
    #[error("{path} is not the tile whose hash is in the tile above")]
    Tile {
        /// The file.
        path: String,
    },
    /// An entry of a bundle is not what the leaf hash is of.
    #[error("{path}: entry {sequence} is not the one whose hash is in the tile")]
    Entry {
        /// The file.
        path: String,
        /// Which entry.
        sequence: u64,
    },
}

fn do_or_does(paths: &[String]) -> String {
    match paths {
        [path] => format!("{path} does"),
        paths => format!("{} do", paths.join(", ")),
    }
}

/// Why nothing, or not all, was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError<E> {
    /// What was to be published is not believed.
    #[error("not published: {0}")]
    Source(TreeFault<E>),
    /// What is published already is not a checkpoint of this ledger's.
    #[error("not published: the published {0}")]
    Published(TreeFault<io::Error>),
    /// What is published is longer than the ledger.
    #[error("not published: the published checkpoint has {published} entries, the ledger's has {ours}")]
    Shrunk {
        /// Of the published tree.
        published: TreeSize,
        /// Of the ledger's.
        ours: TreeSize,
    },
    /// What is published is not the ledger's past.
    #[error(
        "not published: the published checkpoint, of {published} entries, is of another tree than the ledger's"
    )]
    Fork {
        /// Of the published tree.
        published: TreeSize,
    },
    /// A file that never changes is there with other content.
    #[error("not published: {path} is published already, with other content")]
    Differs {
        /// The file.
        path: String,
    },
    /// Something that is no file, or no directory, is in the place of one.
    #[error("not published: {path} is in the way: it is neither a file nor a directory of ours")]
    InTheWay {
        /// What.
        path: String,
    },
    /// Somebody else is publishing into the same directory.
    #[error("not published: another process is publishing into the same directory")]
    Busy,
    /// The directory could not be written, or read. What is published there stays valid.
    #[error("couldn't {doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The size of the tree that was there before.
    pub before: TreeSize,
    /// The tree that is there now.
    pub root: Root,
    /// Files written, the checkpoint among them.
    pub files: u64,
}

/// What a published tree was found to be.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Its checkpoint.
    pub note: Note,
    /// The key that signed it.
    pub key: KeyId,
    /// Files that it consists of, the checkpoint among them.
    pub files: u64,
}

/// Checks a published tree: the checkpoint's signature, that each file that its size demands is
/// there, and that all of them, down to the entry hashes, lead to its root.
///
/// `fetch` gives the content of a file by its path, of which it need not read more than one byte
/// over the limit that it is told, or `None` where there is no such file. `progress` hears how
/// many entries were checked, and of how many.
///
/// # Errors
/// What is wrong first, and in which file.
pub fn check<E>(
    trust: Trust<'_>,
    fetch: impl FnMut(&str, usize) -> Result<Option<Vec<u8>>, E>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Checked, TreeFault<E>> {
    let mut tree = Believed::open(trust, fetch)?;
    let size = tree.root().size;
    let (mut entries, mut files) = (0, 1);
    for tile in Tile::between(TreeSize::EMPTY, size) {
        let hashes = tree.tile(tile)?;
        files += 1;
        if tile.level() == 0 {
            tree.bundle(tile, &hashes)?;
            files += 1;
            entries += u64::from(tile.width());
            progress(entries, size.leaves());
        }
    }
    Ok(Checked { note: tree.note, key: tree.key, files })
}

/// Gives the paths within `dir` that a tree of `size` entries does not have and never had: what a
/// publication left behind that broke off, and what somebody else put there.
///
/// # Errors
/// When a directory can't be read.
pub fn unexpected(dir: &Path, size: TreeSize, visit: &mut dyn FnMut(&str)) -> io::Result<()> {
    walk(dir, "", &mut |path| {
        let known = path == CHECKPOINT
            || tile_of(path).is_some_and(|tile| {
                Tile::at(tile.level(), tile.index(), size).is_some_and(|now| tile.width() <= now.width())
            });
        if !known {
            visit(path);
        }
        Ok(())
    })
}

/// The content of a file of a published tree in `dir`, for [`check`]: no more of it than a byte over
/// `limit`.
///
/// # Errors
/// When it can't be read, or is something else than a regular file.
pub fn read(dir: &Path, path: &str, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let path = dir.join(path);
    let opened = path.symlink_metadata().and_then(|metadata| match metadata.is_file() {
        true => File::open(path),
        // A pipe would be waited for, for ever.
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    });
    let file = match opened {
        // Also when it went between the two: its full tile is there then.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn tile_of(path: &str) -> Option<Tile> {
    Tile::from_path(path).or_else(|| Tile::from_entries_path(path))
}

/// A tree of which nothing is given out that the checkpoint's root does not vouch for.
struct Believed<F> {
    fetch: F,
    note: Note,
    key: KeyId,
    /// The partial tiles: the peaks of the tree are in them, and nothing else is.
    edge: Vec<TileBytes>,
    /// The last full tile of each level: neighbours have the same one above them.
    last: Vec<TileBytes>,
}

impl<F, E> Believed<F>
where
    F: FnMut(&str, usize) -> Result<Option<Vec<u8>>, E>,
{
    fn open(trust: Trust<'_>, mut fetch: F) -> Result<Self, TreeFault<E>> {
        let trusted = trusted_note(trust, &mut fetch)?;
        let (note, key) = trusted.ok_or_else(|| TreeFault::Missing { path: CHECKPOINT.into() })?;
        let mut tree = Believed { fetch, note, key, edge: Vec::new(), last: Vec::new() };
        let root = tree.root();
        for tile in Tile::partials(root.size) {
            let bytes = tree.fetch(tile, &tile.path(), NodeHash::BYTES)?;
            tree.edge.push(TileBytes { tile, bytes });
        }
        let edge = |tile: Tile| tree.edge.iter().find(|known| known.tile == tile).map(|t| &t.bytes).ok_or(());
        if Tree::new(root.size, edge).root(root.size).ok() != Some(root) {
            let paths = tree.edge.iter().map(|known| known.tile.path()).collect();
            return Err(TreeFault::Edge { paths });
        }
        Ok(tree)
    }

    fn root(&self) -> Root {
        self.note.checkpoint().root()
    }

    /// The hashes of `tile`, as the checkpoint's size has it.
    fn tile(&mut self, tile: Tile) -> Result<Vec<u8>, TreeFault<E>> {
        if let Some(known) = self.edge.iter().chain(&self.last).find(|known| known.tile == tile) {
            return Ok(known.bytes.clone());
        }
        let above = Tile::at(tile.level() + 1, tile.index() >> Tile::HEIGHT, self.root().size)
            .expect("a full tile has its hash in the tile above");
        let slot = (tile.index() % u64::from(Tile::FULL)) as usize * NodeHash::BYTES;
        let hash = self.tile(above)?[slot..slot + NodeHash::BYTES].to_vec();
        let bytes = self.fetch(tile, &tile.path(), NodeHash::BYTES)?;
        if top_of(&bytes).0.0 != hash[..] {
            return Err(TreeFault::Tile { path: tile.path() });
        }
        self.last.retain(|known| known.tile.level() != tile.level());
        self.last.push(TileBytes { tile, bytes: bytes.clone() });
        Ok(bytes)
    }

    /// The bundle of the entries whose leaf hashes are those of `tile`.
    fn bundle(&mut self, tile: Tile, leaves: &[u8]) -> Result<Vec<u8>, TreeFault<E>> {
        let path = tile.entries_path().expect("of level 0");
        let bytes = self.fetch(tile, &path, BUNDLED)?;
        let (entries, _) = bytes.as_chunks::<BUNDLED>();
        let (leaves, _) = leaves.as_chunks::<{ NodeHash::BYTES }>();
        for (n, ([high, low, hash @ ..], leaf)) in (0..).zip(entries.iter().zip(leaves)) {
            let is_hash = [*high, *low] == [0, NodeHash::BYTES as u8];
            if !is_hash || NodeHash::of_leaf(Digest(*hash)).0.0 != *leaf {
                return Err(TreeFault::Entry { path, sequence: (tile.index() << Tile::HEIGHT) + n });
            }
        }
        Ok(bytes)
    }

    /// The file at `path`, with `each` bytes for each hash of `tile`. Of a partial tile that has
    /// been filled and removed since, the beginning of the full one.
    fn fetch(&mut self, tile: Tile, path: &str, each: usize) -> Result<Vec<u8>, TreeFault<E>> {
        let width = usize::from(tile.width()) * each;
        if let Some(bytes) = self.exactly(path, width)? {
            return Ok(bytes);
        }
        let full = path.split_once(".p/").map(|(full, _)| self.exactly(full, usize::from(Tile::FULL) * each));
        let mut bytes =
            full.transpose()?.flatten().ok_or_else(|| TreeFault::Missing { path: path.into() })?;
        bytes.truncate(width);
        Ok(bytes)
    }

    /// The file at `path`, if it is there, and then of that length.
    fn exactly(&mut self, path: &str, expected: usize) -> Result<Option<Vec<u8>>, TreeFault<E>> {
        match (self.fetch)(path, expected) {
            Err(source) => Err(TreeFault::Read { path: path.to_owned(), source }),
            Ok(Some(bytes)) if bytes.len() != expected => {
                Err(TreeFault::Length { path: path.to_owned(), expected, found: bytes.len() })
            }
            Ok(found) => Ok(found),
        }
    }
}

/// The checkpoint, where there is one, and the trusted key that signed it.
fn trusted_note<E>(
    trust: Trust<'_>,
    fetch: &mut impl FnMut(&str, usize) -> Result<Option<Vec<u8>>, E>,
) -> Result<Option<(Note, KeyId)>, TreeFault<E>> {
    let read = fetch(CHECKPOINT, MAX_NOTE_BYTES);
    let bytes = read.map_err(|source| TreeFault::Read { path: CHECKPOINT.into(), source })?;
    let Some(bytes) = bytes else { return Ok(None) };
    let note = Note::parse(&bytes)?;
    let found = note.checkpoint().origin();
    if let Some(expected) = trust.origin.filter(|expected| *expected != found) {
        return Err(TreeFault::Origin { expected: expected.into(), found: found.into() });
    }
    let key = note.verify(trust.keys)?.key.id();
    Ok(Some((note, key)))
}

/// The hash over a full tile.
fn top_of(tile: &[u8]) -> NodeHash {
    let (hashes, _) = tile.as_chunks();
    let mut row: Vec<NodeHash> = hashes.iter().map(|hash| NodeHash(Digest(*hash))).collect();
    while row.len() > 1 {
        row = row.chunks_exact(2).map(|pair| NodeHash::of_children(pair[0], pair[1])).collect();
    }
    row[0]
}

/// Publishes into one directory.
///
/// A reader sees a whole tree at any time, and so does one after a crash at any point: files are
/// complete and durable before they have their names, have them before the checkpoint that needs them
/// is there, and go only when none that was ever published needs them: a partial tile when the full
/// one is there, which whoever misses it asks for instead.
#[derive(Debug)]
pub struct Publisher {
    dir: PathBuf,
    /// Whether nothing is left of a publication that broke off.
    swept: bool,
    /// How many more changes the file system takes before it fails.
    #[cfg(test)]
    steps: Option<u32>,
}

impl Publisher {
    /// For `dir`, which is made if only its last part is missing. Nothing is looked at yet.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Publisher {
            dir: dir.to_owned(),
            swept: false,
            #[cfg(test)]
            steps: None,
        }
    }

    /// Publishes the tree that `fetch` gives (see [`check`]), or what of it is not there yet.
    ///
    /// After an error the published tree is as valid as it was before, and another call goes on from
    /// there. Where what is published contradicts the ledger, not a file was changed.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn publish<E>(
        &mut self,
        trust: Trust<'_>,
        fetch: impl FnMut(&str, usize) -> Result<Option<Vec<u8>>, E>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Published, PublishError<E>> {
        let mut tree = Believed::open(trust, fetch).map_err(PublishError::Source)?;
        let root = tree.root();
        let _lock = self.lock()?;
        let before = self.published(Trust { origin: Some(tree.note.checkpoint().origin()), ..trust })?;
        if before.size > root.size {
            return Err(PublishError::Shrunk { published: before.size, ours: root.size });
        }
        if past(&mut tree, before.size)? != before {
            return Err(PublishError::Fork { published: before.size });
        }
        let changed = before.size < root.size || !self.dir.join(CHECKPOINT).exists();
        let swept = std::mem::replace(&mut self.swept, false);

        // Looked at before anything is changed.
        for tile in Tile::between(before.size, root.size) {
            self.survey(&mut tree, tile)?;
        }
        let mut directories = BTreeSet::new();
        let mut files = 0;
        let mut entries = before.size.leaves();
        for tile in Tile::between(before.size, root.size) {
            let hashes = tree.tile(tile).map_err(PublishError::Source)?;
            if let Some(path) = tile.entries_path() {
                let bundle = tree.bundle(tile, &hashes).map_err(PublishError::Source)?;
                files += u64::from(self.write_new(&path, &bundle, &mut directories)?);
                let end = (tile.index() << Tile::HEIGHT) + u64::from(tile.width());
                entries = entries.max(end);
                progress(entries, root.size.leaves());
            }
            files += u64::from(self.write_new(&tile.path(), &hashes, &mut directories)?);
        }
        for directory in &directories {
            self.sync(directory)?;
        }
        if changed {
            // Everything that it needs is there and stays there.
            self.write(CHECKPOINT, tree.note.as_str().as_bytes())?;
            self.sync(&self.dir.clone())?;
            files += 1;
        }
        if !swept {
            self.remove_filled("", root.size)?;
        }
        for tile in Tile::partials(before.size) {
            for path in [Some(tile.path()), tile.entries_path()].into_iter().flatten() {
                if let Some((full, _)) = path.split_once(".p/") {
                    self.remove_filled(&format!("{full}.p"), root.size)?;
                }
            }
        }
        self.swept = true;
        Ok(Published { before: before.size, root, files })
    }

    /// Makes the directory where it is missing, and keeps others from publishing into it.
    fn lock<E>(&mut self) -> Result<File, PublishError<E>> {
        let dir = self.dir.clone();
        if !dir.is_dir() {
            self.make_directory(&dir)?;
        }
        let lock = File::open(&dir).map_err(failed("open", &dir))?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(fs::TryLockError::WouldBlock) => Err(PublishError::Busy),
            Err(fs::TryLockError::Error(error)) => Err(failed("lock", &dir)(error)),
        }
    }

    /// The tree that is published.
    fn published<E>(&self, trust: Trust<'_>) -> Result<Root, PublishError<E>> {
        match trusted_note(trust, &mut |path, limit| read(&self.dir, path, limit)) {
            Ok(trusted) => Ok(trusted.map_or(Root::EMPTY, |(note, _)| note.checkpoint().root())),
            Err(TreeFault::Read { path, source }) if source.kind() == io::ErrorKind::InvalidInput => {
                Err(PublishError::InTheWay { path })
            }
            Err(TreeFault::Read { path, source }) => Err(failed("read", &self.dir.join(path))(source)),
            Err(fault) => Err(PublishError::Published(fault)),
        }
    }

    /// Refuses what is in the place of `tile` and of its entries and is not them.
    fn survey<F, E>(&self, tree: &mut Believed<F>, tile: Tile) -> Result<(), PublishError<E>>
    where
        F: FnMut(&str, usize) -> Result<Option<Vec<u8>>, E>,
    {
        let (path, entries_path) = (tile.path(), tile.entries_path());
        if let Some(found) = self.look(&path)?
            && found != tree.tile(tile).map_err(PublishError::Source)?
        {
            return Err(PublishError::Differs { path });
        }
        let Some(path) = entries_path else { return Ok(()) };
        if let Some(found) = self.look(&path)? {
            let hashes = tree.tile(tile).map_err(PublishError::Source)?;
            if found != tree.bundle(tile, &hashes).map_err(PublishError::Source)? {
                return Err(PublishError::Differs { path });
            }
        }
        Ok(())
    }

    /// What is at `path`, if it is nothing or a file in directories of ours.
    fn look<E>(&self, path: &str) -> Result<Option<Vec<u8>>, PublishError<E>> {
        for (end, _) in path.match_indices('/') {
            match self.dir.join(&path[..end]).symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) => return Err(PublishError::InTheWay { path: path[..end].to_owned() }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed("look at", &self.dir.join(&path[..end]))(error)),
            }
        }
        match read(&self.dir, path, Tile::FULL_BYTES * 2) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                Err(PublishError::InTheWay { path: path.to_owned() })
            }
            result => result.map_err(failed("read", &self.dir.join(path))),
        }
    }

    /// Writes a file that is not there yet, and notes which directories must be synced for it.
    /// Whether it wrote.
    fn write_new<E>(
        &mut self,
        path: &str,
        bytes: &[u8],
        directories: &mut BTreeSet<PathBuf>,
    ) -> Result<bool, PublishError<E>> {
        directories.insert(self.dir.clone());
        for (end, _) in path.match_indices('/') {
            let directory = self.dir.join(&path[..end]);
            if directories.contains(&directory) {
                continue;
            }
            if directory.symlink_metadata().is_err() {
                self.make_directory(&directory)?;
            }
            directories.insert(directory);
        }
        if self.dir.join(path).symlink_metadata().is_ok() {
            return Ok(false);
        }
        self.write(path, bytes)?;
        Ok(true)
    }

    /// Puts a whole file in its place, or none. Its directory is not synced.
    fn write<E>(&mut self, path: &str, bytes: &[u8]) -> Result<(), PublishError<E>> {
        let path = self.dir.join(path);
        let temporary = temporary_name(&path);
        self.step("write", &temporary)?;
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &temporary)(error));
            }
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&temporary)
            .map_err(failed("write", &temporary))?;
        self.step("write", &temporary)?;
        file.write_all(bytes)
            // Whatever the umask says: it is there to be served.
            .and_then(|()| file.set_permissions(Permissions::from_mode(FILE_MODE)))
            .and_then(|()| file.sync_all())
            .map_err(failed("write", &temporary))?;
        self.step("rename", &path)?;
        fs::rename(&temporary, &path).map_err(failed("write", &path))
    }

    fn make_directory<E>(&mut self, path: &Path) -> Result<(), PublishError<E>> {
        self.step("make", path)?;
        DirBuilder::new()
            .mode(DIRECTORY_MODE)
            .create(path)
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE)))
            .map_err(failed("make the directory", path))
    }

    fn sync<E>(&mut self, directory: &Path) -> Result<(), PublishError<E>> {
        self.step("sync", directory)?;
        File::open(directory).and_then(|file| file.sync_all()).map_err(failed("sync", directory))
    }

    /// Removes, in the directory `within`, partial tiles of which the full one is published, and files
    /// that never got their names.
    fn remove_filled<E>(&mut self, within: &str, size: TreeSize) -> Result<(), PublishError<E>> {
        let mut gone = Vec::new();
        walk(&self.dir.clone(), within, &mut |path| {
            let filled = tile_of(path).is_some_and(|tile| {
                let now = Tile::at(tile.level(), tile.index(), size);
                !tile.is_full() && now.is_some_and(Tile::is_full)
            });
            if filled || is_temporary(path) {
                gone.push(self.dir.join(path));
            }
            Ok(())
        })
        .map_err(failed("look through", &self.dir.join(within)))?;
        for path in gone {
            self.step("remove", &path)?;
            fs::remove_file(&path).map_err(failed("remove", &path))?;
            if let Some(directory) = path.parent().filter(|parent| parent.extension() == Some("p".as_ref())) {
                // It fails until the last one is gone.
                let _ = fs::remove_dir(directory);
            }
        }
        Ok(())
    }

    /// Comes before each change to the file system, so that a test can have it fail there.
    #[cfg(test)]
    fn step<E>(&mut self, doing: &'static str, path: &Path) -> Result<(), PublishError<E>> {
        match &mut self.steps {
            Some(0) => Err(failed(doing, path)(io::Error::other("a test"))),
            Some(steps) => {
                *steps -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    #[cfg(not(test))]
    #[inline(always)]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "in a test it may fail")]
    fn step<E>(&mut self, _doing: &'static str, _path: &Path) -> Result<(), PublishError<E>> {
        Ok(())
    }
}

/// The tree as it was when it had `size` entries.
fn past<F, E>(tree: &mut Believed<F>, size: TreeSize) -> Result<Root, PublishError<E>>
where
    F: FnMut(&str, usize) -> Result<Option<Vec<u8>>, E>,
{
    let now = tree.root();
    if size == now.size {
        return Ok(now);
    }
    match Tree::new(now.size, |tile| tree.tile(tile)).root(size) {
        Ok(root) => Ok(root),
        Err(TreeError::Read { source, .. }) => Err(PublishError::Source(source)),
        Err(TreeError::TileLength { .. } | TreeError::Range { .. }) => {
            unreachable!("the tile has its length, and the size is within the tree")
        }
    }
}

fn failed<E>(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PublishError<E> {
    let path = path.to_owned();
    move |source| PublishError::Io { doing, path, source }
}

/// `.NAME.tmp` beside the file.
fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

fn is_temporary(path: &str) -> bool {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let Some(name) = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")) else { return false };
    let whole = if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") };
    whole == CHECKPOINT || tile_of(&whole).is_some()
}

/// Visits whatever is in `dir` below `within` and is no directory, by its path from `dir`. What is
/// not there has nothing in it.
fn walk(dir: &Path, within: &str, visit: &mut dyn FnMut(&str) -> io::Result<()>) -> io::Result<()> {
    if within.matches('/').count() > MAX_DEPTH {
        return visit(within);
    }
    let entries = match fs::read_dir(dir.join(within)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let path = if within.is_empty() { name.into_owned() } else { format!("{within}/{name}") };
        match entry.file_type()?.is_dir() {
            true => walk(dir, &path, visit)?,
            false => visit(&path)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ledger::checkpoint::Checkpoint;
    use crate::ledger::key::Signature;
    use crate::ledger::tile::Edge;
    use p256::ecdsa::{self, SigningKey, signature::Signer};

    const ORIGIN: &str = "example.com/ledger";

    type Files = BTreeMap<String, Vec<u8>>;

    fn pair(seed: u8) -> (SigningKey, PublicKey) {
        let key = SigningKey::from_slice(&[seed; 32]).expect("in range");
        let public =
            PublicKey::from_sec1(key.verifying_key().to_sec1_point(false).as_bytes()).expect("on the curve");
        (key, public)
    }

    fn note(origin: &str, root: Root, seed: u8) -> Vec<u8> {
        let (key, public) = pair(seed);
        let checkpoint = Checkpoint::new(origin, root).expect("well-formed");
        let raw: ecdsa::Signature = key.sign(checkpoint.text().as_bytes());
        let signature = Signature::from_token(&raw.to_bytes()).expect("in range");
        Note::new(checkpoint, public.id(), &signature).as_str().into()
    }

    /// All files of a tree of `size` entries in the ledger `salt`.
    fn tree(size: u64, salt: &str) -> Files {
        let entry = |n: u64| Digest::of(format!("{salt}{n}").as_bytes());
        let mut edge = Edge::new();
        let tiles = edge.extend((0..size as usize).map(|n| entry(n as u64))).expect("room");
        let mut files = Files::new();
        for TileBytes { tile, bytes } in tiles {
            files.insert(tile.path(), bytes);
            if let Some(path) = tile.entries_path() {
                let first = tile.index() << Tile::HEIGHT;
                let entries = (first..first + u64::from(tile.width())).map(entry);
                files.insert(path, entries.flat_map(|hash| [&[0, 32], &hash.0[..]].concat()).collect());
            }
        }
        files.insert(CHECKPOINT.into(), note(ORIGIN, edge.root(), 7));
        files
    }

    fn from(files: &Files) -> impl FnMut(&str, usize) -> Result<Option<Vec<u8>>, io::Error> + '_ {
        |path, _| Ok(files.get(path).cloned())
    }

    fn publish(publisher: &mut Publisher, files: &Files) -> Result<Published, PublishError<io::Error>> {
        let keys = [pair(7).1];
        publisher.publish(Trust { keys: &keys, origin: Some(ORIGIN) }, from(files), |_, _| {})
    }

    fn check_files(files: &Files) -> Result<Checked, TreeFault<io::Error>> {
        let keys = [pair(7).1];
        check(Trust { keys: &keys, origin: Some(ORIGIN) }, from(files), |_, _| {})
    }

    fn check_dir(dir: &Path) -> Result<u64, String> {
        let keys = [pair(7).1];
        let trust = Trust { keys: &keys, origin: Some(ORIGIN) };
        check(trust, |path, limit| read(dir, path, limit), |_, _| {})
            .map(|checked| checked.note.checkpoint().root().size.leaves())
            .map_err(|fault| fault.to_string())
    }

    fn on_disk(dir: &Path) -> Files {
        let mut files = Files::new();
        walk(dir, "", &mut |path| {
            // What is in the way may be a link to anything.
            let whole = dir.join(path);
            let bytes = match whole.is_symlink() {
                true => fs::read_link(whole)?.into_os_string().into_encoded_bytes(),
                false => fs::read(whole)?,
            };
            files.insert(path.to_owned(), bytes);
            Ok(())
        })
        .expect("readable");
        files
    }

    /// The files of `now`, and those partial tiles of `before` whose full one is not in `now`.
    fn expected(now: &Files, before: &Files) -> Files {
        let filled = |path: &str| path.split_once(".p/").is_some_and(|(full, _)| now.contains_key(full));
        let mut all = before.clone();
        all.retain(|path, _| !filled(path));
        all.extend(now.clone());
        all
    }

    #[test]
    fn a_tree_is_published_step_by_step() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("tree");
        let mut publisher = Publisher::new(&dir);
        let mut before = Files::new();
        for size in [0, 1, 2, 255, 256, 257, 512, 700, 66_000] {
            let files = tree(size, "");
            let published = publish(&mut publisher, &files).expect("published");
            assert_eq!(published.root.size.leaves(), size);
            assert_eq!(check_dir(&dir), Ok(size));
            before = expected(&files, &before);
            assert_eq!(on_disk(&dir), before, "{size}");
            unexpected(&dir, published.root.size, &mut |path| panic!("{path}")).expect("readable");
            assert_eq!(publish(&mut publisher, &files).expect("nothing to do").files, 0);
        }
        let mode = |path: &str| fs::metadata(dir.join(path)).expect("there").permissions().mode() & 0o7777;
        assert_eq!([mode(""), mode("tile/0"), mode("tile/entries")], [0o755; 3]);
        assert_eq!([mode(CHECKPOINT), mode("tile/0/000"), mode("tile/entries/000")], [0o644; 3]);
    }

    /// The story: a power cut at any point leaves a tree that a reader can check, and the next run
    /// leaves what an undisturbed one would have.
    #[test]
    fn a_failure_at_any_step_leaves_a_valid_tree() {
        let (old, new, newer) = (tree(250, ""), tree(520, ""), tree(521, ""));
        let mut files_failed = 0;
        for n in 0.. {
            let dir = tempfile::tempdir().expect("a directory");
            publish(&mut Publisher::new(dir.path()), &old).expect("published");
            let mut broken = Publisher::new(dir.path());
            broken.steps = Some(n);
            let result = publish(&mut broken, &new);
            let size = check_dir(dir.path()).unwrap_or_else(|fault| panic!("after {n} steps: {fault}"));
            if result.is_ok() {
                assert_eq!(size, 520);
                break;
            }
            files_failed += 1;
            // On with a process of its own, or with the same one, to the same tree or a later one.
            broken.steps = None;
            let mut fresh = Publisher::new(dir.path());
            let next = if n % 2 == 0 { &mut fresh } else { &mut broken };
            let target = if n % 3 == 0 { &newer } else { &new };
            publish(next, target).unwrap_or_else(|error| panic!("after {n} steps: {error}"));
            let found = on_disk(dir.path());
            for (path, bytes) in target {
                assert_eq!(found.get(path), Some(bytes), "{path} after {n} steps");
            }
            for path in found.keys() {
                let older = path.contains("/002.p/") || path.contains("tile/1/000.p/");
                assert!(target.contains_key(path) || older, "{path} is left after {n} steps");
            }
        }
        assert!(files_failed > 20, "{files_failed}");
    }

    #[test]
    fn a_fetch_that_fails_leaves_a_valid_tree() {
        let (old, new) = (tree(250, ""), tree(520, ""));
        let keys = [pair(7).1];
        let trust = Trust { keys: &keys, origin: None };
        for n in 0.. {
            let dir = tempfile::tempdir().expect("a directory");
            let mut publisher = Publisher::new(dir.path());
            publish(&mut publisher, &old).expect("published");
            let mut left = n;
            let fetch = |path: &str, _| match left {
                0 => Err(io::Error::other("a test")),
                _ => {
                    left -= 1;
                    Ok(new.get(path).cloned())
                }
            };
            let result = publisher.publish(trust, fetch, |_, _| {});
            if result.is_ok() {
                assert_eq!(n, 8, "the checkpoint, three bundles, four tiles");
                assert_eq!(check_dir(dir.path()), Ok(520));
                break;
            }
            assert_eq!(check_dir(dir.path()), Ok(250), "after {n} fetches");
            publish(&mut publisher, &new).expect("published");
            assert_eq!(on_disk(dir.path()), expected(&new, &old));
        }
    }

    /// What a source may give instead of a file; each is refused, by its name, before anything is
    /// written, and by a check of the same files.
    #[test]
    fn a_wrong_file_is_refused_by_name() {
        let good = tree(66_000, "");
        check_files(&good).expect("valid");
        let flip = |path: &str, at: usize| {
            let mut files = good.clone();
            files.get_mut(path).expect("there")[at] ^= 1;
            files
        };
        let replaced = |path: &str, bytes: Option<Vec<u8>>| {
            let mut files = good.clone();
            files.remove(path);
            files.extend(bytes.map(|bytes| (path.to_owned(), bytes)));
            files
        };
        let swapped = |a: &str, b: &str| {
            let mut files = good.clone();
            files.insert(a.into(), good[b].clone());
            files.insert(b.into(), good[a].clone());
            files
        };
        let short = |path: &str| replaced(path, Some(good[path][..good[path].len() - 1].to_vec()));
        let long = |path: &str| replaced(path, Some([&good[path][..], &[0]].concat()));
        let no_tile = "is not the tile whose hash is in the tile above";
        let edge =
            "tile/0/257.p/208, tile/1/001.p/1, tile/2/000.p/1 do not lead to the root of the checkpoint";
        let other = tree(66_000, "other");
        let root = tree_root(&good);
        let cases: Vec<(Files, String)> = vec![
            (short("tile/0/007"), "tile/0/007 has 8191 bytes instead of 8192".into()),
            (long("tile/0/007"), "tile/0/007 has 8193 bytes instead of 8192".into()),
            (short("tile/0/257.p/208"), "tile/0/257.p/208 has 6655 bytes instead of 6656".into()),
            (short("tile/entries/007"), "tile/entries/007 has 8703 bytes instead of 8704".into()),
            (long("tile/entries/257.p/208"), "tile/entries/257.p/208 has 7073 bytes instead of 7072".into()),
            (flip("tile/0/007", 8_191), format!("tile/0/007 {no_tile}")),
            (flip("tile/1/000", 33), format!("tile/1/000 {no_tile}")),
            (flip("tile/0/257.p/208", 0), edge.into()),
            (flip("tile/2/000.p/1", 31), edge.into()),
            (
                flip("tile/entries/007", 2),
                "tile/entries/007: entry 1792 is not the one whose hash is in the tile".into(),
            ),
            (flip("tile/entries/007", 1), "tile/entries/007: entry 1792 is not".into()),
            (flip("tile/entries/257.p/208", 7_071), "tile/entries/257.p/208: entry 65999 is not".into()),
            (swapped("tile/0/007", "tile/0/008"), format!("tile/0/007 {no_tile}")),
            (swapped("tile/entries/007", "tile/entries/008"), "tile/entries/007: entry 1792 is not".into()),
            (swapped("tile/0/007", "tile/1/000"), "tile/1/000".into()),
            (replaced("tile/0/007", None), "tile/0/007 is missing".into()),
            (replaced("tile/entries/000", None), "tile/entries/000 is missing".into()),
            (replaced("tile/entries/257.p/208", None), "tile/entries/257.p/208 is missing".into()),
            (replaced("tile/2/000.p/1", None), "tile/2/000.p/1 is missing".into()),
            (replaced(CHECKPOINT, None), "checkpoint is missing".into()),
            (
                replaced(CHECKPOINT, Some(b"example.com/ledger\n66000\n".to_vec())),
                "checkpoint: the note has no signature".into(),
            ),
            (long(CHECKPOINT), "checkpoint: the note has a control character".into()),
            (
                replaced(CHECKPOINT, Some(note(ORIGIN, root, 8))),
                "checkpoint: no signature of the origin is by a trusted key".into(),
            ),
            (
                replaced(CHECKPOINT, Some(note("example.com/other", root, 7))),
                "checkpoint: it is of the ledger `example.com/other`, not of `example.com/ledger`".into(),
            ),
            (replaced(CHECKPOINT, Some(other[CHECKPOINT].clone())), edge.into()),
            (flip(CHECKPOINT, good[CHECKPOINT].len() - 20), "checkpoint: ".into()),
        ];
        for (n, (files, reason)) in cases.into_iter().enumerate() {
            let fault = check_files(&files).expect_err("refused").to_string();
            assert!(fault.starts_with(&reason), "{fault}, not {reason}");
            let dir = tempfile::tempdir().expect("a directory");
            let mut publisher = Publisher::new(&dir.path().join("tree"));
            let error = publish(&mut publisher, &files).expect_err("refused").to_string();
            assert!(error.starts_with("not published: "), "{error}");
            assert_eq!(check_dir(&dir.path().join("tree")), Err("checkpoint is missing".into()));
            // What was written before the fault was found is no hindrance; some of the cases are enough.
            if n % 10 == 0 {
                publish(&mut publisher, &good).unwrap_or_else(|error| panic!("after {reason}: {error}"));
                assert_eq!(on_disk(&dir.path().join("tree")), good);
            }
        }
    }

    fn tree_root(files: &Files) -> Root {
        Note::parse(&files[CHECKPOINT]).expect("a note").checkpoint().root()
    }

    /// A partial tile that was filled and removed while somebody read is had from the full one.
    #[test]
    fn a_reader_with_an_older_checkpoint_is_served_by_full_tiles() {
        let (old, mut files) = (tree(520, ""), tree(1_000, ""));
        files.insert(CHECKPOINT.into(), old[CHECKPOINT].clone());
        files.insert("tile/1/000.p/2".into(), old["tile/1/000.p/2"].clone());
        assert!(!files.contains_key("tile/0/002.p/8"));
        assert_eq!(check_files(&files).expect("valid").note.checkpoint().root().size.leaves(), 520);
    }

    #[test]
    fn what_contradicts_the_published_tree_changes_nothing() {
        let published = tree(300, "");
        let fork = |size| tree(size, "other");
        let refuse = |prepare: &dyn Fn(&Path), files: &Files, reason: &str| {
            let dir = tempfile::tempdir().expect("a directory");
            publish(&mut Publisher::new(dir.path()), &published).expect("published");
            prepare(dir.path());
            let before = on_disk(dir.path());
            let error = publish(&mut Publisher::new(dir.path()), files).expect_err(reason).to_string();
            assert!(error.starts_with("not published: ") && error.contains(reason), "{error}, not {reason}");
            assert_eq!(on_disk(dir.path()), before, "{reason}");
        };
        let nothing = |_: &Path| {};
        refuse(&nothing, &tree(299, ""), "the published checkpoint has 300 entries, the ledger's has 299");
        refuse(&nothing, &fork(300), "of 300 entries, is of another tree");
        refuse(&nothing, &fork(301), "of 300 entries, is of another tree");
        let mut other = tree(301, "");
        other.insert(CHECKPOINT.into(), note("example.com/other", tree_root(&other), 7));
        refuse(&nothing, &other, "it is of the ledger `example.com/other`");

        let longer = tree(520, "");
        let put = |path: &'static str, bytes: &'static [u8]| {
            move |dir: &Path| {
                fs::create_dir_all(dir.join(path).parent().expect("a parent")).expect("made");
                fs::write(dir.join(path), bytes).expect("written");
            }
        };
        refuse(&put("tile/0/001", b"x"), &longer, "tile/0/001 is published already, with other content");
        refuse(&put("tile/entries/002.p/8", b""), &longer, "tile/entries/002.p/8 is published already");
        refuse(&put(CHECKPOINT, b"x"), &longer, "the published checkpoint: the note");
        let foreign: &[u8] = Box::leak(note(ORIGIN, tree_root(&published), 8).into_boxed_slice());
        refuse(&put(CHECKPOINT, foreign), &longer, "the published checkpoint: no signature");

        let link = |path: &'static str, target: &'static str| {
            move |dir: &Path| {
                let path = dir.join(path);
                let _ = fs::remove_file(&path);
                std::os::unix::fs::symlink(target, path).expect("linked");
            }
        };
        refuse(&link("tile/0/001", "/dev/null"), &longer, "tile/0/001 is in the way");
        refuse(&link("tile/0/002.p", "/tmp"), &longer, "tile/0/002.p is in the way");
        refuse(&link("tile/0/002.p", "/no/such/place"), &longer, "tile/0/002.p is in the way");
        refuse(&link(CHECKPOINT, "/dev/zero"), &longer, "checkpoint is in the way");
        let directory = |dir: &Path| fs::create_dir_all(dir.join("tile/entries/001")).expect("made");
        refuse(&directory, &longer, "tile/entries/001 is in the way");
    }

    #[test]
    fn a_symlink_at_a_temporary_name_is_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let target = dir.path().join("target");
        fs::write(&target, "mine").expect("written");
        let tree_dir = dir.path().join("tree");
        fs::create_dir(&tree_dir).expect("made");
        std::os::unix::fs::symlink(&target, tree_dir.join(".checkpoint.tmp")).expect("linked");
        publish(&mut Publisher::new(&tree_dir), &tree(3, "")).expect("published");
        assert_eq!(fs::read_to_string(&target).expect("readable"), "mine");
        assert_eq!(on_disk(&tree_dir), tree(3, ""));
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_named() {
        // Not even root can make anything in these.
        for (dir, reason) in [
            ("/proc/attestd", "couldn't make the directory /proc/attestd"),
            ("/sys/kernel", "couldn't make the directory /sys/kernel/tile"),
            ("/no/such/place", "couldn't make the directory /no/such/place"),
            ("/dev/null", "/dev/null"),
        ] {
            let error =
                publish(&mut Publisher::new(Path::new(dir)), &tree(3, "")).expect_err("refused").to_string();
            assert!(error.contains(reason), "{error}");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let held = File::open(dir.path()).expect("opened");
        held.lock().expect("locked");
        let result = publish(&mut Publisher::new(dir.path()), &tree(3, ""));
        assert!(matches!(result, Err(PublishError::Busy)), "{result:?}");
    }

    #[test]
    fn what_does_not_belong_there_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        publish(&mut Publisher::new(dir.path()), &tree(300, "")).expect("published");
        for path in ["index.html", "tile/0/002", "tile/0/001.p/45", "tile/0/1", ".checkpoint.tmp"] {
            fs::write(dir.path().join(path), "x").expect("written");
        }
        let mut found = BTreeSet::new();
        let size = TreeSize::new(300).expect("small");
        unexpected(dir.path(), size, &mut |path| found.extend([path.to_owned()])).expect("readable");
        let expected = [".checkpoint.tmp", "index.html", "tile/0/001.p/45", "tile/0/002", "tile/0/1"];
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected);
        assert_eq!(check_dir(dir.path()), Ok(300));
    }
}
