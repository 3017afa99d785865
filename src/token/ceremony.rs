//! What a ceremony does with a token: look, make the key, look again, sign.
//!
//! One session, one login, no threads. What is done in which order, and what is written down, is for
//! `attestctl ceremony`; what is enough, for [`crate::ceremony`].

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::TokenInfo;
use secrecy::SecretBox;

use super::object::{P256, find_key, flag};
use super::session::{Connection, is_pin_refusal};
use super::{Identity, PinSource, SignError, TokenError, TokenOptions, TokenUri, brief, call};
use crate::ceremony::device::Device;
use crate::ceremony::transcript::{Attributes, Object, printable};
use crate::ledger::hash::encode_hex;
use crate::ledger::key::{PublicKey, Signable, Signature};

/// A token on the table.
pub struct Workbench {
    // Before the connection, so that it is closed before the library is finalized.
    session: Option<Session>,
    connection: Connection,
}

/// What came of trying the PIN that the manual prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FactoryPinTried {
    /// The token took it.
    Opened,
    /// It did not, with this answer, and took the right PIN at once after it.
    Refused(String),
}

impl Workbench {
    /// Loads the library and finds the token that `uri` names. Does not log in.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn find(module: &std::path::Path, uri: &TokenUri, pin: PinSource) -> Result<Self, TokenError> {
        let options = TokenOptions {
            module: module.into(),
            uri: uri.clone(),
            pin,
            latch: None,
            sessions: 1,
            expected: None,
        };
        Ok(Workbench { session: None, connection: Connection::open(&options, None)? })
    }

    /// What the token says of itself now.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn device(&self) -> Result<Device, TokenError> {
        device(&self.connection)
    }

    /// Logs in. The token's flags are read before, and nothing is tried that could lock it.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn log_in(&mut self) -> Result<(), TokenError> {
        self.session = Some(self.connection.writing_session()?);
        Ok(())
    }

    /// Everything on the token that the user sees, sorted.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn objects(&self) -> Result<Vec<Object>, TokenError> {
        let session = self.session()?;
        let found = session.find_objects(&[]).map_err(call("list the token's objects"))?;
        let mut objects = Vec::with_capacity(found.len());
        for handle in found {
            let read = |kind: AttributeType| {
                session.get_attributes(handle, &[kind]).unwrap_or_default().into_iter().next()
            };
            let class = match read(AttributeType::Class) {
                Some(Attribute::Class(class)) => class_name(class),
                _ => "unknown".into(),
            };
            let id = match read(AttributeType::Id) {
                Some(Attribute::Id(id)) => Some(encode_hex(&id)),
                _ => None,
            };
            let label = match read(AttributeType::Label) {
                Some(Attribute::Label(label)) => Some(printable(&String::from_utf8_lossy(&label))),
                _ => None,
            };
            objects.push(Object { class, id, label });
        }
        objects.sort();
        Ok(objects)
    }

    /// Makes the P-256 key pair that the URI names: on the token, to sign and for nothing else, never
    /// to be read nor wrapped.
    ///
    /// # Errors
    /// When the token does not.
    pub fn generate(&self) -> Result<(), TokenError> {
        let uri = &self.connection.uri;
        let mut name: Vec<Attribute> = Vec::new();
        name.extend(uri.object().map(|label| Attribute::Label(label.into())));
        name.extend(uri.id().map(|id| Attribute::Id(id.into())));
        let public = [
            Attribute::Class(ObjectClass::PUBLIC_KEY),
            Attribute::KeyType(KeyType::EC),
            Attribute::EcParams(P256.into()),
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Verify(true),
        ];
        let private = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::KeyType(KeyType::EC),
            Attribute::Token(true),
            Attribute::Private(true),
            // Modules differ in what they take where nothing is said.
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
            Attribute::SignRecover(false),
            Attribute::Decrypt(false),
            Attribute::Unwrap(false),
            Attribute::Derive(false),
        ];
        let (public, private) = ([&public[..], &name].concat(), [&private[..], &name].concat());
        let made = self.session()?.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private);
        made.map(|_| ()).map_err(call("make the key pair"))
    }

    /// The key that the URI names, and what the token says of it.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn key(&self) -> Result<(PublicKey, Attributes), TokenError> {
        let session = self.session()?;
        let (key, public) = find_key(session, &self.connection.uri)?;
        Ok((public, attributes(session, key)))
    }

    /// Signs with the key, which must be `expected`.
    ///
    /// # Errors
    /// [`TokenError::NotPossessed`] and what finding it can say.
    pub fn sign(&self, message: &Signable, expected: &PublicKey) -> Result<Signature, TokenError> {
        let session = self.session()?;
        let (key, public) = find_key(session, &self.connection.uri)?;
        if public != *expected {
            return Err(TokenError::OtherKey { expected: expected.id(), found: public.id() });
        }
        let raw = session.sign(&Mechanism::Ecdsa, key, &message.digest().0);
        let signature = raw
            .map_err(SignError::Call)
            .and_then(|raw| Signature::from_token(&raw).ok_or(SignError::Malformed { bytes: raw.len() }));
        let signature = signature.map_err(TokenError::NotPossessed)?;
        if !public.verifies(message.message(), &signature) {
            return Err(TokenError::NotPossessed(SignError::DoesNotVerify));
        }
        Ok(signature)
    }

    /// Logs out, tries `factory_pin`, and logs in with the right one at once. Only for a token of
    /// which [`Device::bears_a_wrong_pin`] holds.
    ///
    /// # Errors
    /// When the right PIN does not work any more, or the answer was that the PIN is locked.
    pub fn try_factory_pin(&mut self, factory_pin: &str) -> Result<FactoryPinTried, TokenError> {
        // Read before anything is tried: nothing must come between the wrong PIN and the right one.
        let right = self.connection.pin.read()?;
        let session = self.session()?;
        session.logout().map_err(call("log out"))?;
        let wrong = SecretBox::new(Box::new(factory_pin.as_bytes().to_vec()));
        let tried = session.login_with_raw(UserType::User, &wrong);
        if tried.is_ok() {
            session.logout().map_err(call("log out"))?;
        }
        match session.login_with_raw(UserType::User, &right.secret) {
            Ok(()) => {}
            Err(Error::Pkcs11(code, _)) if is_pin_refusal(code) => return Err(TokenError::PinRefused(code)),
            Err(error) => return Err(call("log in")(error)),
        }
        match tried {
            Ok(()) => Ok(FactoryPinTried::Opened),
            Err(Error::Pkcs11(RvError::PinLocked, _)) => Err(TokenError::PinLocked),
            Err(error) => Ok(FactoryPinTried::Refused(brief(&error))),
        }
    }

    fn session(&self) -> Result<&Session, TokenError> {
        self.session.as_ref().ok_or(TokenError::Call {
            doing: "use the token",
            error: Error::Pkcs11(RvError::UserNotLoggedIn, cryptoki::context::Function::Login),
        })
    }
}

