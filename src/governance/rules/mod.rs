//! The rules: who may do what, who approves what, which proofs an action needs, how scores weigh.
//!
//! ```toml
//! [[callers]]
//! name = "deploy"
//! unit = "deploy.service"
//! verbs = ["append", "read", "propose", "seal"]
//!
//! [[actions]]
//! type = "deploy.*"
//! proofs = ["rollback"]
//! ```
//!
//! A person writes TOML; the ledger keeps canonical JSON of the same members, everything spelled
//! out, so that each set of rules has one text and one hash. Both are read strictly, and rules that
//! contradict themselves are refused ([`Rules::check`]), so whatever holds a [`Rules`] can be judged by.
//! `docs/governance.md` describes them.

mod check;
mod explain;
mod read;
mod write;

pub use explain::diff;
pub(super) use write::{Object, text_array};

use std::fmt;
use std::sync::Arc;

use super::key::Key;
use crate::ledger::code::Code;
use crate::ledger::entry::{ActorType, EntryView, EventType};
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::ledger::score::Scale;

/// A thousand is what one host's services need at most; four times that still fits into 1 MiB.
pub const MAX_CALLERS: usize = 4_096;
/// Approvers are people.
pub const MAX_APPROVERS: usize = 256;
/// The most that a file of rules, or their canonical form, may have.
pub const MAX_RULES_BYTES: usize = super::value::MAX_BYTES;
/// As with callers.
pub const MAX_ACTIONS: usize = 4_096;
/// Provers are programs that somebody runs.
pub const MAX_PROVERS: usize = 256;
/// So many approvals of 3 KiB still leave room for the draft in an entry of 64 KiB.
pub const MAX_APPROVALS: u32 = 16;
/// Proofs that an event can need or bring.
pub const MAX_PROOFS: usize = 32;
/// What an approval takes in an entry at most in practice: the statement (1 KiB with long names,
/// its quotes escaped) and an armoured `sk-` signature.
pub const APPROVAL_BYTES: usize = 3_072;
/// How long a proposal lives unless the rules say otherwise: long enough for a weekend.
pub const DEFAULT_LIFETIME_SECONDS: u32 = 7 * 86_400;
/// The longest life: approvals of another year are about another world.
pub const MAX_LIFETIME_SECONDS: u32 = 366 * 86_400;
/// The highest rate that a limit can be.
pub const MAX_ENTRIES_PER_SECOND: u32 = 1_000_000;
/// The highest clearance.
pub const MAX_CLEARANCE: u8 = 10;

/// The proof types that the daemon decides by itself, sorted.
pub const BUILT_IN_PROOFS: [&str; 7] =
    ["attribution_intact", "chain", "k1_state", "pillars", "quorum", "rollback", "safety_floor"];

/// What is wrong with a text of rules, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Fault {
    /// The stable code.
    pub code: Code,
    /// The line of the TOML file, from 1.
    pub line: Option<usize>,
    /// RFC 6901 pointer into the rules, empty for the whole.
    pub pointer: String,
    /// What is wrong, in plain words.
    pub detail: String,
}

impl Fault {
    pub(super) fn new(code: Code, detail: &str) -> Self {
        Fault { code, line: None, pointer: String::new(), detail: detail.into() }
    }

    pub(super) fn at(mut self, pointer: &str, line: Option<usize>) -> Self {
        self.pointer = pointer.into();
        self.line = line;
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.detail)?,
            None => f.write_str(&self.detail)?,
        }
        if self.pointer.is_empty() { Ok(()) } else { write!(f, " ({})", self.pointer) }
    }
}

/// A literal, or with a `*` at its end everything that begins so. Case matters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern(String);

