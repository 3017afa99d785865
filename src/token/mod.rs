//! The PKCS#11 token that holds the ledger's key: finding it, logging in once, signing in parallel.
//!
//! [`Token::open`] does everything that can be refused, [`Pool`] does the signing. This module
//! does not decide what is signed nor when. A session that went stale is replaced; anything worse is an
//! error for the caller, who has the [`Keeper`] bring the token back. The [`Latch`] outlives the process.
//!
//! PKCS#11 has no time-outs. A call into the library that hangs, hangs its thread.

mod ceremony;
mod checkup;
mod data;
mod keeper;
mod latch;
mod object;
mod pin;
mod pool;
mod session;
mod terminal;
mod uri;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use cryptoki::error::{Error, RvError};
use cryptoki::slot::TokenInfo;

use crate::config;
use crate::ledger::json::quoted;
use crate::ledger::key::{KeyId, PublicKey, Signable, Signature};
use session::{Connection, Seat};

pub use ceremony::{FactoryPinTried, Workbench};
pub use checkup::Checkup;
pub use data::ObjectError;
pub use keeper::{Candidate, Keeper};
pub use latch::{Latch, LatchError, Latched};
pub use object::Encoding;
pub use pin::{PinError, PinFound, PinSource};
pub use pool::{BenchFigures, Done, Pool};
pub use uri::{TokenUri, UriError};

/// Which token and key to use, and how.
#[derive(Debug, Clone)]
pub struct TokenOptions {
    /// The PKCS#11 library.
    pub module: PathBuf,
    /// The key.
    pub uri: TokenUri,
    /// Where the PIN is read.
    pub pin: PinSource,
    /// What keeps a refused PIN from being tried again by the next process; a person knows by himself.
    pub latch: Option<Latch>,
    /// How many sessions to sign with, at least 1. Fewer are opened where the token has fewer.
    pub sessions: usize,
    /// The token that it must be, compared before the PIN is shown to it.
    pub expected: Option<Expected>,
}

/// Why the configuration does not say how a token is found.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The URI is none.
    #[error("the key's URI: {0}")]
    Uri(#[from] UriError),
    /// There is nowhere to read the PIN.
    #[error(
        "the configuration names no PIN: set token.pin_credential or token.pin_file, or pin-source in the URI"
    )]
    NoPin,
}

impl TokenOptions {
    /// What the configuration says.
    ///
    /// # Errors
    /// [`OptionsError`].
    pub fn configured(
        config: &config::Token,
        latch: Option<Latch>,
        expected: Option<Expected>,
    ) -> Result<Self, OptionsError> {
        let uri: TokenUri = config.uri.parse()?;
        let pin = if !config.pin_credential.is_empty() {
            PinSource::Credential(config.pin_credential.clone())
        } else if !config.pin_file.as_os_str().is_empty() {
            PinSource::File(config.pin_file.clone())
        } else {
            PinSource::File(uri.pin_source().ok_or(OptionsError::NoPin)?.to_path_buf())
        };
        let module = uri.module_path().map_or_else(|| config.module.clone(), std::path::Path::to_path_buf);
        let sessions = usize::try_from(config.sessions).unwrap_or(1);
        Ok(TokenOptions { module, uri, pin, latch, sessions, expected })
    }
}

/// What a token was known by when the ledger began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its serial number.
    pub serial: String,
    /// Its model.
    pub model: String,
}

/// What a token says it is, without the padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who made it.
    pub manufacturer: String,
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// The label it was given when it was initialised.
    pub label: String,
}

impl Identity {
    fn of(info: &TokenInfo) -> Self {
        let trim = |padded: &str| padded.trim_end_matches(['\0', ' ']).to_owned();
        Identity {
            manufacturer: trim(info.manufacturer_id()),
            model: trim(info.model()),
            serial: trim(info.serial_number()),
            label: trim(info.label()),
        }
    }

    /// As entries and answers describe it: canonical JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        format!(
            r#"{{"label":{},"manufacturer":{},"model":{},"serial":{}}}"#,
            quoted(&self.label),
            quoted(&self.manufacturer),
            quoted(&self.model),
            quoted(&self.serial)
        )
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { label, serial, model, .. } = self;
        write!(f, "\"{label}\" (serial \"{serial}\", model \"{model}\")")
    }
}

/// How the token says it protects the private key. `None` is what it did not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyAttributes {
    /// It cannot be read in the clear now.
    pub sensitive: Option<bool>,
    /// It never could be.
    pub always_sensitive: Option<bool>,
    /// It can be wrapped and taken away now.
    pub extractable: Option<bool>,
    /// It never could be.
    pub never_extractable: Option<bool>,
    /// It was made on the token.
    pub local: Option<bool>,
}

