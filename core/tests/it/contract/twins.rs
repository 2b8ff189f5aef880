//! Logs that break a promise. The contract must find each of them.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use tidemill_core::{
    ErrorKind, Result,
    engine::Table,
    log::{
        Appended, Bounds, Caller, Chunk, Entry, FetchOptions, GroupOffset, Lease, Log, Member, MemberOptions, Session,
        Topic, TopicChange, Writer,
    },
    record::{Record, Timestamp},
    topic::{TopicConfig, TopicPartition, TopicSpec},
};

use super::{Bed, metadata, reads, transactions};

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// Writers of one owner do not refuse each other.
    NoFence,
    /// What is appended in a transaction is seen at once.
    Dirty,
    /// An abort commits.
    AbortCommits,
    /// A new writer does not find positions.
    ForgetsPositions,
    /// A position is written before its transaction is committed.
    EarlyPositions,
    /// The version of a metadata record is not looked at.
    BlindPut,
    /// A topic made again has the id of the old one.
    SameId,
    /// The end of a partition leaves out the last record.
    ShortBounds,
    /// The record of a time is not the first one.
    LateTimes,
    /// A read that was dropped has moved on.
    LosesDropped,
    /// A failed append is forgotten.
    ForgivesAppends,
}

struct Liar {
    log: Arc<dyn Log>,
    lie: Lie,
    early: Early,
}

/// Positions that were set, whatever became of their transactions, by owner; of a log without fences the committed ones.
type Early = Arc<std::sync::Mutex<BTreeMap<String, BTreeMap<String, String>>>>;

#[async_trait]
impl Log for Liar {
    async fn session(&self, caller: Caller) -> Result<Arc<dyn Session>> {
        let inner = self.log.session(caller).await?;
        Ok(Arc::new(LyingSession { inner, lie: self.lie, reads: Arc::default(), early: Arc::clone(&self.early) }))
    }
}

struct LyingSession {
    inner: Arc<dyn Session>,
    lie: Lie,
    /// Where the next read of each partition really begins.
    reads: Arc<std::sync::Mutex<BTreeMap<TopicPartition, i64>>>,
    early: Early,
}

impl LyingSession {
    fn named(&self, topic: Topic) -> Topic {
        let id = if self.lie == Lie::SameId { topic.name.clone() } else { topic.id };
        Topic { id, ..topic }
    }
}

#[async_trait]
impl Session for LyingSession {
    fn log_id(&self) -> String {
        self.inner.log_id()
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        Ok(self.inner.topics().await?.into_iter().map(|t| self.named(t)).collect())
    }

    async fn topic(&self, name: &str) -> Result<Option<Topic>> {
        Ok(self.inner.topic(name).await?.map(|t| self.named(t)))
    }

    async fn create_topic(&self, name: &str, spec: &TopicSpec) -> Result<Topic> {
        Ok(self.named(self.inner.create_topic(name, spec).await?))
    }

    async fn topic_config(&self, name: &str) -> Result<TopicConfig> {
        self.inner.topic_config(name).await
    }

    async fn alter_topic(&self, name: &str, change: &TopicChange) -> Result<()> {
        self.inner.alter_topic(name, change).await
    }

    async fn delete_topic(&self, name: &str) -> Result<()> {
        self.inner.delete_topic(name).await
    }

    async fn append(&self, to: &TopicPartition, records: Vec<Record>) -> Result<Appended> {
        self.inner.append(to, records).await
    }

