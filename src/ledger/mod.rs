//! The pure heart of the ledger: what an entry is, which bytes it has, and how it is checked.
//!
//! Nothing in here reads a clock, a file or a socket, and nothing in here imports from the rest
//! of the crate, so the daemon that writes and the auditor that verifies run the same code.
//!
//! In reading order: [`hash`] (SHA-256 and hex), [`json`] (strict I-JSON in, RFC 8785 out),
//! [`score`] and [`timestamp`] (the two kinds of number that have a form of their own),
//! [`entry`] (the 40 members), [`draft`] (what a client may send), [`canonical`] (the bytes of a
//! whole entry, both ways), [`key`] (public keys and signatures, verification only), [`chain`] (how
//! an entry follows another), [`merkle`] and [`tile`] (the tree over all entries, and how it is
//! kept), [`checkpoint`] (the signed word for a tree) and [`proof`] (an entry's receipt).

pub mod canonical;
pub mod chain;
pub mod checkpoint;
pub mod code;
pub mod draft;
pub mod entry;
pub mod hash;
pub mod json;
pub mod key;
pub mod merkle;
pub mod proof;
pub mod score;
pub mod tile;
pub mod timestamp;
