//! The plan: one file that is reviewed beforehand and is the ceremony's only input.
//!
//! [`Plan`] is the file. [`Terms`] are what of it binds a verifier (who, what key, what backup), and
//! what the transcript begins with; where a PIN or a witness's key lies is nobody else's business.
//!
//! ```text
//! origin = "ledger.example.org/build-7"
//! rehearsal = true
//! backup = "none"
//! [token]
//! module = "/usr/lib/softhsm/libsofthsm2.so"
//! uri = "pkcs11:token=attestd;object=ledger;id=%01"
//! [[people]]
//! name = "Mai Tran"
//! role = "operator"
//! [[witnesses]]
//! name = "lan"
//! role = "internal audit"
//! public_key = "ssh-ed25519 AAAA…"
//! signs = "ssh"
//! key_file = "lan.key"
//! ```

use serde::{Deserialize, Deserializer, Serialize};

use super::transcript::printable;
use crate::governance::key::Key;
use crate::ledger::entry::is_actor_id;
use crate::ledger::key::is_origin;

/// The largest plan. A hundred witnesses take less than a tenth of it.
pub const MAX_PLAN_BYTES: usize = 256 << 10;
/// People and witnesses, each. More do not fit into a room.
const MAX_PEOPLE: usize = 100;

/// What was agreed on, as the transcript has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// What becomes of the key when the token is lost: `none`, or the procedure in words.
    pub backup: String,
    /// The key's `CKA_ID`, in hex.
    pub key_id: String,
    /// The key's `CKA_LABEL`.
    pub key_label: String,
    /// The ledger that the key is for.
    pub origin: String,
    /// Who takes part.
    pub people: Vec<Person>,
    /// Whether it is one by the plan. On a token that is a program it is one in any case.
    pub rehearsal: bool,
    /// Whether the factory's PIN is tried, and must fail.
    pub tests_factory_pin: bool,
    /// Who must sign.
    pub witnesses: Vec<Witness>,
}

/// Somebody who takes part without signing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// The name.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// What they do.
    #[serde(deserialize_with = "name")]
    pub role: String,
}

/// Somebody who signs what was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// The name; their signature is `witnesses/NAME.sig`.
    pub name: String,
    /// SPKI PEM of a P-256 key, or an OpenSSH line, as [`Key::to_text`] has it.
    pub public_key: String,
    /// What they stand for.
    pub role: String,
}

impl Witness {
    /// The key.
    #[must_use]
    pub fn key(&self) -> Option<Key> {
        Key::parse(&self.public_key).ok().filter(|key| key.to_text() == self.public_key)
    }
}

impl Terms {
    /// What no value alone can be blamed for.
    ///
    /// # Errors
    /// In words, what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let named = |what: &str, ok: bool| if ok { Ok(()) } else { Err(format!("{what} is not one")) };
        named("the origin", is_origin(&self.origin))?;
        named("the backup choice", is_prose(&self.backup))?;
        named("the key's label", printable(&self.key_label) == self.key_label)?;
        if self.people.is_empty() {
            return Err("nobody takes part: give at least one of `[[people]]`".into());
        }
        if self.witnesses.is_empty() {
            return Err("nobody witnesses it: give at least one of `[[witnesses]]`".into());
        }
        if self.people.len().max(self.witnesses.len()) > MAX_PEOPLE {
            return Err(format!("more than {MAX_PEOPLE} people or witnesses"));
        }
        let mut seen: Vec<(&str, Vec<u8>)> = Vec::new();
        for witness in &self.witnesses {
            let key = witness.key().ok_or(format!("the key of witness `{}` is none", witness.name))?;
            named("a witness's name", is_file_name(&witness.name))?;
            named("a witness's role", is_name(&witness.role))?;
            let point = key.point();
            // A name that differs in case alone is one file on some disks.
            if seen.iter().any(|(name, _)| name.eq_ignore_ascii_case(&witness.name)) {
                return Err(format!("witness `{}` is named twice", witness.name));
            }
            if let Some((other, _)) = seen.iter().find(|(_, other)| *other == point) {
                return Err(format!("witnesses `{other}` and `{}` have one key", witness.name));
            }
            seen.push((&witness.name, point));
        }
        Ok(())
    }
}