impl Pattern {
    /// Takes a text in which `*` stands at the end or nowhere.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let body = text.strip_suffix('*').unwrap_or(text);
        (!text.is_empty() && !body.contains('*')).then(|| Pattern(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it matches `text`.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match self.0.as_bytes().split_last() {
            Some((b'*', prefix)) => text.as_bytes().starts_with(prefix),
            _ => self.0 == text,
        }
    }

    /// Whether some text matches both.
    #[must_use]
    pub fn overlaps(&self, other: &Pattern) -> bool {
        match (self.0.strip_suffix('*'), other.0.strip_suffix('*')) {
            (Some(a), Some(b)) => a.starts_with(b) || b.starts_with(a),
            (None, _) => other.matches(&self.0),
            (_, None) => self.matches(&other.0),
        }
    }

    /// The text, when it is the only one that matches.
    #[must_use]
    pub fn literal(&self) -> Option<&str> {
        (!self.0.ends_with('*')).then_some(&self.0)
    }
}

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// Rules, keys, benchmarks, and withdrawing what others proposed.
    Administer,
    /// Append entries.
    Append,
    /// Open and withdraw proposals.
    Propose,
    /// Read entries.
    Read,
    /// Seal proposals with their outcome.
    Seal,
}

impl Verb {
    /// Every verb, by name.
    pub const ALL: [Verb; 5] = [Verb::Administer, Verb::Append, Verb::Propose, Verb::Read, Verb::Seal];

    /// The name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Administer => "administer",
            Verb::Append => "append",
            Verb::Propose => "propose",
            Verb::Read => "read",
            Verb::Seal => "seal",
        }
    }
}

/// A kind of caller: all that is given must hold of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallerRule {
    /// What entries call it.
    pub name: String,
    /// The effective user id.
    pub uid: Option<u32>,
    /// The user's name, as the host resolves the uid.
    pub user: Option<String>,
    /// The effective or a supplementary group id.
    pub gid: Option<u32>,
    /// A group's name, for people: [`Rules::resolve_groups`] fills in `gid`, without which it
    /// matches nobody.
    pub group: Option<String>,
    /// The system manager's unit.
    pub unit: Option<String>,
    /// The executable's absolute path. It only narrows.
    pub exe: Option<String>,
    /// The executable's SHA-256. It only narrows.
    pub exe_sha256: Option<Digest>,
    /// What it may do, sorted.
    pub verbs: Vec<Verb>,
    /// Whom it may name as the actor; none: `uid:<n>` and `uid:<n>/…` of its own uid.
    pub actor_ids: Vec<Pattern>,
    /// Which kinds of actor; none: every kind.
    pub actor_types: Vec<ActorType>,
    /// Which kinds of event; none: every kind that a client may append.
    pub event_types: Vec<EventType>,
    /// How confidential the entries are that it may read.
    pub clearance: u8,
    /// How many entries it may append in a second; none: as many as there is room for.
    pub entries_per_second: Option<u32>,
}

/// Somebody whose signature counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approver {
    /// The name in approvals.
    pub name: String,
    /// What it approves as.
    pub role: String,
    /// What it signs with.
    pub key: Key,
    /// The callers (by name) that are this person's.
    pub callers: Vec<String>,
    /// The actor ids that are this person's.
    pub actor_ids: Vec<Pattern>,
}

/// What actions of a type need. All rules that match an action apply to it, joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionRule {
    /// Which `action_type`.
    pub action_type: Pattern,
    /// Proof types, sorted, without repeats.
    pub proofs: Vec<String>,
    /// How many approvals.
    pub approvals: u32,
    /// Roles among them, sorted; a role that stands twice is needed twice.
    pub roles: Vec<String>,
    /// How long a proposal may live.
    pub lifetime_seconds: u32,
    /// How confidential such entries are.
    pub clearance: u8,
    /// Whether one approver's rejection ends the proposal.
    pub rejection_blocks: bool,
}

/// Whose signature makes a proof of a type that is not built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prover {
    /// The name in proof statements.
    pub name: String,
    /// The proof type.
    pub proof: String,
    /// What it signs with.
    pub key: Key,
}

/// One set of rules, checked. The default has no callers, approvers or actions, weighs the pillars
/// equally, and has its floor at 7.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    pub(super) callers: Vec<CallerRule>,
    pub(super) approvers: Vec<Approver>,
    pub(super) actions: Vec<ActionRule>,
    pub(super) provers: Vec<Prover>,
    pub(super) scale: Scale,
}

impl Rules {
    /// In the order in which they are tried.
    #[must_use]
    pub fn callers(&self) -> &[CallerRule] {
        &self.callers
    }

