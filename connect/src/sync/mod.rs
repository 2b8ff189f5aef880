//! Syncs: a small file says from, to and tables; everything else is derived.
//!
//! | module | what it does |
//! |---|---|
//! | [`file`] | reads the file, names what is wrong with it |
//! | [`run`] | runs a sync: source into topics, topics into target |
//! | [`turns`] | runs a sync in one of several worker processes |
//! | [`recopy`] | which tables are meant to be copied anew |
//! | `reconcile` | keeps a copy that is made again from writing what the log already has |
//! | `schemas` | the shapes of topics: found, made, evolved |
//! | [`parked`], [`control`] | rows that the target refuses, and what people ask of a running sync |
//! | [`away`] | sides that are not there |
//! | [`status`], [`health`] | how a sync is; the error that it stopped with |
//! | `newcomers` | takes up tables that came |
//! | [`known`] | what a log knows of all its syncs |
//! | `rounds`, `captures` | refuses syncs that write back to each other, and a second one of a SQLite file |
//! | `deletes` | deletes rows of a topic that are gone without an event of their own |
//! | `place`, `catch_up` | where a source is; waits until a target has that |
//! | `compare` | compares a table of the two databases, row by row |
//! | [`check`], [`plan`], [`verify`], [`release`], [`remove`] | the other things one does with a sync |

mod apply;
pub mod away;
mod captures;
mod catch_up;
pub mod check;
mod compare;
pub mod control;
mod deletes;
mod feed;
pub mod file;
pub mod health;
pub mod known;
mod lanes;
mod newcomers;
pub mod parked;
mod place;
pub mod plan;
mod reconcile;
pub mod recopy;
mod refused;
pub mod release;
pub mod remove;
mod rounds;
pub mod run;
mod schemas;
pub mod status;
pub mod turns;
pub mod verify;

pub use crate::converter::topic_of;

/// The owner under which a sync's source writes.
pub fn owner_of(sync: &str) -> String {
    format!("sync/{sync}/source")
}