/// 1 to 64 of `A-Z a-z 0-9 . _ -`, not beginning with a dot.
fn is_file_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn is_name(text: &str) -> bool {
    is_actor_id(text) && text.len() <= 128 && text.trim() == text && printable(text) == text
}

fn is_prose(text: &str) -> bool {
    (1..=2_000).contains(&text.len())
        && !text.chars().any(|c| c.is_control() && c != '\n')
        && text.trim() == text
        && printable(text) == text
}

fn text_that<'de, D: Deserializer<'de>>(
    from: D,
    fits: impl Fn(&str) -> bool,
    allowed: &str,
) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    if fits(&text) { Ok(text) } else { Err(serde::de::Error::custom(allowed)) }
}

fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    text_that(from, is_name, "must be 1 to 128 bytes without control characters or blanks at its ends")
}

#[cfg(feature = "daemon")]
pub use file::{HowToSign, Plan, PlanError};

/// The file, which only `attestctl` reads.
#[cfg(feature = "daemon")]
mod file {
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer};

    use super::{Person, Terms, Witness, is_file_name, is_prose, name, text_that};
    use crate::config::explain;
    use crate::governance::key::Key;
    use crate::ledger::hash::encode_hex;
    use crate::ledger::key::is_origin;
    use crate::token::TokenUri;

    /// A plan, read strictly: an option that there is not is refused, with its line.
    #[derive(Debug)]
    pub struct Plan {
        /// What a verifier holds the ceremony against.
        pub terms: Terms,
        /// The PKCS#11 library.
        pub module: PathBuf,
        /// The token and the key to be made.
        pub uri: TokenUri,
        /// Where the PIN is read; without it somebody types it.
        pub pin_file: Option<PathBuf>,
        /// The PIN that is printed in the token's manual.
        pub factory_pin: Option<String>,
        /// How each witness signs, in the order of [`Terms::witnesses`].
        pub signing: Vec<HowToSign>,
    }

    /// How a witness signs.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum HowToSign {
        /// `ssh-keygen -Y sign` with this key, or with the agent's where this is a public key.
        Ssh(PathBuf),
        /// `openssl dgst -sha256 -sign` with this key.
        OpenSsl(PathBuf),
        /// On a machine of their own; the signature is brought.
        ByHand,
    }

    /// Why a text is not a plan.
    #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
    #[error("{}{problem}", line.map(|n| format!("line {n}: ")).unwrap_or_default())]
    pub struct PlanError {
        /// The line, from 1, where one is to blame.
        pub line: Option<usize>,
        /// What is wrong.
        pub problem: String,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(deserialize_with = "origin")]
        origin: String,
        rehearsal: bool,
        #[serde(deserialize_with = "backup")]
        backup: String,
        token: Token,
        people: Vec<Person>,
        witnesses: Vec<Signer>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Token {
        #[serde(deserialize_with = "path")]
        module: PathBuf,
        #[serde(deserialize_with = "uri")]
        uri: TokenUri,
        #[serde(default, deserialize_with = "optional_path")]
        pin_file: Option<PathBuf>,
        #[serde(default, deserialize_with = "factory_pin")]
        factory_pin: Option<String>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Signer {
        #[serde(deserialize_with = "witness_name")]
        name: String,
        #[serde(deserialize_with = "name")]
        role: String,
        #[serde(deserialize_with = "key")]
        public_key: Key,
        signs: Signs,
        #[serde(default, deserialize_with = "optional_path")]
        key_file: Option<PathBuf>,
    }

    #[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
    #[serde(rename_all = "kebab-case")]
    enum Signs {
        Ssh,
        Openssl,
        ByHand,
    }

    impl Plan {
        /// Reads a plan; relative paths in it are taken from `base`.
        ///
        /// # Errors
        /// [`PlanError`], which repeats no value that could be a PIN.
        pub fn parse(text: &str, base: &Path) -> Result<Self, PlanError> {
            let whole = |problem: String| PlanError { line: None, problem };
            if text.len() > super::MAX_PLAN_BYTES {
                return Err(whole(format!("it is over {} KiB", super::MAX_PLAN_BYTES >> 10)));
            }
            let file: File = toml::from_str(text).map_err(|error| {
                let (line, problem) = explain(text, &error);
                PlanError { line, problem }
            })?;
            let signing = file
                .witnesses
                .iter()
                .map(|witness| witness.how(base).map_err(whole))
                .collect::<Result<_, _>>()?;
            let Token { module, uri, pin_file, factory_pin } = file.token;
            let terms = Terms {
                backup: file.backup,
                // Both were asked for when the URI was read.
                key_id: encode_hex(uri.id().unwrap_or_default()),
                key_label: uri.object().unwrap_or_default().to_owned(),
                origin: file.origin,
                people: file.people,
                rehearsal: file.rehearsal,
                tests_factory_pin: factory_pin.is_some(),
                witnesses: file
                    .witnesses
                    .into_iter()
                    .map(|Signer { name, role, public_key, .. }| Witness {
                        name,
                        public_key: public_key.to_text().into(),
                        role,
                    })
                    .collect(),
            };
            terms.check().map_err(whole)?;
            Ok(Plan {
                terms,
                module: base.join(module),
                pin_file: pin_file.or(uri.pin_source().map(Path::to_path_buf)).map(|path| base.join(path)),
                uri,
                factory_pin,
                signing,
            })
        }
    }

    impl Signer {
        fn how(&self, base: &Path) -> Result<HowToSign, String> {
            let Signer { name, public_key, signs, key_file, .. } = self;
            let is_pem = public_key.algorithm() == crate::governance::key::Algorithm::EcdsaP256;
            match (signs, key_file) {
                (Signs::Ssh, _) if is_pem => {
                    Err(format!("witness `{name}` has a PEM key, which `ssh` does not sign with"))
                }
                (Signs::Openssl, _) if !is_pem => {
                    Err(format!("witness `{name}` has an SSH key, which `openssl` does not sign with"))
                }
                (Signs::Ssh, Some(file)) => Ok(HowToSign::Ssh(base.join(file))),
                (Signs::Openssl, Some(file)) => Ok(HowToSign::OpenSsl(base.join(file))),
                (Signs::ByHand, None) => Ok(HowToSign::ByHand),
                (_, None) => {
                    Err(format!("witness `{name}` needs a `key_file` to sign with, or `signs = \"by-hand\"`"))
                }
                (Signs::ByHand, Some(_)) => {
                    Err(format!("witness `{name}` signs by hand, so no `key_file` is read"))
                }
            }
        }
    }

    fn origin<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        let allowed = "must be 1 to 255 printable ASCII characters without blanks or `+`, \
                       and must not begin with `{` or `attestd-`";
        text_that(from, is_origin, allowed)
    }

    fn backup<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        text_that(
            from,
            is_prose,
            "must say in 1 to 2,000 bytes what becomes of the key when the token is lost; `none` is an answer",
        )
    }

    fn path<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        text_that(from, |text| !text.is_empty(), "must be a path").map(PathBuf::from)
    }

    fn optional_path<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        path(from).map(Some)
    }

    fn factory_pin<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
        text_that(
            from,
            |text| (1..=64).contains(&text.len()),
            "must be the PIN that the manual of the token prints, 1 to 64 bytes",
        )
        .map(Some)
    }

    fn witness_name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        let allowed = "must be 1 to 64 of A-Z a-z 0-9 . _ - that can name a file";
        text_that(from, is_file_name, allowed)
    }

    fn uri<'de, D: Deserializer<'de>>(from: D) -> Result<TokenUri, D::Error> {
        let uri: TokenUri = String::deserialize(from)?.parse().map_err(serde::de::Error::custom)?;
        if uri.id().is_none() || uri.object().is_none() {
            return Err(serde::de::Error::custom("must name the key to be made with both `object` and `id`"));
        }
        if uri.module_path().is_some() {
            return Err(serde::de::Error::custom("`module-path` has no place here: there is `module`"));
        }
        Ok(uri)
    }

    fn key<'de, D: Deserializer<'de>>(from: D) -> Result<Key, D::Error> {
        Key::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(all(test, feature = "daemon"))]
