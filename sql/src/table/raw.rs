//! Every record of a topic as it is: key and value as text, straight over the batches' bytes.

use datafusion::common::Result as PlanResult;

use super::{Flow, Output, Scan, lift};

/// Scans one partition.
pub(super) fn run(scan: &Scan, output: &Output) -> PlanResult<()> {
    let mut decoder = scan.decoder();
    scan.for_each_batch(output, |batch| {
        decoder.begin(&batch);
        for record in batch.records() {
            let record = lift(record.map_err(|e| scan.context(e)))?;
            if !scan.holds(record.offset) {
                continue;
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
