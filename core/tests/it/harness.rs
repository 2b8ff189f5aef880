//! What the tests share: a log that is stepped by hand, batches, and the model it is compared with.

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use tidemill_core::{
    Error, Result,
    batch::{BatchBuilder, patch_base_offset},
    clock::Clock,
    engine::{Config, Engine, Stepper, Table, Turn},
    record::{Record, Timestamp},
    storage::Storage,
    topic::PartitionId,
};

use crate::sim::{Rng, SimClock, SimDisk};

pub const DIR: &str = "/srv/log";

/// The smallest log: it rolls, recycles, checkpoints and seals within a few hundred appends.
pub fn small() -> Config {
    Config {
        commit_file_bytes: 64 << 10,
        commit_log_bytes: 256 << 10,
        ring_bytes: 96 << 10,
        queue_bytes: 1 << 20,
        group_bytes: 32 << 10,
        transaction_bytes: 64 << 10,
        segment_bytes: 16 << 10,
        compaction_bytes_per_second: u64::MAX,
        ..Config::default()
    }
}

/// A batch of `records` records that tells what it is.
pub fn batch(tag: u64, records: usize, size: usize) -> Bytes {
    let mut builder = BatchBuilder::default();
    for i in 0..records {
        let mut rng = Rng(tag ^ (i as u64) << 48);
        let mut value = format!("{tag}/{i}/").into_bytes();
        while value.len() < size / records {
            value.extend_from_slice(&rng.next().to_le_bytes());
        }
        value.truncate((size / records).max(1));
        let record = Record::new(Bytes::from(format!("k{}", tag % 7)), Bytes::from(value));
        builder.push(&record, Timestamp(1_000 + tag as i64)).expect("small");
    }
    builder.finish()
}

/// The same batch as it is stored at `base`.
pub fn stored_at(batch: &Bytes, base: i64) -> Bytes {
    let mut bytes = batch.to_vec();
    patch_base_offset(&mut bytes, base);
    Bytes::from(bytes)
}

pub fn position_batch(owner: &str, name: &str, value: &str) -> Bytes {
    let mut builder = BatchBuilder::default();
    let record = Record::new(Engine::position_key(owner, name), Bytes::from(value.to_owned()));
    builder.push(&record, Timestamp(5)).expect("small");
    builder.finish()
}

/// Polls once, without a runtime.
pub fn poll<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// An engine without threads on a simulated disk.
pub struct Stepped {
    pub engine: Engine,
    pub stepper: Stepper,
}

impl Stepped {
    pub fn open(disk: &SimDisk, config: Config, clock: &SimClock) -> Result<Self> {
        Self::open_at(Path::new(DIR), disk, config, clock)
    }

    pub fn open_at(dir: &Path, disk: &SimDisk, config: Config, clock: &SimClock) -> Result<Self> {
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let clock: Arc<dyn Clock> = Arc::new(clock.clone());
        let (engine, stepper) = Engine::open_stepped(dir, config, storage, clock)?;
        Ok(Self { engine, stepper })
    }

    /// Drives the log until the future is done.
    pub fn run<T>(&mut self, call: impl AsyncFnOnce(&Engine) -> Result<T>) -> Result<T> {
        let mut future = pin!(call(&self.engine));
        for _ in 0..1000 {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return output;
            }
            if self.stepper.commit()? == Turn::Blocked {
                self.stepper.write_behind(true)?;
            }
        }
        panic!("the log does not get on: a request waits for ever");
    }

    pub fn append(&mut self, batches: Vec<(PartitionId, Bytes)>) -> Result<Vec<i64>> {
        self.run(async |engine| engine.append(batches, None).await).map(|outcome| outcome.base_offsets)
    }

    pub fn create(&mut self, name: &str, partitions: u32) -> Result<Vec<PartitionId>> {
        let spec = tidemill_core::topic::TopicSpec::partitions(partitions);
        self.run(async |engine| engine.create_topic(name, &spec).await).map(|info| info.partitions)
    }
}

/// Everything a partition shows: (base offset, bytes) of each batch.
pub fn read_all(engine: &Engine, id: PartitionId) -> Result<Vec<(i64, Bytes)>> {
    let bounds = engine.cut(&[id])?[0];
    let mut offset = bounds.log_start_offset;
    let mut found = Vec::new();
    while offset < bounds.durable_offset {
        let (batches, next) = engine.read(id, offset, 20_000, i64::MAX)?;
        if next <= offset {
            return Err(Error::internal(format!("read of {} at {offset} does not get on", id.0)));
        }
        for batch in batches {
            if batch.header().base_offset < offset {
                return Err(Error::internal(format!("read of {} at {offset} returned an earlier batch", id.0)));
            }
            offset = batch.header().next_offset();
            found.push((batch.header().base_offset, batch.bytes().clone()));
        }
        if offset != next {
            return Err(Error::internal(format!("read of {} skips {offset}..{next}", id.0)));
        }
    }
    Ok(found)
}

