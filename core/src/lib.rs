//! The log of Tidemill: records, batches and topics, the engine that makes them durable, and the [`log::Log`] seam
//! through which connectors, jobs and SQL use it.

pub mod batch;
pub mod clock;
pub mod engine;
pub mod error;
pub mod group;
pub mod log;
pub mod record;
pub mod storage;
pub mod suggest;
pub mod topic;

pub use error::{Error, ErrorKind, Reason, Result};
