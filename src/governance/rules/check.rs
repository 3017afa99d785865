//! What no single member shows: names and keys that stand twice, and demands that nobody could meet.

use std::collections::{HashMap, HashSet};

use super::{ActionRule, Approver, BUILT_IN_PROOFS, CallerRule, Demand, Fault, Pattern, Rules, Verb};
use crate::governance::value::shown;
use crate::ledger::code::Code;
use crate::ledger::json;
use crate::ledger::key::PublicKey;

/// What the entry around the rules may take of the 1 MiB that it has as a whole.
const ENTRY_ROOM: usize = 64 << 10;

impl Rules {
    /// Refuses rules that contradict themselves. Reading them has done it.
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.callers.is_empty() {
            return Err(fault(
                Code::RulesUnmeetable,
                "",
                "the rules name no caller, so nobody could do anything",
            ));
        }
        self.check_names()?;
        self.check_keys()?;
        self.check_provers()?;
        for (index, action) in self.actions.iter().enumerate() {
            self.check_demand(action)
                .map_err(|detail| fault(Code::RulesUnmeetable, &format!("/actions/{index}"), &detail))?;
        }
        self.check_joined()?;
        self.check_text()
    }

    /// Refuses an approver or prover whose key is one of the ledger's own.
    ///
    /// # Errors
    /// [`Code::RulesSharedKey`].
    pub fn check_ledger_keys(&self, keys: &[PublicKey]) -> Result<(), Fault> {
        let parties = (self.approvers.iter().enumerate().map(|(i, a)| ("approvers", i, &a.name, &a.key)))
            .chain(self.provers.iter().enumerate().map(|(i, p)| ("provers", i, &p.name, &p.key)));
        for (list, index, name, key) in parties {
            if keys.iter().any(|ledgers| key.is(ledgers)) {
                let detail = format!("the key of `{}` is the ledger's own", shown(name));
                return Err(fault(Code::RulesSharedKey, &format!("/{list}/{index}/public_key"), &detail));
            }
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), Fault> {
        unique("callers", self.callers.iter().map(|caller| caller.name.clone()))?;
        unique("approvers", self.approvers.iter().map(|approver| approver.name.clone()))?;
        unique("provers", self.provers.iter().map(|prover| format!("{} for {}", prover.name, prover.proof)))?;
        let callers: HashSet<&str> = self.callers.iter().map(|caller| caller.name.as_str()).collect();
        for (index, approver) in self.approvers.iter().enumerate() {
            if let Some(unknown) = approver.callers.iter().find(|name| !callers.contains(name.as_str())) {
                let detail = format!("there is no caller named `{}`", shown(unknown));
                return Err(fault(Code::Rules, &format!("/approvers/{index}/callers"), &detail));
            }
        }
        Ok(())
    }

    fn check_keys(&self) -> Result<(), Fault> {
        let mut seen: HashMap<Vec<u8>, &str> = HashMap::new();
        for (index, approver) in self.approvers.iter().enumerate() {
            if let Some(other) = seen.insert(approver.key.point(), &approver.name) {
                let detail = format!("`{}` and `{}` have one key", shown(other), shown(&approver.name));
                return Err(fault(
                    Code::RulesSharedKey,
                    &format!("/approvers/{index}/public_key"),
                    &format!("{detail}, which would make two approvals of one person's signature"),
                ));
            }
        }
        Ok(())
    }

    fn check_provers(&self) -> Result<(), Fault> {
        for (index, prover) in self.provers.iter().enumerate() {
            if BUILT_IN_PROOFS.contains(&prover.proof.as_str()) {
                let detail = format!("`{}` is decided by the daemon and takes no key", prover.proof);
                return Err(fault(Code::Rules, &format!("/provers/{index}/proof"), &detail));
            }
        }
        Ok(())
    }

    /// Why what `action` demands could never be met, if so.
    fn check_demand(&self, action: &ActionRule) -> Result<(), String> {
        let unproven = action.proofs.iter().find(|proof| {
            !BUILT_IN_PROOFS.contains(&proof.as_str()) && !self.provers.iter().any(|p| p.proof == **proof)
        });
        if let Some(proof) = unproven {
            return Err(format!("demands the proof `{proof}`, for which no prover is named"));
        }
        let mut demand = Demand::default();
        demand.add(action);
        self.check_approvers(&demand, &self.approvers.iter().collect::<Vec<_>>())
    }

    fn check_approvers(&self, demand: &Demand, approvers: &[&Approver]) -> Result<(), String> {
        let roles: Vec<&str> = approvers.iter().map(|approver| approver.role.as_str()).collect();
        if let Some(role) = demand.missing_roles(&roles).first() {
            let wanted = demand.roles.iter().filter(|wanted| *wanted == role).count();
            return Err(format!("demands {wanted} × the role `{role}`, which fewer approvers have"));
        }
        if roles.len() < demand.approvals as usize {
            return Err(format!("demands {} approvals, but {} could approve", demand.approvals, roles.len()));
        }
        Ok(())
    }

    /// All rules that match one action apply together, and whoever proposes or seals does not
    /// approve: somebody must be left for each.
    fn check_joined(&self) -> Result<(), Fault> {
        let may = |verb| self.callers.iter().filter(move |caller| caller.may(verb)).collect::<Vec<_>>();
        let (proposers, sealers) = (may(Verb::Propose), may(Verb::Seal));
        let mut judged: Vec<(u32, Vec<String>)> = Vec::new();
        for (index, action) in self.actions.iter().enumerate() {
            // The demand is at its strictest where the pattern meets the longer ones that overlap it.
            let mut demand = Demand::default();
            for other in self.actions.iter().filter(|other| covers(&other.action_type, &action.action_type)) {
                demand.add(other);
            }
            let key = (demand.approvals, demand.roles.clone());
            if demand.approvals == 0 || judged.contains(&key) {
                continue;
            }
            let unmeetable =
                |detail: &str| fault(Code::RulesUnmeetable, &format!("/actions/{index}"), detail);
            if proposers.is_empty() || sealers.is_empty() {
                let verb = if proposers.is_empty() { "propose" } else { "seal" };
                return Err(unmeetable(&format!("demands approvals, but no caller has the verb `{verb}`")));
            }
            let meets = |proposer: &CallerRule, sealer: &CallerRule| {
                let free: Vec<&Approver> =
                    self.approvers.iter().filter(|a| !a.is_surely(proposer) && !a.could_be(sealer)).collect();
                self.check_approvers(&demand, &free).is_ok()
            };
            // A caller that is nobody's is the usual case and decides at once.
            let all_fail =
                !proposers.iter().any(|proposer| sealers.iter().any(|sealer| meets(proposer, sealer)));
            if all_fail {
                return Err(unmeetable(
                    "demands approvals that are never enough, because whoever may propose or seal is an approver itself",
                ));
            }
            judged.push(key);
        }
        Ok(())
    }

    /// What is written has to be read again, and to fit into an entry.
    fn check_text(&self) -> Result<(), Fault> {
        let text = self.to_canonical();
        if text.len() > crate::governance::value::MAX_BYTES - ENTRY_ROOM {
            return Err(fault(Code::EntryTooLarge, "", "the rules do not fit into an entry of 1 MiB"));
        }
        json::canonicalize(text.as_bytes())
            .map(|_| ())
            .map_err(|error| fault(Code::Rules, &error.pointer, &error.to_string()))
    }
}

