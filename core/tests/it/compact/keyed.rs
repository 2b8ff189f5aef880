//! A compacted topic, and what it must show.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidemill_core::{
    Result,
    batch::BatchBuilder,
    engine::{Config, Engine},
    record::{Record, Timestamp},
    topic::{PartitionId, TopicConfig, TopicSpec},
};

use crate::{
    harness::{Stepped, read_all, small},
    sim::Rng,
};

/// Key, value, and when it was appended.
pub type Keyed = (String, Option<String>, i64);

/// Every record that was ever appended, by its offset.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub records: BTreeMap<i64, Keyed>,
    pub end: i64,
    /// How long tombstones stay, in milliseconds.
    pub delay: i64,
}

/// A map of 31 keys: whatever has more takes several passes.
pub fn config() -> Config {
    Config { compaction_map_bytes: 1 << 10, ..small() }
}

pub fn spec(change: impl FnOnce(&mut TopicConfig)) -> TopicSpec {
    let mut config = TopicConfig { segment_bytes: Some(4096), ..TopicConfig::compacted() };
    change(&mut config);
    TopicSpec { config, ..TopicSpec::partitions(1) }
}

pub fn create(log: &mut Stepped, name: &str, spec: &TopicSpec) -> PartitionId {
    log.run(async |engine| engine.create_topic(name, spec).await).expect("topic").partitions[0]
}

pub fn encode(records: &[Keyed]) -> Bytes {
    let mut builder = BatchBuilder::default();
    for (key, value, time) in records {
        let record = Record::new(Bytes::from(key.clone()), value.clone().map(Bytes::from));
        builder.push(&record, Timestamp(*time)).expect("small");
    }
    builder.finish()
}

/// One to six records of `keys` keys, every fifth a tombstone.
pub fn random_records(rng: &mut Rng, keys: usize, now: i64) -> Vec<Keyed> {
    let record = |rng: &mut Rng| {
        let text = format!("{}{}", rng.next(), "x".repeat(rng.below(60)));
        (format!("key-{}", rng.below(keys)), (rng.below(5) > 0).then_some(text), now)
    };
    (0..1 + rng.below(6)).map(|_| record(rng)).collect()
}

impl History {
    pub fn add(&mut self, records: &[Keyed]) {
        for record in records {
            self.records.insert(self.end, record.clone());
            self.end += 1;
        }
    }

    fn newest(&self) -> BTreeMap<&str, i64> {
        self.records.iter().map(|(offset, (key, ..))| (key.as_str(), *offset)).collect()
    }

    /// What is wrong with what was found: `now` is the time at which it was read.
    pub fn fault(&self, found: &BTreeMap<i64, Keyed>, now: i64) -> Option<String> {
        self.fault_from(0, found, now)
    }

    /// The same of what a reader found from an offset on.
    pub fn fault_from(&self, start: i64, found: &BTreeMap<i64, Keyed>, now: i64) -> Option<String> {
        let invented = found.iter().find(|(offset, record)| self.records.get(offset) != Some(record));
        if let Some((offset, record)) = invented {
            return Some(format!("{record:?} at {offset} was never appended"));
        }
        let missing = self.newest().into_iter().filter(|(_, offset)| *offset >= start).find(|(_, offset)| {
            let (_, value, time) = &self.records[offset];
            let may_be_gone = value.is_none() && time + self.delay <= now;
            !may_be_gone && !found.contains_key(offset)
        });
        // A key whose tombstone is gone must not have an older value.
        let newest = self.newest();
        let resurrected = found.iter().find(|(offset, (key, value, _))| {
            let newest = newest[key.as_str()];
            **offset < newest && value.is_some() && self.records[&newest].1.is_none() && !found.contains_key(&newest)
        });
        missing
            .map(|(key, offset)| format!("the newest record of {key:?}, at {offset}, is gone"))
            .or(resurrected.map(|(offset, (key, ..))| format!("{key:?} at {offset} is back without its tombstone")))
    }
}

/// All records of a partition, which are in order.
pub fn records(engine: &Engine, id: PartitionId) -> Result<BTreeMap<i64, Keyed>> {
    let mut found = BTreeMap::new();
    for (_, bytes) in read_all(engine, id)? {
        let batch = tidemill_core::batch::Batch::parse(&bytes)?;
        for record in batch.records() {
            let record = record?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let keyed = (record.key.map(text).unwrap_or_default(), record.value.map(text), record.timestamp);
            assert!(found.last_key_value().is_none_or(|(last, _)| *last < record.offset), "offsets in order");
            found.insert(record.offset, keyed);
        }
    }
    Ok(found)
}

/// Housekeeping until it has nothing to do, and what it has replaced gone.
pub fn compact(log: &mut Stepped) {
    log.stepper.write_behind(true).expect("segments");
    log.stepper.checkpoint().expect("durable");
    // In the first one after an opening, it waits until what a crash left is known.
    log.stepper.housekeep();
    log.stepper.housekeep();
    log.stepper.checkpoint().expect("listed");
    log.stepper.housekeep();
}
