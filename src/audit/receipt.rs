//! One entry and its receipt, checked with nothing but public keys.

use serde::Serialize;

use super::entry::{TrustedKeys, check_entry, origin_of};
use super::notes::note_fault;
use super::verdict::{CheckpointSeen, Fault, write_report};
use crate::ledger::canonical;
use crate::ledger::code::Code;
use crate::ledger::entry::{Sequence, SignatureAlgorithm};
use crate::ledger::key::PublicKey;
use crate::ledger::proof::{Receipt, ReceiptFault};

/// What the check of one entry with its receipt comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReceiptVerdict {
    /// Whether everything that was checked holds.
    pub ok: bool,
    /// The origin that the checkpoint names.
    pub origin: Option<String>,
    /// Which entry the receipt is of.
    pub sequence_number: Option<u64>,
    /// Its hash, as computed from its bytes.
    pub entry_hash: Option<String>,
    /// The checkpoint that the receipt holds, if it is signed.
    pub checkpoint: Option<CheckpointSeen>,
    /// The key that signed the checkpoint.
    pub key_id: Option<String>,
    /// What was checked, in plain words.
    pub checked: Vec<String>,
    /// What was not, in plain words.
    pub not_checked: Vec<String>,
    /// The first fault.
    pub fault: Option<Fault>,
}

/// Checks that the entry `line` (without line feed) is sound by itself, and that `receipt` shows it
/// under a checkpoint of `origin` (if one is expected) that one of `keys` signed.
#[must_use]
pub fn verify_receipt(
    line: &[u8],
    receipt: &[u8],
    keys: &[PublicKey],
    origin: Option<&str>,
) -> ReceiptVerdict {
    let mut verdict = ReceiptVerdict {
        ok: true,
        origin: None,
        sequence_number: None,
        entry_hash: None,
        checkpoint: None,
        key_id: None,
        checked: Vec::new(),
        not_checked: Vec::new(),
        fault: None,
    };
    if let Err(fault) = verdict.check(line, receipt, keys, origin) {
        verdict.ok = false;
        verdict.fault = Some(fault);
        verdict.not_checked.push("anything from the first fault on".into());
    }
    verdict.not_checked.push(
        "what comes before and after the entry: a receipt shows that it is in the ledger, and nothing of others"
            .into(),
    );
    verdict.not_checked.push(
        "whether caller, scores, proofs and approvals are what the rules demand: those are in other entries"
            .into(),
    );
    verdict.not_checked.push(
        "uniqueness: whether others were shown another ledger, only a comparison of checkpoints can tell"
            .into(),
    );
    verdict.not_checked.push("whether what was recorded is true".into());
    verdict
}

impl ReceiptVerdict {
    fn check(
        &mut self,
        line: &[u8],
        receipt: &[u8],
        keys: &[PublicKey],
        origin: Option<&str>,
    ) -> Result<(), Fault> {
        let signer = canonical::decode(line).map_err(Fault::from)?.entry.signing_key_id;
        let key = keys.iter().find(|key| key.id() == signer).ok_or_else(|| {
            Fault::new(Code::UnknownKey)
                .at("/signing_key_id")
                .because(format!("the entry names key {signer}"))
        })?;
        let entry = check_entry(line, &TrustedKeys::only(key.clone()))?;
        self.sequence_number = Some(entry.sequence_number.0);
        self.entry_hash = Some(entry.entry_hash.to_hex());
        let own = entry.signature_algorithm == SignatureAlgorithm::EntryP256;
        self.checked.push(
            "the entry is in canonical form, has the hashes that its bytes have, and no client's has what is the \
             daemon's"
                .into(),
        );
        if own {
            self.checked.push("its hsm_signature is by a trusted key".into());
        }

        let within = |fault: Fault| fault.within("the receipt");
        let receipt = Receipt::parse(receipt).map_err(|fault| within(receipt_fault(&fault)))?;
        let checkpoint = receipt.checkpoint();
        if let Some(expected) = origin.filter(|expected| *expected != checkpoint.origin()) {
            let detail = format!("`{}` instead of `{expected}`", checkpoint.origin());
            return Err(within(Fault::new(Code::Origin).because(detail)));
        }
        if entry.sequence_number == Sequence(0)
            && origin_of(&entry).is_none_or(|origin| origin != checkpoint.origin())
        {
            return Err(within(Fault::new(Code::Origin).because("the genesis has another one")));
        }
        let verified = receipt
            .verify(entry.sequence_number, entry.entry_hash, keys)
            .map_err(|fault| within(receipt_fault(&fault)))?;
        self.origin = Some(checkpoint.origin().to_owned());
        self.checkpoint = Some(CheckpointSeen::from(checkpoint.root()));
        self.key_id = Some(verified.key.id().to_string());
        self.checked.push(format!(
            "it is entry {} of the ledger {}, under its checkpoint of {} entries, which a trusted key signed",
            entry.sequence_number,
            checkpoint.origin(),
            checkpoint.root().size
        ));
        if !own {
            let mut signature = Vec::new();
            verified.signature.write_hex_der(&mut signature);
            if entry.hsm_signature.as_bytes() == signature {
                self.checked.push("its hsm_signature is that of the checkpoint".into());
            } else {
                self.not_checked.push(
                    "hsm_signature: it is of an earlier checkpoint than the receipt's (what the receipt shows does \
                     not depend on it)"
                        .into(),
                );
            }
        }
        match origin {
            Some(_) => self.checked.push("the origin is the expected one".into()),
            None => self
                .not_checked
                .push("whether this is the ledger that you mean: no origin was given to expect".into()),
        }
        Ok(())
    }
}

fn receipt_fault(fault: &ReceiptFault) -> Fault {
    match fault {
        ReceiptFault::Note(fault) => note_fault(fault),
        ReceiptFault::Path(_) => Fault::new(Code::TreeProof).because(fault),
        _ => Fault::new(Code::Receipt).because(fault),
    }
}

/// A report for people, like that of a [`Verdict`](super::Verdict).
impl std::fmt::Display for ReceiptVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let facts = [("Entry hash:  ", &self.entry_hash), ("Signed by:   ", &self.key_id)];
        let title = match (&self.origin, self.sequence_number) {
            (Some(origin), Some(sequence)) => format!("entry {sequence} of {origin}"),
            (None, Some(sequence)) => format!("entry {sequence}"),
            _ => "an entry".into(),
        };
        write_report(f, &title, self.fault.as_ref())?;
        for (name, value) in facts {
            if let Some(value) = value {
                writeln!(f, "{name} {value}")?;
            }
        }
        super::verdict::write_lists(f, &self.checked, &self.not_checked)
    }
}
