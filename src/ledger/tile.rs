//! How the tree is kept: tiles of up to 256 hashes, as `c2sp.org/tlog-tiles` lays them out, and
//! what is made from them: roots, proofs, and the next tiles.
//!
//! ```text
//! tile/0/x001/x234/067      the leaf hashes of entries 315,921,152 to 315,921,407
//! tile/1/000.p/17           17 hashes, each over a full tile of level 0
//! ```
//!
//! Nothing is read or written here: a [`Tree`] asks a closure for tiles, an [`Edge`] hands out
//! those that changed. A hash between the levels of the tiles is computed from the tile below it.

use std::fmt;

use super::hash::Digest;
use super::merkle::{Frontier, NodeHash, Root, Side, TreeFull, TreeSize, siblings};

/// How many levels of tiles 2^63−1 leaves have.
const LEVELS: u8 = 8;

/// A tile: its place in the tree and how many hashes it has there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tile {
    level: u8,
    index: u64,
    width: u16,
}

impl Tile {
    /// Hashes in a full tile.
    pub const FULL: u16 = 256;
    /// The tree's height that one tile spans: 256 is 2 to the power of this.
    pub const HEIGHT: u32 = 8;
    /// Bytes of a full tile.
    pub const FULL_BYTES: usize = Self::FULL as usize * NodeHash::BYTES;

    /// Tile `index` of `level` with its first `width` hashes. `None` for one that no tree of at
    /// most 2^63−1 leaves has.
    #[must_use]
    pub fn new(level: u8, index: u64, width: u16) -> Option<Self> {
        let exists = level < LEVELS
            && (1..=Self::FULL).contains(&width)
            && u128::from(index) * u128::from(Self::FULL) + u128::from(width)
                <= u128::from(hashes_at(level, TreeSize::MAX));
        exists.then_some(Tile { level, index, width })
    }

    /// Tile `index` of `level`, as wide as a tree of `size` leaves has it; `None` where it has none.
    #[must_use]
    pub fn at(level: u8, index: u64, size: TreeSize) -> Option<Self> {
        if level >= LEVELS {
            return None;
        }
        let before = index.checked_mul(u64::from(Self::FULL))?;
        let width = hashes_at(level, size).checked_sub(before)?.min(u64::from(Self::FULL));
        Tile::new(level, index, width as u16)
    }

    /// The tiles that a tree of `to` leaves has and one of `from` leaves has not (or not so wide),
    /// level by level upwards, and from left to right. From 0 they are all.
    pub fn between(from: TreeSize, to: TreeSize) -> impl Iterator<Item = Tile> {
        (0..LEVELS).flat_map(move |level| {
            let (had, has) = (hashes_at(level, from), hashes_at(level, to));
            let tiles =
                if had < has { had >> Self::HEIGHT..has.div_ceil(u64::from(Self::FULL)) } else { 0..0 };
            tiles.filter_map(move |index| Tile::at(level, index, to))
        })
    }

    /// The partial tiles of a tree of `size` leaves, lowest level first: at most one a level.
    pub fn partials(size: TreeSize) -> impl Iterator<Item = Tile> {
        (0..LEVELS).filter_map(move |level| Tile::at(level, hashes_at(level, size) >> Self::HEIGHT, size))
    }

    /// 0 for leaf hashes, and one more for each tile's height above them.
    #[must_use]
    pub fn level(self) -> u8 {
        self.level
    }

    /// The place within the level.
    #[must_use]
    pub fn index(self) -> u64 {
        self.index
    }

    /// How many hashes, 1 to 256.
    #[must_use]
    pub fn width(self) -> u16 {
        self.width
    }

    /// Whether it never changes again.
    #[must_use]
    pub fn is_full(self) -> bool {
        self.width == Self::FULL
    }

    /// Where it is published: `tile/<level>/<index>[.p/<width>]`.
    #[must_use]
    pub fn path(self) -> String {
        format!("tile/{}/{}", self.level, Place(self))
    }

