//! The `pkcs11:` URI (RFC 7512) that names the key, read strictly.
//!
//! ```text
//! pkcs11:token=attestd;serial=695ec6a588f5d777;object=attestd-ledger;type=private?pin-source=file:/etc/attestd/pin
//! ```
//!
//! It must name a token (label or serial) and an object (label or id). What it does not name
//! matches anything (§2.5); what this module does not know is refused instead of ignored, since
//! an ignored attribute would match more than its writer meant.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Identity;

/// A `pkcs11:` URI that names one private key on one token. It never holds a PIN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUri {
    text: String,
    token: Option<String>,
    manufacturer: Option<String>,
    model: Option<String>,
    serial: Option<String>,
    object: Option<String>,
    id: Option<Vec<u8>>,
    pin_source: Option<PathBuf>,
    module_path: Option<PathBuf>,
}

/// Why a text is not a URI that can name the ledger's key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UriError {
    /// Another scheme, or none.
    #[error("the key's URI does not begin with `pkcs11:`")]
    Scheme,
    /// Something that is not `name=value`. It is not repeated: it could be a PIN.
    #[error("a part of the pkcs11 URI is not of the form name=value")]
    Attribute,
    /// A character that RFC 7512 wants percent-encoded, bad percent-encoding, or bytes that are not UTF-8.
    #[error("the value of `{0}` in the pkcs11 URI is empty or not properly percent-encoded")]
    Value(String),
    /// An attribute given twice.
    #[error("`{0}` occurs twice in the pkcs11 URI")]
    Twice(String),
    /// An attribute that attestd does not know.
    #[error("`{0}` in the pkcs11 URI is not supported")]
    Unknown(String),
    /// A `slot-…` attribute.
    #[error("slot numbers change: name the token in the pkcs11 URI by `token` or `serial`, without `{0}`")]
    Slot(String),
    /// A `pin-value`, which would put the PIN into configuration, logs and process lists.
    #[error("a PIN has no place in the pkcs11 URI: remove `pin-value` and use a PIN file or a credential")]
    PinValue,
    /// A type other than `private`.
    #[error("`type` in the pkcs11 URI must be `private`")]
    Type,
    /// Neither label nor serial of the token.
    #[error("the pkcs11 URI names no token: give `token` or `serial`")]
    NoToken,
    /// Neither label nor id of the key.
    #[error("the pkcs11 URI names no key: give `object` or `id`")]
    NoObject,
    /// A `pin-source` that is not a file.
    #[error("`pin-source` in the pkcs11 URI must be `file:` and an absolute path")]
    PinSource,
    /// A `module-path` that depends on the working directory.
    #[error("`module-path` in the pkcs11 URI must be an absolute path")]
    ModulePath,
}

impl TokenUri {
    /// Reads a URI.
    ///
    /// # Errors
    /// [`UriError`] names the attribute that is wrong; no error repeats a value.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let rest = text.strip_prefix("pkcs11:").ok_or(UriError::Scheme)?;
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        let mut uri = TokenUri {
            text: text.to_owned(),
            token: None,
            manufacturer: None,
            model: None,
            serial: None,
            object: None,
            id: None,
            pin_source: None,
            module_path: None,
        };

        let mut private = None;
        for attribute in path.split(';') {
            let (name, value) = split(attribute)?;
            let text = || decode(name, value, PATH_MARKS).and_then(|bytes| utf8(name, bytes));
            match name {
                "token" => set(name, &mut uri.token, text()?)?,
                "manufacturer" => set(name, &mut uri.manufacturer, text()?)?,
                "model" => set(name, &mut uri.model, text()?)?,
                "serial" => set(name, &mut uri.serial, text()?)?,
                "object" => set(name, &mut uri.object, text()?)?,
                "id" => set(name, &mut uri.id, decode(name, value, PATH_MARKS)?)?,
                "type" if value == "private" => set(name, &mut private, ())?,
                "type" => return Err(UriError::Type),
                "pin-value" => return Err(UriError::PinValue),
                slot if slot.starts_with("slot-") => return Err(UriError::Slot(slot.to_owned())),
                other => return Err(UriError::Unknown(other.to_owned())),
            }
        }
        for attribute in query.iter().flat_map(|query| query.split('&')) {
            let (name, value) = split(attribute)?;
            let text = || decode(name, value, QUERY_MARKS).and_then(|bytes| utf8(name, bytes));
            match name {
                "pin-source" => set(name, &mut uri.pin_source, file_path(&text()?)?)?,
                "module-path" => {
                    let path = PathBuf::from(text()?);
                    if !path.is_absolute() {
                        return Err(UriError::ModulePath);
                    }
                    set(name, &mut uri.module_path, path)?;
                }
                "pin-value" => return Err(UriError::PinValue),
                other => return Err(UriError::Unknown(other.to_owned())),
            }
        }

