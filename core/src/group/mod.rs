//! Groups: members that share partitions, and how far they have read.
//!
//! | module | what it does |
//! |---|---|
//! | `machine` | one group: members, generations, rounds; no I/O, the clock is an argument |
//! | `coordinator` | all groups of an engine, and those who wait |
//! | `offset`, `commit` | offsets as records of the log; committed, read |
//! | `expiry` | what is forgotten in time |
//! | `admin` | groups listed, described, reset, deleted |
//! | `assign` | how partitions are dealt |
//! | `limits`, `refusal` | bounds; why a request is refused |
//!
//! The coordinator knows what Kafka's protocol asks of one, and nothing of its bytes. Members in this process use it
//! through [`crate::log::Session::join`].
//!
//! Members are in memory only: after a restart each joins anew. Offsets are in the log, durable before a commit is
//! answered. A commit is checked and takes its place in the log under one lock, so none of an older generation can follow
//! one of a newer.

mod admin;
pub mod assign;
mod commit;
mod coordinator;
mod expiry;
mod limits;
mod machine;
mod offset;
mod refusal;

pub use admin::{GroupDescription, GroupSummary, Progress, Reset, ResetTo};
pub(crate) use commit::clamp;
pub use coordinator::Groups;
pub(crate) use coordinator::Registry;
pub(crate) use expiry::Cursor;
pub use limits::Limits;
pub use machine::{
    Answer, Identity, JoinRequest, Joined, JoinedMember, Machine, MemberInfo, State, SyncRequest, Synced, Token,
};
pub use offset::{Committed, NewOffset};
pub use refusal::Refusal;
