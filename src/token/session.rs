//! One token in one initialised library, and the sessions on it.
//!
//! Ownership keeps PKCS#11's order of things: every [`Seat`] owns its session and, declared after
//! it, a share of the [`Connection`]. So each session is closed before the library is finalized,
//! which happens when the last share goes. A session closed later than that would close the new
//! session that has its number by then.

use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Limit, Slot, TokenInfo};

use super::object::{Encoding, find_key, key_attributes, point_encodings};
use super::{
    Expected, Identity, KeyAttributes, Latch, PinSource, SignError, TokenError, TokenOptions, TokenUri,
    brief, call,
};
use crate::ledger::hash::Digest;
use crate::ledger::key::{PublicKey, Signable, Signature};

/// The token that the URI names, in a library that was initialised for it.
pub(super) struct Connection {
    pub(super) library: Arc<Library>,
    pub(super) slot: Slot,
    pub(super) uri: TokenUri,
    pub(super) identity: Identity,
    pub(super) description: String,
    pub(super) max_sessions: Option<u64>,
    pub(super) pin: PinSource,
    latch: Option<Latch>,
    /// Held during a login. Once a PIN was refused it says so for good: a few more tries lock a
    /// real token.
    pin_refused: Mutex<Option<RvError>>,
}

impl Connection {
    /// Initialises the library, unless it is that of `beside`, and finds the one token that the URI
    /// names. Does not log in.
    pub(super) fn open(options: &TokenOptions, beside: Option<Arc<Library>>) -> Result<Self, TokenError> {
        let library = match beside.filter(|library| library.is_of(&options.module)) {
            Some(library) => library,
            None => Arc::new(Library::initialise(options)?),
        };
        let (slot, info) = find_token(&library.0, &options.uri)?;
        let identity = Identity::of(&info);
        if let Some(expected) = &options.expected {
            check_identity(&identity, expected)?;
        }
        Ok(Connection {
            description: library.0.get_library_info().map_or_else(
                |_| "unknown".to_owned(),
                |info| format!("{} {}", info.library_description().trim(), info.library_version()),
            ),
            max_sessions: match info.max_session_count() {
                Limit::Max(count) => Some(count),
                Limit::Unavailable | Limit::Infinite => None,
            },
            library,
            slot,
            uri: options.uri.clone(),
            identity,
            pin: options.pin.clone(),
            latch: options.latch.clone(),
            pin_refused: Mutex::new(None),
        })
    }

    /// The library that it is in.
    pub(super) fn library(&self) -> &Arc<Library> {
        &self.library
    }

    /// Opens a session, and logs in where the token is not logged in already. One login serves
    /// all sessions, and ends with the last of them.
    pub(super) fn session(&self) -> Result<Session, TokenError> {
        self.logged_in(self.library.0.open_ro_session(self.slot))
    }

    /// The same, to change what is on the token.
    pub(super) fn writing_session(&self) -> Result<Session, TokenError> {
        self.logged_in(self.library.0.open_rw_session(self.slot))
    }

    fn logged_in(&self, opened: Result<Session, Error>) -> Result<Session, TokenError> {
        let session = opened.map_err(call("open a session"))?;
        let info = session.get_session_info().map_err(call("read the session's state"))?;
        if !matches!(info.session_state(), SessionState::RoUser | SessionState::RwUser) {
            self.login(&session)?;
        }
        Ok(session)
    }

    fn login(&self, session: &Session) -> Result<(), TokenError> {
        let mut refused = self.pin_refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(code) = *refused {
            return Err(TokenError::PinRefused(code));
        }
        // What is in the slot may have changed since it was found, and a wrong token must not
        // cost a try of this PIN.
        let info = self.library.0.get_token_info(self.slot).map_err(call("read the token's state"))?;
        let Identity { serial, model, .. } = self.identity.clone();
        check_identity(&Identity::of(&info), &Expected { serial, model })?;
        check_flags(&info)?;
        let pin = self.pin.read()?;
        let serial = &self.identity.serial;
        let latch = self.latch.as_ref();
        latch.map_or(Ok(()), |latch| latch.begin(serial))?;
        // A crash from here on leaves the latch half closed: one more login is tried after it.
        let answer = session.login_with_raw(UserType::User, &pin.secret);
        drop(pin);
        if let Err(Error::Pkcs11(code, _)) = answer
            && is_pin_refusal(code)
        {
            *refused = Some(code);
            latch.map_or(Ok(()), |latch| latch.refuse(serial, &format!("{code:?}")))?;
            return Err(TokenError::PinRefused(code));
        }
        latch.map_or(Ok(()), Latch::open)?;
        match answer {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(Error::Pkcs11(RvError::UserPinNotInitialized, _)) => Err(TokenError::PinNotInitialised),
            Err(error) => Err(call("log in")(error)),
        }
    }
}

