//! The token: all that is seen without a login, and with one where no daemon runs.

use std::os::unix::fs::MetadataExt as _;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use super::host::user_name;
use super::ledger::anchor_finding;
use super::{Finding, Patient};
use crate::config::Config;
use crate::daemon::checkup::{Examined, token_options_without_ledger};
use crate::daemon::{Fault, pin_latch};
use crate::sequencer::chain;
use crate::token::{Checkup, Encoding, KeyAttributes, PinError, Token, TokenError, TokenOptions};

/// Why the token is not logged in to.
enum Abstained {
    /// The daemon has it.
    InUse,
    NotDaemonsUser,
    /// Something was found by which it would fail, or use up a try.
    Found(&'static str),
}

pub(super) fn look(patient: &Patient<'_>) -> Vec<Finding> {
    let options = match &patient.ledger {
        Ok(ledger) => ledger.token_options(patient.config),
        Err(_) => token_options_without_ledger(patient.config),
    };
    let options = match options {
        Ok(options) => options,
        Err(fault) => return vec![Finding::fault("token", &fault)],
    };
    let mut findings = Vec::new();
    let pin = pin(patient, &options);
    let latch = latch(patient.config);
    let abstained = if patient.presence.is_present() {
        Some(Abstained::InUse)
    } else if !patient.is_daemons_user() || !patient.presence.is_away() {
        Some(Abstained::NotDaemonsUser)
    } else if pin.level != super::Level::Ok {
        Some(Abstained::Found("the PIN could not be had"))
    } else if latch.level != super::Level::Ok {
        Some(Abstained::Found("the PIN latch is closed"))
    } else {
        None
    };
    findings.extend([pin, latch, module_file(&options)]);
    let examined = patient.ledger.as_ref().ok().map(Examined::again).transpose();
    let (config, limit) = (patient.config.clone(), hang_timeout(patient.config));
    findings.extend(within(limit, move |told| {
        // Nobody listens any more when a call has taken too long.
        let _ = examine(&config, &options, examined, abstained, &told);
    }));
    findings
}

fn hang_timeout(config: &Config) -> Duration {
    Duration::from_secs(config.token.hang_timeout_seconds)
}

/// What `examine` tells from a thread of its own, as long as each call of the library ends in time. One
/// that hangs is left behind: it ends with this program.
fn within(limit: Duration, examine: impl FnOnce(Sender<Finding>) + Send + 'static) -> Vec<Finding> {
    let (told, hears) = mpsc::channel();
    let mut findings = Vec::new();
    if let Err(error) = std::thread::Builder::new().name("token".into()).spawn(move || examine(told)) {
        findings.push(Finding::warning(
            "token",
            format!("there is no thread to look at it: {error}"),
            "try again",
        ));
        return findings;
    }
    loop {
        match hears.recv_timeout(limit) {
            Ok(finding) => findings.push(finding),
            Err(RecvTimeoutError::Disconnected) => return findings,
            Err(RecvTimeoutError::Timeout) => {
                findings.push(Finding::wrong(
                    "token",
                    format!("a call of its library has not ended within {} s", limit.as_secs()),
                    "look at the token and at what its library talks to: pcscd, the vendor's service, the network",
                ));
                return findings;
            }
        }
    }
}

/// `Err` when nobody listens.
fn examine(
    config: &Config,
    options: &TokenOptions,
    ledger: Result<Option<Examined>, Fault>,
    mut abstained: Option<Abstained>,
    told: &Sender<Finding>,
) -> Result<(), mpsc::SendError<Finding>> {
    let checkup = match Checkup::find(options) {
        Ok(checkup) => checkup,
        Err(error) => {
            let what = if matches!(error, TokenError::Module { .. }) { "module" } else { "token" };
            return told.send(faulty(what, error));
        }
    };
    told.send(Finding::ok("module", format!("{}: {}", options.module.display(), checkup.library())))?;
    let slot = checkup.slot();
    told.send(Finding::ok("token", format!("{} is in slot {slot} for now", checkup.identity())))?;
    let flags = flags(&checkup);
    if flags.level != super::Level::Ok && abstained.is_none() {
        abstained = Some(Abstained::Found("of what its flags say"));
    }
    told.send(flags)?;
    told.send(mechanism(&checkup))?;
    // Some tokens show public keys only to who is logged in.
    let encodings = checkup.point_encodings();
    let ask_again = abstained.is_none() && encodings.as_ref().is_ok_and(Vec::is_empty);
    if !ask_again {
        told.send(encoding(encodings))?;
    }
    // One library is not opened twice in a process.
    drop(checkup);
    if let Some(abstained) = abstained {
        return told.send(not_logged_in(&abstained, options));
    }
    let mut token = match Token::open(options) {
        Ok(token) => token,
        Err(error) => {
            let what = match error {
                TokenError::NoKey { .. }
                | TokenError::SeveralKeys { .. }
                | TokenError::NotP256
                | TokenError::AlwaysAuthenticate
                | TokenError::NoPublicKey
                | TokenError::SeveralPublicKeys { .. } => "key",
                _ => "login",
            };
            return told.send(faulty(what, error));
        }
    };
    told.send(Finding::ok(
        "login",
        "logged in once with the PIN, which the token took, so it cost no try: no daemon was running",
    ))?;
    if ask_again {
        told.send(encoding(token.point_encodings()))?;
    }
    told.send(attributes(token.key_attributes()))?;
    let Ok(Some(ledger)) = ledger else {
        return told.send(Finding::warning(
            "key",
            format!("{}, but there is no ledger to hold it against", token.public_key().id()),
            "see `ledger`",
        ));
    };
    match ledger.prove(&mut token) {
        Ok(()) => {
            told.send(Finding::ok("key", format!("{} is the ledger's", token.public_key().id())))?;
            told.send(Finding::ok(
                "sign",
                "it signed a text that says for what it is and is kept nowhere, and the signature holds",
            ))?;
        }
        Err(error) => {
            let what = if matches!(error, TokenError::OtherKey { .. }) { "key" } else { "sign" };
            return told.send(faulty(what, error));
        }
    }
    match ledger.anchors_on_token(config, token) {
        Ok(seen) => seen.iter().try_for_each(|seen| told.send(anchor_finding(seen))),
        Err(fault) => told.send(Finding::fault("anchor", &fault)),
    }
}

/// What a token's error says, with its cause where it does not say that itself.
fn faulty(what: &'static str, error: TokenError) -> Finding {
    let said = match &error {
        TokenError::NotPossessed(cause) => format!("{error}: {}", chain(cause)),
        error => error.to_string(),
    };
    Finding { said, ..Finding::fault(what, &error.into()) }
}

fn pin(patient: &Patient<'_>, options: &TokenOptions) -> Finding {
    match options.pin.look(patient.owner.unwrap_or(patient.uid)) {
        Ok(found) => Finding::ok(
            "pin",
            format!(
                "can be read from {}, mode {:04o}, owner {}",
                found.path.display(),
                found.mode,
                user_name(found.uid)
            ),
        ),
        Err(error @ PinError::NoCredentials(_)) => Finding::warning(
            "pin",
            error.to_string(),
            "run the doctor as the service is run: `systemd-run --pipe --wait -p User=attestd -p \
             LoadCredentialEncrypted=attestd.pin attestctl doctor`",
        ),
        Err(PinError::Read { path, source }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Finding::warning(
                "pin",
                format!("{} cannot be read by {}", path.display(), user_name(patient.uid)),
                "run the doctor as the daemon's user; if it is that, the file must be its own",
            )
        }
        Err(error) => faulty("pin", error.into()),
    }
}

fn latch(config: &Config) -> Finding {
    let latch = pin_latch(config);
    match latch.read() {
        Ok(None) => Finding::ok("latch", "open: no PIN was refused"),
        Ok(Some(latched)) => Finding::wrong(
            "latch",
            format!(
                "the token with serial \"{}\" had refused the PIN, or a login did not end ({}): no start tries it again",
                latched.serial, latched.refused
            ),
            "put the right PIN where it is read from, then `attestctl pin clear --config FILE`",
        ),
        Err(error) => faulty("latch", error.into()),
    }
}

/// Who can write the library runs code of his in the daemon.
fn module_file(options: &TokenOptions) -> Finding {
    let path = &options.module;
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.mode() & 0o022 != 0 => Finding::wrong(
            "module_file",
            format!(
                "{} has mode {:04o}: others can put their code into the daemon",
                path.display(),
                metadata.mode() & 0o7777
            ),
            format!("chmod go-w {}", path.display()),
        ),
        Ok(metadata) => Finding::ok(
            "module_file",
            format!("mode {:04o}, owner {}", metadata.mode() & 0o7777, user_name(metadata.uid())),
        ),
        Err(error) => Finding::wrong(
            "module_file",
            format!("{}: {error}", path.display()),
            "install the token's library, or set `token.module`",
        ),
    }
}

