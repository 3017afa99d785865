//! From the tree of either spelling to [`Rules`]: every member known, of its type and in its range.

use super::{
    ActionRule, Approver, CallerRule, DEFAULT_LIFETIME_SECONDS, Fault, MAX_ACTIONS, MAX_APPROVALS,
    MAX_APPROVERS, MAX_CALLERS, MAX_CLEARANCE, MAX_ENTRIES_PER_SECOND, MAX_LIFETIME_SECONDS, MAX_PROOFS,
    MAX_PROVERS, Pattern, Prover, Rules, Verb,
};
use crate::governance::key::Key;
use crate::governance::value::{Kind, Table, Value, shown, text, wrong_kind};
use crate::ledger::code::Code;
use crate::ledger::entry::{ActorType, DAEMON_ACTOR, EventType, is_action_type, is_actor_id};
use crate::ledger::hash::Digest;
use crate::ledger::score::{PILLAR_NAMES, SCALE, Scale, Score};

impl Rules {
    /// Reads a TOML file's text.
    ///
    /// # Errors
    /// The first [`Fault`], with its line.
    #[cfg(feature = "daemon")]
    pub fn from_toml(text: &str) -> Result<Self, Fault> {
        let rules = rules(&Value::from_toml(text)?)?;
        rules.check()?;
        Ok(rules)
    }

    /// Reads canonical JSON, which must be exactly what [`Rules::to_canonical`] writes.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn from_canonical(text: &str) -> Result<Self, Fault> {
        let rules = rules(&Value::from_canonical(text)?)?;
        rules.check()?;
        // One set of rules, one text: else two hashes would stand for the same.
        if rules.to_canonical() != text {
            return Err(Fault::new(Code::NotCanonical, "the rules are not spelled out in their one form"));
        }
        Ok(rules)
    }
}

pub(super) fn rules(value: &Value) -> Result<Rules, Fault> {
    let mut table = Table::of(value, "")?;
    let callers = table.list("callers", MAX_CALLERS, caller)?;
    let approvers = table.list("approvers", MAX_APPROVERS, approver)?;
    let actions = table.list("actions", MAX_ACTIONS, action)?;
    let provers = table.list("provers", MAX_PROVERS, prover)?;
    let scale = match table.take("pillars") {
        Some((value, pointer)) => pillars(value, &pointer)?,
        None => Scale::default(),
    };
    table.end("actions, approvers, callers, pillars and provers")?;
    Ok(Rules { callers, approvers, actions, provers, scale })
}

fn caller(value: &Value, pointer: &str) -> Result<CallerRule, Fault> {
    let mut table = Table::of(value, pointer)?;
    let caller = CallerRule {
        name: name(&mut table, "name")?,
        uid: table.integer("uid", 0, u32::MAX - 1)?,
        user: checked(&mut table, "user", is_account_name, "a user's name")?,
        gid: table.integer("gid", 0, u32::MAX - 1)?,
        group: checked(&mut table, "group", is_account_name, "a group's name")?,
        unit: unit(&mut table)?,
        exe: checked(
            &mut table,
            "exe",
            is_exe,
            "an absolute path without `//`, `/./`, `/../` or control characters",
        )?,
        exe_sha256: digest(&mut table, "exe_sha256")?,
        verbs: sorted(table.list("verbs", Verb::ALL.len(), |v, p| word(v, p, &Verb::ALL, Verb::as_str))?),
        actor_ids: table.list("actor_ids", MAX_CALLERS, |v, p| actor_id(v, p, false))?,
        actor_types: by_name(
            table.list("actor_types", 4, |v, p| word(v, p, ActorType::ALL, ActorType::as_str))?,
            ActorType::as_str,
        ),
        event_types: by_name(table.list("event_types", 4, event_type)?, EventType::as_str),
        clearance: clearance(&mut table)?,
        entries_per_second: table.integer("entries_per_second", 1, MAX_ENTRIES_PER_SECOND)?,
    };
    table.end("name, uid, user, gid, group, unit, exe, exe_sha256, verbs, actor_ids, actor_types, event_types, clearance and entries_per_second")?;
    let anyone = caller.uid.is_none()
        && caller.user.is_none()
        && caller.gid.is_none()
        && caller.group.is_none()
        && caller.unit.is_none();
    if anyone {
        let detail = if caller.exe.is_some() || caller.exe_sha256.is_some() {
            "an executable only narrows a caller: anybody can run it, so give uid, user, gid, group or unit too"
        } else {
            "give at least one of uid, user, gid, group and unit"
        };
        return Err(Fault::new(Code::Rules, detail).at(pointer, value.line));
    }
    if caller.verbs.is_empty() {
        let detail = "a caller without verbs may do nothing: give `verbs`";
        return Err(Fault::new(Code::Rules, detail).at(pointer, value.line));
    }
    Ok(caller)
}

