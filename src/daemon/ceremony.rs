//! What a genesis says of the ceremony in which its key was made.

use std::path::Path;

use serde_json::json;

use super::Fault;
use crate::ceremony::device::is_software;
use crate::ceremony::{Fault as CeremonyFault, FaultCode, Record, TRANSCRIPT, Verdict, verify};
use crate::ledger::json;
use crate::ledger::key::PublicKey;
use crate::token::{Expected, Identity};

/// A ceremony that holds.
#[derive(Debug)]
pub struct Ceremony {
    verdict: Verdict,
    token: Expected,
    rehearsal: bool,
}

impl Ceremony {
    /// Reads and verifies the record in `dir`. A rehearsal will do until it is known on which token.
    ///
    /// # Errors
    /// When it can't be read or does not hold.
    pub fn read(dir: &Path) -> Result<Self, Fault> {
        let verdict = verify(&Record::read(dir)?, None, true);
        if let Some(fault) = verdict.fault {
            return Err(Fault::Ceremony(Box::new(fault)));
        }
        let (Some(token), Some(rehearsal)) = (&verdict.token, verdict.rehearsal) else {
            let unsaid = CeremonyFault {
                code: FaultCode::StepOrder,
                file: TRANSCRIPT.into(),
                line: None,
                detail: "it names no token".into(),
            };
            return Err(Fault::Ceremony(Box::new(unsaid)));
        };
        let token = Expected { serial: token.serial.clone(), model: token.model.clone() };
        Ok(Ceremony { token, rehearsal, verdict })
    }

    /// The token on which the key was made.
    #[must_use]
    pub fn token(&self) -> Expected {
        self.token.clone()
    }

    /// Whether it was a rehearsal.
    #[must_use]
    pub fn is_rehearsal(&self) -> bool {
        self.rehearsal
    }

    /// Holds it to be the ceremony of `key`, for the ledger `origin`, and no rehearsal unless the
    /// token is one to rehearse on.
    ///
    /// # Errors
    /// [`Fault::CeremonyOrigin`], [`Fault::CeremonyKey`] or [`Fault::OnlyRehearsed`].
    pub fn check(&self, origin: &str, key: &PublicKey, token: &Identity) -> Result<(), Fault> {
        let Verdict { origin: agreed, key_id, .. } = &self.verdict;
        if agreed.as_deref() != Some(origin) {
            let ceremony = agreed.clone().unwrap_or_default();
            return Err(Fault::CeremonyOrigin { ceremony, config: origin.into() });
        }
        if key_id.as_deref() != Some(key.id().to_string().as_str()) {
            return Err(Fault::CeremonyKey { expected: key_id.clone().unwrap_or_default(), found: key.id() });
        }
        if self.rehearsal && !is_software(&token.manufacturer, &token.model) {
            return Err(Fault::OnlyRehearsed);
        }
        Ok(())
    }

    /// The member of the genesis: canonical JSON.
    pub(super) fn member(&self) -> String {
        let Verdict { hash, plan_sha256, witnesses, .. } = &self.verdict;
        let witnesses: Vec<_> = witnesses
            .iter()
            .map(|witness| json!({"key_id": witness.key_id, "name": witness.name, "role": witness.role}))
            .collect();
        let member = json!({"hash": hash, "plan_sha256": plan_sha256, "rehearsal": self.rehearsal, "witnesses": witnesses});
        json::canonicalize(member.to_string().as_bytes())
            .expect("names and roles were I-JSON when they were read")
    }
}
