//! Control batches: the marks that the log itself writes into each partition where a transaction of Kafka's protocol
//! ends. They take an offset, and no reader of records is ever shown one.

use bytes::Bytes;

use super::{Batch, BatchBuilder, CONTROL, CRC_START, crc32c};
use crate::{
    Result,
    record::{Record, Timestamp},
};

const VERSION: [u8; 2] = [0, 0];
const COORDINATOR_EPOCH: [u8; 4] = [0; 4];

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// Nothing of it counts.
    Abort,
    /// All of it counts.
    Commit,
}

impl Marker {
    /// The marker that a control batch holds; `None` for a batch of records, or a mark of another kind.
    ///
    /// # Source
    /// Kafka's `ControlRecordType`: the key is a version and a type, two bytes each; 0 is abort, 1 commit.
    pub fn of(batch: &Batch) -> Option<Self> {
        if !batch.header().is_control() {
            return None;
        }
        let record = batch.records().next()?.ok()?;
        match record.key?.get(2..4)? {
            [0, 0] => Some(Self::Abort),
            [0, 1] => Some(Self::Commit),
            _ => None,
        }
    }
}

/// The control batch that ends a producer's transaction in one partition.
///
/// # Source
/// Kafka's `EndTransactionMarker`: the value is a version and the coordinator's epoch, which is always 0 here.
pub fn control_batch(producer_id: i64, epoch: i16, marker: Marker, now: Timestamp) -> Result<Bytes> {
    let kind = match marker {
        Marker::Abort => [0, 0],
        Marker::Commit => [0, 1],
    };
    let key = Bytes::from([VERSION, kind].concat());
    let value = Bytes::from([&VERSION[..], &COORDINATOR_EPOCH].concat());
    let mut builder = BatchBuilder::default();
    builder.push(&Record::new(key, value), now)?;
    let mut bytes = builder.finish_as(producer_id, epoch, -1, true).to_vec();
    bytes[22] |= CONTROL as u8;
    let crc = crc32c(&bytes[CRC_START..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    Ok(Bytes::from(bytes))
}
