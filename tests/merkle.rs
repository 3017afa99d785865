//! Our Merkle tree is the one that everybody else computes: roots, tiles, inclusion and consistency
//! proofs are compared with two independent implementations, for all small sizes and up to the
//! largest.

use attestd::ledger::checkpoint::Checkpoint;
use attestd::ledger::hash::Digest;
use attestd::ledger::merkle::{Frontier, NodeHash, Root, TreeSize, verify_consistency, verify_inclusion};
use attestd::ledger::tile::{Edge, Tile, Tree};
use ct_merkle::mem_backed_tree::MemoryBackedTree;
use proptest::prelude::*;
use sha2::Sha256;
use std::collections::HashMap;
use std::convert::Infallible;
use tlog_tiles::tlog;

const SMALL: u64 = 600;

#[test]
fn roots_and_inclusion_paths_are_those_of_tlog_tiles_for_all_small_sizes() {
    let world = World::of(SMALL);
    let mut tree = world.tree(SMALL);
    for at in 0..=SMALL {
        let root = tree.root(size(at)).expect("tiles");
        assert_eq!(root, world.roots[at as usize]);
        assert_eq!(root.hash.0.0, tlog::tree_hash(at, &world.theirs).expect("hashes").0, "root of {at}");
        for index in 0..at {
            let path = tree.inclusion(index, size(at)).expect("tiles");
            let theirs = tlog::prove_record(at, index, &world.theirs).expect("hashes");
            assert!(same(&path, &theirs), "leaf {index} in {at}");
            assert_eq!(verify_inclusion(entry(index), index, &path, &root), Ok(()), "leaf {index} in {at}");
        }
    }
}

#[test]
fn consistency_paths_are_those_of_tlog_tiles_for_all_small_sizes() {
    let world = World::of(SMALL);
    let mut tree = world.tree(SMALL);
    for to in 0..=SMALL {
        for from in 0..=to {
            let path = tree.consistency(size(from), size(to)).expect("tiles");
            if from > 0 {
                let theirs = tlog::prove_tree(to, from, &world.theirs).expect("hashes");
                assert!(same(&path, &theirs), "{from} to {to}");
            }
            let (earlier, later) = (world.roots[from as usize], world.roots[to as usize]);
            assert_eq!(verify_consistency(&earlier, &later, &path), Ok(()), "{from} to {to}");
        }
    }
}

#[test]
fn ct_merkle_accepts_our_proofs_and_we_theirs() {
    let world = World::of(SMALL);
    let mut tree = world.tree(SMALL);
    let mut theirs = MemoryBackedTree::<Sha256, [u8; 32]>::new();
    for at in 0..=SMALL {
        let root = world.roots[at as usize];
        assert_eq!(root.hash.0.0, <[u8; 32]>::from(*theirs.root().as_bytes()), "root of {at}");
        for index in 0..at {
            let proof = theirs.prove_inclusion(index as usize);
            assert_eq!(verify_inclusion(entry(index), index, &hashes(proof.as_bytes()), &root), Ok(()));
            let path = tree.inclusion(index, size(at)).expect("tiles");
            let proof =
                ct_merkle::InclusionProof::<Sha256>::try_from_bytes(bytes(&path)).expect("whole hashes");
            assert!(
                theirs.root().verify_inclusion(&entry(index).0, index, &proof).is_ok(),
                "leaf {index} in {at}"
            );
        }
        for from in 1..at {
            let proof = theirs.prove_consistency((at - from) as usize);
            let earlier = world.roots[from as usize];
            assert_eq!(verify_consistency(&earlier, &root, &hashes(proof.as_bytes())), Ok(()));
            assert_eq!(
                hashes(proof.as_bytes()),
                tree.consistency(size(from), size(at)).expect("tiles"),
                "{from} to {at}"
            );
        }
        theirs.push(entry(at).0);
    }
}

