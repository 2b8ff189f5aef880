//! The source's half of a sync: polls, converts, writes changes and position in one transaction of the log.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::BytesMut;
use tidemill_core::{
    clock::Clock,
    log::{Session, Writer},
    record::{Header, Record},
    topic::TopicPartition,
};
use tokio::sync::watch;

use super::{
    away::{Away, Side},
    control::Control,
    deletes::Deletes,
    reconcile::{Gone, KeyHash, Reconciler, hash_key},
    run::{Observer, retry_pause},
    schemas::{Schemas, evolve},
};
use crate::{
    Error, ErrorKind, Result,
    change::{Change, Op},
    command::shell_word,
    connector::{Polled, Source},
    converter::{Encoder, SCHEMA_HEADER, TopicSchema},
};

/// An idle source is given this often the chance to tidy up.
const TIDY_INTERVAL: Duration = Duration::from_secs(1);
/// While a copy runs, polls are gathered into transactions of this many changes.
const GATHER_CHANGES: usize = 5_000;
/// And no more than these: a transaction of the log has a limit.
const GATHER_BYTES: usize = 8 << 20;
/// The source is asked this often how far behind it we are.
const LAG_INTERVAL: Duration = Duration::from_secs(2);

/// Position part that says a table's copy is compared with what its topic holds.
pub(super) fn reconcile_part(table: &str) -> String {
    format!("reconcile/{table}")
}

pub(super) struct Feed {
    pub(super) source: Box<dyn Source>,
    pub(super) writer: Box<dyn Writer>,
    pub(super) session: Arc<dyn Session>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) schemas: Schemas,
    /// The present schema of each table.
    pub(super) tables: Vec<TopicSchema>,
    /// As in `Apply`.
    pub(super) keeps_tables: bool,
    pub(super) reconcilers: Vec<Option<Reconciler>>,
    pub(super) observer: Arc<dyn Observer>,
    /// Tells the other half that there is something to apply.
    pub(super) control: Arc<Control>,
    /// The source had no more to give when it was last asked, and all it gave is committed.
    pub(super) drained: Arc<AtomicBool>,
    /// Whether the open transaction holds anything.
    pub(super) staged: bool,
    /// Bytes of its records.
    pub(super) bytes: usize,
    /// Of the present schema of each table, once it was needed.
    pub(super) encoders: HashMap<usize, Encoder>,
    /// Lends records their memory.
    pub(super) buffer: BytesMut,
}

fn size_of_record(record: &Record) -> usize {
    [&record.key, &record.value].into_iter().flatten().map(bytes::Bytes::len).sum()
}

