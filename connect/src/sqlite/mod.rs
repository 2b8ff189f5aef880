//! SQLite as a source and as a sink: everything that touches a SQLite file.
//!
//! The code here is synchronous and knows nothing of the log. The worker calls it from a blocking thread.
//!
//! | module | what it does |
//! |---|---|
//! | [`catalog`] | which tables there are, and which of them a sync's patterns name |
//! | [`preflight`] | what would go wrong, and the cure, before anything is installed |
//! | [`capture`] | follows a file that other programs write: triggers, journal, copy |
//! | [`snapshot`] | reads tables once and installs nothing |
//! | [`sink`] | applies changes to a target file, exactly once in effect |
//! | [`compare`] | compares a table of two files, type for type |
//!
//! How the capture works, and why it is exact, is told in [`triggers`].

pub mod capture;
pub mod catalog;
pub mod compare;
mod copy;
pub mod endpoint;
pub(crate) mod guard;
mod install;
pub mod position;
pub mod preflight;
mod prune;
pub mod sink;
mod sink_table;
pub mod snapshot;
pub mod source;
pub mod stop;
pub mod triggers;
pub mod value;

pub use capture::{Capture, Read};
pub use catalog::{list_tables, match_tables, open_source};
pub use compare::compare_tables;
pub use install::{release, uninstall};
pub use position::Position;
pub use preflight::preflight;
pub use prune::Pruned;
pub use sink::SqliteSink;
pub use snapshot::Snapshot;
pub use stop::{Fault, Reason, Stop};