impl KeyAttributes {
    /// As genesis and rotations describe them: canonical JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        let flag = |flag: Option<bool>| flag.map_or("null", |flag| if flag { "true" } else { "false" });
        format!(
            r#"{{"always_sensitive":{},"extractable":{},"local":{},"never_extractable":{},"sensitive":{}}}"#,
            flag(self.always_sensitive),
            flag(self.extractable),
            flag(self.local),
            flag(self.never_extractable),
            flag(self.sensitive),
        )
    }
}

/// Why there is no token to sign with.
///
/// Codes and calls are named as PKCS#11 names them. An error of the library is a field and not
/// the `source`, since its text is a paragraph out of the standard.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The library cannot be loaded.
    #[error("couldn't load the PKCS#11 library {}: {error}", path.display())]
    Module {
        /// The library.
        path: PathBuf,
        /// What the loader said.
        error: Error,
    },
    /// A call failed that is expected to work on a token in order.
    #[error("couldn't {doing}: {}", brief(error))]
    Call {
        /// What was being done.
        doing: &'static str,
        /// What the library said.
        error: Error,
    },
    /// No token matches.
    #[error("no token matches {uri}; {}", list(found))]
    NoToken {
        /// What was looked for.
        uri: String,
        /// The tokens that are there.
        found: Vec<Identity>,
    },
    /// More than one token matches.
    #[error("{uri} matches more than one token; {}", list(found))]
    SeveralTokens {
        /// What was looked for.
        uri: String,
        /// The tokens that match.
        found: Vec<Identity>,
    },
    /// The token is not the one expected.
    #[error("expected the token with serial \"{}\" and model \"{}\", found {found}", expected.serial, expected.model)]
    OtherToken {
        /// The one that it must be.
        expected: Expected,
        /// The one that is there.
        found: Box<Identity>,
    },
    /// `CKF_TOKEN_INITIALIZED` is not set.
    #[error("the token is not initialised")]
    NotInitialised,
    /// `CKF_USER_PIN_INITIALIZED` is not set, or the login said so.
    #[error("the token's user PIN is not set")]
    PinNotInitialised,
    /// `CKF_USER_PIN_LOCKED`.
    #[error("the token's user PIN is locked")]
    PinLocked,
    /// `CKF_USER_PIN_FINAL_TRY`.
    #[error("one more wrong PIN would lock the token, so this login was not tried")]
    PinFinalTry,
    /// `CKF_USER_PIN_TO_BE_CHANGED`.
    #[error("the token wants its user PIN changed")]
    PinToBeChanged,
    /// There is no PIN to log in with.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The token refused the PIN. It is not tried again.
    #[error("the token refused the PIN ({0:?}); it is not tried again")]
    PinRefused(RvError),
    /// A PIN was refused before, or that can't be told.
    #[error(transparent)]
    Latch(#[from] LatchError),
    /// There is no thread for a session.
    #[error("couldn't start the token's threads: {0}")]
    Threads(std::io::Error),
    /// No such key.
    #[error("no EC private key on the token matches {uri}")]
    NoKey {
        /// What was looked for.
        uri: String,
    },
    /// More than one such key.
    #[error("{count} EC private keys on the token match {uri}")]
    SeveralKeys {
        /// What was looked for.
        uri: String,
        /// How many match.
        count: usize,
    },
    /// The key is on another curve.
    #[error("the key on the token is not a P-256 key")]
    NotP256,
    /// `CKA_ALWAYS_AUTHENTICATE`.
    #[error("the key on the token wants the PIN for each signature")]
    AlwaysAuthenticate,
    /// Neither a public key object nor a point on the private key.
    #[error("the token has no public key that belongs to the private key")]
    NoPublicKey,
    /// Different public keys with the private key's id or label.
    #[error("{count} different public keys on the token belong to the private key")]
    SeveralPublicKeys {
        /// How many.
        count: usize,
    },
    /// After a new session the same name stood for another key.
    #[error("the key on the token changed from {expected} to {found}")]
    OtherKey {
        /// The key that was in use.
        expected: KeyId,
        /// The key that is there.
        found: KeyId,
    },
    /// The private key does not sign for the public key.
    #[error("the token did not prove that it has the private key")]
    NotPossessed(#[source] SignError),
}

impl TokenError {
    /// Whether trying again is useless, or harmful, until somebody has changed the token, the
    /// PIN or the configuration. The others may pass by themselves.
    #[must_use]
    pub fn needs_operator(&self) -> bool {
        use TokenError as E;
        match self {
            E::Call { .. } | E::NoToken { .. } | E::NotPossessed(_) | E::Threads(_) => false,
            E::Module { .. }
            | E::SeveralTokens { .. }
            | E::OtherToken { .. }
            | E::NotInitialised
            | E::PinNotInitialised
            | E::PinLocked
            | E::PinFinalTry
            | E::PinToBeChanged
            | E::Pin(_)
            | E::PinRefused(_)
            | E::Latch(_)
            | E::NoKey { .. }
            | E::SeveralKeys { .. }
            | E::NotP256
            | E::AlwaysAuthenticate
            | E::NoPublicKey
            | E::SeveralPublicKeys { .. }
            | E::OtherKey { .. } => true,
        }
    }
}

/// Why a message was not signed. Nothing of the call that it came with counts as signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The token or its library failed.
    #[error("the token didn't sign: {}", brief(.0))]
    Call(Error),
    /// The session had gone stale and could not be replaced.
    #[error("the token's session was lost")]
    Session(#[source] Box<TokenError>),
    /// The token gave something that is not r‖s with both in range.
    #[error("the token returned {bytes} bytes that are not a P-256 signature")]
    Malformed {
        /// How many; a signature has 64.
        bytes: usize,
    },
    /// The token's signature is not the public key's.
    #[error("the token's signature does not verify under its public key")]
    DoesNotVerify,
    /// A worker panicked.
    #[error("a signing thread panicked")]
    Panicked,
    /// A measurement with no session, or with more than the pool has.
    #[error("{asked} sessions asked for, of {available}")]
    Sessions {
        /// How many were asked for.
        asked: usize,
        /// How many there are.
        available: usize,
    },
}

/// A token, logged in, with its key found and its sessions open. [`Pool::start`] takes it.
pub struct Token {
    // Seats first: their sessions must be closed before the library is finalized.
    seats: Vec<Seat>,
    attributes: KeyAttributes,
    connection: Arc<Connection>,
}

impl Token {
    /// Loads and initialises the library, finds token and key, logs in and opens the sessions.
    ///
    /// A process can have one token open per library. A refused PIN is never tried twice, and a
    /// token that a wrong PIN would lock is not tried at all.
    ///
    /// # Errors
    /// [`TokenError`]. The library is finalized again.
    pub fn open(options: &TokenOptions) -> Result<Self, TokenError> {
        Self::open_beside(options, None)
    }

    /// The same beside a token that may be in the same library, which is initialised then.
    fn open_beside(options: &TokenOptions, beside: Option<&Pool>) -> Result<Self, TokenError> {
        let connection = Arc::new(Connection::open(options, beside.and_then(Pool::library))?);
        let (first, attributes) = Seat::first(&connection)?;
        let mut seats = vec![first];
        while seats.len() < options.sessions {
            match seats[0].another() {
                Ok(seat) => seats.push(seat),
                // That was all that the token has, whatever it said before.
                Err(TokenError::Call { error: Error::Pkcs11(RvError::SessionCount, _), .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Token { seats, attributes, connection })
    }

    /// Has the token sign a fresh nonce, and verifies the signature under [`Token::public_key`].
    ///
    /// # Errors
    /// [`TokenError::NotPossessed`].
    pub fn prove_possession(&mut self, origin: &str) -> Result<(), TokenError> {
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        let challenge = Signable::purpose("possession", origin, &nonce);
        self.seats[0].sign(&challenge).map_err(TokenError::NotPossessed)?;
        Ok(())
    }

    /// Has the token sign an approver's statement (`governance::approval`), which as a JSON object
    /// is none of the messages of a ledger's key. This is for an approver's own key.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn sign_statement(&mut self, statement: &str) -> Result<Signature, SignError> {
        self.seats[0].sign_bytes(statement.as_bytes())
    }

    /// The public key, as the token has it.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        self.seats[0].public_key()
    }

    /// What the token says it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.connection.identity
    }

    /// How the token says it protects the key.
    #[must_use]
    pub fn key_attributes(&self) -> &KeyAttributes {
        &self.attributes
    }

    /// How the public keys are written that the URI names.
    ///
    /// # Errors
    /// When they cannot be looked for.
    pub fn point_encodings(&self) -> Result<Vec<Encoding>, TokenError> {
        self.seats[0].point_encodings()
    }

    /// The library's own description of itself, with its version.
    #[must_use]
    pub fn library(&self) -> &str {
        &self.connection.description
    }

    /// How many sessions the token allows, where it says a number.
    #[must_use]
    pub fn token_max_sessions(&self) -> Option<u64> {
        self.connection.max_sessions
    }
}

fn call(doing: &'static str) -> impl FnOnce(Error) -> TokenError {
    move |error| TokenError::Call { doing, error }
}

/// `C_Login: PinIncorrect` in place of the paragraph that the standard has for it.
fn brief(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("C_{function:?}: {code:?}"),
        other => other.to_string(),
    }
}

fn list(tokens: &[Identity]) -> String {
    // Some libraries always show one more, blank and waiting to be initialised.
    let named = tokens.iter().filter(|token| !token.label.is_empty() || !token.serial.is_empty());
    let names: Vec<_> = named.map(Identity::to_string).collect();
    match names.len() {
        0 => "the library shows no token at all".to_owned(),
        _ => format!("there is {}", names.join(", ")),
    }
}
