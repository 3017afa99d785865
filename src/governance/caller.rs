//! Who is calling, by the kernel's word, held against the rules.
//!
//! The daemon reads a peer from the kernel; the auditor reads it back from `actor_context.peer`.
//! Both come to the same caller here. It resolves no names: `user` is what the host said, groups
//! are numbers. What the kernel did not give is `None`, and no rule that asks for it matches.

use std::borrow::Cow;

use super::Refusal;
use super::rules::{CallerRule, InForce, Rules, Verb};
use crate::ledger::code::Code;
use crate::ledger::entry::{ActorType, DAEMON_ACTOR, EventType, is_actor_id};
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::ledger::timestamp::Timestamp;

/// What is known of a process that connected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: Option<u32>,
    /// Supplementary groups.
    pub groups: Option<Vec<u32>>,
    /// The user's name, as the host resolved it.
    pub user: Option<String>,
    /// The system manager's unit.
    pub unit: Option<String>,
    /// The executable's path.
    pub exe: Option<String>,
    /// The executable's SHA-256, taken where the rules use hashes.
    pub exe_sha256: Option<Digest>,
    /// The caller that the entry says it is.
    pub caller: Option<String>,
}

/// The members of `peer`, in canonical order.
const MEMBERS: [&str; 10] =
    ["caller", "exe", "exe_sha256", "gid", "groups", "pid", "start_time", "uid", "unit", "user"];

impl Peer {
    /// Reads the canonical object `actor_context.peer`: exactly its ten members, each null or of its
    /// form, the uid never null. Pointers in a refusal begin at the object.
    ///
    /// # Errors
    /// [`Code::WrongType`], [`Code::UnknownMember`] or [`Code::MissingMember`].
    pub fn parse(object: &str) -> Result<Self, Refusal> {
        if !object.starts_with('{') {
            return Err(Refusal::new(Code::WrongType).because("must be an object"));
        }
        let mut members = json::members(object);
        let mut peer = Peer::default();
        for name in MEMBERS {
            let value = match members.next() {
                Some((start, name_end, end)) if &object[start + 1..name_end - 1] == name => {
                    &object[name_end + 1..end]
                }
                _ => return Err(strange_member(object)),
            };
            peer.assign(name, value).ok_or_else(|| Refusal::new(Code::WrongType).at(format!("/{name}")))?;
        }
        if members.next().is_some() { Err(strange_member(object)) } else { Ok(peer) }
    }

    fn assign(&mut self, name: &str, value: &str) -> Option<()> {
        if value == "null" {
            return (name != "uid").then_some(());
        }
        match name {
            "caller" => self.caller = Some(string(value)?),
            "exe" => self.exe = Some(string(value)?),
            "exe_sha256" => self.exe_sha256 = Some(Digest::from_hex(string(value)?.as_bytes())?),
            "gid" => self.gid = Some(value.parse().ok()?),
            "groups" => {
                let groups = value.starts_with('[').then(|| json::elements(value))?;
                self.groups = Some(groups.map(|group| group.parse().ok()).collect::<Option<_>>()?);
            }
            "pid" => drop(value.parse::<i32>().ok().filter(|pid| *pid >= 0)?),
            "start_time" => drop(Timestamp::parse(string(value)?.as_bytes())?),
            "uid" => self.uid = value.parse().ok()?,
            "unit" => self.unit = Some(string(value)?),
            _ => self.user = Some(string(value)?),
        }
        Some(())
    }
}

/// The canonical `peer` object of a process, with the caller that it is put into it.
#[must_use]
pub fn named<'a>(peer_json: &'a str, caller: Option<&str>) -> Cow<'a, str> {
    let Some(caller) = caller else {
        return Cow::Borrowed(peer_json);
    };
    let mut name = Vec::new();
    json::write_string(caller, &mut name);
    // `caller` comes first, and is null until the rules have spoken.
    Cow::Owned(peer_json.replacen("\"caller\":null", &format!("\"caller\":{}", json::into_string(name)), 1))
}

fn string(value: &str) -> Option<String> {
    value.starts_with('"').then(|| json::unquote(value.as_bytes()))
}

/// Why the members of `object` are not those of [`MEMBERS`].
fn strange_member(object: &str) -> Refusal {
    let names: Vec<String> =
        json::members(object).map(|(start, end, _)| json::unquote(&object.as_bytes()[start..end])).collect();
    let unknown = names.iter().find(|name| !MEMBERS.contains(&name.as_str()));
    let missing = MEMBERS.iter().find(|known| !names.iter().any(|name| name == *known));
    let (code, name) = match (unknown, missing) {
        (Some(unknown), _) => (Code::UnknownMember, unknown.as_str()),
        (None, missing) => (Code::MissingMember, missing.copied().unwrap_or_default()),
    };
    Refusal::new(code).at(format!("/{}", name.replace('~', "~0").replace('/', "~1")))
}

