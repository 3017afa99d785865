//! Governed ledgers: rules, proofs, approvals and the lives of proposals, each with one defect that
//! only the check aimed at can catch, and each beside a twin without it.
//!
//! Unlike the other vectors these are made with the library: it decides what is sound, and the defect
//! goes in before the entry is hashed and signed. [`cast`] says who acts, [`book`] keeps the ledger.

mod approvals;
mod book;
mod cast;
mod daemon;
mod events;
mod keys;
mod seals;

use attestd::ledger::code::Code;

use super::{Draft, ORIGIN, Vector};

type Lines = Vec<Vec<u8>>;

#[derive(Default)]
struct Vectors {
    all: Vec<Vector>,
    /// Of all that follow, until another is named.
    twin: &'static str,
}

impl Vectors {
    /// A ledger that holds, and the twin of those that follow.
    fn accept(&mut self, name: &'static str, about: &'static str, lines: Lines) {
        self.all.push(Vector { name, about, lines, expect: None, twin: "" });
        self.twin = name;
    }

    /// A ledger whose last entry is at fault.
    fn reject(&mut self, name: &'static str, about: &'static str, code: Code, lines: Lines) {
        let expect = Some((code, Some(lines.len() as u64 - 1)));
        self.all.push(Vector { name, about, lines, expect, twin: self.twin });
    }
}

pub(super) fn all() -> Vec<Vector> {
    let mut vectors = Vectors::default();
    approvals::add(&mut vectors);
    seals::add(&mut vectors);
    events::add(&mut vectors);
    daemon::add(&mut vectors);
    keys::add(&mut vectors);
    vectors.all
}

/// Puts `to` in the place of `from` in the payload.
fn in_payload(draft: &mut Draft, from: &str, to: &str) {
    let payload = draft.text("action_payload");
    assert!(payload.contains(from), "no {from} in {payload}");
    draft.payload(payload.replacen(from, to, 1));
}
