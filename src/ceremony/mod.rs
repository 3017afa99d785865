//! The ceremony in which the ledger's key is made: what it leaves behind, and how that is checked.
//!
//! ```text
//! DIR/plan.toml            what was to be done, as it was reviewed
//! DIR/public-key.pem       the key
//! DIR/transcript.jsonl     what was done: canonical JSON lines, each naming the hash of the one before
//! DIR/closing.txt          what the key and every witness signed
//! DIR/witnesses/NAME.sig   a witness's signature: hex DER, or SSHSIG of namespace `attestd-ceremony`
//! ```
//!
//! Pure but for [`Record::read`], which reads the directory. It makes no key and signs nothing: that
//! is `attestctl ceremony run`, with [`crate::token`]. In reading order: [`plan`], [`device`] (which
//! tokens are fit for it), [`transcript`], [`verify`], and [`words`] for the fingerprint.

pub mod device;
pub mod plan;
mod record;
pub mod transcript;
mod verify;
mod words;

pub use record::{Record, RecordError};
pub use verify::{Fault, FaultCode, Verdict, WitnessSeen, gained_the_key_alone, verify};
pub use words::words;

/// The namespace of witnesses' SSH signatures.
pub const NAMESPACE: &str = "attestd-ceremony";

/// The plan's copy.
pub const PLAN: &str = "plan.toml";
/// The key.
pub const PUBLIC_KEY: &str = "public-key.pem";
/// The transcript.
pub const TRANSCRIPT: &str = "transcript.jsonl";
/// What is signed at the end; for people and their tools, verification computes it anew.
pub const CLOSING: &str = "closing.txt";
/// The directory of the witnesses' signatures.
pub const WITNESSES: &str = "witnesses";
/// How the name of a signature ends.
pub const SIGNATURE_ENDING: &str = ".sig";
