//! The Merkle tree over all entries: RFC 9162 §2.1 with SHA-256, whose leaf *n* is the 32 raw
//! bytes of entry *n*'s `entry_hash`.
//!
//! ```text
//! leaf = SHA-256(0x00 ‖ entry_hash)        root of the empty tree = SHA-256("")
//! node = SHA-256(0x01 ‖ left ‖ right)
//! ```
//!
//! Here are the hashes, the [`Frontier`] that gives a growing tree's root, and the checks of both
//! kinds of proof. What is stored of a tree, and how proofs are made from that, is in
//! [`tile`](super::tile).

use std::fmt;

use super::hash::{DIGEST_BYTES, Digest};

/// A number of leaves: 0 to 2^63−1, which is what SQLite's and most languages' integers hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeSize(u64);

impl TreeSize {
    /// No leaves.
    pub const EMPTY: TreeSize = TreeSize(0);
    /// 2^63−1 leaves.
    pub const MAX: TreeSize = TreeSize(i64::MAX as u64);

    /// `None` from 2^63 on.
    #[must_use]
    pub const fn new(leaves: u64) -> Option<Self> {
        if leaves <= Self::MAX.0 { Some(TreeSize(leaves)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn leaves(self) -> u64 {
        self.0
    }

    /// `more` leaves later.
    ///
    /// # Errors
    /// When that is over [`TreeSize::MAX`].
    pub fn plus(self, more: usize) -> Result<Self, TreeFull> {
        let more = u64::try_from(more).map_err(|_| TreeFull)?;
        self.0.checked_add(more).and_then(TreeSize::new).ok_or(TreeFull)
    }
}

impl fmt::Display for TreeSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for TreeSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TreeSize({})", self.0)
    }
}

/// A tree that would get more than 2^63−1 leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tree would have more than 2^63-1 leaves")]
pub struct TreeFull;

/// The hash of a leaf, of an inner node or of a whole tree. An `entry_hash` is none of these
/// (see [`NodeHash::of_leaf`]), and the prefixes keep a leaf from passing for a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeHash(pub Digest);

impl NodeHash {
    /// Length in bytes.
    pub const BYTES: usize = DIGEST_BYTES;

    /// The root of the tree without leaves: SHA-256 of nothing.
    pub const EMPTY_ROOT: NodeHash = NodeHash(Digest([
        0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27,
        0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
    ]));

    /// SHA-256(0x00 ‖ entry_hash).
    #[must_use]
    pub fn of_leaf(entry_hash: Digest) -> Self {
        let mut bytes = [0; 1 + DIGEST_BYTES];
        bytes[1..].copy_from_slice(&entry_hash.0);
        NodeHash(Digest::of(&bytes))
    }

    /// SHA-256(0x01 ‖ left ‖ right).
    #[must_use]
    pub fn of_children(left: NodeHash, right: NodeHash) -> Self {
        let mut bytes = [1; 1 + 2 * DIGEST_BYTES];
        bytes[1..1 + DIGEST_BYTES].copy_from_slice(&left.0.0);
        bytes[1 + DIGEST_BYTES..].copy_from_slice(&right.0.0);
        NodeHash(Digest::of(&bytes))
    }

    /// The tree whose complete subtrees are `peaks`, largest first.
    pub(super) fn of_peaks(peaks: &[NodeHash]) -> Self {
        peaks
            .iter()
            .copied()
            .rev()
            .reduce(|right, left| NodeHash::of_children(left, right))
            .unwrap_or(NodeHash::EMPTY_ROOT)
    }
}

impl fmt::Display for NodeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for NodeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeHash({self})")
    }
}

/// A whole tree, by its size and its root hash: what a checkpoint commits to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// How many leaves.
    pub size: TreeSize,
    /// The Merkle tree hash over them.
    pub hash: NodeHash,
}

impl Root {
    /// The tree without leaves.
    pub const EMPTY: Root = Root { size: TreeSize::EMPTY, hash: NodeHash::EMPTY_ROOT };
}