impl Feed {
    /// Runs until the source ends or `stop` turns true.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<()> {
        let mut tidied = Instant::now();
        let mut measured: Option<Instant> = None;
        let mut failures = 0;
        // A source that cannot be told may be read all the same.
        let [mut away, mut busy] = [(); 2].map(|()| Away::new(&self.observer, Side::Source));
        while !*stop.borrow() {
            let polled = match self.gather().await {
                Ok(done) => done,
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    failures += 1;
                    // Nothing is known of what the source has now; and the log does not keep a transaction open for long.
                    self.drained.store(false, Ordering::Release);
                    if self.staged {
                        self.commit().await?;
                    }
                    if self.source.rereads() {
                        self.reconcilers.iter_mut().flatten().for_each(Reconciler::begin_again);
                    }
                    away.fails(&error);
                    pause(&mut stop, retry_pause(failures)).await;
                    continue;
                }
                Err(error) => {
                    // What came before the fault is whole, with its position.
                    if self.staged {
                        self.commit().await?;
                    }
                    return Err(error);
                }
            };
            failures = 0;
            away.works();
            let committed = self.staged;
            if committed {
                self.commit().await?;
            }
            let was_drained = self.drained.swap(!polled.more, Ordering::AcqRel);
            if committed || was_drained == polled.more {
                self.control.fed.notify_one();
            }
            if committed || tidied.elapsed() >= TIDY_INTERVAL {
                self.tidy(&mut busy).await?;
                tidied = Instant::now();
            }
            if measured.is_none_or(|measured| measured.elapsed() >= LAG_INTERVAL) {
                if let Ok(lag) = self.source.lag().await {
                    self.control.tell(|status| status.source = lag);
                }
                measured = Some(Instant::now());
            }
            if polled.ended {
                return Ok(());
            }
            pause(&mut stop, polled.pause).await;
        }
        Ok(())
    }

    /// A busy source is told later.
    async fn tidy(&mut self, busy: &mut Away) -> Result<()> {
        match self.source.commit().await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                busy.fails(&error);
                Ok(())
            }
            other => other.inspect(|()| busy.works()),
        }
    }

    /// Polls once, or, where that costs the source nothing, until a good transaction is gathered. When a poll fails, what
    /// was gathered before stands in the open transaction, whole polls with their positions.
    async fn gather(&mut self) -> Result<Polled> {
        let mut count = 0;
        loop {
            let mut polled = self.source.poll().await?;
            count += polled.changes.len();
            let staged = match self.prepare(&mut polled).await {
                Ok(()) => self.stage(&mut polled).await,
                Err(error) => Err(error),
            };
            match staged {
                Ok(staged) => self.staged |= staged,
                Err(error) => {
                    // What was polled is in hand but not in the log: only a new start can fetch it again. Half of a poll
                    // must not be committed without its position.
                    (self.staged, self.bytes) = (false, 0);
                    let _ = self.writer.abort().await;
                    return Err(not_again(error));
                }
            }
            let room = count < GATHER_CHANGES && self.bytes < GATHER_BYTES;
            let gather_on = polled.more && polled.pause.is_zero() && !polled.ended && room;
            if !gather_on {
                return Ok(polled);
            }
        }
    }

    /// What comes before a poll's changes: new columns, emptied tables, rows that a copy did not show.
    async fn prepare(&mut self, polled: &mut Polled) -> Result<()> {
        for (table, shape) in std::mem::take(&mut polled.evolved) {
            let schema = evolve(&*self.session, &self.tables[table], shape).await?;
            self.schemas.add(schema.clone());
            self.tables[table] = schema;
            self.encoders.remove(&table);
        }
        for table in std::mem::take(&mut polled.copied_again) {
            if self.staged {
                // What it is compared with is read from the log.
                self.commit().await?;
            }
            let TopicSchema { topic, table: shape, .. } = &self.tables[table];
            self.reconcilers[table] = Some(Reconciler::of_all(&*self.session, &self.schemas, topic).await?);
            self.writer.set_position(&reconcile_part(&shape.full_name()), Some("1".into()));
        }
        for table in std::mem::take(&mut polled.truncated) {
            self.truncate(table).await?;
        }
        for table in &polled.finished_tables {
            self.delete_unseen(*table, &polled.changes).await?;
        }
        Ok(())
    }

    /// Deletes all rows of a table's topic.
    async fn truncate(&mut self, table: usize) -> Result<()> {
        self.delete_all(table, |_| true).await
    }

    /// A copy that ends with these changes has shown all rows: deletes those of the topic that it did not show.
    async fn delete_unseen(&mut self, table: usize, last: &[Change]) -> Result<()> {
        let Some(known) = &mut self.reconcilers[table] else { return Ok(()) };
        let schema = &self.tables[table];
        let key = |change: &Change| hash_key(schema.encode_key(&change.key).as_bytes());
        let unseen = known.end_pass(&last.iter().filter(|change| change.table == table).map(key).collect());
        if unseen.is_empty() {
            return Ok(());
        }
        self.delete_all(table, |key| unseen.contains(key)).await
    }

    /// Deletes rows of a table's topic, in transactions of their own: there may be any number of them, and a start in the
    /// middle begins again with what is left.
    async fn delete_all(&mut self, table: usize, is_gone: impl Fn(&KeyHash) -> bool + Send + Sync) -> Result<()> {
        if self.staged {
            self.commit().await?;
        }
        let mut rows = Deletes::of(&*self.session, &self.tables[table].topic, is_gone).await?;
        while let Some(gone) = rows.next(&*self.session, &self.schemas, &self.tables[table], self.keeps_tables).await? {
            for row in &gone {
                if let (Some(known), Some(change)) = (&mut self.reconcilers[table], &row.change) {
                    known.admit(&self.tables[table], change);
                }
            }
            self.delete(table, gone).await?;
            self.commit().await?;
            self.control.fed.notify_one();
        }
        Ok(())
    }

    /// Puts one poll's changes into the open transaction.
    async fn stage(&mut self, polled: &mut Polled) -> Result<bool> {
        let now = self.clock.now();
        let mut wrote = !polled.position.is_empty();
        let mut changes = std::mem::take(&mut polled.changes).into_iter().peekable();
        while let Some(table) = changes.peek().map(|change| change.table) {
            let schema = &self.tables[table];
            let encoder = self.encoders.entry(table).or_insert_with(|| schema.encoder());
            let mut records: Vec<Record> = Vec::new();
            let (mut copied, mut written) = (0, 0);
            while let Some(change) = changes.next_if(|change| change.table == table) {
                copied += u64::from(change.op == Op::Read);
                if self.reconcilers[table].as_mut().is_none_or(|known| known.admit(schema, &change)) {
                    written += 1;
                    encoder.encode(&change, now, &mut self.buffer, &mut records);
                }
            }
            if copied > 0 {
                self.observer.copied(table, copied);
            }
            if written > 0 {
                self.observer.written(written);
                wrote = true;
            }
            self.flush(table, records).await?;
        }
        for table in std::mem::take(&mut polled.finished_tables) {
            wrote |= self.finish_table(table);
        }
        for (name, value) in std::mem::take(&mut polled.position) {
            self.writer.set_position(&name, Some(value));
        }
        Ok(wrote)
    }

    async fn flush(&mut self, table: usize, records: Vec<Record>) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        self.bytes += records.iter().map(size_of_record).sum::<usize>();
        let schema = &self.tables[table];
        let largest = records.iter().max_by_key(|record| size_of_record(record));
        let key = largest.and_then(|record| record.key.clone()).unwrap_or_default();
        let to = TopicPartition::new(&schema.topic, 0);
        let appended = self.writer.append(&to, records).await;
        appended.map_err(|error| match error.kind() {
            ErrorKind::Invalid => too_large(&schema.table.full_name(), &key, &error),
            _ => error,
        })
    }

    /// Writes deletes of rows that are gone.
    async fn delete(&mut self, table: usize, gone: Vec<Gone>) -> Result<()> {
        let (now, schema) = (self.clock.now(), &self.tables[table]);
        let encoder = self.encoders.entry(table).or_insert_with(|| schema.encoder());
        let mut records = Vec::new();
        self.observer.written(gone.len() as u64);
        for row in gone {
            match &row.change {
                Some(change) => encoder.encode(change, now, &mut self.buffer, &mut records),
                None => {
                    let headers = vec![Header::text(SCHEMA_HEADER, schema.id.to_string())];
                    records.push(Record { key: Some(row.key), value: None, headers, timestamp: Some(now) });
                }
            }
        }
        self.flush(table, records).await
    }

    /// Makes the open transaction durable. Meanwhile the source may go on sending.
    async fn commit(&mut self) -> Result<()> {
        (self.staged, self.bytes) = (false, 0);
        let ahead = async {
            self.source.read_ahead().await;
            std::future::pending().await
        };
        tokio::select! {
            biased;
            committed = self.writer.commit() => committed,
            never = ahead => never,
        }
    }

    /// A table's copy, or a pass over it, is complete; whether the position tells.
    fn finish_table(&mut self, table: usize) -> bool {
        self.observer.finished(table);
        let Some(known) = &mut self.reconcilers[table] else { return false };
        if self.source.rereads() {
            known.begin_again();
            return false;
        }
        self.writer.set_position(&reconcile_part(&self.tables[table].table.full_name()), None);
        self.reconcilers[table] = None;
        true
    }
}

/// What the log refuses of rows that are well made: their size.
fn too_large(table: &str, key: &[u8], error: &Error) -> Error {
    Error::conflict(format!(
        "row {} of table {table} is larger than the log takes: {error}; to go on, leave the table out of the sync's tables, or \
         make the row smaller and copy the table anew: tidemill sync run FILE --recopy {}",
        String::from_utf8_lossy(key),
        shell_word(table)
    ))
}

/// An error that polling again would not mend.
fn not_again(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Unavailable => Error::closed(error.to_string()),
        _ => error,
    }
}

/// Sleeps, or less if `stop` turns true.
pub(super) async fn pause(stop: &mut watch::Receiver<bool>, time: Duration) {
    if !time.is_zero() {
        let _ = tokio::time::timeout(time, stop.wait_for(|stop| *stop)).await;
    }
}