impl CallerRule {
    /// Whether all that the rule gives holds of `peer`.
    #[must_use]
    pub fn matches(&self, peer: &Peer) -> bool {
        fn holds<T: PartialEq>(wanted: &Option<T>, found: Option<&T>) -> bool {
            wanted.as_ref().is_none_or(|wanted| found == Some(wanted))
        }
        let in_group = |gid: u32| {
            peer.gid == Some(gid) || peer.groups.as_ref().is_some_and(|groups| groups.contains(&gid))
        };
        // A group's name that was not looked up matches nobody.
        let group_known = self.group.is_none() || self.gid.is_some();
        holds(&self.uid, Some(&peer.uid))
            && holds(&self.user, peer.user.as_ref())
            && group_known
            && self.gid.is_none_or(in_group)
            && holds(&self.unit, peer.unit.as_ref())
            && holds(&self.exe, peer.exe.as_ref())
            && holds(&self.exe_sha256, peer.exe_sha256.as_ref())
    }

    /// A process that the rule matches, for trying rules out. An earlier rule may match it too.
    #[must_use]
    pub fn example(&self) -> Peer {
        Peer {
            // A uid that no account has, where the rule leaves it open.
            uid: self.uid.unwrap_or(u32::MAX - 1),
            gid: self.gid,
            groups: None,
            user: self.user.clone(),
            unit: self.unit.clone(),
            exe: self.exe.clone(),
            exe_sha256: self.exe_sha256,
            caller: None,
        }
    }

    /// Whether it may do `verb`.
    #[must_use]
    pub fn may(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }
}

impl Rules {
    /// The caller that `peer` is: the first that matches; none may do nothing.
    #[must_use]
    pub fn caller(&self, peer: &Peer) -> Option<&CallerRule> {
        self.callers.iter().find(|caller| caller.matches(peer))
    }
}

/// A peer that the rules in force let in, by the caller that it is; `None` under the default rules,
/// where the daemon's own access by the socket's group holds.
#[derive(Debug, Clone, Copy)]
pub struct Admission<'a> {
    /// What the kernel said.
    pub peer: &'a Peer,
    /// The first rule that matched.
    pub rule: Option<&'a CallerRule>,
}

impl<'a> Admission<'a> {
    /// Finds the caller that `peer` is and whether it may do `verb`; without one, whatever the
    /// rules let it do is enough.
    ///
    /// # Errors
    /// [`Code::CallerNotAllowed`].
    pub fn of(rules: &'a InForce, peer: &'a Peer, verb: Option<Verb>) -> Result<Self, Refusal> {
        if rules.is_default() {
            return Ok(Admission { peer, rule: None });
        }
        let Some(rule) = rules.caller(peer) else {
            let detail = format!("no caller of the rules in force matches this process of uid {}", peer.uid);
            return Err(Refusal::new(Code::CallerNotAllowed).because(&detail));
        };
        if let Some(verb) = verb.filter(|verb| !rule.may(*verb)) {
            let detail = format!("the rules do not let the caller `{}` {}", rule.name, verb.as_str());
            return Err(Refusal::new(Code::CallerNotAllowed).because(&detail));
        }
        Ok(Admission { peer, rule: Some(rule) })
    }

    /// Whether it may see more of an entry of `action_type` than that it is there.
    #[must_use]
    pub fn discloses(&self, rules: &InForce, action_type: &str) -> bool {
        self.rule.is_none_or(|rule| rule.clearance >= rules.demand(action_type).clearance)
    }