#[test]
fn tiles_are_those_of_tlog_tiles_however_the_tree_grew() {
    let world = World::of(70_000);
    for (from, to) in
        [(0, 0), (0, 1), (0, 256), (0, 70_000), (69_999, 70_000), (255, 65_536), (65_535, 65_537)]
    {
        let mut edge = world.tree(from).edge().expect("tiles");
        assert_eq!(edge.root(), world.roots[from as usize]);
        let mut written = edge.extend((from..to).map(entry).collect::<Vec<_>>().into_iter()).expect("room");
        assert_eq!(edge.root(), world.roots[to as usize]);
        written.sort_by_key(|w| w.tile);
        assert!(written.iter().map(|w| w.tile).eq(Tile::between(size(from), size(to))), "{from} to {to}");
        let theirs = tlog_tiles::Tile::new_tiles(8, from, to);
        assert_eq!(written.len(), theirs.len());
        for (ours, theirs) in written.iter().zip(theirs) {
            assert_eq!(theirs.path(), ours.tile.path().replacen("tile/", "tile/8/", 1));
            assert_eq!(theirs.read_data(&world.theirs).expect("hashes"), ours.bytes, "{}", ours.tile.path());
        }
    }
}

/// Where one batch ends and the next begins is not in the tree.
#[test]
fn batches_leave_no_trace() {
    let mut one = Edge::new();
    let mut other = Edge::new();
    let mut frontier = Frontier::new();
    let (mut ones, mut others) = (HashMap::new(), HashMap::new());
    for n in 0..1500 {
        let written = one.extend([entry(n)].into_iter()).expect("room");
        ones.extend(written.into_iter().map(|w| ((w.tile.level(), w.tile.index()), w.bytes)));
        frontier.push(entry(n)).expect("room");
    }
    for batch in [0..1, 1..1, 1..255, 255..256, 256..1100, 1100..1500] {
        let written = other.extend(batch.map(entry).collect::<Vec<_>>().into_iter()).expect("room");
        others.extend(written.into_iter().map(|w| ((w.tile.level(), w.tile.index()), w.bytes)));
    }
    assert_eq!(ones, others);
    assert_eq!(one.frontier(), &frontier);
    assert_eq!(other.frontier(), &frontier);
}

/// A proof out of a ledger of a thousand million entries reads five tiles, not many.
#[test]
fn a_proof_is_a_few_reads() {
    let at = size(1_000_000_007);
    let mut reads = Vec::new();
    let world = Uniform::new();
    let mut tree = Tree::new(at, |tile| {
        reads.push(tile);
        Ok::<_, Infallible>(world.tile(tile))
    });
    tree.inclusion(999_000_000, at).expect("tiles");
    tree.inclusion(999_000_001, at).expect("tiles");
    assert!(reads.len() <= 8, "{reads:?}");
    let mut unique = reads.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), reads.len(), "no tile is read twice");
}

#[test]
fn the_largest_tree_has_proofs() {
    let world = Uniform::new();
    let at = TreeSize::MAX;
    let mut tree = Tree::new(at, |tile| Ok::<_, Infallible>(world.tile(tile)));
    let root = tree.root(at).expect("tiles");
    for index in [0, 1, (1 << 62) - 1, 1 << 62, at.leaves() - 2, at.leaves() - 1] {
        let path = tree.inclusion(index, at).expect("tiles");
        assert_eq!(verify_inclusion(entry(0), index, &path, &root), Ok(()), "{index}");
        assert!(verify_inclusion(entry(0), index, &path[1..], &root).is_err(), "{index}");
    }
    for from in [1, 2, 3, (1 << 62) - 1, 1 << 62, (1 << 62) + 1, at.leaves() - 1, at.leaves()].map(size) {
        let path = tree.consistency(from, at).expect("tiles");
        let earlier = tree.root(from).expect("tiles");
        assert_eq!(verify_consistency(&earlier, &root, &path), Ok(()), "{from}");
    }
    assert_eq!(tree.edge().expect("tiles").root(), root);
}

