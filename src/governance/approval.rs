//! Approvals: the exact bytes that an approver signs, and the item that the ledger keeps of it.
//!
//! ```text
//! {"action_hash":"…","action_type":"policy.set","decision":"approve","expires_at":"…","key_id":"…",
//!  "origin":"…","proposal_hash":"…","proposal_id":"…","role":"auditor","rules_hash":"…",
//!  "signer":"mai","statement":"attestd-approval-v1"}          (one line, no line feed at its end)
//! ```
//!
//! A statement can be made for one signer, one key, one proposal and one ledger only, so nothing
//! of it can be lifted elsewhere. It does not know whether a proposal is still open: that is
//! [`super::proposal`].

use super::Refusal;
use super::key::NotVerified;
use super::rules::{Approver, Object};
use crate::ledger::code::Code;
use crate::ledger::entry::EntryId;
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::ledger::timestamp::Timestamp;

/// The namespace of SSH signatures: `ssh-keygen -Y sign -n attestd-approval`.
pub const NAMESPACE: &str = "attestd-approval";

/// The member `statement` of every statement.
const VERSION: &str = "attestd-approval-v1";

/// Names a proposal: a UUID of version 4 that the daemon gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProposalId(pub EntryId);

impl std::fmt::Display for ProposalId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// `approve`
    Approve,
    /// `reject`
    Reject,
}

impl Decision {
    /// The word in the statement.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Decision::Approve => "approve",
            Decision::Reject => "reject",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Decision::Approve, Decision::Reject].into_iter().find(|decision| decision.as_str() == text)
    }
}

/// What every statement about one proposal holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Of the payload that is proposed.
    pub action_hash: Digest,
    /// Of the action that is proposed.
    pub action_type: String,
    /// When the proposal expires.
    pub expires_at: Timestamp,
    /// The ledger.
    pub origin: String,
    /// `entry_hash` of the `proposal.open` entry.
    pub proposal_hash: Digest,
    /// The proposal.
    pub proposal_id: ProposalId,
    /// The rules in force at that entry: their hash, or `default`.
    pub rules_hash: String,
}

impl Subject {
    /// The bytes that `approver` signs for `decision`.
    #[must_use]
    pub fn statement(&self, approver: &Approver, decision: Decision) -> String {
        let mut out = Object::new();
        out.text("action_hash", &self.action_hash.to_hex());
        out.text("action_type", &self.action_type);
        out.text("decision", decision.as_str());
        out.text("expires_at", &self.expires_at.to_string());
        out.text("key_id", &approver.key.id().to_hex());
        out.text("origin", &self.origin);
        out.text("proposal_hash", &self.proposal_hash.to_hex());
        out.text("proposal_id", &self.proposal_id.to_string());
        out.text("role", &approver.role);
        out.text("rules_hash", &self.rules_hash);
        out.text("signer", &approver.name);
        out.text("statement", VERSION);
        out.into_text()
    }

    /// Why `statement`, which is not the expected one, is not.
    fn difference(&self, approver: &Approver, statement: &str) -> Refusal {
        let refuse = |code, name: &str| Refusal::new(code).at(format!("/statement/{name}"));
        let text = |name: &str| member(statement, name).unwrap_or_default();
        if text("origin") != self.origin {
            return refuse(Code::ApprovalOtherLedger, "origin");
        }
        if text("action_hash") != self.action_hash.to_hex() {
            return refuse(Code::ApprovalOtherAction, "action_hash");
        }
        if text("action_type") != self.action_type {
            return refuse(Code::ApprovalOtherAction, "action_type");
        }
        if text("proposal_id") != self.proposal_id.to_string() {
            return refuse(Code::ApprovalOtherProposal, "proposal_id");
        }
        if text("proposal_hash") != self.proposal_hash.to_hex() {
            return refuse(Code::ApprovalOtherProposal, "proposal_hash");
        }
        if text("rules_hash") != self.rules_hash {
            return refuse(Code::RulesInForce, "rules_hash");
        }
        if text("expires_at") != self.expires_at.to_string() {
            return refuse(Code::ApprovalOtherProposal, "expires_at");
        }
        if text("key_id") != approver.key.id().to_hex() {
            return refuse(Code::ApproverUnknown, "key_id");
        }
        if text("role") != approver.role {
            return refuse(Code::ApprovalRole, "role");
        }
        Refusal::new(Code::ApprovalMalformed)
            .at("/statement")
            .because("the statement is not the exact bytes that are signed")
    }
}

