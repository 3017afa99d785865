//! Rules in plain words, for people who have to say yes to them.

use super::{ActionRule, Approver, CallerRule, Prover, Rules};
use crate::ledger::score::{PILLAR_NAMES, Scale};

impl Rules {
    /// What the rules say, one sentence a line, in the order in which they stand.
    #[must_use]
    pub fn explain(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.callers.iter().map(explain_caller).collect();
        lines.extend(self.approvers.iter().map(explain_approver));
        lines.extend(self.actions.iter().map(explain_action));
        lines.extend(self.provers.iter().map(explain_prover));
        lines.push(explain_scale(&self.scale));
        lines
    }
}

/// What changes from `old` to `new`, one sentence a line, `-` before what ceases and `+` before what
/// begins; a change of order among callers, which decides who matches first, is said too.
#[must_use]
pub fn diff(old: &Rules, new: &Rules) -> Vec<String> {
    let (before, after) = (old.explain(), new.explain());
    let mut lines: Vec<String> =
        before.iter().filter(|line| !after.contains(line)).map(|line| format!("- {line}")).collect();
    lines.extend(after.iter().filter(|line| !before.contains(line)).map(|line| format!("+ {line}")));
    let order = |rules: &Rules, other: &Rules| -> Vec<String> {
        let names = rules.callers.iter().map(|caller| caller.name.clone());
        names.filter(|name| other.callers.iter().any(|caller| caller.name == *name)).collect()
    };
    if order(old, new) != order(new, old) {
        lines.push(format!("~ callers are tried in another order: {}", order(new, old).join(", ")));
    }
    lines
}

fn explain_caller(caller: &CallerRule) -> String {
    let mut is = Vec::new();
    let mut add = |what: &str, value: Option<String>| {
        if let Some(value) = value {
            is.push(format!("{what} {value}"));
        }
    };
    add("uid", caller.uid.map(|uid| uid.to_string()));
    add("user", caller.user.clone());
    match (&caller.group, caller.gid) {
        (Some(group), Some(gid)) => add("in group", Some(format!("{group} (gid {gid})"))),
        (Some(group), None) => add("in group", Some(group.clone())),
        (None, gid) => add("in the group with gid", gid.map(|gid| gid.to_string())),
    }
    add("in unit", caller.unit.clone());
    add("running", caller.exe.clone());
    add("running the program with SHA-256", caller.exe_sha256.map(|hash| hash.to_hex()));
    let verbs: Vec<&str> = caller.verbs.iter().map(|verb| verb.as_str()).collect();
    let mut line = format!("caller `{}` ({}) may {}", caller.name, is.join(" and "), verbs.join(", "));
    if !caller.actor_ids.is_empty() {
        let ids: Vec<String> = caller.actor_ids.iter().map(|id| format!("`{}`", id.as_str())).collect();
        line += &format!(", as {}", ids.join(" or "));
    }
    if !caller.actor_types.is_empty() {
        let types: Vec<&str> = caller.actor_types.iter().map(|kind| kind.as_str()).collect();
        line += &format!(", being {}", types.join(" or "));
    }
    if !caller.event_types.is_empty() {
        let types: Vec<&str> = caller.event_types.iter().map(|kind| kind.as_str()).collect();
        line += &format!(", events {}", types.join(" or "));
    }
    if let Some(rate) = caller.entries_per_second {
        line += &format!(", at most {rate} entries a second");
    }
    if caller.clearance > 0 {
        line += &format!(", and has clearance {}", caller.clearance);
    }
    line
}

fn explain_approver(approver: &Approver) -> String {
    let mut line = format!(
        "approver `{}` approves as `{}` with the {} key {}",
        approver.name,
        approver.role,
        approver.key.algorithm().as_str(),
        approver.key.id()
    );
    let ids: Vec<String> = approver.actor_ids.iter().map(|id| format!("`{}`", id.as_str())).collect();
    let callers: Vec<String> = approver.callers.iter().map(|name| format!("caller `{name}`")).collect();
    let own = [callers, ids].concat();
    if !own.is_empty() {
        line += &format!(", and is {}: never its own approver", own.join(" and "));
    }
    line
}

fn explain_action(action: &ActionRule) -> String {
    let mut needs = Vec::new();
    if action.approvals > 0 {
        let roles = if action.roles.is_empty() {
            String::new()
        } else {
            format!(" among them as {}", action.roles.join(", "))
        };
        let rejection =
            if action.rejection_blocks { "one rejection ends it" } else { "a rejection does not end it" };
        needs.push(format!(
            "{} approval{}{roles} within {} ({rejection})",
            action.approvals,
            if action.approvals == 1 { "" } else { "s" },
            duration(action.lifetime_seconds)
        ));
    }
    if !action.proofs.is_empty() {
        needs.push(format!("the proofs {}", action.proofs.join(", ")));
    }
    if action.clearance > 0 {
        needs.push(format!("clearance {} of its readers", action.clearance));
    }
    let needs = if needs.is_empty() { "nothing".into() } else { needs.join("; ") };
    format!("action `{}` needs {needs}", action.action_type.as_str())
}

fn explain_prover(prover: &Prover) -> String {
    format!(
        "prover `{}` proves `{}` with the {} key {}",
        prover.name,
        prover.proof,
        prover.key.algorithm().as_str(),
        prover.key.id()
    )
}

fn explain_scale(scale: &Scale) -> String {
    let weights: Vec<String> =
        PILLAR_NAMES.iter().zip(scale.weights).map(|(name, weight)| format!("{name} × {weight}")).collect();
    format!("the safety floor is {}, the pillars weigh {}", scale.floor, weights.join(", "))
}

fn duration(seconds: u32) -> String {
    let (count, unit) = match seconds {
        s if s % 86_400 == 0 => (s / 86_400, "day"),
        s if s % 3_600 == 0 => (s / 3_600, "hour"),
        s if s % 60 == 0 => (s / 60, "minute"),
        s => (s, "second"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}