        if uri.token.is_none() && uri.serial.is_none() {
            return Err(UriError::NoToken);
        }
        if uri.object.is_none() && uri.id.is_none() {
            return Err(UriError::NoObject);
        }
        Ok(uri)
    }

    /// Whether the token with this identity is one that the URI names.
    #[must_use]
    pub fn matches(&self, token: &Identity) -> bool {
        let same = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|w| w == found);
        same(&self.token, &token.label)
            && same(&self.manufacturer, &token.manufacturer)
            && same(&self.model, &token.model)
            && same(&self.serial, &token.serial)
    }

    /// The key's label (`CKA_LABEL`), when the URI gives it.
    #[must_use]
    pub fn object(&self) -> Option<&str> {
        self.object.as_deref()
    }

    /// The key's id (`CKA_ID`), when the URI gives it.
    #[must_use]
    pub fn id(&self) -> Option<&[u8]> {
        self.id.as_deref()
    }

    /// The file that `pin-source` names.
    #[must_use]
    pub fn pin_source(&self) -> Option<&Path> {
        self.pin_source.as_deref()
    }

    /// The PKCS#11 library that `module-path` names.
    #[must_use]
    pub fn module_path(&self) -> Option<&Path> {
        self.module_path.as_deref()
    }
}

impl std::str::FromStr for TokenUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        Self::parse(text)
    }
}

impl fmt::Display for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What may stand for itself beside letters, digits and `-._~` (RFC 7512 §2.3).
const PATH_MARKS: &[u8] = b":[]@!$'()*+,=&";
const QUERY_MARKS: &[u8] = b":[]@!$'()*+,=/?|";

fn split(attribute: &str) -> Result<(&str, &str), UriError> {
    attribute.split_once('=').ok_or(UriError::Attribute)
}

fn set<T>(name: &str, place: &mut Option<T>, value: T) -> Result<(), UriError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(UriError::Twice(name.to_owned())),
    }
}

fn decode(name: &str, value: &str, marks: &[u8]) -> Result<Vec<u8>, UriError> {
    let wrong = || UriError::Value(name.to_owned());
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(wrong);
                (digit()? << 4 | digit()?) as u8
            }
            b'-' | b'.' | b'_' | b'~' => byte,
            _ if byte.is_ascii_alphanumeric() || marks.contains(&byte) => byte,
            _ => return Err(wrong()),
        });
    }
    if bytes.is_empty() { Err(wrong()) } else { Ok(bytes) }
}

fn utf8(name: &str, bytes: Vec<u8>) -> Result<String, UriError> {
    String::from_utf8(bytes).map_err(|_| UriError::Value(name.to_owned()))
}

