//! `changes_of(t)`: one row for each event of a sync's topic, with the row after it, or for a delete the row before.
//!
//! Tombstones are no events: they only tell a compacted topic to forget a key.

use datafusion::common::Result as PlanResult;

use super::{Flow, Output, Scan, lift};
use crate::decode::Image;

/// Scans one partition.
pub(super) fn run(scan: &Scan, output: &Output) -> PlanResult<()> {
    let mut decoder = scan.decoder();
    scan.for_each_batch(output, |batch| {
        decoder.begin(&batch);
        for record in batch.records() {
            let record = lift(record.map_err(|e| scan.context(e)))?;
            if !scan.holds(record.offset) || record.value.is_none() {
                continue;
            }
            let found = !decoder.reads_events() || lift(decoder.read_event(&record, Image::After))?;
            if !found && !lift(decoder.read_event(&record, Image::Before))? {
                return Err(crate::error::wrap(decoder.fault(&record, "an event without an image")));
            }
            lift(decoder.push(&record))?;
            if output.send_full(&mut decoder)? == Flow::Stop {
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Continue)
    })?;
    output.send_rest(&mut decoder)
}