/// The note text is what other tools read.
#[test]
fn checkpoints_are_those_of_tlog_tiles() {
    for root in World::of(300).roots {
        let ours = Checkpoint::new("example.com/ledger", root).expect("well-formed");
        let theirs = tlog_tiles::Checkpoint::from_bytes(ours.text().as_bytes()).expect("well-formed");
        assert_eq!(theirs.origin(), ours.origin());
        assert_eq!(theirs.size(), root.size.leaves());
        assert_eq!(theirs.hash().0, root.hash.0.0);
        assert_eq!(theirs.to_bytes(), ours.text().as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Which nodes a path is of, in trees too large to build: every tile's hashes are made up from
    /// their places, so no two are equal, and the nodes between are computed by both sides.
    #[test]
    fn large_paths_take_the_nodes_that_tlog_tiles_takes(at in large(), a in any::<u64>()) {
        let lower = a % at + 1;
        let mut tree = Tree::new(size(at), |tile| Ok::<_, Infallible>(made_up_tile(tile)));
        let path = tree.inclusion(lower - 1, size(at)).expect("tiles");
        prop_assert!(same(&path, &tlog::prove_record(at, lower - 1, &MadeUp).expect("hashes")));
        let path = tree.consistency(size(lower), size(at)).expect("tiles");
        prop_assert!(same(&path, &tlog::prove_tree(at, lower, &MadeUp).expect("hashes")));
        let root = tree.root(size(lower)).expect("tiles");
        prop_assert_eq!(root.hash.0.0, tlog::tree_hash(lower, &MadeUp).expect("hashes").0);
    }

    /// The same in true trees of up to the largest size, whose leaves are all equal; both sides
    /// check the proofs, and refuse them for anything else.
    #[test]
    fn large_proofs_hold(at in large(), a in any::<u64>(), damage in any::<prop::sample::Index>()) {
        let world = Uniform::new();
        let lower = a % at + 1;
        let mut tree = Tree::new(size(at), |tile| Ok::<_, Infallible>(world.tile(tile)));
        let (earlier, later) = (tree.root(size(lower)).expect("tiles"), tree.root(size(at)).expect("tiles"));
        let theirs = |hash: NodeHash| tlog::Hash(hash.0.0);

        let path = tree.inclusion(lower - 1, size(at)).expect("tiles");
        prop_assert_eq!(verify_inclusion(entry(0), lower - 1, &path, &later), Ok(()));
        let record: Vec<_> = path.iter().copied().map(theirs).collect();
        let leaf = tlog::record_hash(&entry(0).0);
        prop_assert!(tlog::check_record(&record, at, theirs(later.hash), lower - 1, leaf).is_ok());
        for damaged in damaged(&path, damage) {
            prop_assert!(verify_inclusion(entry(0), lower - 1, &damaged, &later).is_err());
        }

        let path = tree.consistency(size(lower), size(at)).expect("tiles");
        prop_assert_eq!(verify_consistency(&earlier, &later, &path), Ok(()));
        let proof: Vec<_> = path.iter().copied().map(theirs).collect();
        prop_assert!(tlog::check_tree(&proof, at, theirs(later.hash), lower, theirs(earlier.hash)).is_ok());
        for damaged in damaged(&path, damage) {
            prop_assert!(verify_consistency(&earlier, &later, &damaged).is_err());
        }
    }

    /// Anything that is no proof is refused by both alike.
    #[test]
    fn verdicts_agree_on_made_up_paths(from in 1u64..40, to in 1u64..40, length in 0usize..8, seed in any::<u64>()) {
        let world = World::of(40);
        let path: Vec<_> = (0..length as u64).map(|n| NodeHash::of_leaf(entry(seed.wrapping_add(n) % 40))).collect();
        let theirs: Vec<_> = path.iter().map(|hash| tlog::Hash(hash.0.0)).collect();
        let (earlier, later) = (world.roots[from as usize], world.roots[to as usize]);
        let leaf = tlog::record_hash(&entry(from).0);
        let root = tlog::Hash(later.hash.0.0);
        prop_assert_eq!(
            verify_inclusion(entry(from), from, &path, &later).is_ok(),
            tlog::check_record(&theirs, to, root, from, leaf).is_ok()
        );
        prop_assert_eq!(
            verify_consistency(&earlier, &later, &path).is_ok(),
            tlog::check_tree(&theirs, to, root, from, tlog::Hash(earlier.hash.0.0)).is_ok()
        );
    }
}

fn size(leaves: u64) -> TreeSize {
    TreeSize::new(leaves).expect("below 2^63")
}

fn entry(n: u64) -> Digest {
    Digest::of(&n.to_be_bytes())
}

/// Sizes of all magnitudes, and those around powers of two.
fn large() -> impl Strategy<Value = u64> {
    (0..63u32, any::<u64>(), 0..4u8).prop_map(|(height, low, kind)| {
        let power = 1u64 << height;
        match kind {
            0 => power,
            1 => power + 1,
            2 => (power - 1).max(1),
            _ => power + low % power,
        }
    })
}

fn same(ours: &[NodeHash], theirs: &[tlog::Hash]) -> bool {
    ours.iter().map(|hash| hash.0.0).eq(theirs.iter().map(|hash| hash.0))
}

fn bytes(path: &[NodeHash]) -> Vec<u8> {
    path.iter().flat_map(|hash| hash.0.0).collect()
}

fn hashes(bytes: &[u8]) -> Vec<NodeHash> {
    bytes.as_chunks().0.iter().map(|hash| NodeHash(Digest(*hash))).collect()
}

/// `path` with a bit flipped, one hash shorter, and one longer.
fn damaged(path: &[NodeHash], at: prop::sample::Index) -> Vec<Vec<NodeHash>> {
    let mut damaged = vec![[path, &[NodeHash::EMPTY_ROOT]].concat()];
    if !path.is_empty() {
        let mut flipped = path.to_vec();
        flipped[at.index(path.len())].0.0[31] ^= 1;
        let mut shorter = path.to_vec();
        shorter.remove(at.index(path.len()));
        damaged.extend([flipped, shorter]);
    }
    damaged
}

/// A tree as both sides store it.
struct World {
    tiles: HashMap<(u8, u64), Vec<u8>>,
    roots: Vec<Root>,
    theirs: Stored,
}

/// What `tlog_tiles` stores of a tree.
struct Stored(Vec<tlog::Hash>);

impl tlog::HashReader for Stored {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog::Hash>, tlog::Error> {
        Ok(indexes.iter().map(|index| self.0[*index as usize]).collect())
    }
}

impl World {
    fn of(leaves: u64) -> Self {
        let mut world = World { tiles: HashMap::new(), roots: vec![Root::EMPTY], theirs: Stored(Vec::new()) };
        let mut edge = Edge::new();
        for n in 0..leaves {
            for written in edge.extend([entry(n)].into_iter()).expect("room") {
                world.tiles.insert((written.tile.level(), written.tile.index()), written.bytes);
            }
            world.roots.push(edge.root());
            let stored = tlog::stored_hashes(n, &entry(n).0, &world.theirs).expect("hashes");
            world.theirs.0.extend(stored);
        }
        world
    }

    /// The tree as it was at `at`, read from tiles as they are now.
    fn tree<'w>(&'w self, at: u64) -> Tree<impl FnMut(Tile) -> Result<&'w [u8], Infallible>> {
        Tree::new(size(at), |tile| Ok(self.tiles[&(tile.level(), tile.index())].as_slice()))
    }
}

