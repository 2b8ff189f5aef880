//! The log's own tables on a cluster: compacted topics whose newest records are kept in memory, read on from where they
//! were read last.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::Mutex;

use super::{
    cluster::{Cluster, REQUEST_TIME},
    fenced::{Fenced, is_fenced},
    own,
    readers::Readers,
    topics,
    writer::check_size,
};
use crate::{
    Error, ErrorKind, Result,
    clock::{Clock as _, SystemClock},
    engine::Engine,
    log::{Entry, FetchOptions, Table},
    record::{FetchedRecord, Record},
    topic::{TopicPartition, partition_of},
};

/// Positions are spread by owner: an open transaction hides what comes after it in its partition.
const POSITION_PARTITIONS: u32 = 16;
/// How often two who write a table may fence each other.
const ATTEMPTS: u64 = 40;

/// How far a table is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// To what readers can see now.
    Stable,
    /// To the end of all that was written before, waiting for the transactions of others that are open there.
    All,
}

/// How long a view may go unread: a tombstone that came and went meanwhile would never be seen, and what it deleted
/// stay. The tables' topics keep theirs for much longer.
const VIEW_TIME: std::ops::Range<i64> = 0..3_600_000;

/// A partition of a table in memory.
#[derive(Default)]
struct View {
    /// When it was read last, by a clock that goes on while the machine sleeps.
    read_ms: i64,
    next: i64,
    entries: BTreeMap<String, Entry>,
}

impl View {
    /// Begins anew what is too old to be read on, or is not of this topic: one made anew begins at 0 again.
    fn check(&mut self, end: i64, now_ms: i64) {
        if self.next > end || !VIEW_TIME.contains(&(now_ms - self.read_ms)) {
            *self = Self::default();
        }
        self.read_ms = now_ms;
    }

    fn apply(&mut self, record: &FetchedRecord) -> Result<()> {
        let malformed = || Error::corrupt(format!("a record of metadata at {} is not UTF-8", record.offset));
        let key = record.key.as_deref().unwrap_or_default();
        let key = String::from_utf8(key.to_vec()).map_err(|_| malformed())?;
        match &record.value {
            Some(value) => {
                let value = String::from_utf8(value.to_vec()).map_err(|_| malformed())?;
                self.entries.insert(key, Entry { version: record.offset, value });
            }
            None => drop(self.entries.remove(&key)),
        }
        Ok(())
    }
}

type Shared<T> = Arc<Mutex<T>>;

#[derive(Default)]
pub(super) struct Tables {
    views: std::sync::Mutex<HashMap<TopicPartition, Shared<View>>>,
    readers: Readers,
    /// Who writes schemas.
    schemas: Mutex<Option<Fenced>>,
}

/// The partition that holds an owner's positions; made if need be.
pub(super) async fn home_of(cluster: &Arc<Cluster>, owner: &str) -> Result<TopicPartition> {
    own::ensure(cluster, &Table::Positions.topic(), POSITION_PARTITIONS).await?;
    Ok(home(owner))
}

fn home(owner: &str) -> TopicPartition {
    TopicPartition::new(Table::Positions.topic(), partition_of(owner.as_bytes(), POSITION_PARTITIONS))
}

impl Tables {
    /// The positions of an owner, by name.
    pub(super) async fn positions(
        &self,
        cluster: &Arc<Cluster>,
        owner: &str,
        until: Until,
    ) -> Result<BTreeMap<String, String>> {
        let home = home(owner);
        // Who opened the owner knows that the topic is there: a broker that says otherwise is not believed.
        if until == Until::Stable && topics::partitions_of(cluster, &home.topic).await?.is_none() {
            return Ok(BTreeMap::new());
        }
        let prefix = String::from_utf8_lossy(&Engine::position_key(owner, "")).into_owned();
        let pick = |view: &View| {
            let range = view.entries.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
            range.map(|(key, entry)| (key[prefix.len()..].to_owned(), entry.value.clone())).collect()
        };
        self.read(cluster, &home, until, pick).await
    }

    /// The newest value of one key, all that was written before included.
    pub(super) async fn value(
        &self,
        cluster: &Arc<Cluster>,
        of: &TopicPartition,
        key: &[u8],
    ) -> Result<Option<String>> {
        let key = String::from_utf8_lossy(key);
        self.read(cluster, of, Until::All, |view| view.entries.get(&*key).map(|entry| entry.value.clone())).await
    }