fn flags(checkup: &Checkup) -> Finding {
    let device = match checkup.device() {
        Ok(device) => device,
        Err(error) => return faulty("flags", error),
    };
    let has = |name: &str| device.flags.iter().any(|flag| flag == name);
    let said = format!("{} (firmware {})", device.flags.join(", "), device.firmware);
    let remedy = if has("user_pin_locked") {
        "the user PIN is locked: have the token's security officer set a new one"
    } else if has("user_pin_final_try") {
        "one more wrong PIN locks it: log in once with the right PIN by the token's own tools"
    } else if has("user_pin_to_be_changed") {
        "it wants its user PIN changed, by its own tools"
    } else if !has("token_initialized") || !has("user_pin_initialized") {
        "it is not set up: give it a label and a user PIN by its own tools"
    } else if has("error_state") {
        "it says that it is in an error state: ask its vendor"
    } else if has("user_pin_count_low") {
        return Finding::warning(
            "flags",
            said,
            "somebody gave a wrong PIN: find out who, and log in once with the right one by the token's own tools",
        );
    } else {
        return Finding::ok("flags", said);
    };
    Finding::wrong("flags", said, remedy)
}

fn mechanism(checkup: &Checkup) -> Finding {
    match checkup.signs_by_ecdsa() {
        Ok(()) => Finding::ok("mechanism", "CKM_ECDSA signs with keys of 256 bits"),
        Err(why) => Finding::wrong("mechanism", why, "take a token, or a firmware, that has it"),
    }
}