    /// The name of the rule, for `peer.caller`.
    #[must_use]
    pub fn name(&self) -> Option<&'a str> {
        self.rule.map(|rule| rule.name.as_str())
    }

    /// The `actor_id` that an entry gets for what the client claims.
    ///
    /// # Errors
    /// [`Code::ActorNotAllowed`], or [`Code::WrongValue`] where the id would be too long.
    pub fn actor_id(&self, claimed: Option<&str>) -> Result<String, Refusal> {
        let uid = self.peer.uid;
        let own_ids = self.rule.filter(|rule| !rule.actor_ids.is_empty());
        let Some(rule) = own_ids else {
            let id = claimed.map_or_else(|| format!("uid:{uid}"), |claimed| format!("uid:{uid}/{claimed}"));
            return if is_actor_id(&id) {
                Ok(id)
            } else {
                let detail = format!(
                    "would be stored as `uid:{uid}/…` in {} bytes; an actor id has at most 256",
                    id.len()
                );
                Err(Refusal::new(Code::WrongValue).at("/actor_id").because(&detail))
            };
        };
        match (claimed, rule.actor_ids.as_slice()) {
            (Some(claimed), ids) if ids.iter().any(|id| id.matches(claimed)) => Ok(claimed.to_owned()),
            (None, [only]) if only.literal().is_some() => Ok(only.as_str().to_owned()),
            (claimed, _) => {
                let detail = match claimed {
                    Some(claimed) => {
                        format!("the rules do not let the caller `{}` be `{claimed}`", rule.name)
                    }
                    None => format!("the caller `{}` has several actor ids, so one must be given", rule.name),
                };
                Err(Refusal::new(Code::ActorNotAllowed).at("/actor_id").because(&detail))
            }
        }
    }

    /// Checks the `actor_id` of an entry, as [`Admission::actor_id`] would have made it.
    ///
    /// # Errors
    /// [`Code::ActorNotAllowed`], [`Code::ReservedByClient`] or [`Code::WrongValue`].
    pub fn check_actor_id(&self, actor_id: &str) -> Result<(), Refusal> {
        if actor_id == DAEMON_ACTOR {
            return Err(Refusal::new(Code::ReservedByClient).at("/actor_id"));
        }
        if let Some(rule) = self.rule.filter(|rule| !rule.actor_ids.is_empty()) {
            let allowed =
                !actor_id.starts_with("uid:") && rule.actor_ids.iter().any(|id| id.matches(actor_id));
            let detail = format!("the rules do not let the caller `{}` be that", rule.name);
            return if allowed {
                Ok(())
            } else {
                Err(Refusal::new(Code::ActorNotAllowed).at("/actor_id").because(&detail))
            };
        }
        let own = format!("uid:{}", self.peer.uid);
        match actor_id.strip_prefix(&own) {
            Some("") => Ok(()),
            Some(rest) if rest.starts_with('/') => Ok(()),
            _ => Err(Refusal::new(Code::WrongValue).at("/actor_id").because(&format!(
                "without actor ids in the rules a caller with uid {} is `{own}` or `{own}/…`",
                self.peer.uid
            ))),
        }
    }

    /// Checks what kind of actor and of event the caller may name.
    ///
    /// # Errors
    /// [`Code::ActorNotAllowed`].
    pub fn check_kinds(&self, actor_type: ActorType, event_type: EventType) -> Result<(), Refusal> {
        let Some(rule) = self.rule else {
            return Ok(());
        };
        let refuse = |pointer: &str, what: &str| {
            let detail = format!("the rules do not let the caller `{}` {what}", rule.name);
            Err(Refusal::new(Code::ActorNotAllowed).at(pointer).because(&detail))
        };
        if !rule.actor_types.is_empty() && !rule.actor_types.contains(&actor_type) {
            return refuse("/actor_type", &format!("be a {actor_type}"));
        }
        if !rule.event_types.is_empty() && !rule.event_types.contains(&event_type) {
            return refuse("/event_type", &format!("append {event_type} events"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::governance::rules::Pattern;

    fn rule(set: impl FnOnce(&mut CallerRule)) -> CallerRule {
        let mut rule = CallerRule { name: "x".into(), ..CallerRule::default() };
        set(&mut rule);
        rule
    }

    fn peer() -> Peer {
        Peer {
            uid: 1000,
            gid: Some(100),
            groups: Some(vec![27, 50]),
            user: Some("deploy".into()),
            unit: Some("deploy.service".into()),
            exe: Some("/usr/bin/deploy".into()),
            exe_sha256: Some(Digest::of(b"exe")),
            caller: None,
        }
    }

    #[test]
    fn all_that_a_rule_gives_must_hold() {
        let matches = |set: fn(&mut CallerRule)| rule(set).matches(&peer());
        assert!(matches(|r| r.uid = Some(1000)));
        assert!(!matches(|r| r.uid = Some(1001)));
        assert!(matches(|r| r.gid = Some(100)) && matches(|r| r.gid = Some(50)));
        assert!(!matches(|r| r.gid = Some(51)));
        assert!(matches(|r| (r.user, r.unit) = (Some("deploy".into()), Some("deploy.service".into()))));
        assert!(!matches(|r| (r.uid, r.unit) = (Some(1000), Some("other.service".into()))));
        assert!(matches(|r| (r.uid, r.exe) = (Some(1000), Some("/usr/bin/deploy".into()))));
        assert!(!matches(|r| (r.uid, r.exe) = (Some(1000), Some("/usr/bin/deplo".into()))));
        assert!(!matches(|r| (r.uid, r.exe_sha256) = (Some(1000), Some(Digest::ZERO))));
    }

    #[test]
    fn what_the_kernel_did_not_give_matches_nothing_that_asks_for_it() {
        let bare = Peer { uid: 1000, ..Peer::default() };
        let matches = |set: fn(&mut CallerRule)| rule(set).matches(&bare);
        assert!(matches(|r| r.uid = Some(1000)));
        assert!(!matches(|r| (r.uid, r.exe) = (Some(1000), Some(String::new()))));
        assert!(!matches(|r| (r.uid, r.exe_sha256) = (Some(1000), Some(Digest::of(b"exe")))));
        assert!(!matches(|r| r.unit = Some("deploy.service".into())));
        assert!(!matches(|r| r.user = Some("deploy".into())));
        assert!(!matches(|r| r.gid = Some(0)));
    }

    #[test]
    fn a_group_that_nobody_looked_up_matches_nobody() {
        assert!(!rule(|r| r.group = Some("staff".into())).matches(&peer()));
        assert!(rule(|r| (r.group, r.gid) = (Some("staff".into()), Some(50))).matches(&peer()));
    }

    #[test]
    fn a_peer_reads_back_strictly() {
        let text = r#"{"caller":"x","exe":"/bin/a","exe_sha256":null,"gid":5,"groups":[1,2],"pid":9,"start_time":null,"uid":1000,"unit":null,"user":"a\"b"}"#;
        let peer = Peer::parse(text).expect("a peer");
        assert_eq!(
            (peer.uid, peer.gid, peer.user.as_deref(), peer.groups.as_deref()),
            (1000, Some(5), Some("a\"b"), Some(&[1, 2][..]))
        );
        let code = |text: &str| Peer::parse(text).expect_err(text).code;
        assert_eq!(code("null"), Code::WrongType);
        assert_eq!(code(&text.replace("\"uid\":1000", "\"uid\":null")), Code::WrongType);
        assert_eq!(code(&text.replace("1000", "4294967296")), Code::WrongType);
        assert_eq!(code(&text.replace("[1,2]", "[1,-2]")), Code::WrongType);
        assert_eq!(code(&text.replace("\"pid\":9,", "")), Code::MissingMember);
        assert_eq!(code(&text.replace("\"pid\":9", "\"pidfd\":9")), Code::UnknownMember);
        assert_eq!(code(&text.replace("\"unit\":null,", "\"unit\":null,\"v\":1,")), Code::UnknownMember);
    }

    #[test]
    fn actor_ids_are_the_rules_to_give() {
        let peer = peer();
        let id = |text: &str| Pattern::parse(text).expect("a pattern");
        let (none, one, many) = (
            rule(|_| ()),
            rule(|r| r.actor_ids = vec![id("deployer")]),
            rule(|r| r.actor_ids = vec![id("agent/*"), id("deployer")]),
        );
        let admission = |rule| Admission { peer: &peer, rule: Some(rule) };
        assert_eq!(admission(&none).actor_id(None).as_deref(), Ok("uid:1000"));
        assert_eq!(admission(&none).actor_id(Some("x")).as_deref(), Ok("uid:1000/x"));
        assert_eq!(admission(&one).actor_id(None).as_deref(), Ok("deployer"));
        assert_eq!(admission(&many).actor_id(Some("agent/7")).as_deref(), Ok("agent/7"));
        for (rule, claimed) in [(&many, None), (&many, Some("agent")), (&one, Some("agent/7"))] {
            let refusal = admission(rule).actor_id(claimed).expect_err("refused");
            assert_eq!(refusal.code, Code::ActorNotAllowed, "{claimed:?}");
        }
        let anybody = rule(|r| r.actor_ids = vec![id("*")]);
        let check = |rule, id| admission(rule).check_actor_id(id).map_err(|refusal| refusal.code);
        assert_eq!(check(&anybody, "whoever"), Ok(()));
        assert_eq!(check(&anybody, "uid:0"), Err(Code::ActorNotAllowed));
        assert_eq!(check(&anybody, "attestd"), Err(Code::ReservedByClient));
        assert_eq!(check(&none, "uid:1000/x"), Ok(()));
        for other in ["uid:10000", "uid:1001", "deployer"] {
            assert_eq!(check(&none, other), Err(Code::WrongValue), "{other}");
        }
    }
}