    /// Everybody whose signature counts.
    #[must_use]
    pub fn approvers(&self) -> &[Approver] {
        &self.approvers
    }

    /// What actions need.
    #[must_use]
    pub fn actions(&self) -> &[ActionRule] {
        &self.actions
    }

    /// Who proves.
    #[must_use]
    pub fn provers(&self) -> &[Prover] {
        &self.provers
    }

    /// How pillars weigh and where the floor lies.
    #[must_use]
    pub fn scale(&self) -> Scale {
        self.scale
    }

    /// Whether a caller rule asks for the hash of an executable, so that it has to be taken.
    #[must_use]
    pub fn uses_exe_hashes(&self) -> bool {
        self.callers.iter().any(|caller| caller.exe_sha256.is_some())
    }

    /// The approver called `name`.
    #[must_use]
    pub fn approver(&self, name: &str) -> Option<&Approver> {
        self.approvers.iter().find(|approver| approver.name == name)
    }

    /// The clearance that a reader needs to see `entry` in full. What the daemon writes about an
    /// action is as confidential as the action.
    #[must_use]
    pub fn clearance_of(&self, entry: &EntryView<'_>) -> u8 {
        let own = self.demand(entry.action_type).clearance;
        if !entry.is_daemons() {
            return own;
        }
        let object = |value: Option<&str>| value.filter(|value| value.starts_with('{')).map(str::to_owned);
        let member = |object: &str, name: &str| json::member(object, name).map(str::to_owned);
        let payload = entry.action_payload;
        let about = match entry.action_type {
            "proposal.open" => object(json::member(payload, "draft")),
            "approval.give" | "approval.reject" => object(json::member(payload, "approval"))
                .and_then(|approval| member(&approval, "statement"))
                .map(|statement| json::unquote(statement.as_bytes()))
                .filter(|statement| statement.starts_with('{')),
            "system_violation" => object(json::member(payload, "attempt")),
            _ => return own,
        };
        match about.and_then(|about| member(&about, "action_type")) {
            Some(action) => own.max(self.demand(&json::unquote(action.as_bytes())).clearance),
            // A hash alone lets a small attempt be guessed, whatever it was.
            None => own.max(self.highest_clearance()),
        }
    }

    /// The clearance with which everything can be seen.
    #[must_use]
    pub fn highest_clearance(&self) -> u8 {
        self.actions.iter().map(|action| action.clearance).max().unwrap_or_default()
    }

    /// What an action of `action_type` needs.
    #[must_use]
    pub fn demand(&self, action_type: &str) -> Demand {
        let mut demand = Demand::default();
        for rule in self.actions.iter().filter(|rule| rule.action_type.matches(action_type)) {
            demand.add(rule);
        }
        demand
    }

    /// Looks up the gid of each caller's `group`; done by the daemon before the rules get into force.
    ///
    /// # Errors
    /// When there is no such group, or the caller's `gid` is another.
    pub fn resolve_groups(&mut self, gid: impl Fn(&str) -> Option<u32>) -> Result<(), Fault> {
        for (index, caller) in self.callers.iter_mut().enumerate() {
            let Some(group) = &caller.group else { continue };
            let pointer = format!("/callers/{index}/group");
            let fault = |detail: &str| Fault::new(Code::Rules, detail).at(&pointer, None);
            let found =
                gid(group).ok_or_else(|| fault(&format!("this host has no group called `{group}`")))?;
            if caller.gid.is_some_and(|given| given != found) {
                return Err(fault(&format!("`{group}` has the gid {found} here, not the one given")));
            }
            caller.gid = Some(found);
        }
        Ok(())
    }

    /// SHA-256 of the canonical JSON.
    #[must_use]
    pub fn hash(&self) -> Digest {
        Digest::of(self.to_canonical().as_bytes())
    }
}

/// What is asked of one action: the rules that match it and, through [`Demand::join`], what others add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Proof types, sorted, without repeats.
    pub proofs: Vec<String>,
    /// How many approvals.
    pub approvals: u32,
    /// Roles among them, sorted, with repeats.
    pub roles: Vec<String>,
    /// How long a proposal may live.
    pub lifetime_seconds: u32,
    /// How confidential the entry is.
    pub clearance: u8,
    /// Whether a rejection ends the proposal. A demand that no rule makes is the client's own: it does.
    pub rejection_blocks: bool,
    /// Whether a rule said so.
    governed: bool,
}

