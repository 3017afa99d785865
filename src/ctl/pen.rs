//! What an approver signs with: a key in a PEM file, a key on a PKCS#11 token, or `ssh-keygen`.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey};

use super::Failure;
use super::cli::Approve;
use crate::governance::approval::NAMESPACE;
use crate::governance::key::{Key, MAX_SIGNATURE_TEXT};
use crate::ledger::hash::encode_hex;
use crate::ledger::key::PublicKey;
use crate::token::{PinSource, Token, TokenError, TokenOptions, TokenUri};

/// A key file has a few hundred bytes, an encrypted one of OpenSSH's a few thousand.
const MAX_KEY_FILE_BYTES: u64 = 64 << 10;

/// Something to sign with, and the public key of it.
pub(super) struct Pen {
    pub(super) key: Key,
    ink: Ink,
}

enum Ink {
    Pem(Box<SigningKey>),
    Token(Box<Token>),
    Ssh(PathBuf),
}

impl Pen {
    /// What the options name, or `None` where they name none.
    pub(super) fn of(args: &Approve) -> Result<Option<Self>, Failure> {
        match (&args.key, &args.token, &args.ssh) {
            (Some(file), _, _) => Self::pem(file).map(Some),
            (_, Some(uri), _) => Self::token(uri, args.module.as_deref(), args.pin_file.as_deref()).map(Some),
            (_, _, Some(file)) => Self::ssh(file).map(Some),
            _ => Ok(None),
        }
    }

    fn pem(file: &Path) -> Result<Self, Failure> {
        let refused = |what: &str| Failure::Usage(format!("{}: {what}", file.display()));
        let text = zeroize::Zeroizing::new(read(file)?);
        if text.contains("ENCRYPTED") {
            let what = "the key is encrypted: sign with openssl, between --statement-out and --signature";
            return Err(refused(what));
        }
        // `openssl ecparam -genkey` puts a block of parameters before the key.
        let start = ["-----BEGIN PRIVATE KEY-----", "-----BEGIN EC PRIVATE KEY-----"]
            .iter()
            .find_map(|label| text.find(label))
            .ok_or_else(|| refused("no PEM of a private key"))?;
        let secret = p256::SecretKey::from_pem(&text[start..])
            .map_err(|_| refused("the private key is none of P-256"))?;
        let signing = SigningKey::from(secret);
        let point = signing.verifying_key().to_sec1_point(false);
        let public = PublicKey::from_sec1(point.as_bytes()).map_err(|error| refused(&error.to_string()))?;
        Ok(Pen { key: of_p256(&public)?, ink: Ink::Pem(Box::new(signing)) })
    }

    fn token(uri: &str, module: Option<&Path>, pin_file: Option<&Path>) -> Result<Self, Failure> {
        let uri = TokenUri::parse(uri).map_err(|error| Failure::Usage(error.to_string()))?;
        let missing = |what: &str| Failure::Usage(what.into());
        let module = module.or(uri.module_path()).ok_or_else(|| {
            missing("the token needs its PKCS#11 library: --module, or module-path in the URI")
        })?;
        let pin = pin_file
            .or(uri.pin_source())
            .ok_or_else(|| missing("the token needs its PIN: --pin-file, or pin-source in the URI"))?;
        let options = TokenOptions {
            module: module.to_owned(),
            pin: PinSource::File(pin.to_owned()),
            uri: uri.clone(),
            latch: None,
            sessions: 1,
            expected: None,
        };
        let token = Token::open(&options).map_err(|error: TokenError| Failure::Usage(error.to_string()))?;
        Ok(Pen { key: of_p256(token.public_key())?, ink: Ink::Token(Box::new(token)) })
    }

    /// `file` is what `ssh-keygen -f` wants, a public or a private key.
    fn ssh(file: &Path) -> Result<Self, Failure> {
        let mut text = read(file)?;
        if text.contains("PRIVATE KEY-----") {
            let mut public = file.as_os_str().to_owned();
            public.push(".pub");
            text = read(Path::new(&public))?;
        }
        let key = Key::parse(text.trim_end())
            .map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
        Ok(Pen { key, ink: Ink::Ssh(file.to_owned()) })
    }

