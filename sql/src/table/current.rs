//! The current rows of a sync's topic: of each key the newest record, unless that deletes it.
//!
//! All batches of the partition are read first. Then one pass over the keys finds which records are superseded, with a
//! map whose keys are slices of the batches and a bit for each record. Only what is left is decoded, in offset order.
//! A key belongs to one partition, so partitions need not know of each other.

use datafusion::{
    common::{HashMap, Result as PlanResult},
    execution::{TaskContext, memory_pool::MemoryConsumer},
};
use tidemill_core::{Result, batch::Batch, batch::RecordRef};

use super::{Flow, Output, Scan, lift};
use crate::decode::{Decoder, Image};

/// What the map takes for a key: slice and number, and the table's slack.
const BYTES_PER_KEY: usize = 40;
/// How an event begins that is no delete, as the converter writes it.
const NOT_DELETED: &[u8] = b"{\"before\":null,";

/// Scans one partition.
pub(super) fn run(scan: &Scan, output: &Output, context: &TaskContext) -> PlanResult<()> {
    let reservation =
        MemoryConsumer::new(format!("the scan of {}", scan.table.sql_name())).register(context.memory_pool());
    let mut batches = Vec::new();
    let read = scan.for_each_batch(output, |batch| {
        let header = batch.header();
        reservation.try_grow(header.size_bytes + header.record_count as usize * BYTES_PER_KEY)?;
        batches.push(batch);
        Ok(Flow::Continue)
    })?;
    if read == Flow::Stop {
        return Ok(());
    }
    let Some(superseded) = find_superseded(scan, output, &batches)? else { return Ok(()) };
    decode(scan, output, &batches, &superseded)
}

/// A bit for each record in order of offset; `None` if nobody listens any more.
fn find_superseded(scan: &Scan, output: &Output, batches: &[Batch]) -> PlanResult<Option<Bits>> {
    let count: usize = batches.iter().map(|batch| batch.header().record_count as usize).sum();
    let mut bits = Bits(vec![0; count / 64 + 1]);
    let mut newest: HashMap<&[u8], usize> = HashMap::with_capacity(count);
    let mut ordinal = 0;
    for batch in batches {
        if output.is_closed() {
            return Ok(None);
        }
        for record in batch.records() {
            let record = lift(record.map_err(|e| scan.context(e)))?;
            if !scan.holds(record.offset) {
                bits.set(ordinal);
            } else {
                let older = lift(key_of(scan, &record)).map(|key| newest.insert(key, ordinal))?;
                older.into_iter().for_each(|older| bits.set(older));
            }
            ordinal += 1;
        }
    }
    Ok(Some(bits))
}

fn key_of<'a>(scan: &Scan, record: &RecordRef<'a>) -> Result<&'a [u8]> {
    record.key.ok_or_else(|| scan.decoder().fault(record, "a row without a key"))
}

fn decode(scan: &Scan, output: &Output, batches: &[Batch], superseded: &Bits) -> PlanResult<()> {
    let mut decoder = scan.decoder();
    let mut ordinal = 0;
    for batch in batches {
        decoder.begin(batch);
        for record in batch.records() {
            let record = lift(record.map_err(|e| scan.context(e)))?;
            let is_newest = !superseded.get(ordinal);
            ordinal += 1;
            if is_newest && lift(is_row(&mut decoder, &record))? {
                lift(decoder.push(&record))?;
                if output.send_full(&mut decoder)? == Flow::Stop {
                    return Ok(());
                }
            }
        }
    }
    output.send_rest(&mut decoder)
}

/// Whether the newest record of a key is a row; reads the row's columns on the way. A delete is an event and a
/// tombstone, and either says so.
fn is_row(decoder: &mut Decoder, record: &RecordRef<'_>) -> Result<bool> {
    match record.value {
        None => Ok(false),
        Some(value) if !decoder.reads_events() && value.starts_with(NOT_DELETED) => Ok(true),
        Some(_) => decoder.read_event(record, Image::After),
    }
}

struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn get(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }
}