    async fn fetch(&self, from: &TopicPartition, offset: i64, options: &FetchOptions) -> Result<Chunk> {
        if self.lie != Lie::LosesDropped {
            return self.inner.fetch(from, offset, options).await;
        }
        let offset = self.reads.lock().expect("not poisoned").get(from).copied().unwrap_or(offset);
        let chunk = self.inner.fetch(from, offset, options).await?;
        self.reads.lock().expect("not poisoned").insert(from.clone(), chunk.next_offset);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        Ok(chunk)
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<Vec<Bounds>> {
        let mut bounds = self.inner.bounds(partitions).await?;
        if self.lie == Lie::ShortBounds {
            bounds.iter_mut().for_each(|b| b.durable_offset = (b.durable_offset - 1).max(b.log_start_offset));
        }
        Ok(bounds)
    }

    async fn offset_at_time(&self, of: &TopicPartition, time: Timestamp) -> Result<Option<i64>> {
        let found = self.inner.offset_at_time(of, time).await?;
        // The end of the batch, as it were.
        Ok(found.map(|offset| if self.lie == Lie::LateTimes { offset + 2 } else { offset }))
    }

    async fn writer(&self, owner: &str) -> Result<Box<dyn Writer>> {
        let own = format!("{owner}.{:x}", rand::random::<u64>());
        let positions = match self.lie {
            Lie::NoFence | Lie::EarlyPositions => {
                self.early.lock().expect("not poisoned").get(owner).cloned().unwrap_or_default()
            }
            _ => BTreeMap::new(),
        };
        let inner = self.inner.writer(if self.lie == Lie::NoFence { &own } else { owner }).await?;
        let (session, early, owner) = (Arc::clone(&self.inner), Arc::clone(&self.early), owner.to_owned());
        Ok(Box::new(LyingWriter {
            inner,
            session,
            owner,
            lie: self.lie,
            positions,
            early,
            staged: BTreeMap::new(),
            failed: false,
        }))
    }

    async fn positions(&self, owner: &str) -> Result<BTreeMap<String, String>> {
        if self.lie == Lie::NoFence {
            return Ok(self.early.lock().expect("not poisoned").get(owner).cloned().unwrap_or_default());
        }
        self.inner.positions(owner).await
    }

    async fn table(&self, table: Table) -> Result<BTreeMap<String, Entry>> {
        self.inner.table(table).await
    }

    async fn put(&self, table: Table, key: &str, value: Option<String>, expected: Option<i64>) -> Result<i64> {
        loop {
            let found = self.inner.table(table).await?.get(key).map(|entry| entry.version);
            let named = if self.lie == Lie::BlindPut { found } else { expected };
            match self.inner.put(table, key, value.clone(), named).await {
                Err(error) if self.lie == Lie::BlindPut && error.kind() == ErrorKind::Conflict => {}
                other => return other,
            }
        }
    }

    async fn join(&self, group: &str, topics: &[String], options: &MemberOptions) -> Result<Box<dyn Member>> {
        self.inner.join(group, topics, options).await
    }

    async fn lease(&self, group: &str, slots: u32) -> Result<Lease> {
        self.inner.lease(group, slots).await
    }

    async fn committed(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, GroupOffset>> {
        self.inner.committed(group, partitions).await
    }
}

struct LyingWriter {
    inner: Box<dyn Writer>,
    session: Arc<dyn Session>,
    owner: String,
    lie: Lie,
    positions: BTreeMap<String, String>,
    early: Early,
    /// Positions of the open transaction.
    staged: BTreeMap<String, Option<String>>,
    failed: bool,
}

impl LyingWriter {
    /// Keeps the positions of the transaction where the next writer of a log without fences looks.
    fn keep(&mut self) {
        let mut early = self.early.lock().expect("not poisoned");
        let of_owner = early.entry(self.owner.clone()).or_default();
        for (name, value) in std::mem::take(&mut self.staged) {
            match value {
                Some(value) => of_owner.insert(name, value),
                None => of_owner.remove(&name),
            };
        }
    }
}

#[async_trait]
impl Writer for LyingWriter {
    fn positions(&self) -> &BTreeMap<String, String> {
        match self.lie {
            Lie::NoFence | Lie::ForgetsPositions | Lie::EarlyPositions => &self.positions,
            _ => self.inner.positions(),
        }
    }

    async fn append(&mut self, to: &TopicPartition, records: Vec<Record>) -> Result<()> {
        if self.lie == Lie::Dirty {
            return self.session.append(to, records).await.map(drop);
        }
        let done = self.inner.append(to, records).await;
        if done.is_err() && self.lie == Lie::ForgivesAppends {
            self.inner.abort().await?;
        }
        self.failed |= done.is_err();
        done
    }

    fn set_position(&mut self, name: &str, value: Option<String>) {
        self.staged.insert(name.to_owned(), value.clone());
        if self.lie == Lie::EarlyPositions {
            self.keep();
        }
        self.inner.set_position(name, value);
    }

    async fn commit(&mut self) -> Result<()> {
        self.inner.commit().await?;
        self.keep();
        Ok(())
    }

    async fn abort(&mut self) -> Result<()> {
        self.staged.clear();
        match self.lie {
            Lie::AbortCommits if !self.failed => self.inner.commit().await,
            _ => self.inner.abort().await,
        }
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}

/// Runs a rule on a log that lies; the rule must not pass, and must say why: another failure has found nothing.
macro_rules! finds {
    ($($name:ident: $lie:ident by $file:ident::$rule:ident, $why:literal;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let bed = Bed::embedded().await;
            let honest = Bed::of(Arc::clone(&bed.log), ());
            let lying = Bed::of(Arc::new(Liar { log: Arc::clone(&bed.log), lie: Lie::$lie, early: Early::default() }), ());
            tokio::spawn($file::$rule(honest)).await.expect("the honest log passes");
            let verdict = tokio::spawn($file::$rule(lying)).await;
            let said = said(verdict.expect_err(concat!(stringify!($lie), " was not found")));
            assert!(said.contains($why), "{:?} was not found, but: {said}", Lie::$lie);
        }
    )*};
}

/// What a task that panicked said.
fn said(error: tokio::task::JoinError) -> String {
    let payload = error.into_panic();
    match payload.downcast::<String>() {
        Ok(said) => *said,
        Err(other) => other.downcast::<&str>().map(|said| said.to_string()).unwrap_or_default(),
    }
}

finds! {
    no_fence: NoFence by transactions::an_older_writer_is_refused, "it was not refused as Conflict";
    no_fence_before_a_commit: NoFence by transactions::a_writer_fenced_before_its_commit_is_refused, "it was not refused as Conflict";
    no_fence_while_idle: NoFence by transactions::an_idle_writer_that_was_fenced_is_refused, "it was not refused as Conflict";
    dirty_reads: Dirty by transactions::a_transaction_is_seen_as_a_whole, "seen before the commit";
    dirty_aborts: Dirty by transactions::what_is_aborted_or_dropped_is_never_seen, "aborted";
    aborts_that_commit: AbortCommits by transactions::what_is_aborted_or_dropped_is_never_seen, "aborted";
    forgotten_positions: ForgetsPositions by transactions::positions_are_those_of_the_last_commit, "positions are lost";
    early_positions: EarlyPositions by transactions::what_is_aborted_or_dropped_is_never_seen, "dropped";
    blind_puts: BlindPut by metadata::a_record_is_replaced_only_at_its_version, "it was not refused as Conflict";
    blind_puts_that_race: BlindPut by metadata::of_two_who_put_one_wins, "not one of them won";
    ids_that_stay: SameId by metadata::topics_come_and_go_and_come_with_another_id, "the id of the old one";
    short_bounds: ShortBounds by reads::a_read_ends_at_its_bound_though_offsets_have_gaps, "up to the bounds";
    late_times: LateTimes by reads::a_time_finds_its_first_record, "time ";
    reads_that_lose_what_was_dropped: LosesDropped by reads::a_dropped_read_loses_nothing, "came";
    forgiven_appends: ForgivesAppends by transactions::a_failed_append_leaves_only_the_abort, "it was not refused as Closed";
}