mod tests {
    use std::path::Path;

    use super::*;

    const PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
        MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt\n\
        6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n\
        -----END PUBLIC KEY-----\n";
    /// The same point as [`PEM`].
    const SAME: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBGsX0fLhLEJH+Lzm5WOkQPJ3A32BLeszoPShOUXYmMKWT+NC4v4af5uO5+tKfA+eFivOM1drMV7Oy7ZAaDe/UfU=";
    const SSH: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAQGxQxiXmUQhOQfzaTdosMwH6jAXWco1M2nhiaAtGZ4";

    fn plan() -> String {
        format!(
            "origin = \"test.example/ledger\"\nrehearsal = true\nbackup = \"none\"\n\
             [token]\nmodule = \"m.so\"\nuri = \"pkcs11:token=t;object=k;id=%01\"\n\
             [[people]]\nname = \"Mai\"\nrole = \"operator\"\n\
             [[witnesses]]\nname = \"lan\"\nrole = \"audit\"\nsigns = \"openssl\"\nkey_file = \"lan.pem\"\npublic_key = '''\n{PEM}'''\n\
             [[witnesses]]\nname = \"an\"\nrole = \"audit\"\nsigns = \"by-hand\"\npublic_key = \"{SSH} an@desk\"\n"
        )
    }