fn approver(value: &Value, pointer: &str) -> Result<Approver, Fault> {
    let mut table = Table::of(value, pointer)?;
    let approver = Approver {
        name: name(&mut table, "name")?,
        role: role(table.text("role")?, &table)?,
        key: key(&mut table)?,
        callers: sorted(table.list("callers", MAX_CALLERS, text)?),
        actor_ids: table.list("actor_ids", MAX_CALLERS, |v, p| actor_id(v, p, true))?,
    };
    table.end("name, role, public_key, callers and actor_ids")?;
    Ok(approver)
}

fn action(value: &Value, pointer: &str) -> Result<ActionRule, Fault> {
    let mut table = Table::of(value, pointer)?;
    let action_type = table.take("type").map(|(value, pointer)| action_type(value, &pointer)).transpose()?;
    let action_type = table.need("type", action_type)?;
    let proofs = sorted(table.list("proofs", MAX_PROOFS, proof_type)?);
    let mut roles = table.list("roles", MAX_APPROVALS as usize, |value, pointer| {
        let role = text(value, pointer)?;
        if is_word(&role) { Ok(role) } else { Err(bad(value, pointer, "a role: 1 to 64 of a-z 0-9 _ . -")) }
    })?;
    roles.sort_unstable();
    let approvals = table.integer("approvals", 0, MAX_APPROVALS)?.unwrap_or_default();
    let rule = ActionRule {
        action_type,
        proofs,
        approvals: approvals.max(roles.len() as u32),
        roles,
        lifetime_seconds: table
            .integer("lifetime_seconds", 1, MAX_LIFETIME_SECONDS)?
            .unwrap_or(DEFAULT_LIFETIME_SECONDS),
        clearance: clearance(&mut table)?,
        rejection_blocks: table.boolean("rejection_blocks")?.unwrap_or(true),
    };
    table.end("type, proofs, approvals, roles, lifetime_seconds, clearance and rejection_blocks")?;
    Ok(rule)
}

fn prover(value: &Value, pointer: &str) -> Result<Prover, Fault> {
    let mut table = Table::of(value, pointer)?;
    let name = name(&mut table, "name")?;
    let proof = table.take("proof").map(|(value, pointer)| proof_type(value, &pointer)).transpose()?;
    let proof = table.need("proof", proof)?;
    let key = key(&mut table)?;
    table.end("name, proof and public_key")?;
    Ok(Prover { name, proof, key })
}

fn pillars(value: &Value, pointer: &str) -> Result<Scale, Fault> {
    let mut table = Table::of(value, pointer)?;
    let mut scale = Scale::default();
    if let Some((value, pointer)) = table.take("floor") {
        scale.floor = floor(value, &pointer)?;
    }
    if let Some((value, pointer)) = table.take("weights") {
        let mut weights = Table::of(value, &pointer)?;
        for (weight, name) in scale.weights.iter_mut().zip(PILLAR_NAMES) {
            *weight = weights.integer(name, 1, Scale::MAX_WEIGHT)?.unwrap_or(1);
        }
        weights.end(&PILLAR_NAMES.join(", "))?;
    }
    table.end("floor and weights")?;
    Ok(scale)
}

/// 0 to 10 with at most four decimals: a number in TOML, a string in JSON, where a number would
/// be a double to somebody.
fn floor(value: &Value, pointer: &str) -> Result<Score, Fault> {
    let digits = match &value.kind {
        Kind::Integer(integer) => integer.to_string(),
        Kind::Decimal(text) | Kind::Text(text) => text.clone(),
        _ => return Err(wrong_kind(value, pointer, "a number")),
    };
    let extra_zero = digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.");
    Score::from_canonical(&digits)
        .filter(|_| !extra_zero)
        .filter(|score| score.units() <= 10 * SCALE)
        .ok_or_else(|| bad(value, pointer, "0 to 10 with at most four decimals"))
}

fn name(table: &mut Table<'_>, member: &str) -> Result<String, Fault> {
    let name =
        checked(table, member, is_name, "1 to 64 bytes without control characters or blanks at its ends")?;
    table.need(member, name)
}

fn is_name(text: &str) -> bool {
    is_actor_id(text) && text.len() <= 64 && text.trim() == text
}

fn role(text: Option<String>, table: &Table<'_>) -> Result<String, Fault> {
    let role = table.need("role", text)?;
    if is_word(&role) {
        Ok(role)
    } else {
        Err(table.fault(Code::Rules, "`role` must be 1 to 64 of a-z 0-9 _ . -"))
    }
}

fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b))
}

fn is_account_name(text: &str) -> bool {
    (1..=256).contains(&text.len()) && !text.chars().any(|c| c.is_control() || c == ':' || c.is_whitespace())
}

fn is_exe(path: &str) -> bool {
    path.len() <= 4_096
        && path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
                && !rest.chars().any(char::is_control)
        })
}

