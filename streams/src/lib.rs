//! Stream jobs in Rust over a log: topics in, topics out, exactly once.
//!
//! A [`Job`] reads topics as typed streams, filters and maps them, groups them by key and window, and writes the results to
//! topics. [`Job::run`] runs it over any [`Log`](tidemill_core::log::Log); [`Job::run_in_turn`] in one of several processes,
//! where the log has leases; [`Driver`] runs it in a test, with a clock set by hand and crashes on demand.
//!
//! | module | what it is |
//! |---|---|
//! | [`chunk`] | rows with their event times, many at a time, typed or Arrow |
//! | [`key`], [`agg`] | which group a row belongs to; what is known of a group: two small traits over dense group numbers |
//! | [`window`] | which window a row belongs to; the window operator, which knows neither keys nor values |
//! | [`state`] | what a step writes to its changelog, and how it gets it back |
//! | `job` | the API for authors, the graph, and the runtime that commits it in epochs |
//!
//! An epoch is one transaction of the log: input offsets, state and output of the same records. After any crash a job goes
//! on from the last epoch, as if nothing had been.

pub mod agg;
pub mod chunk;
mod job;
pub mod key;
pub mod state;
pub mod window;

pub use job::{
    Aggregated, Control, Job, KeyedStream, Options, SourceBuilder, Status, Stream, TopicSource, View, WindowView,
    Windowed, WindowedStream, driver::Driver,
};
pub use tidemill_core::{Error, ErrorKind, Result};