    /// Where the bundle of the same entries is published, if this is of level 0:
    /// `tile/entries/<index>[.p/<width>]`.
    #[must_use]
    pub fn entries_path(self) -> Option<String> {
        (self.level == 0).then(|| format!("tile/entries/{}", Place(self)))
    }

    /// Reads exactly what [`Tile::path`] writes.
    #[must_use]
    pub fn from_path(path: &str) -> Option<Self> {
        let (level, place) = path.strip_prefix("tile/")?.split_once('/')?;
        let tile = Self::from_place(level.parse().ok()?, place)?;
        (tile.path() == path).then_some(tile)
    }

    /// Reads exactly what [`Tile::entries_path`] writes.
    #[must_use]
    pub fn from_entries_path(path: &str) -> Option<Self> {
        let tile = Self::from_place(0, path.strip_prefix("tile/entries/")?)?;
        (tile.entries_path()? == path).then_some(tile)
    }

    /// Takes more than is right: its callers compare with the one right spelling.
    fn from_place(level: u8, place: &str) -> Option<Self> {
        let (index, width) = match place.split_once(".p/") {
            Some((index, width)) => (index, width.parse().ok()?),
            None => (place, Self::FULL),
        };
        let index = index.split('/').try_fold(0u64, |index, part| {
            let part: u16 = part.trim_start_matches('x').parse().ok()?;
            index.checked_mul(1000)?.checked_add(part.into())
        })?;
        Tile::new(level, index, width)
    }
}

/// A tile's index in groups of three digits, and its width where that is not the full one.
struct Place(Tile);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tile { index, width, .. } = self.0;
        let digits = format!("{index:03}");
        let digits = format!("{digits:0>width$}", width = digits.len().next_multiple_of(3));
        let (high, low) = digits.split_at(digits.len() - 3);
        for group in 0..high.len() / 3 {
            write!(f, "x{}/", &high[3 * group..3 * group + 3])?;
        }
        f.write_str(low)?;
        if width < Tile::FULL { write!(f, ".p/{width}") } else { Ok(()) }
    }
}

/// How many hashes the tiles of `level` have in a tree of `size` leaves.
fn hashes_at(level: u8, size: TreeSize) -> u64 {
    size.leaves() >> (Tile::HEIGHT * u32::from(level))
}

/// A tile with its bytes: its hashes one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TileBytes {
    /// Which one.
    pub tile: Tile,
    /// 32 bytes for each of its hashes.
    pub bytes: Vec<u8>,
}

/// The right edge of a tree: its [`Frontier`] and its partial tiles, which is all that is needed
/// to append and to know the next tiles. At most 64 KiB, and 24 up to 16 million entries.
#[derive(Debug, Clone)]
pub struct Edge {
    frontier: Frontier,
    /// The partial tile of each level, without hashes where the level has none.
    partials: [Vec<u8>; LEVELS as usize],
}

impl Default for Edge {
    fn default() -> Self {
        Self::new()
    }
}

impl Edge {
    /// That of the empty tree. [`Tree::edge`] gives that of a stored one.
    #[must_use]
    pub fn new() -> Self {
        Edge { frontier: Frontier::new(), partials: Default::default() }
    }

    /// The complete subtrees so far.
    #[must_use]
    pub fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// The size and root so far.
    #[must_use]
    pub fn root(&self) -> Root {
        self.frontier.root()
    }

