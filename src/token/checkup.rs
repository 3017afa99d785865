//! What a doctor looks at on a token: all that can be seen without a login, changing nothing.
//!
//! No PIN is read here. A daemon may be using the token meanwhile: one more session that is not
//! logged in takes nothing away from it. What needs a login is [`super::Token`]'s.

use cryptoki::mechanism::MechanismType;
use cryptoki::session::Session;

use super::object::{Encoding, point_encodings};
use super::session::Connection;
use super::{Identity, TokenError, TokenOptions, brief, call, ceremony};
use crate::ceremony::device::Device;

/// A token that was found and is looked at.
pub struct Checkup {
    // Before the connection, so that it is closed before the library is finalized.
    session: Option<Session>,
    connection: Connection,
}

impl Checkup {
    /// Loads the library and finds the token, which must be the one expected. Does not log in.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn find(options: &TokenOptions) -> Result<Self, TokenError> {
        let connection = Connection::open(options, None)?;
        let session = connection.library.0.open_ro_session(connection.slot).ok();
        Ok(Checkup { session, connection })
    }

    /// The library's own description of itself, with its version.
    #[must_use]
    pub fn library(&self) -> &str {
        &self.connection.description
    }

    /// What the token says it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.connection.identity
    }

    /// In which slot it is now; the number may change at any time.
    #[must_use]
    pub fn slot(&self) -> u64 {
        self.connection.slot.id()
    }

    /// What the token says of itself, with its flags.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn device(&self) -> Result<Device, TokenError> {
        ceremony::device(&self.connection)
    }

    /// Whether the token signs by `CKM_ECDSA` with keys of 256 bits; else in words, why not.
    ///
    /// # Errors
    /// In words, what it lacks.
    pub fn signs_by_ecdsa(&self) -> Result<(), String> {
        let info = self
            .connection
            .library
            .0
            .get_mechanism_info(self.connection.slot, MechanismType::ECDSA)
            .map_err(|error| {
            format!("the token does not say that it has CKM_ECDSA: {}", brief(&error))
        })?;
        let (least, most) = (info.min_key_size(), info.max_key_size());
        if !info.sign() {
            return Err("the token's CKM_ECDSA does not sign".into());
        }
        // Some modules give sizes in bytes, and some none at all.
        let fits = |unit: usize| least <= 256 / unit && (most == 0 || 256 / unit <= most);
        if fits(1) || fits(8) {
            Ok(())
        } else {
            Err(format!("the token's CKM_ECDSA is for keys of {least} to {most} bits"))
        }
    }

    /// How the public keys are encoded that the URI names and that are seen without a login.
    ///
    /// # Errors
    /// When they cannot be looked for.
    pub fn point_encodings(&self) -> Result<Vec<Encoding>, TokenError> {
        let Some(session) = &self.session else { return Ok(Vec::new()) };
        point_encodings(session, &self.connection.uri).map_err(call("look for the public key"))
    }
}
