//! What clients saw of a log that was killed again and again, as a history, and a checker that names what must not be in it.
//!
//! A history is what its processes did: operations that began, and ended with an answer, with a refusal, or in doubt. The
//! checker knows nothing of the log: from sends and polls alone it tells lost and doubled records, and those of transactions
//! that did not happen. Every anomaly is a finding with the operations that prove it.
//!
//! | file | what it is |
//! |---|---|
//! | `checker` | records: lost, doubled, in another order, not to be seen |
//! | `cycles` | transactions: such that no order of them explains what was seen |
//! | `unit` | made-up histories: each with exactly one anomaly, and sound ones |
//! | `ledger` | a history as lines of a file that outlives its process |
//! | `worker` | the process that is killed: an engine with producers and pollers |
//! | `runs` | kills it, starts it again, and checks what it wrote |
//!
//! `kill -9` does not test durability: what the process wrote stays in the page cache. The simulated disk does that
//! (`crash.rs`). Here it is recovery, publication and answers, with real threads on a real disk, seen by many clients.
//!
//! # Source
//! The anomalies are those of Jepsen's workload for queues like Kafka (`jepsen.tests.kafka`), and what it says of
//! transactions there: writes of Kafka's transactions may mix, so orders of writes bind only those placed at once.

mod checker;
mod cycles;
mod ledger;
mod runs;
mod unit;
mod worker;

/// The number of a partition in its topic.
pub type Partition = u32;
/// A value is sent once, by one operation.
pub type Value = u64;

/// What is known of an operation's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// It did not happen, and never will.
    Failed,
    /// Nobody answered: all of it happened, or nothing.
    Unknown,
}

/// How the sends of one operation belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Each for itself.
    Plain,
    /// All of them, and with no other's between them: an append, or a local transaction.
    AtOnce,
    /// All of them, but each has its offset as it comes: a transaction of Kafka's protocol.
    AsTheyCome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    pub partition: Partition,
    pub value: Value,
    /// As it was answered.
    pub offset: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poll {
    pub partition: Partition,
    pub from: i64,
    /// Where the process goes on.
    pub next: i64,
    pub records: Vec<(i64, Value)>,
    /// Whether it read until nothing more came.
    pub to_end: bool,
    /// When it had them.
    pub at: u64,
}

/// What a process asked for. Times are places in one order of all beginnings and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    pub process: u32,
    pub kind: Kind,
    pub outcome: Outcome,
    pub begun: u64,
    /// When its sends were asked to take effect; until then nobody may see them.
    pub asked: Option<u64>,
    /// When it was answered, or its process killed: later it has no effect any more.
    pub ended: u64,
    pub sends: Vec<Send>,
    pub polls: Vec<Poll>,
}

#[derive(Debug, Clone, Default)]
pub struct History {
    pub ops: Vec<Op>,
    /// Whether the last polls read every partition to its end, after all that was sent.
    pub is_read_to_the_end: bool,
}

/// What must not be in a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Anomaly {
    /// A value that nobody sent.
    MadeUp,
    /// Acknowledged, and never seen, though later ones were.
    LostWrite,
    /// Acknowledged, behind all that was seen, and not there at the end.
    Unseen,
    /// One value at two offsets.
    Duplicate,
    /// Two values at one offset.
    InconsistentOffset,
    /// A value was seen of an operation that failed.
    AbortedRead,
    /// A value was seen before its transaction asked for its commit.
    PrecommittedRead,
    /// An operation in doubt that happened in part.
    Torn,
    /// What a process sent later is before what it sent earlier.
    NonmonotonicSend,
    /// A process saw an offset again, or one before.
    NonmonotonicPoll,
    /// A process passed an offset that others saw.
    SkippedPoll,
    /// A poll ended below what was acknowledged before it began.
    Stale,
    /// Writes of transactions that no order of them explains.
    G0,
    /// Writes and reads of transactions that no order of them explains.
    G1c,
}

/// One anomaly, with what proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub anomaly: Anomaly,
    pub what: String,
    /// Places in the history's operations.
    pub ops: Vec<usize>,
}

impl History {
    /// Everything that is wrong with it.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = checker::check(self);
        findings.extend(cycles::check(self));
        findings
    }
}