    /// Appends the leaves of entries, and returns the tiles of [`Tile::between`] the two sizes with
    /// their bytes: those that became full in the order in which they did, then the partial ones,
    /// lowest level first.
    ///
    /// # Errors
    /// When the tree would be over full; the edge stays.
    pub fn extend(
        &mut self,
        entry_hashes: impl ExactSizeIterator<Item = Digest>,
    ) -> Result<Vec<TileBytes>, TreeFull> {
        let before = self.frontier.size();
        before.plus(entry_hashes.len())?;
        let mut tiles = Vec::with_capacity(entry_hashes.len() / usize::from(Tile::FULL) + 4);
        for entry_hash in entry_hashes {
            let size = self.frontier.size().plus(1)?;
            self.frontier.grow(entry_hash, |height, node| {
                if height % Tile::HEIGHT != 0 {
                    return;
                }
                let level = (height / Tile::HEIGHT) as u8;
                let partial = &mut self.partials[usize::from(level)];
                partial.extend_from_slice(&node.0.0);
                if partial.len() == Tile::FULL_BYTES {
                    let index = (hashes_at(level, size) - 1) >> Tile::HEIGHT;
                    let tile = Tile { level, index, width: Tile::FULL };
                    tiles.push(TileBytes { tile, bytes: std::mem::take(partial) });
                }
            })?;
        }
        let after = self.frontier.size();
        tiles.extend(
            Tile::partials(after)
                .filter(|tile| hashes_at(tile.level, before) < hashes_at(tile.level, after))
                .map(|tile| TileBytes { tile, bytes: self.partials[usize::from(tile.level)].clone() }),
        );
        Ok(tiles)
    }
}

/// Why a stored tree gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum TreeError<E> {
    /// A leaf or a size that the tree has not.
    #[error("{asked} is not within the tree of {size} leaves")]
    Range {
        /// The index or size.
        asked: u64,
        /// The size of the tree, or the smaller one that was asked for.
        size: TreeSize,
    },
    /// A tile whose bytes are not as many hashes as it must have.
    #[error("{} has {bytes} bytes", tile.path())]
    TileLength {
        /// Which.
        tile: Tile,
        /// How many bytes there were.
        bytes: usize,
    },
    /// A tile that couldn't be read.
    #[error("couldn't read {}", tile.path())]
    Read {
        /// Which.
        tile: Tile,
        /// Why.
        source: E,
    },
}

/// A stored tree, read through a closure that gives a tile's bytes: at least the tile's width of
/// hashes (more do no harm: the tile as it was later on, for one).
///
/// What it reads it believes: a proof from damaged tiles fails at whoever checks it. Tiles that were
/// read are kept with the nodes over them, up to half a megabyte, so that the proofs for
/// neighbouring entries cost one reading.
pub struct Tree<R> {
    size: TreeSize,
    read: R,
    cache: Vec<Subtree>,
}

/// How many tiles are kept: a proof needs at most 16, and 5 in a ledger of a thousand million.
const CACHED_TILES: usize = 32;

