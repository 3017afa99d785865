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
//! The trust boundary runs between [`ledger`], [`governance`], [`audit`] and [`bundle`], which are
//! pure or read files and which an auditor builds alone (`--no-default-features`), and the rest,
//! which is the daemon and its client.

#![forbid(unsafe_code)]

pub mod ledger;
