//! The door of every log: who may do what, what it costs, and what a writer is after a failure. Both implementations put
//! their sessions behind it, so that these rules are written once.

mod door;

use crate::Result;

pub(super) use door::guarded;

/// On whose behalf a call is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub principal: String,
    /// The program, connector or job, for messages and metrics.
    pub client_id: String,
    /// Whose quota it is charged to.
    pub tenant: String,
}

impl Caller {
    /// A part of this process itself, named by `client_id`.
    pub fn internal(client_id: impl Into<String>) -> Self {
        Self { principal: "internal".into(), client_id: client_id.into(), tenant: "default".into() }
    }
}

/// What a call wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// See that a topic exists.
    Describe,
    /// Create, change or delete a topic.
    Alter,
    /// Read records or metadata.
    Read,
    /// Append records or metadata.
    Write,
}

/// Decides what a caller may do, and counts what it does. Every call of every session passes both.
pub trait Gate: Send + Sync {
    /// Whether `caller` may do `action` to the topic or owner named `resource`, or to the group of that name behind
    /// `group:`. A member reads its topics and writes its group.
    ///
    /// # Errors
    /// `Denied` with the missing right.
    fn authorize(&self, caller: &Caller, action: Action, resource: &str) -> Result<()>;

    /// Counts `bytes` of records moved for `caller`.
    ///
    /// # Errors
    /// `Unavailable` where a quota is used up.
    fn charge(&self, caller: &Caller, action: Action, bytes: usize) -> Result<()>;
}

/// The gate that lets everybody do everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllowAll;

impl Gate for AllowAll {
    fn authorize(&self, _: &Caller, _: Action, _: &str) -> Result<()> {
        Ok(())
    }

    fn charge(&self, _: &Caller, _: Action, _: usize) -> Result<()> {
        Ok(())
    }
}