/// The complete subtrees that a tree of some size consists of, largest first: all that is needed
/// to append to it and to know its root. One hash for each set bit of the size, so 63 at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontier {
    size: TreeSize,
    peaks: Vec<NodeHash>,
}

impl Default for Frontier {
    fn default() -> Self {
        Self::new()
    }
}

impl Frontier {
    /// That of the empty tree.
    #[must_use]
    pub fn new() -> Self {
        Frontier { size: TreeSize::EMPTY, peaks: Vec::new() }
    }

    /// That of a tree of `size` leaves; `None` when `peaks` are more or fewer than such a tree
    /// has. Whether they are the right ones only a root tells.
    #[must_use]
    pub fn from_peaks(size: TreeSize, peaks: Vec<NodeHash>) -> Option<Self> {
        (peaks.len() == size.0.count_ones() as usize).then_some(Frontier { size, peaks })
    }

    /// How many leaves the tree has.
    #[must_use]
    pub fn size(&self) -> TreeSize {
        self.size
    }

    /// The roots of the complete subtrees, largest first.
    #[must_use]
    pub fn peaks(&self) -> &[NodeHash] {
        &self.peaks
    }

    /// The tree's size and root hash: one hash for each peak but the first.
    #[must_use]
    pub fn root(&self) -> Root {
        Root { size: self.size, hash: NodeHash::of_peaks(&self.peaks) }
    }

    /// Appends the leaf of an entry: one hash for it, and on average one for a node over it.
    ///
    /// # Errors
    /// When the tree is full; the frontier stays.
    pub fn push(&mut self, entry_hash: Digest) -> Result<(), TreeFull> {
        self.grow(entry_hash, |_, _| ())
    }

    /// [`Frontier::push`] that also tells each node which the leaf completes, from the leaf
    /// upwards, with its height.
    pub(super) fn grow(
        &mut self,
        entry_hash: Digest,
        mut completed: impl FnMut(u32, NodeHash),
    ) -> Result<(), TreeFull> {
        let size = self.size.plus(1)?;
        let mut node = NodeHash::of_leaf(entry_hash);
        completed(0, node);
        for height in 1..=self.size.0.trailing_ones() {
            let left = self.peaks.pop().expect("as many peaks as the size has set bits");
            node = NodeHash::of_children(left, node);
            completed(height, node);
        }
        self.peaks.push(node);
        self.size = size;
        Ok(())
    }
}

/// Why a path proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// The leaf is not in a tree of that size.
    #[error("index {index} is not below the tree size {size}")]
    Index {
        /// The leaf's.
        index: u64,
        /// The tree's.
        size: TreeSize,
    },
    /// Between two sizes, or for a leaf and a size, a path has one length and no other.
    #[error("the path has {found} hashes where {expected} are due")]
    Length {
        /// What the sizes demand.
        expected: usize,
        /// What there is.
        found: usize,
    },
    /// The later tree is the smaller one.
    #[error("a tree of {to} leaves cannot extend one of {from}")]
    Shrunk {
        /// The earlier size.
        from: TreeSize,
        /// The later size.
        to: TreeSize,
    },
    /// The path does not lead to the earlier tree's root.
    #[error("the path does not lead to the root of the earlier tree")]
    EarlierRoot,
    /// The path does not lead to the tree's (of two, the later one's) root.
    #[error("the path does not lead to the root of the tree")]
    Root,
}

/// Checks that leaf `index` of the tree `root` is that of `entry_hash` (RFC 9162 §2.1.3.2).
///
/// # Errors
/// When `path` does not prove that, whatever the reason.
pub fn verify_inclusion(
    entry_hash: Digest,
    index: u64,
    path: &[NodeHash],
    root: &Root,
) -> Result<(), PathFault> {
    check_inclusion_length(index, root.size, path.len())?;
    let leaf = NodeHash::of_leaf(entry_hash);
    let top = siblings(index, root.size, 0)
        .zip(path)
        .fold(leaf, |node, ((_, side), sibling)| side.join(node, *sibling));
    if top == root.hash { Ok(()) } else { Err(PathFault::Root) }
}

