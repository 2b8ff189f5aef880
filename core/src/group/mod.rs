//! Groups: members that share partitions.
//!
//! | module | what it does |
//! |---|---|
//! | `machine` | one group: members, generations, rounds; no I/O, the clock is an argument |
//! | `assign` | how partitions are dealt |
//! | `limits`, `refusal` | bounds; why a request is refused |

pub mod assign;
mod limits;
mod machine;
mod refusal;

pub use limits::Limits;
pub use machine::{
    Answer, Identity, JoinRequest, Joined, JoinedMember, Machine, MemberInfo, State, SyncRequest, Synced, Token,
};
pub use refusal::Refusal;