/// `file:/path` or `file:///path` (RFC 8089 without a host).
fn file_path(source: &str) -> Result<PathBuf, UriError> {
    let path = source.strip_prefix("file:").ok_or(UriError::PinSource)?;
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.starts_with('/') && !path.contains('\0') { Ok(path.into()) } else { Err(UriError::PinSource) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attribute_is_read_and_decoded() {
        let text = "pkcs11:token=The%20Ledger;manufacturer=Acme;model=M%c3%bc;serial=0a;object=key%2F1;\
                    id=%00%FF!a;type=private?pin-source=file:/etc/pin%20file&module-path=/usr/lib/p11.so";
        let uri = TokenUri::parse(text).expect("a good URI");
        assert_eq!(uri.token.as_deref(), Some("The Ledger"));
        assert_eq!(uri.manufacturer.as_deref(), Some("Acme"));
        assert_eq!(uri.model.as_deref(), Some("Mü"));
        assert_eq!(uri.serial.as_deref(), Some("0a"));
        assert_eq!(uri.object(), Some("key/1"));
        assert_eq!(uri.id(), Some(&b"\x00\xff!a"[..]));
        assert_eq!(uri.pin_source(), Some(Path::new("/etc/pin file")));
        assert_eq!(uri.module_path(), Some(Path::new("/usr/lib/p11.so")));
        assert_eq!(uri.to_string(), text);
    }

    #[test]
    fn little_is_enough() {
        for good in ["pkcs11:token=a;object=b", "pkcs11:serial=1;id=%01", "pkcs11:id=%01;token=a"] {
            assert!(TokenUri::parse(good).is_ok(), "{good}");
        }
        let uri = TokenUri::parse("pkcs11:token=a;object=b?pin-source=file:///run/pin").expect("good");
        assert_eq!(uri.pin_source(), Some(Path::new("/run/pin")));
    }

    #[test]
    fn what_is_not_named_matches_anything() {
        let token = Identity {
            manufacturer: "Acme".into(),
            model: "M1".into(),
            serial: "0a".into(),
            label: "ledger".into(),
        };
        let matches = |text: &str| TokenUri::parse(text).expect("good").matches(&token);
        assert!(matches("pkcs11:token=ledger;object=k"));
        assert!(matches("pkcs11:token=ledger;serial=0a;model=M1;manufacturer=Acme;object=k"));
        assert!(!matches("pkcs11:token=Ledger;object=k"));
        assert!(!matches("pkcs11:token=ledger;serial=0b;object=k"));
        assert!(!matches("pkcs11:token=ledger;model=M2;object=k"));
        assert!(!matches("pkcs11:token=ledger;manufacturer=acme;object=k"));
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        let name = |s: &str| s.to_owned();
        for (text, error) in [
            ("", UriError::Scheme),
            ("token=a;object=b", UriError::Scheme),
            ("PKCS11:token=a;object=b", UriError::Scheme),
            ("pkcs11:", UriError::Attribute),
            ("pkcs11:token=a;object=b;", UriError::Attribute),
            ("pkcs11:token", UriError::Attribute),
            ("pkcs11:token=;object=b", UriError::Value(name("token"))),
            ("pkcs11:token=a b;object=b", UriError::Value(name("token"))),
            ("pkcs11:token=a/b;object=b", UriError::Value(name("token"))),
            ("pkcs11:token=ä;object=b", UriError::Value(name("token"))),
            ("pkcs11:token=%ff;object=b", UriError::Value(name("token"))),
            ("pkcs11:token=a;id=%0", UriError::Value(name("id"))),
            ("pkcs11:token=a;id=%+1", UriError::Value(name("id"))),
            ("pkcs11:token=a;id=%g0", UriError::Value(name("id"))),
            ("pkcs11:token=a;token=a;object=b", UriError::Twice(name("token"))),
            ("pkcs11:token=a;object=b;type=private;type=private", UriError::Twice(name("type"))),
            ("pkcs11:token=a;object=b;type=public", UriError::Type),
            ("pkcs11:Token=a;object=b", UriError::Unknown(name("Token"))),
            ("pkcs11:token=a;object=b;library-version=3", UriError::Unknown(name("library-version"))),
            ("pkcs11:token=a;object=b;x-vendor=3", UriError::Unknown(name("x-vendor"))),
            ("pkcs11:slot-id=3;object=b", UriError::Slot(name("slot-id"))),
            ("pkcs11:token=a;slot-id=3;object=b", UriError::Slot(name("slot-id"))),
            ("pkcs11:token=a;object=b?pin-value=1234", UriError::PinValue),
            ("pkcs11:token=a;object=b;pin-value=1234", UriError::PinValue),
            ("pkcs11:object=b", UriError::NoToken),
            ("pkcs11:model=m;manufacturer=x;object=b", UriError::NoToken),
            ("pkcs11:token=a;type=private", UriError::NoObject),
            ("pkcs11:token=a;object=b?", UriError::Attribute),
            ("pkcs11:token=a;object=b?module-name=x", UriError::Unknown(name("module-name"))),
            ("pkcs11:token=a;object=b?module-path=x.so", UriError::ModulePath),
            ("pkcs11:token=a;object=b?pin-source=/etc/pin", UriError::PinSource),
            ("pkcs11:token=a;object=b?pin-source=file:pin", UriError::PinSource),
            ("pkcs11:token=a;object=b?pin-source=file://host/pin", UriError::PinSource),
            ("pkcs11:token=a;object=b?pin-source=%7Ccat%20pin", UriError::PinSource),
            (
                "pkcs11:token=a;object=b?pin-source=file:/a&pin-source=file:/a",
                UriError::Twice(name("pin-source")),
            ),
        ] {
            assert_eq!(TokenUri::parse(text), Err(error), "{text}");
        }
    }
}