/// Checks that a path of `found` hashes can be one for leaf `index` in a tree of `size` leaves.
///
/// # Errors
/// [`PathFault::Index`] or [`PathFault::Length`].
pub fn check_inclusion_length(index: u64, size: TreeSize, found: usize) -> Result<(), PathFault> {
    if index >= size.0 {
        return Err(PathFault::Index { index, size });
    }
    check_length(siblings(index, size, 0).count(), found)
}

/// Checks that the tree `to` holds the leaves of the tree `from`, in their places, and then more
/// or none (RFC 9162 §2.1.4.2).
///
/// RFC 9162 has no proof from the empty tree, which every tree extends: here it is the empty path.
///
/// # Errors
/// When `path` does not prove that, whatever the reason. Two roots of one size that differ are
/// [`PathFault::Root`].
pub fn verify_consistency(from: &Root, to: &Root, path: &[NodeHash]) -> Result<(), PathFault> {
    if from.size > to.size {
        return Err(PathFault::Shrunk { from: from.size, to: to.size });
    }
    if from.size == to.size {
        check_length(0, path.len())?;
        return if from.hash == to.hash { Ok(()) } else { Err(PathFault::Root) };
    }
    let Some(last) = from.size.0.checked_sub(1) else {
        check_length(0, path.len())?;
        return if *from == Root::EMPTY { Ok(()) } else { Err(PathFault::EarlierRoot) };
    };

    // The climb starts at the earlier tree's last complete subtree. Where that is the whole
    // earlier tree its hash is known, else the path begins with it.
    let height = from.size.0.trailing_zeros();
    let steps = siblings(last, to.size, height);
    let whole = from.size.0.is_power_of_two();
    check_length(steps.clone().count() + usize::from(!whole), path.len())?;
    let (start, path) = match path.split_first() {
        Some((first, rest)) if !whole => (*first, rest),
        _ => (from.hash, path),
    };
    // Only what lies to the left belongs to the earlier tree.
    let (mut earlier, mut later) = (start, start);
    for ((_, side), sibling) in steps.zip(path) {
        if side == Side::Left {
            earlier = side.join(earlier, *sibling);
        }
        later = side.join(later, *sibling);
    }
    if earlier != from.hash {
        Err(PathFault::EarlierRoot)
    } else if later != to.hash {
        Err(PathFault::Root)
    } else {
        Ok(())
    }
}

fn check_length(expected: usize, found: usize) -> Result<(), PathFault> {
    if expected == found { Ok(()) } else { Err(PathFault::Length { expected, found }) }
}

/// On which side of the climbing node a sibling is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

impl Side {
    fn join(self, node: NodeHash, sibling: NodeHash) -> NodeHash {
        match self {
            Side::Left => NodeHash::of_children(sibling, node),
            Side::Right => NodeHash::of_children(node, sibling),
        }
    }
}

