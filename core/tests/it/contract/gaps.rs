//! A log whose offsets have gaps: the embedded one, with offsets that a rule spreads. Record `i` is shown at one of the
//! three offsets from `3 * i` on, and the end of a partition after record `i` at `3 * (i + 1)`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tidemill_core::{
    Error, Result,
    engine::Table,
    log::{
        Appended, Bounds, Caller, Change, Chunk, Entry, FetchOptions, GroupOffset, Lease, Log, Member, MemberOptions,
        Session, Topic, TopicChange, Writer,
    },
    record::{Record, Timestamp},
    topic::{TopicConfig, TopicPartition, TopicSpec},
};

/// Where record `i` is shown.
fn shown(i: i64) -> i64 {
    i * 3 + (i.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64) >> 33).rem_euclid(3)
}

/// The first record that is shown at `offset` or beyond.
fn first_from(offset: i64) -> i64 {
    let i = offset.div_euclid(3);
    if shown(i) >= offset { i } else { i + 1 }
}

pub struct Gaps(Arc<dyn Log>);

impl Gaps {
    pub fn new(log: Arc<dyn Log>) -> Self {
        Self(log)
    }
}

#[async_trait]
impl Log for Gaps {
    async fn session(&self, caller: Caller) -> Result<Arc<dyn Session>> {
        Ok(Arc::new(Gapped(self.0.session(caller).await?)))
    }
}

struct Gapped(Arc<dyn Session>);

#[async_trait]
impl Session for Gapped {
    fn log_id(&self) -> String {
        self.0.log_id()
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        self.0.topics().await
    }

    async fn topic(&self, name: &str) -> Result<Option<Topic>> {
        self.0.topic(name).await
    }

    async fn create_topic(&self, name: &str, spec: &TopicSpec) -> Result<Topic> {
        self.0.create_topic(name, spec).await
    }

    async fn topic_config(&self, name: &str) -> Result<TopicConfig> {
        self.0.topic_config(name).await
    }

    async fn alter_topic(&self, name: &str, change: &TopicChange) -> Result<()> {
        self.0.alter_topic(name, change).await
    }

    async fn delete_topic(&self, name: &str) -> Result<()> {
        self.0.delete_topic(name).await
    }

    async fn append(&self, to: &TopicPartition, records: Vec<Record>) -> Result<Appended> {
        let Appended { first_offset, last_offset } = self.0.append(to, records).await?;
        Ok(Appended { first_offset: shown(first_offset), last_offset: shown(last_offset) })
    }

    async fn fetch(&self, from: &TopicPartition, offset: i64, options: &FetchOptions) -> Result<Chunk> {
        let there = self.bounds(std::slice::from_ref(from)).await?[0];
        if offset > there.durable_offset || offset < 0 {
            return Err(Error::invalid(format!("offset {offset} of {from} is out of range")));
        }
        let first = first_from(offset);
        // Sometimes a read only passes a gap.
        if offset < first * 3 && first % 5 == 0 {
            return Ok(Chunk { records: Vec::new(), next_offset: first * 3 });
        }
        let end = options.end.map(first_from);
        let mut chunk = self.0.fetch(from, first, &FetchOptions { end, ..*options }).await?;
        chunk.records.iter_mut().for_each(|record| record.offset = shown(record.offset));
        let passed = chunk.next_offset * 3;
        chunk.next_offset = match options.end {
            // All below the end was given: the place to go on from may lie behind it.
            Some(end) if first_from(end) <= chunk.next_offset && end <= passed + 3 => passed.max(end.min(passed + 3)),
            _ => passed.max(offset),
        };
        Ok(chunk)
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<Vec<Bounds>> {
        let of = |b: Bounds| Bounds {
            log_start_offset: b.log_start_offset * 3,
            durable_offset: b.durable_offset * 3,
            last_stable_offset: b.last_stable_offset * 3,
        };
        Ok(self.0.bounds(partitions).await?.into_iter().map(of).collect())
    }

    async fn offset_at_time(&self, of: &TopicPartition, time: Timestamp) -> Result<Option<i64>> {
        Ok(self.0.offset_at_time(of, time).await?.map(shown))
    }

    async fn writer(&self, owner: &str) -> Result<Box<dyn Writer>> {
        self.0.writer(owner).await
    }

    async fn positions(&self, owner: &str) -> Result<BTreeMap<String, String>> {
        self.0.positions(owner).await
    }

    async fn table(&self, table: Table) -> Result<BTreeMap<String, Entry>> {
        self.0.table(table).await
    }

    async fn put(&self, table: Table, key: &str, value: Option<String>, expected: Option<i64>) -> Result<i64> {
        self.0.put(table, key, value, expected).await
    }

    async fn join(&self, group: &str, topics: &[String], options: &MemberOptions) -> Result<Box<dyn Member>> {
        Ok(Box::new(GappedMember(self.0.join(group, topics, options).await?)))
    }

    async fn lease(&self, group: &str, slots: u32) -> Result<Lease> {
        self.0.lease(group, slots).await
    }

    async fn committed(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, GroupOffset>> {
        let found = self.0.committed(group, partitions).await?;
        Ok(found.into_iter().map(|(of, offset)| (of, spread(offset))).collect())
    }
}

/// The log below keeps its own offset; how far the committed one is from it goes before the metadata, as a digit.
struct GappedMember(Box<dyn Member>);

#[async_trait]
impl Member for GappedMember {
    fn partitions(&self) -> &BTreeSet<TopicPartition> {
        self.0.partitions()
    }

    async fn changed(&mut self, max_wait: Duration) -> Result<Option<Change>> {
        self.0.changed(max_wait).await
    }

    async fn commit(&mut self, offsets: BTreeMap<TopicPartition, GroupOffset>) -> Result<()> {
        let dense = |GroupOffset { offset, metadata }: GroupOffset| {
            let below = if offset < 0 { offset } else { first_from(offset) };
            GroupOffset { offset: below, metadata: format!("{}{metadata}", offset - below * 3 + 3) }
        };
        self.0.commit(offsets.into_iter().map(|(of, offset)| (of, dense(offset))).collect()).await
    }

    async fn leave(self: Box<Self>) -> Result<()> {
        self.0.leave().await
    }
}

fn spread(GroupOffset { offset, metadata }: GroupOffset) -> GroupOffset {
    let (digit, metadata) = metadata.split_at(1);
    GroupOffset { offset: offset * 3 - 3 + digit.parse::<i64>().expect("a digit"), metadata: metadata.to_owned() }
}
