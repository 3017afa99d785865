//! The daemon's life, from its configuration to its last entry, and what can be done with a
//! ledger file without it.
//!
//! [`init`] makes a ledger, [`serve`] runs one, [`offline`] exports and verifies one without token,
//! PIN or daemon, so that evidence is never stranded. [`genesis`] is what the first entry says,
//! [`governing`] puts rules in force,
//! [`successor`] says what a genesis says of a ledger before, [`ceremony`] what of the making of its
//! key. [`checkup`] looks without touching. [`anchors`] are what shows that a ledger was rolled back. [`notify`] tells the service manager,
//! [`hygiene`] keeps secrets out of core dumps.

pub mod anchors;
mod boot;
pub mod ceremony;
pub mod checkup;
pub mod genesis;
pub mod governing;
pub mod hygiene;
pub mod init;
mod keys;
pub mod notify;
pub mod offline;
mod opening;
mod publishing;
pub mod serve;
pub mod successor;
mod watchdog;

use std::path::PathBuf;

use crate::anchor::{Anchor, AnchorError, Contradiction};
use crate::config::{Config, ConfigError};
use crate::evidence::{NotVerified, Unplanned, Unreadable};
use crate::governance::Host;
use crate::index::IndexError;
use crate::ledger::key::KeyId;
use crate::server::keys::Opening;
use crate::server::listener::BindError;
use crate::store::StoreError;
use crate::token::{Expected, Identity, Latch, LatchError, OptionsError, SignError, TokenError};

