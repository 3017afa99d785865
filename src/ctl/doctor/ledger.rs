//! The ledger file: that it is whole, that its end holds, and what its anchors and rules say.

use super::{Finding, Patient};
use crate::ctl::text::{count_of, grouped};
use crate::daemon::checkup::{AnchorSeen, Examined};
use crate::daemon::governing;

pub(super) fn look(patient: &Patient<'_>) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("sqlite", format!("SQLite {} is linked", rusqlite::version()))];
    let ledger = match &patient.ledger {
        Ok(ledger) => ledger,
        Err(fault) => {
            findings.push(Finding::fault("ledger", fault));
            return findings;
        }
    };
    findings.push(identity(patient, ledger));
    findings.push(schema(ledger));
    findings.push(integrity(ledger));
    let (end, in_force) = end(ledger);
    findings.push(end);
    findings.extend(reserved(patient, ledger));
    findings.extend(anchors(patient, ledger));
    findings.push(rules(patient, in_force.as_deref()));
    findings
}

fn identity(patient: &Patient<'_>, ledger: &Examined) -> Finding {
    let (origin, configured) = (ledger.origin(), &patient.config.origin);
    let path = patient.config.ledger.path.display();
    if origin != configured {
        return Finding::wrong(
            "ledger",
            format!("{path} belongs to the origin {origin}, the configuration says {configured}"),
            "set `origin` as the ledger has it, or `ledger.path` to the other ledger",
        );
    }
    match ledger.reader().count() {
        Ok(count) => Finding::ok(
            "ledger",
            format!("{path}, of {origin}, with {}", count_of(count, "entry", "entries")),
        ),
        Err(error) => Finding::fault("ledger", &error.into()),
    }
}

fn schema(ledger: &Examined) -> Finding {
    match ledger.reader().schema_version() {
        Ok((found, ours)) if found < ours => Finding::warning(
            "schema",
            format!("version {found}"),
            format!("nothing: the next start brings it to version {ours}, which takes a while once"),
        ),
        Ok((found, _)) => Finding::ok("schema", format!("version {found}")),
        Err(error) => Finding::fault("schema", &error.into()),
    }
}

fn integrity(ledger: &Examined) -> Finding {
    match ledger.reader().look_through() {
        Ok(said) if said.is_empty() => Finding::ok("integrity", "SQLite finds nothing wrong with the file"),
        Ok(said) => Finding::wrong(
            "integrity",
            said.join("; "),
            "do not repair or extend it: export what there is (`attestd export`), keep the file as evidence, and look \
             at its disk",
        ),
        Err(error) => Finding::fault("integrity", &error.into()),
    }
}

/// And the rules that are in force after the last entry.
fn end(ledger: &Examined) -> (Finding, Option<String>) {
    match ledger.check_end() {
        Ok(((first, last), rules)) => {
            let said = format!(
                "{} to {} hold, and so does the tree over them; `attestd verify` checks all",
                grouped(first),
                grouped(last)
            );
            (Finding::ok("entries", said), Some(rules))
        }
        Err(fault) => (Finding::fault("entries", &fault), None),
    }
}

fn reserved(patient: &Patient<'_>, ledger: &Examined) -> Option<Finding> {
    // While a daemon runs there always are some on their way.
    if !patient.presence.is_away() {
        return None;
    }
    match ledger.reader().unsealed() {
        Ok(unsealed) if unsealed.is_empty() => None,
        Ok(unsealed) => Some(Finding::warning(
            "reserved",
            format!("{} reserved and not signed", count_of(unsealed.len() as u64, "entry is", "entries are")),
            "start the daemon: it signs exactly these first",
        )),
        Err(error) => Some(Finding::fault("reserved", &error.into())),
    }
}

fn anchors(patient: &Patient<'_>, ledger: &Examined) -> Vec<Finding> {
    let anchor = &patient.config.anchor;
    if anchor.file.as_os_str().is_empty() && !anchor.token {
        return vec![Finding::warning(
            "anchor",
            "none is configured: that the ledger was cut or an old copy put back is not seen",
            "set `anchor.file` or `anchor.token`, then `attestd anchor reset --reason TEXT` while the daemon is stopped",
        )];
    }
    match ledger.anchors_off_token(patient.config) {
        Ok(seen) => seen.iter().map(anchor_finding).collect(),
        Err(fault) => vec![Finding::fault("anchor", &fault)],
    }
}

pub(super) fn anchor_finding(seen: &AnchorSeen) -> Finding {
    match &seen.standing {
        Ok((entries, lag)) => Finding::ok(
            "anchor",
            format!(
                "{} agrees: it knows of {}, {} came after it",
                seen.anchor,
                count_of(*entries, "entry", "entries"),
                grouped(*lag)
            ),
        ),
        Err(contradiction) => Finding::wrong("anchor", contradiction.to_string(), contradiction.remedy()),
    }
}

fn rules(patient: &Patient<'_>, in_force: Option<&str>) -> Finding {
    let said = match in_force {
        None => "what rules are in force is not known".to_owned(),
        Some("default") => "no rules are in force: the default".to_owned(),
        Some(hash) => format!("rules {hash} are in force"),
    };
    let file = &patient.config.rules.file;
    match governing::read(patient.config) {
        Err(fault) => Finding::fault("rules", &fault),
        Ok(None) => Finding::ok("rules", format!("{said}; no file is configured")),
        Ok(Some(rules)) if in_force == Some(&rules.hash().to_hex()) => {
            Finding::ok("rules", format!("{said}, those of {}", file.display()))
        }
        Ok(Some(_)) => Finding::warning(
            "rules",
            format!("{said}; {} holds others", file.display()),
            format!(
                "`attestctl rules diff {}` says what is different. A start or `systemctl reload attestd` sets them, \
                 unless those in force ask for approvals: then propose them",
                file.display()
            ),
        ),
    }
}