/// A unit of the system manager. What runs below `user@` is a user's own to name.
fn unit(table: &mut Table<'_>) -> Result<Option<String>, Fault> {
    let Some((value, pointer)) = table.take("unit") else {
        return Ok(None);
    };
    let unit = text(value, &pointer)?;
    let plain =
        unit.len() < 256 && unit.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b));
    let kind = unit.rsplit_once('.').filter(|(name, _)| !name.is_empty()).map(|(_, kind)| kind);
    if unit.starts_with("user@") || unit.contains("/") && unit.contains("user@") {
        return Err(bad(
            value,
            &pointer,
            "a unit of the system manager; below `user@` a user can name units at will",
        ));
    }
    match kind {
        Some("service" | "scope" | "socket" | "mount" | "swap") if plain => Ok(Some(unit)),
        _ => Err(bad(value, &pointer, "a unit's full name, such as `deploy.service`")),
    }
}

fn digest(table: &mut Table<'_>, member: &str) -> Result<Option<Digest>, Fault> {
    let Some((value, pointer)) = table.take(member) else {
        return Ok(None);
    };
    Digest::from_hex(text(value, &pointer)?.as_bytes())
        .map(Some)
        .ok_or_else(|| bad(value, &pointer, "64 lower-case hex digits"))
}

fn key(table: &mut Table<'_>) -> Result<Key, Fault> {
    let given = table.take("public_key");
    let (value, pointer) = table.need("public_key", given)?;
    Key::parse(&text(value, &pointer)?)
        .map_err(|error| Fault::new(Code::Rules, &error.to_string()).at(&pointer, value.line))
}

fn actor_id(value: &Value, pointer: &str, with_uid: bool) -> Result<Pattern, Fault> {
    let id = text(value, pointer)?;
    let body = id.strip_suffix('*').unwrap_or(&id);
    if id == DAEMON_ACTOR || (!with_uid && body.starts_with("uid:")) {
        return Err(bad(
            value,
            pointer,
            "an actor id that is not the daemon's own to give (`attestd`, `uid:…`)",
        ));
    }
    Pattern::parse(&id)
        .filter(|_| body.is_empty() || is_actor_id(body))
        .ok_or_else(|| bad(value, pointer, "an actor id, or the beginning of one and a `*`"))
}

fn action_type(value: &Value, pointer: &str) -> Result<Pattern, Fault> {
    let action_type = text(value, pointer)?;
    let body = action_type.strip_suffix('*').unwrap_or(&action_type);
    Pattern::parse(&action_type)
        .filter(|_| body.is_empty() || is_action_type(body))
        .ok_or_else(|| bad(value, pointer, "an action type, or the beginning of one and a `*`"))
}

fn proof_type(value: &Value, pointer: &str) -> Result<String, Fault> {
    let proof = text(value, pointer)?;
    if is_action_type(&proof) {
        Ok(proof)
    } else {
        Err(bad(value, pointer, "1 to 128 of A-Z a-z 0-9 _ . : / -"))
    }
}

fn event_type(value: &Value, pointer: &str) -> Result<EventType, Fault> {
    let event_type = word(value, pointer, EventType::ALL, EventType::as_str)?;
    if event_type.is_reserved() {
        return Err(bad(value, pointer, "an event type that a client may append"));
    }
    Ok(event_type)
}

fn clearance(table: &mut Table<'_>) -> Result<u8, Fault> {
    let clearance = table.integer("clearance", 0, u32::from(MAX_CLEARANCE))?.unwrap_or_default();
    Ok(u8::try_from(clearance).unwrap_or(MAX_CLEARANCE))
}

fn checked(
    table: &mut Table<'_>,
    member: &str,
    allowed: impl Fn(&str) -> bool,
    wanted: &str,
) -> Result<Option<String>, Fault> {
    let Some((value, pointer)) = table.take(member) else {
        return Ok(None);
    };
    let text = text(value, &pointer)?;
    if allowed(&text) { Ok(Some(text)) } else { Err(bad(value, &pointer, wanted)) }
}

fn word<T: Copy>(value: &Value, pointer: &str, all: &[T], as_str: fn(T) -> &'static str) -> Result<T, Fault> {
    let word = text(value, pointer)?;
    all.iter().copied().find(|known| as_str(*known) == word).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|known| as_str(*known)).collect();
        bad(value, pointer, &format!("one of {}", names.join(", ")))
    })
}

fn bad(value: &Value, pointer: &str, wanted: &str) -> Fault {
    let found = match &value.kind {
        Kind::Text(text) => format!(", not `{}`", shown(text)),
        _ => String::new(),
    };
    Fault::new(Code::Rules, &format!("must be {wanted}{found}")).at(pointer, value.line)
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list.dedup();
    list
}

fn by_name<T: Copy + PartialEq>(mut list: Vec<T>, as_str: fn(T) -> &'static str) -> Vec<T> {
    list.sort_unstable_by_key(|value| as_str(*value));
    list.dedup();
    list
}