fn encoding(found: Result<Vec<Encoding>, TokenError>) -> Finding {
    match found {
        Err(error) => Finding::warning("ec_point", chain(&error), "nothing, unless no key is found"),
        Ok(found) if found.contains(&Encoding::Unknown) => Finding::wrong(
            "ec_point",
            "CKA_EC_POINT is no point of P-256, neither bare nor in a DER OCTET STRING",
            "check that `token.uri` names the ledger's key; else ask the vendor of the module",
        ),
        Ok(found) if found.contains(&Encoding::Bare) => {
            Finding::ok("ec_point", "bare; the standard wants a DER OCTET STRING, and either is taken")
        }
        Ok(found) if found.is_empty() => Finding::ok("ec_point", "not to be seen without a login"),
        Ok(_) => Finding::ok("ec_point", "in a DER OCTET STRING, as the standard has it"),
    }
}

fn not_logged_in(abstained: &Abstained, options: &TokenOptions) -> Finding {
    let not = "not logged in, so key and signature were not looked at";
    match abstained {
        Abstained::InUse => Finding::ok(
            "login",
            "not logged in: the daemon is, and it is not to be disturbed; see `daemon` for its word on the key",
        ),
        Abstained::NotDaemonsUser => Finding::warning(
            "login",
            format!("{not}: the files of a login would not be the daemon's"),
            "run the doctor as the daemon's user",
        ),
        Abstained::Found(what) => Finding::warning(
            "login",
            format!("{not}: {what}"),
            format!("put that right first: a wrong PIN costs one of few tries ({})", options.uri),
        ),
    }
}

fn attributes(attributes: &KeyAttributes) -> Finding {
    let KeyAttributes { sensitive, always_sensitive, extractable, never_extractable, local } = *attributes;
    let said = [
        ("sensitive", sensitive, true),
        ("always sensitive", always_sensitive, true),
        ("extractable", extractable, false),
        ("never extractable", never_extractable, true),
        ("local", local, true),
    ];
    let words = said
        .map(|(name, is, _)| format!("{name} {}", is.map_or("unknown", |is| if is { "yes" } else { "no" })));
    let words = words.join(", ");
    let is_bad = |of: &[usize]| of.iter().any(|at| said[*at].1.is_some_and(|is| is != said[*at].2));
    if is_bad(&[0, 1, 2, 3]) {
        Finding::wrong(
            "attributes",
            format!("{words}: the key can be, or could have been, read out"),
            "whoever has a copy signs as this ledger does. Make another key on a token, before witnesses (`attestctl ceremony`)",
        )
    } else if is_bad(&[4]) {
        Finding::warning(
            "attributes",
            format!("{words}: it was not made on the token"),
            "find out where it was made, and what became of it there",
        )
    } else if said.iter().any(|(_, is, _)| is.is_none()) {
        Finding::warning("attributes", words, "ask the vendor for what the module does not say")
    } else {
        Finding::ok("attributes", words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Level;

    #[test]
    fn a_key_that_could_have_been_read_out_is_wrong() {
        let good = KeyAttributes {
            sensitive: Some(true),
            always_sensitive: Some(true),
            extractable: Some(false),
            never_extractable: Some(true),
            local: Some(true),
        };
        let cases = [
            (good, Level::Ok),
            (KeyAttributes { sensitive: Some(false), ..good }, Level::Wrong),
            (KeyAttributes { always_sensitive: Some(false), ..good }, Level::Wrong),
            (KeyAttributes { extractable: Some(true), ..good }, Level::Wrong),
            (KeyAttributes { never_extractable: Some(false), ..good }, Level::Wrong),
            (KeyAttributes { local: Some(false), ..good }, Level::Warning),
            (KeyAttributes { never_extractable: None, ..good }, Level::Warning),
        ];
        for (given, level) in cases {
            assert_eq!(attributes(&given).level, level, "{given:?}");
        }
    }

    #[test]
    fn a_call_that_hangs_is_a_finding() {
        let findings = within(Duration::from_millis(50), |told| {
            let _ = told.send(Finding::ok("module", "loaded"));
            std::thread::sleep(Duration::from_secs(5));
        });
        assert_eq!(findings.len(), 2);
        assert_eq!((findings[1].what, findings[1].level), ("token", Level::Wrong));
    }
}