/// How often a library is told to end, and how long it has between.
const FINALIZE_TRIES: u32 = 5;
const FINALIZE_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// An initialised library, finalized when the last token in it is closed: a process can initialise one
/// only once, so two tokens of one library share it.
pub(super) struct Library(pub(super) Pkcs11, PathBuf);

impl Library {
    fn initialise(options: &TokenOptions) -> Result<Self, TokenError> {
        let library = Pkcs11::new(&options.module)
            .map_err(|error| TokenError::Module { path: options.module.clone(), error })?;
        library
            .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
            .map_err(call("initialise the library"))?;
        Ok(Library(library, canonical(&options.module)))
    }

    fn is_of(&self, module: &Path) -> bool {
        self.1 == canonical(module)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // A library that stays initialised could not be initialised afresh, so an error is not the end.
        for _ in 0..FINALIZE_TRIES {
            match self.0.clone().finalize() {
                Ok(()) | Err(Error::Pkcs11(RvError::CryptokiNotInitialized, _)) => return,
                Err(error) => tracing::warn!(error = %brief(&error), "couldn't finalize the token's library"),
            }
            std::thread::sleep(FINALIZE_PAUSE);
        }
    }
}

/// The file of a module, whatever links lead to it.
fn canonical(module: &Path) -> PathBuf {
    module.canonicalize().unwrap_or_else(|_| module.to_owned())
}

/// A session with the key found in it: all that a signing thread needs.
pub(super) struct Seat {
    // The session is first, so that it is closed before `connection` can finalize the library.
    open: Option<(Session, ObjectHandle)>,
    public_key: PublicKey,
    connection: Arc<Connection>,
}

impl Seat {
    /// The first seat, which says what the public key is and how the token protects the private one.
    pub(super) fn first(connection: &Arc<Connection>) -> Result<(Self, KeyAttributes), TokenError> {
        let session = connection.session()?;
        let (key, public_key) = find_key(&session, &connection.uri)?;
        let attributes = key_attributes(&session, key);
        let seat = Seat { open: Some((session, key)), public_key, connection: Arc::clone(connection) };
        Ok((seat, attributes))
    }

    /// One more seat, beside this one and with the same key.
    pub(super) fn another(&self) -> Result<Self, TokenError> {
        let connection = Arc::clone(&self.connection);
        let mut seat = Seat { open: None, public_key: self.public_key.clone(), connection };
        seat.reopen()?;
        Ok(seat)
    }

    /// The token that it is on.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// How the public keys are written that the URI names.
    pub(super) fn point_encodings(&self) -> Result<Vec<Encoding>, TokenError> {
        let Some((session, _)) = &self.open else { return Ok(Vec::new()) };
        point_encodings(session, &self.connection.uri).map_err(call("look for the public key"))
    }

    /// Signs `message`. The signature has its S low and was verified under the public key.
    pub(super) fn sign(&mut self, message: &Signable) -> Result<Signature, SignError> {
        self.sign_bytes(message.message())
    }

    /// The same for a message of which the caller knows that the key may sign it.
    pub(super) fn sign_bytes(&mut self, message: &[u8]) -> Result<Signature, SignError> {
        let raw = self.sign_digest(&Digest::of(message))?;
        let signature = Signature::from_token(&raw).ok_or(SignError::Malformed { bytes: raw.len() })?;
        if !self.public_key.verifies(message, &signature) {
            return Err(SignError::DoesNotVerify);
        }
        Ok(signature)
    }

