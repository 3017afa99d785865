//! HTTP over the Unix socket: the only place where an error becomes a status.
//!
//! In reading order: [`listener`] (the socket and who gets a connection), [`connection`] (one
//! connection, its time-outs, and answers to what never became a request), [`problem`] (refusals
//! as bytes), [`budget`] (memory for what clients send, shared fairly), [`rate`] (how fast), [`service`] (what the routes
//! share), [`append`], [`violation`] (what is refused and recorded), [`read`], [`govern`] (rules and proposals), [`clock`], [`evidence`], [`metrics`] and [`routes`] (which path is which).

mod append;
pub mod budget;
mod clock;
pub mod connection;
mod evidence;
pub(crate) mod govern;
pub(crate) mod keys;
pub mod listener;
pub mod metrics;
pub mod problem;
pub mod rate;
pub mod read;
pub mod routes;
pub mod service;
pub(crate) mod tree;
pub mod violation;