impl<R, B, E> Tree<R>
where
    R: FnMut(Tile) -> Result<B, E>,
    B: AsRef<[u8]>,
{
    /// A tree of `size` leaves; `read` is asked for tiles as that size has them.
    pub fn new(size: TreeSize, read: R) -> Self {
        Tree { size, read, cache: Vec::new() }
    }

    /// The tree as it was when it had `at` leaves.
    ///
    /// # Errors
    /// When it never had so many, or a tile can't be had.
    pub fn root(&mut self, at: TreeSize) -> Result<Root, TreeError<E>> {
        Ok(self.frontier(at)?.root())
    }

    /// The complete subtrees of the tree as it was when it had `at` leaves.
    ///
    /// # Errors
    /// As [`Tree::root`].
    pub fn frontier(&mut self, at: TreeSize) -> Result<Frontier, TreeError<E>> {
        self.check_size(at)?;
        let peaks = self.peaks(0, at)?;
        Ok(Frontier::from_peaks(at, peaks).expect("a peak for each set bit of the size"))
    }

    /// The tree's right edge, to append to it: at most eight reads.
    ///
    /// # Errors
    /// When a tile can't be had.
    pub fn edge(&mut self) -> Result<Edge, TreeError<E>> {
        let mut edge = Edge { frontier: self.frontier(self.size)?, partials: Default::default() };
        for tile in Tile::partials(self.size) {
            edge.partials[usize::from(tile.level)] =
                self.subtree(tile)?.rows[0].iter().flat_map(|hash| hash.0.0).collect();
        }
        Ok(edge)
    }

    /// The path that proves which entry leaf `index` is of, in the tree as it was when it had `at`
    /// leaves (RFC 9162 §2.1.3): from the leaf's sibling to the root's child.
    ///
    /// # Errors
    /// When that tree has no such leaf, or as [`Tree::root`].
    pub fn inclusion(&mut self, index: u64, at: TreeSize) -> Result<Vec<NodeHash>, TreeError<E>> {
        self.check_size(at)?;
        if index >= at.leaves() {
            return Err(TreeError::Range { asked: index, size: at });
        }
        self.path(index, 0, at)
    }

    /// The path that proves that the tree with `to` leaves extends that with `from` (RFC 9162
    /// §2.1.4). It is empty where the two are the same and where `from` is 0.
    ///
    /// # Errors
    /// When `from` is over `to`, or as [`Tree::root`].
    pub fn consistency(&mut self, from: TreeSize, to: TreeSize) -> Result<Vec<NodeHash>, TreeError<E>> {
        self.check_size(to)?;
        if from > to {
            return Err(TreeError::Range { asked: from.leaves(), size: to });
        }
        if from == TreeSize::EMPTY || from == to {
            return Ok(Vec::new());
        }
        let (last, height) = (from.leaves() - 1, from.leaves().trailing_zeros());
        let mut path = Vec::new();
        if !from.leaves().is_power_of_two() {
            path.push(self.node(height, last >> height)?);
        }
        path.extend(self.path(last, height, to)?);
        Ok(path)
    }

    fn check_size(&self, at: TreeSize) -> Result<(), TreeError<E>> {
        let within = at <= self.size;
        within.then_some(()).ok_or(TreeError::Range { asked: at.leaves(), size: self.size })
    }

    /// The siblings of the ancestors of leaf `index` from `height` on, in a tree of `at` leaves.
    fn path(&mut self, index: u64, height: u32, at: TreeSize) -> Result<Vec<NodeHash>, TreeError<E>> {
        siblings(index, at, height)
            .map(|(height, side)| match side {
                Side::Left => self.node(height, (index >> height) - 1),
                Side::Right => {
                    let sibling = (index >> height) + 1;
                    if (sibling + 1) << height <= at.leaves() {
                        self.node(height, sibling)
                    } else {
                        Ok(NodeHash::of_peaks(&self.peaks(sibling << height, at)?))
                    }
                }
            })
            .collect()
    }

    /// The complete subtrees that leaves `from` to `at` consist of, largest first. `from` is 0 or
    /// divisible by a power of two that is over the number of these leaves.
    fn peaks(&mut self, from: u64, at: TreeSize) -> Result<Vec<NodeHash>, TreeError<E>> {
        let mut peaks = Vec::new();
        let mut next = from;
        while next < at.leaves() {
            let height = (at.leaves() - next).ilog2();
            peaks.push(self.node(height, next >> height)?);
            next += 1 << height;
        }
        Ok(peaks)
    }

    /// The node over leaves `index` · 2^`height` to (`index` + 1) · 2^`height`, which are all there.
    fn node(&mut self, height: u32, index: u64) -> Result<NodeHash, TreeError<E>> {
        let (level, row) = ((height / Tile::HEIGHT) as u8, height % Tile::HEIGHT);
        let per_tile = Tile::HEIGHT - row;
        let tile = Tile::at(level, index >> per_tile, self.size).expect("a node's leaves are in the tree");
        let within = (index & ((1 << per_tile) - 1)) as usize;
        Ok(self.subtree(tile)?.rows[row as usize][within])
    }

    fn subtree(&mut self, tile: Tile) -> Result<&Subtree, TreeError<E>> {
        let found = self.cache.iter().rposition(|subtree| subtree.tile == tile);
        let place = match found {
            Some(place) => place,
            None => {
                let bytes = (self.read)(tile).map_err(|source| TreeError::Read { tile, source })?;
                let subtree = Subtree::over(tile, bytes.as_ref())?;
                if self.cache.len() == CACHED_TILES {
                    self.cache.remove(0);
                }
                self.cache.push(subtree);
                self.cache.len() - 1
            }
        };
        Ok(&self.cache[place])
    }
}

