//! Connectors: sources and sinks over the log, the worker that runs them, and the sync files that describe them.

pub mod change;
pub mod command;
pub mod connector;
pub mod converter;
pub mod diff;
pub mod endpoint;
pub mod mysql;
mod patterns;
pub mod postgres;
pub mod sqlite;
pub mod sync;
pub mod target;
pub mod translate;
pub mod types;

pub use tidemill_core::{Error, ErrorKind, Result};
