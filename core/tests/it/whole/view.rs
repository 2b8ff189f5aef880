//! All that a log shows, by all its readers.

use std::collections::BTreeMap;

use tidemill_core::{
    Result,
    batch::Batch,
    engine::{Engine, Table, TransactionState},
    topic::{PartitionId, TopicConfig},
};

use super::model::Rec;
use crate::sim::Rng;

/// A record and where it is.
#[derive(Debug, Clone)]
pub struct Found {
    pub offset: i64,
    pub control: bool,
    pub rec: Rec,
}

#[derive(Debug, Clone, Default)]
pub struct PartitionView {
    pub start: i64,
    pub end: i64,
    pub stable: i64,
    /// Bytes of the batches.
    pub bytes: usize,
    pub raw: Vec<Found>,
    /// Offsets that readers of committed records get.
    pub shown: Vec<i64>,
}

#[derive(Debug, Clone, Default)]
pub struct View {
    pub now: i64,
    pub topics: BTreeMap<String, (Vec<PartitionId>, TopicConfig)>,
    pub partitions: BTreeMap<PartitionId, PartitionView>,
    pub tables: BTreeMap<(u32, String), String>,
    pub transactions: BTreeMap<String, TransactionState>,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn records(batch: &Batch) -> Result<Vec<Found>> {
    let control = batch.header().is_control();
    let found = batch.records().map(|record| {
        let record = record?;
        let rec =
            Rec { key: text(record.key.unwrap_or_default()), value: record.value.map(text), time: record.timestamp };
        Ok(Found { offset: record.offset, control, rec })
    });
    found.collect()
}

impl View {
    /// Reads everything; disagreements between the readers are told in `Err`'s text.
    pub fn of(engine: &Engine, rng: &mut Rng) -> std::result::Result<Self, String> {
        let told = |what: &str, error: tidemill_core::Error| format!("{what}: {error:?}");
        let mut view = Self { now: engine.clock().now().0, ..Self::default() };
        for info in engine.topics().into_iter().filter(|info| !info.name.starts_with("_tidemill.")) {
            for id in &info.partitions {
                let partition = read_partition(engine, *id, rng).map_err(|e| told("read", e))?;
                look_up_times(engine, *id, &partition, view.now, rng)?;
                view.partitions.insert(*id, partition);
            }
            view.topics.insert(info.name, (info.partitions, info.config));
        }
        for table in [Table::Positions, Table::Writers, Table::Schemas, Table::Groups] {
            for (key, entry) in engine.table(table) {
                view.tables.insert((table as u32, key), entry.value);
            }
        }
        view.transactions = engine.transactions().into_iter().map(|info| (info.transactional_id, info.state)).collect();
        Ok(view)
    }

    /// Where each batch is, as its values tell.
    pub fn places(&self) -> BTreeMap<u64, (PartitionId, i64)> {
        let mut places = BTreeMap::new();
        for (id, partition) in &self.partitions {
            for record in partition.raw.iter().filter(|record| !record.control) {
                let mut parts = record.rec.value.iter().flat_map(|value| value.split('/'));
                let (Some(Ok(tag)), Some(Ok(number))) =
                    (parts.next().map(str::parse::<u64>), parts.next().map(str::parse::<i64>))
                else {
                    continue;
                };
                places.entry(tag).or_insert((*id, record.offset - number));
            }
        }
        places
    }
}

fn read_partition(engine: &Engine, id: PartitionId, rng: &mut Rng) -> Result<PartitionView> {
    let bounds = engine.cut(&[id])?[0];
    let (start, end, stable) = (bounds.log_start_offset, bounds.durable_offset, bounds.last_stable_offset);
    let mut view = PartitionView { start, end, stable, ..PartitionView::default() };
    let most = [700, 5000, 20_000][rng.below(3)];
    let mut offset = start;
    while offset < end {
        let (batches, next) = engine.read(id, offset, most, i64::MAX)?;
        if next <= offset {
            return Err(tidemill_core::Error::internal(format!("a read at {offset} stands still")));
        }
        for batch in &batches {
            view.bytes += batch.bytes().len();
            view.raw.extend(records(batch)?.into_iter().filter(|found| found.offset >= offset));
        }
        offset = next;
    }
    let mut offset = start;
    loop {
        let (batches, next) = engine.read_shown(id, offset, most, i64::MAX)?;
        for batch in &batches {
            view.shown.extend(records(batch)?.into_iter().map(|found| found.offset).filter(|o| *o >= offset));
        }
        if next == offset {
            break;
        }
        offset = next;
    }
    Ok(view)
}

/// By time, the same records are found as by reading all of them.
fn look_up_times(
    engine: &Engine,
    id: PartitionId,
    view: &PartitionView,
    now: i64,
    rng: &mut Rng,
) -> std::result::Result<(), String> {
    let time = match rng.below(3) {
        0 if !view.raw.is_empty() => view.raw[rng.below(view.raw.len())].rec.time,
        _ => now - rng.below(120_000) as i64,
    };
    let first = |shown: bool| {
        let counts = |found: &&Found| !found.control && (!shown || view.shown.binary_search(&found.offset).is_ok());
        let mut all = view.raw.iter().filter(counts);
        all.find(|found| found.rec.time >= time).map(|found| (found.offset, found.rec.time))
    };
    // What is compacted in its segment may be found in memory a while longer.
    let lingers = |found: Option<(i64, i64)>, wanted: Option<(i64, i64)>| {
        found.is_some_and(|(offset, own)| {
            let earlier = (view.start..wanted.map_or(view.end, |(wanted, _)| wanted)).contains(&offset);
            own >= time && earlier && view.raw.binary_search_by_key(&offset, |found| found.offset).is_err()
        })
    };
    let found = engine.offset_at_time(id, time).map_err(|e| format!("by time {time}: {e:?}"))?;
    if found != first(false) && !lingers(found, first(false)) {
        return Err(format!("{id:?}: the first at or after {time} is {found:?}, wanted {:?}", first(false)));
    }
    let found = engine.shown_offset_at_time(id, time).map_err(|e| format!("by time {time}: {e:?}"))?;
    if found != first(true) && !lingers(found, first(true)) {
        return Err(format!("{id:?}: the first shown at or after {time} is {found:?}, wanted {:?}", first(true)));
    }
    Ok(())
}
