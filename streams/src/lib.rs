//! Stream jobs over the log.

pub mod window;

pub use tidemill_core::{Error, ErrorKind, Result};
