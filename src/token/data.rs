//! Data objects on the token: a few bytes under a label, which whoever holds the token's PIN can
//! read and replace.

use std::time::Duration;

use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::session::Connection;
use super::{TokenError, brief, call};

/// Whose objects ours are, beside those of other programs.
const APPLICATION: &str = "attestd";

/// How long a data object is waited for. It goes before signatures that wait, so it takes as long as
/// one signature and a few writes to flash.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Why a data object could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The module, or this token, has no data objects, or not for us.
    #[error("the token keeps no data objects: {}", brief(.0))]
    NotKept(Error),
    /// The token or its library failed.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// It may still happen.
    #[error("the token did not answer within {} s", ANSWER_WITHIN.as_secs())]
    NoAnswer,
    /// It comes back, or not.
    #[error("the token is away")]
    Away,
}

impl ObjectError {
    /// Whether trying again is useless until somebody has changed something.
    #[must_use]
    pub fn needs_operator(&self) -> bool {
        match self {
            ObjectError::NotKept(_) => true,
            ObjectError::Token(error) => error.needs_operator(),
            ObjectError::NoAnswer | ObjectError::Away => false,
        }
    }
}

/// The values of all our objects with this label.
pub(super) fn read(connection: &Connection, label: &str) -> Result<Vec<Vec<u8>>, ObjectError> {
    let session = connection.session()?;
    let value = |object| {
        let read =
            session.get_attributes(object, &[AttributeType::Value]).map_err(call("read a data object"))?;
        let value = read.into_iter().find_map(|attribute| match attribute {
            Attribute::Value(value) => Some(value),
            _ => None,
        });
        Ok(value.unwrap_or_default())
    };
    find(&session, label)?.into_iter().map(value).collect()
}

/// Makes `value` the only value under `label`; `None` leaves none. The new object is there before the
/// old ones go, since a token may lose its power at any time, and many let no object be changed.
pub(super) fn replace(connection: &Connection, label: &str, value: Option<&[u8]>) -> Result<(), ObjectError> {
    let session = connection.writing_session()?;
    let old = find(&session, label)?;
    if let Some(value) = value {
        let mut object = ours(label);
        object.extend([Attribute::Token(true), Attribute::Private(true), Attribute::Value(value.to_vec())]);
        session.create_object(&object).map_err(|error| match error {
            Error::Pkcs11(code, _) if is_refusal(code) => ObjectError::NotKept(error),
            error => call("make a data object")(error).into(),
        })?;
    }
    for object in old {
        session.destroy_object(object).map_err(call("destroy an old data object"))?;
    }
    Ok(())
}

fn find(session: &Session, label: &str) -> Result<Vec<ObjectHandle>, ObjectError> {
    Ok(session.find_objects(&ours(label)).map_err(call("look for data objects"))?)
}

fn ours(label: &str) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::DATA),
        Attribute::Application(APPLICATION.into()),
        Attribute::Label(label.into()),
    ]
}

/// What modules were seen to say, or may say by the standard, that will not say otherwise later.
fn is_refusal(code: RvError) -> bool {
    use RvError::{
        AttributeReadOnly, AttributeTypeInvalid, AttributeValueInvalid, FunctionNotSupported,
        SessionReadOnly, TemplateIncomplete, TemplateInconsistent, TokenWriteProtected,
    };
    matches!(
        code,
        AttributeReadOnly
            | AttributeTypeInvalid
            | AttributeValueInvalid
            | FunctionNotSupported
            | SessionReadOnly
            | TemplateIncomplete
            | TemplateInconsistent
            | TokenWriteProtected
    )
}