/// A tile and the complete nodes over its hashes: row 0 is the tile's own.
struct Subtree {
    tile: Tile,
    rows: [Vec<NodeHash>; Tile::HEIGHT as usize],
}

impl Subtree {
    fn over<E>(tile: Tile, bytes: &[u8]) -> Result<Self, TreeError<E>> {
        let (hashes, rest) = bytes.as_chunks();
        let width = usize::from(tile.width);
        if !(width..=usize::from(Tile::FULL)).contains(&hashes.len()) || !rest.is_empty() {
            return Err(TreeError::TileLength { tile, bytes: bytes.len() });
        }
        let mut rows: [Vec<NodeHash>; Tile::HEIGHT as usize] = Default::default();
        rows[0] = hashes[..width].iter().map(|hash| NodeHash(Digest(*hash))).collect();
        for row in 1..rows.len() {
            rows[row] =
                rows[row - 1].chunks_exact(2).map(|pair| NodeHash::of_children(pair[0], pair[1])).collect();
        }
        Ok(Subtree { tile, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(leaves: u64) -> TreeSize {
        TreeSize::new(leaves).expect("below 2^63")
    }

    #[test]
    fn paths_are_those_of_the_specification() {
        let cases = [
            ((0, 0, 256), "tile/0/000"),
            ((0, 1_234_067, 256), "tile/0/x001/x234/067"),
            ((1, 999, 255), "tile/1/999.p/255"),
            ((2, 1000, 1), "tile/2/x001/000.p/1"),
            ((0, (1 << 55) - 1, 255), "tile/0/x036/x028/x797/x018/x963/967.p/255"),
            ((7, 0, 127), "tile/7/000.p/127"),
        ];
        for ((level, index, width), path) in cases {
            let tile = Tile::new(level, index, width).expect(path);
            assert_eq!(tile.path(), path);
            assert_eq!(Tile::from_path(path), Some(tile));
        }
        let entries = Tile::new(0, 1_234_067, 7).expect("a tile");
        assert_eq!(entries.entries_path().as_deref(), Some("tile/entries/x001/x234/067.p/7"));
        assert_eq!(Tile::from_entries_path("tile/entries/x001/x234/067.p/7"), Some(entries));
        assert_eq!(Tile::new(1, 0, 1).and_then(Tile::entries_path), None);
    }

    #[test]
    fn other_paths_are_refused() {
        for path in [
            "",
            "tile",
            "tile/",
            "tile/0",
            "tile/0/",
            "tile/0/0",
            "tile/0/00",
            "tile/0/0000",
            "tile/0/1000",
            "tile/00/000",
            "tile/+0/000",
            "tile/-0/000",
            "tile/8/000",
            "tile/63/000",
            "tile/256/000",
            "tile/0/x000/000",
            "tile/0/x000/001",
            "tile/0/001/000",
            "tile/0/x001/x000",
            "tile/0/xx01/000",
            "tile/0/X001/000",
            "tile/0/+01",
            "tile/0/000.p",
            "tile/0/000.p/",
            "tile/0/000.p/0",
            "tile/0/000.p/01",
            "tile/0/000.p/256",
            "tile/0/000.p/+1",
            "tile/0/000.p/1/",
            "tile/0/000.p/1.p/1",
            "tile/0/000/",
            "tile/0//000",
            "/tile/0/000",
            "tile/0/000 ",
            "tile/0/../0/000",
            "tile/data/000",
            "tile/entries/000",
            "tile/7/000.p/128",
            "tile/7/000",
            "tile/7/001.p/1",
            // The tile after the last full one of level 0, and an index over 2^64.
            "tile/0/x036/x028/x797/x018/x963/968",
            "tile/0/x018/x446/x744/x073/x709/x551/616",
            "tile/0/x999/x999/x999/x999/x999/x999/x999/x999/999",
        ] {
            assert_eq!(Tile::from_path(path), None, "{path}");
        }
        for path in ["tile/0/000", "tile/entries/0", "tile/entries/x000/000", "tile/entries/000.p/256"] {
            assert_eq!(Tile::from_entries_path(path), None, "{path}");
        }
    }

    #[test]
    fn tiles_of_a_size_are_those_of_the_specification() {
        let widths = |leaves| -> Vec<_> {
            Tile::partials(size(leaves)).map(|t| (t.level, t.index, t.width)).collect()
        };
        assert_eq!(widths(0), []);
        assert_eq!(widths(255), [(0, 0, 255)]);
        assert_eq!(widths(256), [(1, 0, 1)]);
        assert_eq!(widths(70_000), [(0, 273, 112), (1, 1, 17), (2, 0, 1)]);
        assert_eq!(Tile::partials(TreeSize::MAX).count(), 8);
        let all: Vec<_> = Tile::between(TreeSize::EMPTY, size(70_000)).collect();
        assert_eq!(all.len(), 273 + 1 + 1 + 1 + 1);
        assert!(Tile::between(size(70_000), size(70_000)).next().is_none());
        assert_eq!(Tile::at(0, 274, size(70_000)), None);
        assert_eq!(Tile::at(0, 272, size(70_000)).map(Tile::width), Some(256));
        assert_eq!(Tile::at(8, 0, TreeSize::MAX), None);
        assert_eq!(Tile::at(0, u64::MAX, TreeSize::MAX), None);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let tile = Tile::new(0, 0, 3).expect("a tile");
        for bytes in [0, 2 * 32, 3 * 32 - 1, 3 * 32 + 1, 257 * 32] {
            let mut tree = Tree::new(size(3), |_| Ok::<_, ()>(vec![7; bytes]));
            let error = tree.root(size(3)).expect_err("a tile of the wrong length");
            assert!(matches!(error, TreeError::TileLength { tile: t, bytes: b } if (t, b) == (tile, bytes)));
        }
        let mut wider = Tree::new(size(3), |_| Ok::<_, ()>(vec![7; 256 * 32]));
        assert!(wider.root(size(3)).is_ok());
        let mut broken = Tree::new(size(3), |_| Err::<[u8; 0], _>("the disk is gone"));
        assert_eq!(broken.root(size(3)).expect_err("no tile").to_string(), "couldn't read tile/0/000.p/3");
        let range = |asked, of| format!("{asked} is not within the tree of {of} leaves");
        assert_eq!(broken.root(size(4)).expect_err("over").to_string(), range(4, 3));
        assert_eq!(broken.inclusion(2, size(2)).expect_err("over").to_string(), range(2, 2));
        assert_eq!(broken.inclusion(0, size(0)).expect_err("over").to_string(), range(0, 0));
        assert_eq!(broken.inclusion(0, size(4)).expect_err("over").to_string(), range(4, 3));
        assert_eq!(broken.consistency(size(3), size(2)).expect_err("over").to_string(), range(3, 2));
        assert_eq!(broken.root(size(0)).expect("needs no tile"), Root::EMPTY);
    }

    #[test]
    fn a_full_tree_takes_no_more() {
        let mut edge = Tree::new(size(TreeSize::MAX.leaves() - 1), |tile: Tile| {
            Ok::<_, ()>(vec![1; usize::from(tile.width()) * 32])
        })
        .edge()
        .expect("tiles");
        let before = edge.root();
        assert_eq!(edge.extend([Digest::ZERO; 2].into_iter()), Err(TreeFull));
        assert_eq!(edge.root(), before);
        let tiles = edge.extend([Digest::ZERO].into_iter()).expect("room for one");
        assert_eq!(tiles.last().map(|t| t.tile), Tile::new(0, (1 << 55) - 1, 255));
        assert_eq!(edge.extend([Digest::ZERO].into_iter()), Err(TreeFull));
    }
}
