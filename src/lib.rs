//! attestd turns what happens on a machine into evidence.
//!
//! ```text
//!  bytes on the socket                                              answer to the client
//!        │                                                                   ▲
//!      Draft ──► Admitted ──► Entry ──► (reserved) ──► Signed ──► Committed ─┘
//!     ledger::   governance   ledger::    store         token       store
//!      draft                  chain
//!                              └────────── sequencer ──────────────────┘
//! ```
//!
//! Each arrow can only be taken in one place, and the types say how far a datum has come. Only
//! [`store`] makes a `Committed`, and only that can become an answer.
//!
//! The trust boundary runs between [`ledger`], [`governance`], [`audit`], [`bundle`] and
//! [`ceremony`], which are pure or read files and which an auditor builds alone (`--no-default-features`), and the rest,
//! which is the daemon and its client.

#![forbid(unsafe_code)]

#[cfg(feature = "daemon")]
pub mod anchor;
pub mod audit;
pub mod bundle;
#[cfg(feature = "daemon")]
pub mod caller;
pub mod ceremony;
pub mod cli;
#[cfg(feature = "daemon")]
pub mod client;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod ctl;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
mod evidence;
#[cfg(feature = "daemon")]
mod failpoint;
pub mod governance;
#[cfg(feature = "daemon")]
pub mod index;
pub mod ledger;
pub mod publish;
#[cfg(feature = "daemon")]
pub mod sequencer;
#[cfg(feature = "daemon")]
pub mod server;
#[cfg(feature = "daemon")]
pub mod store;
#[cfg(feature = "daemon")]
pub mod token;

/// The version, as the programs and the entries give it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The same with the commit from which it was built.
pub const VERSION_WITH_COMMIT: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("ATTESTD_COMMIT"), ")");