    /// Has the token sign `digest`, once more in a new session when the old one went stale.
    ///
    /// `CKM_ECDSA` over a digest that we made is the one mechanism that all tokens have.
    pub(super) fn sign_digest(&mut self, digest: &Digest) -> Result<Vec<u8>, SignError> {
        let mut gone = false;
        if let Some((session, key)) = &self.open {
            match session.sign(&Mechanism::Ecdsa, *key, &digest.0) {
                Err(Error::Pkcs11(code, _)) if is_stale(code) => {
                    gone = matches!(code, RvError::SessionHandleInvalid | RvError::SessionClosed);
                }
                signed => return signed.map_err(SignError::Call),
            }
        }
        if gone {
            // Forgotten, not dropped: dropping closes the session of this number, which may be
            // one that another seat has just opened. What leaks is a reference count.
            mem::forget(self.open.take());
        }
        let (session, key) = self.reopen().map_err(|error| SignError::Session(Box::new(error)))?;
        session.sign(&Mechanism::Ecdsa, *key, &digest.0).map_err(SignError::Call)
    }

    /// Replaces the session, finds the key again and holds it against the public key: handles of
    /// objects are used again for others, too.
    fn reopen(&mut self) -> Result<&(Session, ObjectHandle), TokenError> {
        self.open = None;
        let session = self.connection.session()?;
        let (key, public_key) = find_key(&session, &self.connection.uri)?;
        if public_key != self.public_key {
            return Err(TokenError::OtherKey { expected: self.public_key.id(), found: public_key.id() });
        }
        Ok(self.open.insert((session, key)))
    }
}

/// The slot of the only token that `uri` matches.
fn find_token(library: &Pkcs11, uri: &TokenUri) -> Result<(Slot, TokenInfo), TokenError> {
    let slots = library.get_slots_with_token().map_err(call("list the tokens"))?;
    // A reader whose card cannot be read must not hide the others.
    let tokens: Vec<_> =
        slots.into_iter().filter_map(|slot| Some((slot, library.get_token_info(slot).ok()?))).collect();
    let (mut matching, other): (Vec<_>, Vec<_>) =
        tokens.into_iter().partition(|(_, info)| uri.matches(&Identity::of(info)));
    let identities =
        |tokens: &[(Slot, TokenInfo)]| tokens.iter().map(|(_, info)| Identity::of(info)).collect();
    match matching.len() {
        0 => Err(TokenError::NoToken { uri: uri.to_string(), found: identities(&other) }),
        1 => Ok(matching.remove(0)),
        _ => Err(TokenError::SeveralTokens { uri: uri.to_string(), found: identities(&matching) }),
    }
}

fn check_identity(found: &Identity, expected: &Expected) -> Result<(), TokenError> {
    if found.serial == expected.serial && found.model == expected.model {
        return Ok(());
    }
    Err(TokenError::OtherToken { expected: expected.clone(), found: Box::new(found.clone()) })
}

/// Refuses a login that cannot succeed, or whose failure would lock the token.
fn check_flags(info: &TokenInfo) -> Result<(), TokenError> {
    if !info.token_initialized() {
        Err(TokenError::NotInitialised)
    } else if !info.user_pin_initialized() {
        Err(TokenError::PinNotInitialised)
    } else if info.user_pin_locked() {
        Err(TokenError::PinLocked)
    } else if info.user_pin_final_try() {
        Err(TokenError::PinFinalTry)
    } else if info.user_pin_to_be_changed() {
        Err(TokenError::PinToBeChanged)
    } else {
        Ok(())
    }
}

pub(super) fn is_pin_refusal(code: RvError) -> bool {
    use RvError::{PinExpired, PinIncorrect, PinInvalid, PinLenRange, PinLocked};
    matches!(code, PinIncorrect | PinInvalid | PinLenRange | PinExpired | PinLocked)
}

/// Whether the session, or what was found in it, is gone while the token may still be there.
fn is_stale(code: RvError) -> bool {
    use RvError::{
        KeyHandleInvalid, ObjectHandleInvalid, OperationActive, SessionClosed, SessionHandleInvalid,
        UserNotLoggedIn,
    };
    matches!(
        code,
        SessionHandleInvalid
            | SessionClosed
            | ObjectHandleInvalid
            | KeyHandleInvalid
            | UserNotLoggedIn
            // What another call has begun and left; a new session has begun nothing.
            | OperationActive
    )
}