impl Approver {
    /// Whether whatever `caller` does, it does as this approver.
    fn is_surely(&self, caller: &CallerRule) -> bool {
        let all_theirs = |ids: &[Pattern]| {
            !ids.is_empty() && ids.iter().all(|id| self.actor_ids.iter().any(|own| covers(own, id)))
        };
        self.callers.contains(&caller.name) || all_theirs(&caller.actor_ids)
    }

    /// Whether `caller` may act as this approver.
    fn could_be(&self, caller: &CallerRule) -> bool {
        self.callers.contains(&caller.name)
            || caller.actor_ids.iter().any(|id| self.actor_ids.iter().any(|own| own.overlaps(id)))
    }

    /// Whether a process of `uid` that is `caller` by the rules is this approver: by its caller, by
    /// the actor id that it acted under, or, where that is not recorded, by any that it may have.
    #[must_use]
    pub fn is_party(&self, caller: Option<&CallerRule>, uid: u32, actor_id: Option<&str>) -> bool {
        if let Some(id) = actor_id {
            let by_caller = caller.is_some_and(|caller| self.callers.contains(&caller.name));
            return by_caller || self.actor_ids.iter().any(|own| own.matches(id));
        }
        let has_ids = caller.is_some_and(|caller| !caller.actor_ids.is_empty());
        let uids = [format!("uid:{uid}"), format!("uid:{uid}/*")];
        let by_uid = || {
            uids.iter()
                .filter_map(|id| Pattern::parse(id))
                .any(|id| self.actor_ids.iter().any(|own| own.overlaps(&id)))
        };
        caller.is_some_and(|caller| self.could_be(caller)) || (!has_ids && by_uid())
    }
}

/// Whether `wide` matches whatever `narrow` matches.
fn covers(wide: &Pattern, narrow: &Pattern) -> bool {
    match (wide.literal(), narrow.literal()) {
        (_, Some(text)) => wide.matches(text),
        (Some(_), None) => false,
        (None, None) => narrow.as_str().starts_with(wide.as_str().trim_end_matches('*')),
    }
}

fn unique(list: &str, names: impl Iterator<Item = String>) -> Result<(), Fault> {
    let mut seen = HashSet::new();
    for (index, name) in names.enumerate() {
        if seen.contains(&name) {
            let detail = format!("the name `{}` stands twice", shown(&name));
            return Err(fault(Code::Rules, &format!("/{list}/{index}/name"), &detail));
        }
        seen.insert(name);
    }
    Ok(())
}

fn fault(code: Code, pointer: &str, detail: &str) -> Fault {
    Fault::new(code, detail).at(pointer, None)
}
