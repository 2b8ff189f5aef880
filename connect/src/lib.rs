//! Connectors: sources and sinks over the log, the worker that runs them, and the sync files that describe them.

pub mod change;
pub mod command;
pub mod connector;
pub mod converter;
pub mod sqlite;
pub mod sync;

pub use tidemill_core::{Error, ErrorKind, Result};