pub(super) fn device(connection: &Connection) -> Result<Device, TokenError> {
    let info = connection.library.0.get_token_info(connection.slot);
    let info = info.map_err(call("read the token's state"))?;
    let Identity { manufacturer, model, serial, label } = Identity::of(&info);
    let version = |version: cryptoki::types::Version| format!("{}.{}", version.major(), version.minor());
    Ok(Device {
        flags: flags(&info),
        firmware: version(info.firmware_version()),
        hardware: version(info.hardware_version()),
        label: printable(&label),
        library: printable(&connection.description),
        manufacturer: printable(&manufacturer),
        model: printable(&model),
        serial: printable(&serial),
    })
}

fn attributes(session: &Session, key: ObjectHandle) -> Attributes {
    let flag = |attribute| flag(session, key, attribute);
    Attributes {
        always_sensitive: flag(AttributeType::AlwaysSensitive),
        decrypt: flag(AttributeType::Decrypt),
        derive: flag(AttributeType::Derive),
        extractable: flag(AttributeType::Extractable),
        local: flag(AttributeType::Local),
        never_extractable: flag(AttributeType::NeverExtractable),
        private: flag(AttributeType::Private),
        sensitive: flag(AttributeType::Sensitive),
        sign: flag(AttributeType::Sign),
        sign_recover: flag(AttributeType::SignRecover),
        token: flag(AttributeType::Token),
        unwrap: flag(AttributeType::Unwrap),
    }
}

fn class_name(class: ObjectClass) -> String {
    match class {
        ObjectClass::PRIVATE_KEY => "private-key".into(),
        ObjectClass::PUBLIC_KEY => "public-key".into(),
        ObjectClass::SECRET_KEY => "secret-key".into(),
        ObjectClass::CERTIFICATE => "certificate".into(),
        ObjectClass::DATA => "data".into(),
        other => other.to_string(),
    }
}

fn flags(info: &TokenInfo) -> Vec<String> {
    let flags = [
        ("error_state", info.error_state()),
        ("login_required", info.login_required()),
        ("protected_authentication_path", info.protected_authentication_path()),
        ("rng", info.rng()),
        ("so_pin_count_low", info.so_pin_count_low()),
        ("so_pin_final_try", info.so_pin_final_try()),
        ("so_pin_locked", info.so_pin_locked()),
        ("so_pin_to_be_changed", info.so_pin_to_be_changed()),
        ("token_initialized", info.token_initialized()),
        ("user_pin_count_low", info.user_pin_count_low()),
        ("user_pin_final_try", info.user_pin_final_try()),
        ("user_pin_initialized", info.user_pin_initialized()),
        ("user_pin_locked", info.user_pin_locked()),
        ("user_pin_to_be_changed", info.user_pin_to_be_changed()),
        ("write_protected", info.write_protected()),
    ];
    flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| name.to_owned()).collect()
}