/// Why a command of the daemon did not do what it was told.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum Fault {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    TokenOptions(#[from] OptionsError),
    #[error("there is no ledger at {0}")]
    NoLedger(PathBuf),
    #[error("the ledger at {0} has no entry: its making was interrupted")]
    Unborn(PathBuf),
    #[error("{0} exists already, and nothing that exists is touched")]
    Exists(PathBuf),
    #[error("{path}: {reason}")]
    Genesis { path: PathBuf, reason: String },
    #[error("the ledger belongs to the origin {ledger}, the configuration says {config}")]
    OtherOrigin { ledger: String, config: String },
    #[error("the ledger's key is {expected}, the token has key {found}")]
    OtherKey { expected: KeyId, found: KeyId },
    #[error(
        "the ledger's key is {key} since it was changed, on the token with serial \"{}\" and model \"{}\"; the configuration names {found}", expected.serial, expected.model
    )]
    OtherToken { key: KeyId, expected: Expected, found: Box<Identity> },
    #[error("the ledger's key was changed, and the new one has signed nothing yet")]
    NotActivated,
    #[error("entries from {first} on are reserved for key {key} in mode {mode}, which can't sign them now")]
    OtherReservation { first: u64, key: KeyId, mode: String },
    #[error("the ledger has no checkpoint yet, or none that covers all that the range needs from before it")]
    NoCheckpoint,
    #[error(
        "the range needs more than {} MiB of entries from before it: let it begin earlier, or at 0",
        crate::evidence::context::MAX_BYTES >> 20
    )]
    ContextTooLarge,
    #[error("the ledger's last entries do not hold: {}", placed(.0))]
    Tail(crate::audit::Fault),
    #[error("the ledger is not extended: {0}")]
    Anchor(Contradiction),
    #[error("couldn't use an anchor: {0}")]
    AnchorAccess(#[from] AnchorError),
    #[error("{0} is there already: a ledger of this origin was made before")]
    AnchorTaken(Anchor),
    #[error("the configuration names no anchor")]
    NoAnchor,
    #[error("no anchor is missing, so there is none to reset")]
    NothingMissing,
    #[error("a reason is 1 to {MAX_REASON_BYTES} bytes without control characters")]
    Reason,
    #[error("{0} is no anchor of the ledger before")]
    NotItsAnchor(PathBuf),
    #[error(
        "a successor has an origin of its own, which the configuration says too: it says {config}, --origin is {asked}, and the ledger before has {before}"
    )]
    SuccessorOrigin { config: String, asked: String, before: String },
    #[error("couldn't judge the ceremony: {0}")]
    CeremonyRecord(#[from] crate::ceremony::RecordError),
    #[error("the ceremony does not hold: {} ({})", .0.detail, .0.code)]
    Ceremony(Box<crate::ceremony::Fault>),
    #[error("the ceremony was for the origin {ceremony}, the configuration says {config}")]
    CeremonyOrigin { ceremony: String, config: String },
    #[error("the ceremony made key {expected}, the token has key {found}")]
    CeremonyKey { expected: String, found: KeyId },
    #[error("the ceremony was a rehearsal, and this token is none to rehearse on")]
    OnlyRehearsed,
    #[error("the token: {0}")]
    Token(#[from] TokenError),
    #[error("the token: {0}")]
    Sign(#[from] SignError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("couldn't open the socket: {0}")]
    Bind(#[from] BindError),
    #[error("the rules {}: {fault}", path.display())]
    Rules { path: PathBuf, fault: crate::governance::rules::Fault },
    #[error("couldn't {doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    #[error("stopped: {0}")]
    Stopped(String),
}

/// The file of the PIN latch, beside the ledger.
pub const PIN_LATCH: &str = "pin-latch";
/// That of a token that is rotated to.
pub const NEXT_PIN_LATCH: &str = "pin-latch-next";

/// The exit code that keeps systemd from trying again (`RestartPreventExitStatus=78`, EX_CONFIG).
pub const OPERATOR_NEEDED: u8 = 78;

impl Fault {
    /// 78 where starting again is no use until an operator has done something, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Fault::Config(_)
            | Fault::TokenOptions(_)
            | Fault::NoLedger(_)
            | Fault::Unborn(_)
            | Fault::Genesis { .. }
            | Fault::OtherOrigin { .. }
            | Fault::OtherKey { .. }
            | Fault::OtherToken { .. }
            | Fault::NotActivated
            | Fault::OtherReservation { .. }
            | Fault::Tail(_)
            | Fault::Rules { .. }
            | Fault::NoAnchor => OPERATOR_NEEDED,
            Fault::Anchor(contradiction) if contradiction.needs_operator() => OPERATOR_NEEDED,
            Fault::Index(IndexError::Ahead { .. }) => OPERATOR_NEEDED,
            Fault::Token(error) if error.needs_operator() => OPERATOR_NEEDED,
            Fault::Store(error) | Fault::Index(IndexError::Store(error)) if needs_operator(error) => {
                OPERATOR_NEEDED
            }
            Fault::Bind(BindError::NotASocket(_) | BindError::UnknownGroup(_) | BindError::Passed(_)) => {
                OPERATOR_NEEDED
            }
            Fault::Exists(_)
            | Fault::CeremonyRecord(_)
            | Fault::Ceremony(_)
            | Fault::CeremonyOrigin { .. }
            | Fault::CeremonyKey { .. }
            | Fault::OnlyRehearsed
            | Fault::Anchor(_)
            | Fault::AnchorAccess(_)
            | Fault::AnchorTaken(_)
            | Fault::NothingMissing
            | Fault::Reason
            | Fault::NotItsAnchor(_)
            | Fault::SuccessorOrigin { .. }
            | Fault::NoCheckpoint
            | Fault::ContextTooLarge
            | Fault::Token(_)
            | Fault::Sign(_)
            | Fault::Store(_)
            | Fault::Index(_)
            | Fault::Bind(_)
            | Fault::Io { .. }
            | Fault::Stopped(_) => 1,
        }
    }

    /// What to do about it, where that is known.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Fault::Rules { .. } => {
                "mend the file (`attestctl rules check` explains it), or take `rules.file` out of the configuration"
                    .into()
            }
            Fault::NoLedger(_) | Fault::Store(StoreError::Missing(_)) => {
                "a ledger is only ever made on purpose: `attestd init --config FILE` makes a new one. If there was \
                 one, find out where it went before you do"
                    .into()
            }
            Fault::Unborn(path) => format!(
                "nothing was ever recorded in it: remove {} and run `attestd init` again",
                path.display()
            ),
            Fault::Exists(path) => format!(
                "if {} is of no use any more, move it away yourself; to run the ledger that is there, use `attestd serve`",
                path.display()
            ),
            Fault::Ceremony(_) => {
                "`attestctl ceremony verify DIR` says all of it; a key whose making is in doubt is no key to begin with".into()
            }
            Fault::CeremonyOrigin { .. } | Fault::CeremonyKey { .. } => {
                "check `origin` and `token.uri`, and that DIR is the record of this key".into()
            }
            Fault::OnlyRehearsed => "hold the ceremony itself, with `rehearsal = false` and a new key".into(),
            Fault::OtherOrigin { .. } => "set `origin` as the ledger has it, or `ledger.path` to the other ledger".into(),
            Fault::OtherKey { .. } | Fault::OtherToken { .. } => {
                "connect the token that holds the ledger's newest key, and name it in token.uri, with its PIN in token.pin_file or token.pin_credential"
                    .into()
            }
            Fault::NotActivated => "start the daemon once: it has the new key sign first".into(),
            Fault::OtherReservation { .. } => {
                "connect the token that holds the ledger's key, and check token.uri".into()
            }
            Fault::Token(TokenError::PinRefused(_) | TokenError::Latch(LatchError::Latched { .. })) => {
                "put the right PIN where it is read from, then `attestctl pin clear --config FILE`: until then no start tries it again"
                    .into()
            }
            Fault::Token(TokenError::PinLocked) => "have the token's security officer set a new PIN".into(),
            Fault::Token(TokenError::OtherToken { .. }) => {
                "connect the token with which the ledger was begun".into()
            }
            Fault::Token(TokenError::NoToken { .. }) => {
                "is the token connected, and is token.module the library for it? `pkcs11-tool --module M -L` lists what \
                 a module sees"
                    .into()
            }
            Fault::Anchor(contradiction) => contradiction.remedy().into(),
            Fault::AnchorTaken(_) => {
                "find out which ledger it belongs to, and give the new one another origin, and another `anchor.file`".into()
            }
            Fault::NoAnchor => "set `anchor.file` or `anchor.token`".into(),
            Fault::NoCheckpoint => {
                "start the daemon on it once: it signs one when it starts and when it stops".into()
            }
            Fault::Store(StoreError::Locked(_)) => "is the daemon running already?".into(),
            Fault::Index(IndexError::Ahead { index, .. }) => format!(
                "the ledger's tail was cut, or an older copy or another ledger was put in its place: find the newest one \
                 before anything is appended. Only if you know that the ledger is right and the index is not, remove {}",
                index.display()
            ),
            Fault::Tail(_)
            | Fault::Store(StoreError::Damaged(_))
            | Fault::Index(IndexError::Store(StoreError::Damaged(_))) => {
                "do not repair or extend it: export what there is (`attestd export`) and keep the file as evidence".into()
            }
            Fault::Bind(BindError::NotASocket(path)) => format!(
                "find out what {} is, and move it away or set `server.socket` to another path",
                path.display()
            ),
            Fault::Bind(BindError::UnknownGroup(_)) => {
                "make the group, or set `server.socket_group` to one that there is".into()
            }
            Fault::Bind(BindError::Passed(_)) => {
                "compare attestd.socket with the one that came with this version (`systemctl cat attestd.socket`)".into()
            }
            // These say themselves what is wanted, or nothing is known that always helps.
            Fault::Config(_)
            | Fault::TokenOptions(_)
            | Fault::Genesis { .. }
            | Fault::CeremonyRecord(_)
            | Fault::AnchorAccess(_)
            | Fault::NothingMissing
            | Fault::ContextTooLarge
            | Fault::Reason
            | Fault::NotItsAnchor(_)
            | Fault::SuccessorOrigin { .. }
            | Fault::Token(_)
            | Fault::Sign(_)
            | Fault::Store(
                StoreError::Exists(_)
                | StoreError::NotALedger(_)
                | StoreError::Newer { .. }
                | StoreError::OldSqlite(_)
                | StoreError::Full(_)
                | StoreError::Sqlite { .. }
                | StoreError::Io { .. },
            )
            | Fault::Index(_)
            | Fault::Bind(BindError::InUse(_) | BindError::System { .. })
            | Fault::Io { .. }
            | Fault::Stopped(_) => return None,
        })
    }
}