impl Default for Demand {
    fn default() -> Self {
        Demand {
            proofs: Vec::new(),
            approvals: 0,
            roles: Vec::new(),
            lifetime_seconds: DEFAULT_LIFETIME_SECONDS,
            clearance: 0,
            rejection_blocks: true,
            governed: false,
        }
    }
}

impl Demand {
    /// What a client asks of its own event.
    #[must_use]
    pub fn asked(proofs: Vec<String>, approvals: u32) -> Self {
        Demand { proofs, approvals, ..Demand::default() }
    }

    fn add(&mut self, rule: &ActionRule) {
        let governed = rule.approvals > 0;
        self.join(&Demand {
            proofs: rule.proofs.clone(),
            approvals: rule.approvals,
            roles: rule.roles.clone(),
            lifetime_seconds: rule.lifetime_seconds,
            clearance: rule.clearance,
            rejection_blocks: rule.rejection_blocks,
            governed,
        });
    }

    /// Adds what `other` asks: the stricter of both in everything.
    pub fn join(&mut self, other: &Demand) {
        self.proofs.extend(other.proofs.iter().cloned());
        self.proofs.sort_unstable();
        self.proofs.dedup();
        self.roles = join_roles(&self.roles, &other.roles);
        self.approvals = self.approvals.max(other.approvals).max(self.roles.len() as u32);
        self.clearance = self.clearance.max(other.clearance);
        // A rule without approvals has no say on the life of proposals.
        if other.governed {
            self.lifetime_seconds = if self.governed {
                self.lifetime_seconds.min(other.lifetime_seconds)
            } else {
                other.lifetime_seconds
            };
            self.rejection_blocks = if self.governed {
                self.rejection_blocks || other.rejection_blocks
            } else {
                other.rejection_blocks
            };
            self.governed = true;
        }
    }

    /// Whether approvals by approvers in `roles` (one for each) are enough.
    #[must_use]
    pub fn is_met_by(&self, roles: &[&str]) -> bool {
        roles.len() >= self.approvals as usize && self.missing_roles(roles).is_empty()
    }

    /// The roles that approvals in `roles` leave open.
    #[must_use]
    pub fn missing_roles(&self, roles: &[&str]) -> Vec<String> {
        // Each approver has one role, so nobody has to be placed: counting is exact.
        let mut left = roles.to_vec();
        let mut missing = self.roles.clone();
        missing.retain(|role| match left.iter().position(|have| have == role) {
            Some(at) => {
                left.swap_remove(at);
                false
            }
            None => true,
        });
        missing
    }
}

/// For each role the larger number of times that it stands in `a` or in `b`, sorted.
fn join_roles(a: &[String], b: &[String]) -> Vec<String> {
    let mut joined = a.to_vec();
    let mut spare = a.to_vec();
    for role in b {
        match spare.iter().position(|have| have == role) {
            Some(at) => {
                spare.swap_remove(at);
            }
            None => joined.push(role.clone()),
        }
    }
    joined.sort_unstable();
    joined
}

/// The rules in force and what entries call them.
#[derive(Debug, Clone)]
pub struct InForce {
    rules: Arc<Rules>,
    hash: Option<Digest>,
    label: Arc<str>,
}

impl Default for InForce {
    fn default() -> Self {
        InForce::new(None)
    }
}

impl InForce {
    /// Puts `rules` into force; `None` is the documented default.
    #[must_use]
    pub fn new(rules: Option<Rules>) -> Self {
        let hash = rules.as_ref().map(Rules::hash);
        let label = hash.map_or_else(|| "default".into(), |hash| hash.to_hex().into());
        InForce { rules: Arc::new(rules.unwrap_or_default()), hash, label }
    }

    /// Whether no rules were ever set.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.hash.is_none()
    }

    /// `attestd.rules` of entries, and `rules_hash` of statements: the hash, or `default`.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }
}

impl std::ops::Deref for InForce {
    type Target = Rules;

    fn deref(&self) -> &Rules {
        &self.rules
    }
}

#[cfg(test)]
mod tests;