/// A tree with equal leaves, of any size: the node of a height is the same everywhere.
struct Uniform(Vec<NodeHash>);

impl Uniform {
    fn new() -> Self {
        let leaf = NodeHash::of_leaf(entry(0));
        Uniform(
            std::iter::successors(Some(leaf), |node| Some(NodeHash::of_children(*node, *node)))
                .take(63)
                .collect(),
        )
    }

    fn tile(&self, tile: Tile) -> Vec<u8> {
        self.0[8 * usize::from(tile.level())].0.0.repeat(tile.width().into())
    }
}

/// Hashes from nowhere: each place in each tile has its own.
struct MadeUp;

impl tlog::HashReader for MadeUp {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog::Hash>, tlog::Error> {
        fn node(height: u8, index: u64) -> tlog::Hash {
            if height.is_multiple_of(8) {
                tlog::Hash(made_up(height / 8, index).0)
            } else {
                tlog::node_hash(node(height - 1, 2 * index), node(height - 1, 2 * index + 1))
            }
        }
        Ok(indexes
            .iter()
            .map(|index| tlog::split_stored_hash_index(*index))
            .map(|(h, n)| node(h, n))
            .collect())
    }
}

fn made_up(level: u8, index: u64) -> Digest {
    Digest::of_parts(&[&[level], &index.to_be_bytes()])
}

fn made_up_tile(tile: Tile) -> Vec<u8> {
    let first = tile.index() * 256;
    (first..first + u64::from(tile.width())).flat_map(|index| made_up(tile.level(), index).0).collect()
}