/// A finding with the entry that it is about.
fn placed(fault: &crate::audit::Fault) -> String {
    fault.sequence_number.map_or_else(|| fault.to_string(), |number| format!("entry {number}: {fault}"))
}

fn needs_operator(error: &StoreError) -> bool {
    match error {
        StoreError::Missing(_)
        | StoreError::NotALedger(_)
        | StoreError::Newer { .. }
        | StoreError::OldSqlite(_)
        | StoreError::Damaged(_) => true,
        StoreError::Exists(_)
        | StoreError::Locked(_)
        | StoreError::Full(_)
        | StoreError::Sqlite { .. }
        | StoreError::Io { .. } => false,
    }
}

/// What the ledger says for ever of why an operator did something, at most.
const MAX_REASON_BYTES: usize = 1_024;

fn check_reason(reason: &str) -> Result<(), Fault> {
    let fits = (1..=MAX_REASON_BYTES).contains(&reason.len()) && !reason.contains(char::is_control);
    if fits { Ok(()) } else { Err(Fault::Reason) }
}

fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Fault {
    let doing = doing.into();
    move |source| Fault::Io { doing, source }
}

impl From<Unplanned<StoreError>> for Fault {
    fn from(unplanned: Unplanned<StoreError>) -> Self {
        match unplanned {
            Unplanned::NoCheckpoint => Fault::NoCheckpoint,
            Unplanned::ContextTooLarge => Fault::ContextTooLarge,
            Unplanned::Store(error) | Unplanned::Steps(error) => Fault::Store(error),
        }
    }
}

impl From<Unreadable> for Fault {
    fn from(unreadable: Unreadable) -> Self {
        Fault::Store(unreadable.into())
    }
}

impl From<NotVerified> for Fault {
    fn from(error: NotVerified) -> Self {
        match error {
            NotVerified::Store(error) => Fault::Store(error),
            NotVerified::Entries(source) => Fault::Io { doing: "read the ledger to check it".into(), source },
        }
    }
}

/// What keeps a refused PIN from being tried again.
pub(crate) fn pin_latch(config: &Config) -> Latch {
    Latch::at(config.ledger.path.with_file_name(PIN_LATCH))
}

/// Where tokens may be found to rotate to.
fn token_opening(config: &Config) -> Opening {
    Opening { token: config.token.clone(), latch: next_pin_latch(config), anchored: config.anchor.token }
}

/// What keeps the refused PIN of a token that is rotated to from being tried again. Not that of the token
/// in use: a mistake in a rotation must not stop what goes on.
pub(crate) fn next_pin_latch(config: &Config) -> Latch {
    Latch::at(config.ledger.path.with_file_name(NEXT_PIN_LATCH))
}

/// What the daemon says of its host in every entry.
fn host(config: &Config) -> Host {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let name = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
    Host {
        version: crate::VERSION.into(),
        host: name.unwrap_or_default(),
        boot_id: boot_id.trim().into(),
        replicas: config.replicas.clone(),
    }
}