/// The heights, from `height` on, at which the ancestors of leaf `index` have a sibling in a tree
/// of `size` leaves, more than `index`. An ancestor on the right edge without one rises as it is.
pub(super) fn siblings(index: u64, size: TreeSize, height: u32) -> impl Iterator<Item = (u32, Side)> + Clone {
    let last = size.0 - 1;
    (height..u64::BITS - last.leading_zeros()).filter_map(move |height| {
        let ancestor = index >> height;
        if ancestor & 1 == 1 {
            Some((height, Side::Left))
        } else if ancestor < last >> height {
            Some((height, Side::Right))
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Verdict = Result<(), PathFault>;

    fn entry(n: u64) -> Digest {
        Digest::of(&n.to_be_bytes())
    }

    fn grown(size: u64) -> Frontier {
        let mut frontier = Frontier::new();
        for n in 0..size {
            frontier.push(entry(n)).expect("room");
        }
        frontier
    }

    #[test]
    fn small_trees_by_hand() {
        let leaf = |n| NodeHash::of_leaf(entry(n));
        let node = NodeHash::of_children;
        assert_eq!(Frontier::new().root(), Root::EMPTY);
        assert_eq!(NodeHash::EMPTY_ROOT.0, Digest::of(b""));
        assert_eq!(grown(1).root().hash, leaf(0));
        assert_eq!(grown(3).root().hash, node(node(leaf(0), leaf(1)), leaf(2)));
        let left = node(node(leaf(0), leaf(1)), node(leaf(2), leaf(3)));
        assert_eq!(grown(5).root().hash, node(left, leaf(4)));
        assert_eq!(grown(5).peaks(), [left, leaf(4)]);
    }

    /// RFC 9162 §2.1.5: the tree of seven leaves.
    #[test]
    fn the_paths_of_the_rfc() {
        let leaf = |n| NodeHash::of_leaf(entry(n));
        let node = NodeHash::of_children;
        let (a, b, c, d, e, f, j) = (leaf(0), leaf(1), leaf(2), leaf(3), leaf(4), leaf(5), leaf(6));
        let (g, h, i) = (node(a, b), node(c, d), node(e, f));
        let (k, l) = (node(g, h), node(i, j));
        let root = grown(7).root();
        assert_eq!(root.hash, node(k, l));
        for (index, path) in [(0, &[b, h, l][..]), (3, &[c, g, l]), (4, &[f, j, k]), (6, &[i, k])] {
            assert_eq!(verify_inclusion(entry(index), index, path, &root), Ok(()), "{index}");
        }
        for (from, path) in [(3, &[c, d, g, l][..]), (4, &[l]), (6, &[i, j, k])] {
            assert_eq!(verify_consistency(&grown(from).root(), &root, path), Ok(()), "{from}");
        }
    }

    #[test]
    fn inclusion_is_strict() {
        let leaf = |n| NodeHash::of_leaf(entry(n));
        let node = NodeHash::of_children;
        let (g, h) = (node(leaf(0), leaf(1)), node(leaf(2), leaf(3)));
        let root = grown(4).root();
        let path = [leaf(2), g];
        assert_eq!(verify_inclusion(entry(3), 3, &path, &root), Ok(()));
        let length = |expected, found| Err(PathFault::Length { expected, found });
        let cases: [(&str, u64, Digest, &[NodeHash], Verdict); 9] = [
            ("swapped siblings", 3, entry(3), &[g, leaf(2)], Err(PathFault::Root)),
            ("the neighbour's index", 2, entry(3), &path, Err(PathFault::Root)),
            ("another entry", 3, entry(2), &path, Err(PathFault::Root)),
            ("path too short", 3, entry(3), &path[..1], length(2, 1)),
            ("no path", 3, entry(3), &[], length(2, 0)),
            ("path too long", 3, entry(3), &[leaf(2), g, h], length(2, 3)),
            ("index over size", 4, entry(3), &path, Err(PathFault::Index { index: 4, size: root.size })),
            (
                "index at its end",
                u64::MAX,
                entry(3),
                &path,
                Err(PathFault::Index { index: u64::MAX, size: root.size }),
            ),
            // A node's hash given out as an entry's: the prefix makes it another hash.
            ("a node taken for a leaf", 1, g.0, &[h], length(2, 1)),
        ];
        for (name, index, entry_hash, path, expected) in cases {
            assert_eq!(verify_inclusion(entry_hash, index, path, &root), expected, "{name}");
        }
        let two = Root { size: TreeSize(2), hash: root.hash };
        assert_eq!(verify_inclusion(g.0, 0, &[h], &two), Err(PathFault::Root), "a node taken for a leaf");
        let only = TreeSize(1);
        assert_eq!(
            verify_inclusion(entry(0), 0, &[], &Root { size: only, hash: NodeHash(entry(0)) }),
            Err(PathFault::Root),
            "an entry hash taken for a leaf hash"
        );
        assert_eq!(
            verify_inclusion(entry(0), 0, &[], &Root::EMPTY),
            Err(PathFault::Index { index: 0, size: TreeSize::EMPTY })
        );
    }

    #[test]
    fn consistency_is_strict() {
        let leaf = |n| NodeHash::of_leaf(entry(n));
        let node = NodeHash::of_children;
        let (three, four, seven) = (grown(3).root(), grown(4).root(), grown(7).root());
        let l = node(node(leaf(4), leaf(5)), leaf(6));
        let g = node(leaf(0), leaf(1));
        let good = [leaf(2), leaf(3), g, l];
        let length = |expected, found| Err(PathFault::Length { expected, found });
        let forged = Root { size: seven.size, hash: four.hash };
        let nothing = Root { size: TreeSize::EMPTY, hash: four.hash };
        let cases: [(&str, Root, Root, &[NodeHash], Verdict); 15] = [
            ("the good one", three, seven, &good, Ok(())),
            ("swapped siblings", three, seven, &[leaf(3), leaf(2), g, l], Err(PathFault::EarlierRoot)),
            ("a changed right sibling", three, seven, &[leaf(2), leaf(4), g, l], Err(PathFault::Root)),
            ("too short", three, seven, &good[..3], length(4, 3)),
            ("empty", three, seven, &[], length(4, 0)),
            ("too long", three, seven, &[leaf(2), leaf(3), g, l, l], length(4, 5)),
            ("another later root", three, forged, &good, Err(PathFault::Root)),
            (
                "another earlier root",
                Root { size: three.size, hash: four.hash },
                seven,
                &good,
                Err(PathFault::EarlierRoot),
            ),
            ("backwards", seven, three, &good, Err(PathFault::Shrunk { from: seven.size, to: three.size })),
            ("a power of two", four, seven, &[l], Ok(())),
            ("a power of two with its own root", four, seven, &[four.hash, l], length(1, 2)),
            ("the same", seven, seven, &[], Ok(())),
            ("a fork", seven, forged, &[], Err(PathFault::Root)),
            ("the same with a path", seven, seven, &[l], length(0, 1)),
            ("from nothing that has a root", nothing, seven, &[], Err(PathFault::EarlierRoot)),
        ];
        for (name, from, to, path, expected) in cases {
            assert_eq!(verify_consistency(&from, &to, path), expected, "{name}");
        }
        assert_eq!(verify_consistency(&Root::EMPTY, &seven, &[]), Ok(()));
        assert_eq!(verify_consistency(&Root::EMPTY, &seven, &[l]), length(0, 1));
        assert_eq!(verify_consistency(&Root::EMPTY, &Root::EMPTY, &[]), Ok(()));
    }

    #[test]
    fn a_full_tree_is_refused_and_nothing_overflows() {
        let max = TreeSize::MAX;
        assert_eq!(TreeSize::new(1 << 63), None);
        assert_eq!(max.plus(1), Err(TreeFull));
        assert_eq!(TreeSize::EMPTY.plus(usize::MAX), Err(TreeFull));
        let peak = NodeHash::of_leaf(entry(0));
        let mut frontier = Frontier::from_peaks(max, vec![peak; 63]).expect("63 set bits");
        let before = frontier.clone();
        assert_eq!(frontier.push(entry(0)), Err(TreeFull));
        assert_eq!(frontier, before);
        assert_eq!(Frontier::from_peaks(max, vec![peak; 62]), None);
        assert_eq!(Frontier::from_peaks(TreeSize::EMPTY, vec![peak]), None);

        let root = before.root();
        let path = vec![peak; 64];
        let last = max.leaves() - 1;
        // The last leaf is itself a peak, and all others are its path.
        assert_eq!(verify_inclusion(entry(0), last, &path[..62], &root), Ok(()));
        assert_eq!(verify_inclusion(entry(1), last, &path[..62], &root), Err(PathFault::Root));
        assert_eq!(verify_inclusion(entry(0), 0, &path[..63], &root), Err(PathFault::Root));
        assert_eq!(
            verify_inclusion(entry(0), 0, &path, &root),
            Err(PathFault::Length { expected: 63, found: 64 })
        );
        let from = Root { size: TreeSize(max.leaves() - 1), hash: peak };
        assert_eq!(verify_consistency(&from, &root, &[]), Err(PathFault::Length { expected: 63, found: 0 }));
    }
}