/// One atomic change of the log.
#[derive(Debug, Clone)]
pub enum Unit {
    Data { batches: Vec<(PartitionId, Bytes)>, positions: Vec<(String, String)> },
    Create { name: String, partitions: u32 },
    Delete { name: String },
    Put { table: Table, key: String, value: Option<String> },
}

/// What a log shows after a number of units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    pub topics: BTreeMap<String, Vec<PartitionId>>,
    pub partitions: BTreeMap<PartitionId, Vec<(i64, Bytes)>>,
    pub tables: BTreeMap<(u32, String), String>,
}

#[derive(Debug, Clone, Default)]
pub struct State {
    pub shown: Shown,
    pub ends: BTreeMap<PartitionId, i64>,
    created: u32,
}

impl State {
    pub fn apply(&mut self, unit: &Unit) {
        match unit {
            Unit::Data { batches, positions } => {
                for (id, bytes) in batches {
                    let Some(batches) = self.shown.partitions.get_mut(id) else { continue };
                    let end = self.ends.entry(*id).or_default();
                    batches.push((*end, stored_at(bytes, *end)));
                    *end += i64::from(i32::from_be_bytes(bytes[23..27].try_into().expect("four"))) + 1;
                }
                for (key, value) in positions {
                    self.shown.tables.insert((Table::Positions as u32, key.clone()), value.clone());
                }
            }
            Unit::Create { name, partitions } => {
                let ids: Vec<_> = (0..*partitions).map(|i| PartitionId(16 + self.created + i)).collect();
                self.created += partitions;
                for id in &ids {
                    self.shown.partitions.insert(*id, Vec::new());
                    self.ends.insert(*id, 0);
                }
                self.shown.topics.insert(name.clone(), ids);
            }
            Unit::Delete { name } => {
                for id in self.shown.topics.remove(name).unwrap_or_default() {
                    self.shown.partitions.remove(&id);
                }
            }
            Unit::Put { table, key, value } => {
                let key = (*table as u32, key.clone());
                match value {
                    Some(value) => self.shown.tables.insert(key, value.clone()),
                    None => self.shown.tables.remove(&key),
                };
            }
        }
    }
}

/// What was acknowledged, and what else was asked for since, in order.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub acked: State,
    pub pending: Vec<Unit>,
}

impl Model {
    pub fn ack(&mut self, count: usize) {
        for unit in self.pending.drain(..count) {
            self.acked.apply(&unit);
        }
    }
}

/// All that an engine shows.
pub fn show(engine: &Engine) -> Result<Shown> {
    let mut shown = Shown::default();
    for info in engine.topics().into_iter().filter(|info| !info.name.starts_with("_tidemill.")) {
        for id in &info.partitions {
            shown.partitions.insert(*id, read_all(engine, *id)?);
        }
        shown.topics.insert(info.name, info.partitions);
    }
    for table in [Table::Positions, Table::Writers, Table::Schemas] {
        for (key, entry) in engine.table(table) {
            shown.tables.insert((table as u32, key), entry.value);
        }
    }
    // The log's own topics are read as well: they lie in segments like all others.
    for table in Table::ALL {
        read_all(engine, table.partition())?;
    }
    Ok(shown)
}

/// In a few words, where two states differ.
pub fn difference(found: &Shown, wanted: &Shown) -> String {
    if found.topics != wanted.topics {
        return format!("topics {:?}, wanted {:?}", found.topics, wanted.topics);
    }
    if found.tables != wanted.tables {
        return format!("tables {:?}, wanted {:?}", found.tables, wanted.tables);
    }
    for (id, wanted) in &wanted.partitions {
        let found = &found.partitions[id];
        let same = found.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        if found.len() != wanted.len() || same != wanted.len() {
            let at = |list: &[(i64, Bytes)]| list.get(same).map(|b| (b.0, b.1.len()));
            return format!(
                "partition {}: {} batches, wanted {}; first difference at batch {same}: {:?}, wanted {:?}",
                id.0,
                found.len(),
                wanted.len(),
                at(found),
                at(wanted)
            );
        }
    }
    "nothing".to_owned()
}

/// A folder of the real disk, removed at the end.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tidemill-it-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("temporary folder");
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
