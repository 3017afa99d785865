//! The one text of rules: canonical JSON with every default spelled out and what is absent left out.

use super::{ActionRule, Approver, CallerRule, Prover, Rules};
use crate::ledger::json;
use crate::ledger::score::PILLAR_NAMES;

impl Rules {
    /// The canonical JSON (RFC 8785), which is what the ledger keeps and what is hashed.
    #[must_use]
    pub fn to_canonical(&self) -> String {
        let mut out = Object::new();
        out.list("actions", &self.actions, write_action);
        out.list("approvers", &self.approvers, write_approver);
        out.list("callers", &self.callers, write_caller);
        out.name("pillars");
        let mut pillars = Object::new();
        pillars.text("floor", &self.scale.floor.to_string());
        let weights: Vec<String> = PILLAR_NAMES
            .iter()
            .zip(self.scale.weights)
            .map(|(name, weight)| format!("\"{name}\":{weight}"))
            .collect();
        pillars.raw("weights", &format!("{{{}}}", weights.join(",")));
        out.out.extend_from_slice(&pillars.end());
        out.list("provers", &self.provers, write_prover);
        json::into_string(out.end())
    }
}

// Members in canonical order.

fn write_action(rule: &ActionRule, out: &mut Object) {
    out.raw("approvals", &rule.approvals.to_string());
    out.raw("clearance", &rule.clearance.to_string());
    out.raw("lifetime_seconds", &rule.lifetime_seconds.to_string());
    out.texts("proofs", rule.proofs.iter().map(String::as_str));
    out.raw("rejection_blocks", if rule.rejection_blocks { "true" } else { "false" });
    out.texts("roles", rule.roles.iter().map(String::as_str));
    out.text("type", rule.action_type.as_str());
}

fn write_approver(approver: &Approver, out: &mut Object) {
    out.texts("actor_ids", approver.actor_ids.iter().map(super::Pattern::as_str));
    out.texts("callers", approver.callers.iter().map(String::as_str));
    out.text("name", &approver.name);
    out.text("public_key", approver.key.to_text());
    out.text("role", &approver.role);
}

fn write_caller(caller: &CallerRule, out: &mut Object) {
    out.texts("actor_ids", caller.actor_ids.iter().map(super::Pattern::as_str));
    out.texts("actor_types", caller.actor_types.iter().map(|t| t.as_str()));
    out.raw("clearance", &caller.clearance.to_string());
    out.number("entries_per_second", caller.entries_per_second);
    out.texts("event_types", caller.event_types.iter().map(|t| t.as_str()));
    out.optional("exe", caller.exe.as_deref());
    out.optional("exe_sha256", caller.exe_sha256.map(|hash| hash.to_hex()).as_deref());
    out.number("gid", caller.gid);
    out.optional("group", caller.group.as_deref());
    out.text("name", &caller.name);
    out.number("uid", caller.uid);
    out.optional("unit", caller.unit.as_deref());
    out.optional("user", caller.user.as_deref());
    out.texts("verbs", caller.verbs.iter().map(|verb| verb.as_str()));
}

fn write_prover(prover: &Prover, out: &mut Object) {
    out.text("name", &prover.name);
    out.text("proof", &prover.proof);
    out.text("public_key", prover.key.to_text());
}

/// An object that is being written, its members in canonical order.
pub(in crate::governance) struct Object {
    out: Vec<u8>,
}

impl Object {
    pub(in crate::governance) fn new() -> Self {
        Object { out: vec![b'{'] }
    }

    fn name(&mut self, name: &str) {
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        json::write_string(name, &mut self.out);
        self.out.push(b':');
    }

    pub(in crate::governance) fn raw(&mut self, name: &str, value: &str) {
        self.name(name);
        self.out.extend_from_slice(value.as_bytes());
    }

    pub(in crate::governance) fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        json::write_string(value, &mut self.out);
    }

    fn optional(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    fn number(&mut self, name: &str, value: Option<u32>) {
        if let Some(value) = value {
            self.raw(name, &value.to_string());
        }
    }

    fn texts<'a>(&mut self, name: &str, texts: impl Iterator<Item = &'a str>) {
        self.raw(name, &text_array(texts));
    }

    fn list<T>(&mut self, name: &str, elements: &[T], write: fn(&T, &mut Object)) {
        self.name(name);
        self.out.push(b'[');
        for (index, element) in elements.iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            let mut object = Object::new();
            write(element, &mut object);
            self.out.extend_from_slice(&object.end());
        }
        self.out.push(b']');
    }

    fn end(mut self) -> Vec<u8> {
        self.out.push(b'}');
        self.out
    }

    pub(in crate::governance) fn into_text(self) -> String {
        json::into_string(self.end())
    }
}

/// The canonical array of `texts`.
pub(in crate::governance) fn text_array<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut out = vec![b'['];
    for text in texts {
        if out.len() > 1 {
            out.push(b',');
        }
        json::write_string(text, &mut out);
    }
    out.push(b']');
    json::into_string(out)
}