    fn parse(text: &str) -> Result<Plan, String> {
        Plan::parse(text, Path::new("/etc/plans")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_plan_is_read_whole() {
        let plan = parse(&plan()).expect("a good plan");
        assert_eq!((plan.terms.key_label.as_str(), plan.terms.key_id.as_str()), ("k", "01"));
        assert_eq!(plan.module, Path::new("/etc/plans/m.so"));
        assert_eq!(plan.signing, [HowToSign::OpenSsl("/etc/plans/lan.pem".into()), HowToSign::ByHand]);
        assert_eq!(plan.terms.witnesses[1].public_key, SSH, "without the comment");
        assert!(!plan.terms.tests_factory_pin && plan.pin_file.is_none());
    }

    #[test]
    fn everything_else_is_refused_with_its_line() {
        for (from, to, message) in [
            ("backup =", "backupp =", "line 3: option `backupp`, column 1: unknown field `backupp`"),
            ("backup = \"none\"\n", "", "missing field `backup`"),
            ("\"none\"", "\"\"", "line 3: option `backup`"),
            ("rehearsal = true", "rehearsal = \"no\"", "line 2: option `rehearsal`"),
            ("test.example", "attestd-x", "line 1: option `origin`"),
            ("object=k;", "", "line 6: option `uri`, column 7: "),
            (";id=%01", "", "must name the key to be made with both"),
            ("id=%01", "id=%01?pin-value=1234", "a PIN has no place"),
            (
                "[[people]]",
                "pin = \"1234\"\n[[people]]",
                "line 7: option `pin`, column 1: unknown field `pin`",
            ),
            ("name = \"lan\"", "name = \"../lan\"", "line 11: option `name`"),
            ("name = \"lan\"", "name = \"An\"", "witness `an` is named twice"),
            ("by-hand", "telepathy", "option `signs`"),
            ("by-hand", "ssh", "witness `an` needs a `key_file`"),
            ("signs = \"openssl\"", "signs = \"ssh\"", "witness `lan` has a PEM key"),
            ("signs = \"openssl\"", "signs = \"by-hand\"", "witness `lan` signs by hand, so no `key_file`"),
            (SSH, "ssh-rsa AAAA", "option `public_key`"),
            (SSH, SAME, "witnesses `lan` and `an` have one key"),
        ] {
            let text = plan();
            assert!(text.contains(from), "{from}");
            let error = parse(&text.replacen(from, to, 1)).expect_err(to);
            assert!(error.contains(message), "{message:?} is not in {error:?}");
            assert!(!error.contains("1234"), "{error}");
        }
        assert!(parse(&format!("#{}\n{}", "x".repeat(MAX_PLAN_BYTES), plan())).is_err());
    }

    #[test]
    fn somebody_must_be_there() {
        let text = plan();
        let without = |from: &str, to: &str| {
            let start = text.find(from).expect("there");
            let end = text[start + 1..].find(to).map_or(text.len(), |at| start + 1 + at);
            format!("{}{}", &text[..start], &text[end..])
        };
        let nobody = format!("people = []\n{}", without("[[people]]", "[[witnesses]]"));
        assert_eq!(
            parse(&nobody).expect_err("nobody"),
            "nobody takes part: give at least one of `[[people]]`"
        );
        let unseen = format!("witnesses = []\n{}", &text[..text.find("[[witnesses]]").expect("there")]);
        assert_eq!(
            parse(&unseen).expect_err("unseen"),
            "nobody witnesses it: give at least one of `[[witnesses]]`"
        );
    }
}