/// The string member `name` of a text that need not be JSON at all.
fn member(object: &str, name: &str) -> Option<String> {
    let canonical = json::canonicalize(object.as_bytes()).ok().filter(|text| text.starts_with('{'))?;
    json::member(&canonical, name)
        .filter(|value| value.starts_with('"'))
        .map(|value| json::unquote(value.as_bytes()))
}

/// A decision that somebody signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// The approver's name in the rules.
    pub signer: String,
    /// The role that was signed.
    pub role: String,
    /// The key, by [`super::key::Key::id`].
    pub key_id: Digest,
    /// [`super::key::Algorithm::as_str`].
    pub algorithm: String,
    /// The bytes that were signed.
    pub statement: String,
    /// Hex DER, or armoured SSHSIG.
    pub signature: String,
}

/// The members of an approval without its time, in canonical order.
const MEMBERS: [&str; 6] = ["algorithm", "key_id", "role", "signature", "signer", "statement"];

impl Approval {
    /// Makes an approval of what an approver brings: the statement that was signed, and the
    /// signature. Who signed is what the statement says, held against `approvers`.
    ///
    /// # Errors
    /// [`Code::ApprovalMalformed`] or [`Code::ApproverUnknown`]; that it is otherwise in order is
    /// for [`Approval::verify`] to say.
    pub fn of(statement: &str, signature: &str, approvers: &[Approver]) -> Result<Self, Refusal> {
        let malformed = |detail: &str| Refusal::new(Code::ApprovalMalformed).at("/statement").because(detail);
        if statement.len() > super::rules::APPROVAL_BYTES {
            return Err(malformed("the statement is too long to be one"));
        }
        let signer = member(statement, "signer").ok_or_else(|| malformed("the statement names no signer"))?;
        let approver = approvers
            .iter()
            .find(|approver| approver.name == signer)
            .ok_or_else(|| Refusal::new(Code::ApproverUnknown).at("/statement/signer"))?;
        Ok(Approval {
            role: approver.role.clone(),
            key_id: approver.key.id(),
            algorithm: approver.key.algorithm().as_str().into(),
            statement: statement.into(),
            signature: signature.into(),
            signer,
        })
    }

    /// Reads the canonical object of an `approval.give` or `approval.reject` entry.
    ///
    /// # Errors
    /// [`Code::ApprovalMalformed`].
    pub fn parse(object: &str) -> Result<Self, Refusal> {
        let malformed = || {
            Refusal::new(Code::ApprovalMalformed)
                .because(&format!("an approval has exactly the strings {}", MEMBERS.join(", ")))
        };
        let mut texts = Vec::with_capacity(MEMBERS.len());
        let mut members = object.starts_with('{').then(|| json::members(object)).into_iter().flatten();
        for name in MEMBERS {
            let (start, name_end, end) = members.next().ok_or_else(malformed)?;
            let value = &object[name_end + 1..end];
            if &object[start + 1..name_end - 1] != name || !value.starts_with('"') {
                return Err(malformed());
            }
            texts.push(json::unquote(value.as_bytes()));
        }
        if members.next().is_some() {
            return Err(malformed());
        }
        let [algorithm, key_id, role, signature, signer, statement] =
            <[String; 6]>::try_from(texts).map_err(|_| malformed())?;
        let key_id = Digest::from_hex(key_id.as_bytes()).ok_or_else(malformed)?;
        Ok(Approval { signer, role, key_id, algorithm, statement, signature })
    }

    /// The canonical object: without `at` as entries about it have it, with the time of that
    /// entry as an item of `received_approvals`.
    #[must_use]
    pub fn to_canonical(&self, at: Option<Timestamp>) -> String {
        let mut out = Object::new();
        out.text("algorithm", &self.algorithm);
        out.text("key_id", &self.key_id.to_hex());
        out.text("role", &self.role);
        out.text("signature", &self.signature);
        out.text("signer", &self.signer);
        out.text("statement", &self.statement);
        if let Some(at) = at {
            out.text("timestamp", &at.to_string());
        }
        out.into_text()
    }

