//! How an entry follows another: dense sequence numbers, hashes that hold each other, and time
//! that does not run backwards.
//!
//! It makes entries and checks them by the same [`Head`]; it does not sign, store or verify
//! signatures.

use super::canonical::{self, Unsigned};
use super::code::Code;
use super::entry::{EntryId, EntryView, Sequence, SignatureAlgorithm};
use super::hash::Digest;
use super::key::{KeyId, Signable};
use super::timestamp::Timestamp;

/// What the next entry follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The sequence number that the next entry gets, which is the number of entries so far.
    pub next: Sequence,
    /// The last entry's `entry_hash`, or zeros.
    pub hash: Digest,
    /// The last entry's timestamp.
    pub timestamp: Timestamp,
}

impl Head {
    /// The head of an empty ledger.
    pub const EMPTY: Head = Head { next: Sequence(0), hash: Digest::ZERO, timestamp: Timestamp::EPOCH };

    /// Makes `content` the next entry and the head follow it. The members of the chain
    /// (`sequence_number`, `prev_entry_hash`, `timestamp`, `entry_hash`) and of the signature are
    /// set here, whatever `content` holds there.
    ///
    /// The timestamp is the larger of `now` and the last entry's: a clock that was set back never
    /// makes the ledger's time run backwards.
    pub fn extend(
        &mut self,
        mut content: EntryView<'_>,
        now: Timestamp,
        algorithm: SignatureAlgorithm,
        key: KeyId,
    ) -> Entry {
        content.sequence_number = self.next;
        content.prev_entry_hash = self.hash;
        content.timestamp = now.max(self.timestamp);
        content.signature_algorithm = algorithm;
        content.signing_key_id = key;
        let unsigned = canonical::encode(&content);
        // Admission promises it; an entry that nobody could read would be sealed for good.
        debug_assert!(canonical::decode(&unsigned.line).is_ok_and(|d| d.computed_hash == unsigned.hash));
        let entry = Entry {
            id: content.entry_id,
            sequence: content.sequence_number,
            timestamp: content.timestamp,
            unsigned,
        };
        self.next = self.next.next();
        self.hash = entry.unsigned.hash;
        self.timestamp = entry.timestamp;
        entry
    }

    /// Checks that `entry`, whose own hash was checked, is the next one, and follows it.
    ///
    /// # Errors
    /// [`Code::Sequence`], [`Code::ChainBroken`] or [`Code::TimestampOrder`]; the head stays.
    pub fn follow(&mut self, entry: &EntryView<'_>) -> Result<(), Code> {
        if entry.sequence_number != self.next {
            return Err(Code::Sequence);
        }
        if entry.prev_entry_hash != self.hash {
            return Err(Code::ChainBroken);
        }
        if entry.timestamp < self.timestamp {
            return Err(Code::TimestampOrder);
        }
        *self = Head::after(entry);
        Ok(())
    }

    /// The head that follows `entry`.
    #[must_use]
    pub fn after(entry: &EntryView<'_>) -> Self {
        Head { next: entry.sequence_number.next(), hash: entry.entry_hash, timestamp: entry.timestamp }
    }
}

/// An entry with its place in the chain, not signed yet. Only [`Head::extend`] makes one.
#[derive(Debug, Clone)]
pub struct Entry {
    id: EntryId,
    sequence: Sequence,
    timestamp: Timestamp,
    unsigned: Unsigned,
}

impl Entry {
    /// `entry_id`.
    #[must_use]
    pub fn id(&self) -> EntryId {
        self.id
    }

    /// `sequence_number`.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// `timestamp`.
    #[must_use]
    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    /// `entry_hash`.
    #[must_use]
    pub fn hash(&self) -> Digest {
        self.unsigned.hash
    }

    /// The line without its signature.
    #[must_use]
    pub fn unsigned(&self) -> &Unsigned {
        &self.unsigned
    }

    /// What the token signs for this entry.
    #[must_use]
    pub fn signable(&self) -> Signable {
        Signable::Entry(self.unsigned.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::canonical::tests::sample;

    fn extend(head: &mut Head, micros: i64) -> Entry {
        let key = KeyId(Digest::of(b"key"));
        head.extend(sample(), Timestamp::from_micros(micros), SignatureAlgorithm::EntryP256, key)
    }

    #[test]
    fn what_is_extended_is_followed() {
        let (mut head, mut follower) = (Head::EMPTY, Head::EMPTY);
        for micros in [5, 9, 7, 9, 12] {
            let entry = extend(&mut head, micros);
            let line = entry.unsigned().seal(b"00");
            follower.follow(&canonical::decode(&line).expect("an entry").entry).expect("the next");
            assert_eq!(head, follower);
        }
        assert_eq!((head.next, head.timestamp), (Sequence(5), Timestamp::from_micros(12)));
    }

    #[test]
    fn what_does_not_follow_is_named() {
        let mut head = Head::EMPTY;
        let lines: Vec<_> = [5, 6, 7].map(|m| extend(&mut head, m).unsigned().seal(b"00")).into();
        let entries: Vec<_> = lines.iter().map(|l| canonical::decode(l).expect("an entry").entry).collect();
        let mut follower = Head::EMPTY;
        follower.follow(&entries[0]).expect("the first");
        assert_eq!(follower.follow(&entries[0]), Err(Code::Sequence));
        assert_eq!(follower.follow(&entries[2]), Err(Code::Sequence));
        let mut other = entries[1].clone();
        other.prev_entry_hash = Digest::ZERO;
        assert_eq!(follower.follow(&other), Err(Code::ChainBroken));
        other = entries[1].clone();
        other.timestamp = Timestamp::from_micros(4);
        assert_eq!(follower.follow(&other), Err(Code::TimestampOrder));
        follower.follow(&entries[1]).expect("the second");
    }
}