    /// All entries of a table.
    pub(super) async fn all(&self, cluster: &Arc<Cluster>, table: Table) -> Result<BTreeMap<String, Entry>> {
        let topic = table.topic();
        let count = topics::partitions_of(cluster, &topic).await?.unwrap_or(0);
        let mut all = BTreeMap::new();
        for partition in 0..count {
            let of = TopicPartition::new(&topic, partition);
            all.append(&mut self.read(cluster, &of, Until::Stable, |view| view.entries.clone()).await?);
        }
        Ok(all)
    }

    /// Reads on to the end, and shows the whole.
    async fn read<T>(
        &self,
        cluster: &Arc<Cluster>,
        of: &TopicPartition,
        until: Until,
        show: impl FnOnce(&View) -> T,
    ) -> Result<T> {
        let end = match until {
            Until::Stable => cluster.bounds(vec![of.clone()]).await?.first().map_or(0, |bounds| bounds.durable_offset),
            Until::All => cluster.high_watermark(of).await?,
        };
        let view = {
            let mut views = self.views.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            Arc::clone(views.entry(of.clone()).or_default())
        };
        let mut view = view.lock().await;
        view.check(end, SystemClock::default().now().0);
        let deadline = Instant::now() + REQUEST_TIME;
        while view.next < end {
            let options =
                FetchOptions { end: Some(end), max_wait: Duration::from_millis(500), ..FetchOptions::default() };
            let chunk = self.readers.fetch(cluster, of, view.next, &options).await?;
            for record in &chunk.records {
                view.apply(record)?;
            }
            view.next = chunk.next_offset;
            if view.next < end && Instant::now() > deadline {
                return Err(Error::unavailable(format!(
                    "{of} cannot be read from {} to {end}: a transaction of another writer is open there",
                    view.next
                )));
            }
        }
        Ok(show(&view))
    }

    /// Replaces an entry at its version.
    pub(super) async fn put(
        &self,
        cluster: &Arc<Cluster>,
        table: Table,
        key: &str,
        value: Option<String>,
        expected: Option<i64>,
    ) -> Result<i64> {
        let topic = table.topic();
        own::ensure(cluster, &topic, 1).await?;
        let of = TopicPartition::new(&topic, 0);
        let record = Record::new(Bytes::copy_from_slice(key.as_bytes()), value.clone().map(Bytes::from));
        check_size(&record)?;
        let mut writer = self.schemas.lock().await;
        for attempt in 0..ATTEMPTS {
            let fenced = match writer.take() {
                Some(fenced) => fenced,
                None => match Fenced::open(cluster, &format!("tidemill.table.{topic}")).await {
                    Err(error) if is_fenced(&error) => {
                        pause(attempt).await;
                        continue;
                    }
                    opened => opened?,
                },
            };
            // Nobody else has written since, or the commit will be refused.
            let found =
                self.read(cluster, &of, Until::All, |view| view.entries.get(key).map(|entry| entry.version)).await?;
            if found != expected {
                *writer = Some(fenced);
                return Err(Error::conflict(format!("{topic} {key:?} is at version {found:?}, not {expected:?}")));
            }
            let done = match fenced.begin().await {
                Ok(()) => fenced.commit(Some((of.clone(), vec![record.clone()]))).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(version) => {
                    *writer = Some(fenced);
                    // Who put it sees it. It is done, even if this fails.
                    let _ = self.read(cluster, &of, Until::All, |_| ()).await;
                    return version.ok_or_else(|| Error::internal("a record without an offset"));
                }
                // Another process opened the table; what was sent here is aborted.
                Err(error) if is_fenced(&error) => pause(attempt).await,
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(ErrorKind::Unavailable, format!("others write {topic} all the time")))
    }
}

/// Longer each time, and never as long as another's.
async fn pause(attempt: u64) {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), attempt);
    tokio::time::sleep(Duration::from_millis(10 + random % (50 * (attempt + 1)))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_that_is_too_old_or_of_another_topic_is_read_anew() {
        let read = || {
            let mut view = View { read_ms: 1_000, next: 7, ..View::default() };
            view.entries.insert("k".into(), Entry { version: 6, value: "v".into() });
            view
        };
        let kept = |end, now_ms| {
            let mut view = read();
            view.check(end, now_ms);
            (view.next, view.entries.len(), view.read_ms)
        };
        assert_eq!(kept(7, 1_000), (7, 1, 1_000));
        assert_eq!(kept(9, 3_600_999), (7, 1, 3_600_999));
        assert_eq!(kept(9, 3_601_000), (0, 0, 3_601_000), "a tombstone may have come and gone");
        assert_eq!(kept(9, 999), (0, 0, 999), "the clock went back: nobody knows how long it was");
        assert_eq!(kept(6, 1_001), (0, 0, 1_001), "the topic was made anew");
    }
}