    /// Verifies it against the rules at the opening of the proposal, and gives the approver and
    /// what was decided.
    ///
    /// # Errors
    /// [`Code::ApproverUnknown`], [`Code::ApprovalRole`], [`Code::ApprovalOtherLedger`],
    /// [`Code::ApprovalOtherAction`], [`Code::ApprovalOtherProposal`], [`Code::RulesInForce`],
    /// [`Code::ApprovalMalformed`] or [`Code::ApprovalSignature`].
    pub fn verify<'a>(
        &self,
        subject: &Subject,
        approvers: &'a [Approver],
    ) -> Result<(&'a Approver, Decision), Refusal> {
        let approver = approvers
            .iter()
            .find(|approver| approver.name == self.signer)
            .ok_or_else(|| Refusal::new(Code::ApproverUnknown).at("/signer"))?;
        if self.key_id != approver.key.id() {
            return Err(Refusal::new(Code::ApproverUnknown).at("/key_id"));
        }
        if self.role != approver.role {
            return Err(Refusal::new(Code::ApprovalRole).at("/role"));
        }
        if self.algorithm != approver.key.algorithm().as_str() {
            return Err(Refusal::new(Code::ApprovalMalformed)
                .at("/algorithm")
                .because(&format!("the rules give a key of {}", approver.key.algorithm().as_str())));
        }
        let decision = member(&self.statement, "decision").and_then(|text| Decision::parse(&text));
        let Some(decision) = decision else {
            return Err(Refusal::new(Code::ApprovalMalformed)
                .at("/statement")
                .because("the statement has no decision, `approve` or `reject`"));
        };
        if self.statement != subject.statement(approver, decision) {
            return Err(subject.difference(approver, &self.statement));
        }
        approver.key.verify(self.statement.as_bytes(), &self.signature, NAMESPACE).map_err(
            |why: NotVerified| {
                Refusal::new(Code::ApprovalSignature).at("/signature").because(&why.to_string())
            },
        )?;
        Ok((approver, decision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::governance::key::{Algorithm, tests::Pair};

    pub(in super::super) fn approver(pair: &Pair, name: &str, role: &str) -> Approver {
        Approver {
            name: name.into(),
            role: role.into(),
            key: pair.key.clone(),
            callers: Vec::new(),
            actor_ids: Vec::new(),
        }
    }

    fn subject() -> Subject {
        Subject {
            action_hash: Digest::of(b"payload"),
            action_type: "policy.set".into(),
            expires_at: Timestamp::from_micros(1_795_573_782_000_000),
            origin: "test.example/ledger".into(),
            proposal_hash: Digest::of(b"open"),
            proposal_id: ProposalId(EntryId::from_random([3; 16])),
            rules_hash: "default".into(),
        }
    }

    #[test]
    fn the_statement_is_canonical_json_of_twelve_members() {
        let pair = Pair::new(Algorithm::SshEd25519, 1);
        let statement = subject().statement(&approver(&pair, "mai \"m\"", "auditor"), Decision::Approve);
        assert_eq!(json::canonicalize(statement.as_bytes()).as_deref(), Ok(statement.as_str()));
        assert_eq!(json::members(&statement).count(), 12);
        assert!(statement.contains(r#""signer":"mai \"m\"","statement":"attestd-approval-v1"}"#));
    }

    #[test]
    fn an_approval_reads_back_and_verifies() {
        for kind in [Algorithm::EcdsaP256, Algorithm::SshEd25519, Algorithm::SshP256, Algorithm::SshSkEd25519]
        {
            let pair = Pair::new(kind, 1);
            let approvers = [approver(&pair, "mai", "auditor")];
            for decision in [Decision::Approve, Decision::Reject] {
                let statement = subject().statement(&approvers[0], decision);
                let signature = pair.sign(statement.as_bytes(), NAMESPACE);
                let approval = Approval::of(&statement, &signature, &approvers).expect("an approval");
                assert_eq!(approval.verify(&subject(), &approvers), Ok((&approvers[0], decision)));
                assert_eq!(Approval::parse(&approval.to_canonical(None)), Ok(approval.clone()));
                let item = approval.to_canonical(Some(Timestamp::EPOCH));
                assert_eq!(json::canonicalize(item.as_bytes()).as_deref(), Ok(item.as_str()));
                assert!(Approval::parse(&item).is_err(), "a time too many");
            }
        }
    }

    #[test]
    fn each_difference_has_its_own_code() {
        let pair = Pair::new(Algorithm::EcdsaP256, 1);
        let approvers = [approver(&pair, "mai", "auditor")];
        let verdict = |signed: &Subject, rules: &[Approver]| {
            let statement = signed.statement(&approvers[0], Decision::Approve);
            let signature = pair.sign(statement.as_bytes(), NAMESPACE);
            let approval = Approval::of(&statement, &signature, &approvers).expect("an approval");
            approval.verify(&subject(), rules).map(|_| ()).map_err(|refusal| refusal.code)
        };
        assert_eq!(verdict(&subject(), &approvers), Ok(()));
        let with = |change: fn(&mut Subject)| {
            let mut signed = subject();
            change(&mut signed);
            verdict(&signed, &approvers)
        };
        assert_eq!(with(|s| s.origin = "other".into()), Err(Code::ApprovalOtherLedger));
        assert_eq!(with(|s| s.action_hash = Digest::ZERO), Err(Code::ApprovalOtherAction));
        assert_eq!(with(|s| s.action_type = "policy.get".into()), Err(Code::ApprovalOtherAction));
        assert_eq!(with(|s| s.proposal_hash = Digest::ZERO), Err(Code::ApprovalOtherProposal));
        assert_eq!(
            with(|s| s.proposal_id = ProposalId(EntryId::from_random([4; 16]))),
            Err(Code::ApprovalOtherProposal)
        );
        assert_eq!(with(|s| s.expires_at = Timestamp::MAX), Err(Code::ApprovalOtherProposal));
        assert_eq!(with(|s| s.rules_hash = "0".repeat(64)), Err(Code::RulesInForce));

        let other_key = Pair::new(Algorithm::EcdsaP256, 2);
        assert_eq!(
            verdict(&subject(), &[approver(&other_key, "mai", "auditor")]),
            Err(Code::ApproverUnknown)
        );
        assert_eq!(verdict(&subject(), &[approver(&pair, "lan", "auditor")]), Err(Code::ApproverUnknown));
        assert_eq!(verdict(&subject(), &[approver(&pair, "mai", "creator")]), Err(Code::ApprovalRole));
        assert_eq!(verdict(&subject(), &[]), Err(Code::ApproverUnknown));
    }

    #[test]
    fn what_was_not_signed_does_not_verify() {
        let pair = Pair::new(Algorithm::SshEd25519, 1);
        let approvers = [approver(&pair, "mai", "auditor")];
        let statement = subject().statement(&approvers[0], Decision::Reject);
        let code = |statement: &str, signature: &str| {
            let approval = Approval::of(statement, signature, &approvers).map_err(|refusal| refusal.code)?;
            approval.verify(&subject(), &approvers).map(|_| ()).map_err(|refusal| refusal.code)
        };
        let signature = pair.sign(statement.as_bytes(), NAMESPACE);
        assert_eq!(code(&statement, &signature), Ok(()));
        let turned = statement.replace("reject", "approve");
        assert_eq!(code(&turned, &signature), Err(Code::ApprovalSignature), "a no made a yes");
        let file = pair.sign(statement.as_bytes(), "file");
        assert_eq!(code(&statement, &file), Err(Code::ApprovalSignature), "another namespace");
        for bad in [
            format!("{statement}\n"),
            statement.replace("\":", "\": "),
            statement.replace("attestd-approval-v1", "attestd-approval-v2"),
            statement.replace(r#""statement""#, r#""more":1,"statement""#),
        ] {
            let signature = pair.sign(bad.as_bytes(), NAMESPACE);
            assert_eq!(code(&bad, &signature), Err(Code::ApprovalMalformed), "{bad}");
        }
        for bad in ["", "null", "{}", r#"{"signer":1}"#] {
            assert_eq!(code(bad, &signature), Err(Code::ApprovalMalformed), "{bad}");
        }
        let decided = statement.replace("reject", "abstain");
        assert_eq!(code(&decided, &signature), Err(Code::ApprovalMalformed));
    }
}