    /// Signs `statement`; the text that stands in an approval.
    pub(super) fn sign(&mut self, statement: &str) -> Result<String, Failure> {
        match &mut self.ink {
            Ink::Pem(key) => {
                let signature: DerSignature = key.sign(statement.as_bytes());
                Ok(encode_hex(signature.as_bytes()))
            }
            Ink::Token(token) => {
                let signature =
                    token.sign_statement(statement).map_err(|error| Failure::Usage(error.to_string()))?;
                Ok(encode_hex(&signature.to_der()))
            }
            Ink::Ssh(file) => ssh_keygen(file, statement),
        }
    }
}

fn of_p256(key: &PublicKey) -> Result<Key, Failure> {
    Key::parse(&key.to_pem()).map_err(|error| Failure::Usage(error.to_string()))
}

fn read(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    File::open(file)
        .and_then(|opened| opened.take(MAX_KEY_FILE_BYTES).read_to_string(&mut text))
        .map_err(|source| Failure::local(format!("read the key {}", file.display()), source))?;
    Ok(text)
}

/// Has `ssh-keygen` sign, which finds the key in the agent, on a security key or in a file, and asks
/// for what it needs on the terminal.
fn ssh_keygen(file: &Path, statement: &str) -> Result<String, Failure> {
    let failed = |source| Failure::local("run ssh-keygen", source);
    let mut child = Command::new("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"])
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // A statement fits into the pipe; dropped at once, or ssh-keygen would wait for more. Where it
    // ended early its own message says why.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(statement.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        return Err(Failure::Usage("ssh-keygen made no signature".into()));
    }
    String::from_utf8(output.stdout).map_err(|_| Failure::Usage("ssh-keygen made no text".into()))
}

/// A signature that was made elsewhere: armoured SSHSIG as it is, DER as hex; hex stays hex.
pub(super) fn read_signature(file: &Path) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let name = file.display();
    File::open(file)
        .and_then(|opened| opened.take(MAX_SIGNATURE_TEXT as u64 + 1).read_to_end(&mut bytes))
        .map_err(|source| Failure::local(format!("read {name}"), source))?;
    // The first byte of DER is that of `0` in ASCII, too: what is text throughout is hex or armour.
    match str::from_utf8(&bytes) {
        Ok(text) if text.starts_with("-----BEGIN") => Ok(text.replace("\r\n", "\n")),
        Ok(text) if !text.trim().is_empty() && text.trim().bytes().all(|b| b.is_ascii_hexdigit()) => {
            Ok(text.trim().to_ascii_lowercase())
        }
        _ if bytes.first() == Some(&0x30) => Ok(encode_hex(&bytes)),
        _ => Err(Failure::Check(format!("{name} is neither an armoured SSH signature nor DER"))),
    }
}

/// Writes the bytes to sign into a new file: exactly these, without a line feed.
pub(super) fn write_statement(file: &Path, statement: &str) -> Result<(), Failure> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(file)
        .and_then(|mut opened| opened.write_all(statement.as_bytes()))
        .map_err(|source| Failure::local(format!("write {}", file.display()), source))
}

/// The bytes that were signed elsewhere.
pub(super) fn read_statement(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    File::open(file)
        .and_then(|opened| opened.take(MAX_KEY_FILE_BYTES).read_to_string(&mut text))
        .map_err(|source| Failure::local(format!("read {}", file.display()), source))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        fs::write(&path, bytes).expect("written");
        (dir, path)
    }

    #[test]
    fn signatures_come_as_armour_as_der_or_as_hex() {
        let read = |bytes: &[u8]| {
            let (_dir, path) = file(bytes);
            read_signature(&path)
        };
        assert_eq!(read(&[0x30, 0x06, 0x02, 0xFF]).expect("DER"), "300602ff");
        assert_eq!(read(b"300602FF\n").expect("hex"), "300602ff");
        assert_eq!(read(b"-----BEGIN SSH\r\nx\r\n").expect("armour"), "-----BEGIN SSH\nx\n");
        for bad in [&b""[..], b"\n", b"EC-SHA2-256(s.json)= 3045", &[0x04, 0xFF]] {
            assert!(matches!(read(bad), Err(Failure::Check(_))), "{bad:?}");
        }
    }

    #[test]
    fn only_a_private_p256_key_is_taken() {
        let pkcs8 = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
        for bad in ["", "-----BEGIN PUBLIC KEY-----\n", "-----BEGIN ENCRYPTED PRIVATE KEY-----\n", pkcs8] {
            let (_dir, path) = file(bad.as_bytes());
            assert!(matches!(Pen::pem(&path), Err(Failure::Usage(_))), "{bad}");
        }
    }
}
