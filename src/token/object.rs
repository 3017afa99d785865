//! Finding the key pair on the token and reading what the token says about it.

use cryptoki::error::Error;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::{KeyAttributes, TokenError, TokenUri, call};
use crate::ledger::key::PublicKey;

/// DER of the object identifier 1.2.840.10045.3.1.7, the curve P-256 (RFC 5480 §2.1.1.1).
pub(super) const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// Finds the one EC private key that `uri` names, and its public key.
pub(super) fn find_key(session: &Session, uri: &TokenUri) -> Result<(ObjectHandle, PublicKey), TokenError> {
    let mut wanted = vec![Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::KeyType(KeyType::EC)];
    wanted.extend(uri.object().map(|label| Attribute::Label(label.into())));
    wanted.extend(uri.id().map(|id| Attribute::Id(id.into())));
    let found = session.find_objects(&wanted).map_err(call("look for the private key"))?;
    let key = match found[..] {
        [key] => key,
        [] => return Err(TokenError::NoKey { uri: uri.to_string() }),
        _ => return Err(TokenError::SeveralKeys { uri: uri.to_string(), count: found.len() }),
    };

    let read = session
        .get_attributes(key, &[AttributeType::EcParams, AttributeType::Id, AttributeType::Label])
        .map_err(call("read the private key's attributes"))?;
    let (mut curve, mut id, mut label) = (Vec::new(), Vec::new(), Vec::new());
    for attribute in read {
        match attribute {
            Attribute::EcParams(value) => curve = value,
            Attribute::Id(value) => id = value,
            Attribute::Label(value) => label = value,
            _ => {}
        }
    }
    if curve != P256 {
        return Err(TokenError::NotP256);
    }
    // A key that wants the PIN for each signature cannot be used without keeping the PIN.
    if flag(session, key, AttributeType::AlwaysAuthenticate) == Some(true) {
        return Err(TokenError::AlwaysAuthenticate);
    }
    Ok((key, public_key(session, key, id, label)?))
}

/// The public key that belongs to `key`: the object of the same id, else of the same label, else
/// the point that some tokens keep with the private key. That it is the right one is not taken
/// on trust: `Token::prove_possession` and each signature's verification show it.
fn public_key(
    session: &Session,
    key: ObjectHandle,
    id: Vec<u8>,
    label: Vec<u8>,
) -> Result<PublicKey, TokenError> {
    let point = |object| {
        let read = session.get_attributes(object, &[AttributeType::EcPoint]).unwrap_or_default();
        read.into_iter().find_map(|attribute| match attribute {
            Attribute::EcPoint(point) => PublicKey::from_sec1(unwrap_point(&point)).ok(),
            _ => None,
        })
    };
    let twins = [
        (!id.is_empty()).then_some(Attribute::Id(id)),
        (!label.is_empty()).then_some(Attribute::Label(label)),
    ];
    for twin in twins.into_iter().flatten() {
        let wanted = [Attribute::Class(ObjectClass::PUBLIC_KEY), Attribute::KeyType(KeyType::EC), twin];
        let objects = session.find_objects(&wanted).map_err(call("look for the public key"))?;
        let mut found: Vec<PublicKey> = objects.into_iter().filter_map(point).collect();
        found.dedup();
        match found.len() {
            0 => {}
            1 => return Ok(found.remove(0)),
            count => return Err(TokenError::SeveralPublicKeys { count }),
        }
    }
    point(key).ok_or(TokenError::NoPublicKey)
}

/// The SEC1 point in a `CKA_EC_POINT`, which should be wrapped as a DER OCTET STRING and often is not.
fn unwrap_point(value: &[u8]) -> &[u8] {
    match value {
        [0x04, 65, point @ ..] if point.len() == 65 => point,
        [0x04, 33, point @ ..] if point.len() == 33 => point,
        bare => bare,
    }
}

/// How a `CKA_EC_POINT` is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As a DER OCTET STRING, as PKCS#11 has it.
    Wrapped,
    /// As the bare point, which is taken, too.
    Bare,
    /// As neither.
    Unknown,
}

impl Encoding {
    fn of(value: &[u8]) -> Self {
        let point = unwrap_point(value);
        match PublicKey::from_sec1(point) {
            Ok(_) if point.len() < value.len() => Encoding::Wrapped,
            Ok(_) => Encoding::Bare,
            Err(_) => Encoding::Unknown,
        }
    }
}

/// Of the EC public keys that `uri` names, how each is written.
pub(super) fn point_encodings(session: &Session, uri: &TokenUri) -> Result<Vec<Encoding>, Error> {
    let mut wanted = vec![Attribute::Class(ObjectClass::PUBLIC_KEY), Attribute::KeyType(KeyType::EC)];
    wanted.extend(uri.object().map(|label| Attribute::Label(label.into())));
    wanted.extend(uri.id().map(|id| Attribute::Id(id.into())));
    let mut encodings = Vec::new();
    for object in session.find_objects(&wanted)? {
        let read = session.get_attributes(object, &[AttributeType::EcPoint])?;
        encodings.extend(read.into_iter().filter_map(|attribute| match attribute {
            Attribute::EcPoint(point) => Some(Encoding::of(&point)),
            _ => None,
        }));
    }
    Ok(encodings)
}

/// What the token says about the protection of `key`.
pub(super) fn key_attributes(session: &Session, key: ObjectHandle) -> KeyAttributes {
    let flag = |attribute| flag(session, key, attribute);
    KeyAttributes {
        sensitive: flag(AttributeType::Sensitive),
        always_sensitive: flag(AttributeType::AlwaysSensitive),
        extractable: flag(AttributeType::Extractable),
        never_extractable: flag(AttributeType::NeverExtractable),
        local: flag(AttributeType::Local),
    }
}

/// One yes-or-no attribute, or `None`. Each is asked for alone: some modules answer none of a
/// list when one of it is unknown to them.
pub(super) fn flag(session: &Session, object: ObjectHandle, attribute: AttributeType) -> Option<bool> {
    let read: Result<_, Error> = session.get_attributes(object, &[attribute]);
    read.ok()?.into_iter().find_map(|attribute| match attribute {
        Attribute::Sensitive(yes)
        | Attribute::AlwaysSensitive(yes)
        | Attribute::Decrypt(yes)
        | Attribute::Derive(yes)
        | Attribute::Private(yes)
        | Attribute::Sign(yes)
        | Attribute::SignRecover(yes)
        | Attribute::Token(yes)
        | Attribute::Unwrap(yes)
        | Attribute::Extractable(yes)
        | Attribute::NeverExtractable(yes)
        | Attribute::Local(yes)
        | Attribute::AlwaysAuthenticate(yes) => Some(yes),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_taken_bare_and_wrapped() {
        // 0x04 0x3f is how a bare point can begin that looks like an OCTET STRING of 63 bytes.
        let mut bare = vec![0x04, 63];
        bare.resize(65, 7);
        assert_eq!(unwrap_point(&bare), bare);
        let wrapped = [&[0x04, 65], &bare[..]].concat();
        assert_eq!(unwrap_point(&wrapped), bare);
        let compressed = [2; 33];
        assert_eq!(unwrap_point(&compressed), compressed);
        assert_eq!(unwrap_point(&[&[0x04, 33], &compressed[..]].concat()), compressed);
        assert_eq!(unwrap_point(&[]), [0; 0]);
        assert_eq!(unwrap_point(&[0x04, 65]), [0x04, 65]);
    }
}
