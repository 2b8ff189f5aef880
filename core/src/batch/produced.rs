//! What a batch must be before the log takes it from a client: afterwards nobody may refuse it any more.

use bytes::Bytes;

use super::{APPEND_TIME, Batch, BatchHeader, COMPRESSION, CRC_START, TRANSACTIONAL, crc32c};
use crate::{Error, Result, error::Reason, record::Timestamp};

/// The attributes that a producer sets: compression, and whether it is in a transaction.
const PRODUCED: i16 = COMPRESSION | TRANSACTIONAL;
/// The greatest number of a compression that Kafka knows: gzip, snappy, lz4, zstd.
const MAX_COMPRESSION: i16 = 4;

/// Checks that `bytes` is one whole batch as producers may write it: CRC, offsets without gaps from 0 on, each record
/// readable to its last byte, sequences where the producer numbers them. Gives it back, with its greatest time mended
/// where the header has another than the records. Records of a compressed batch are not looked at.
///
/// # Errors
/// `Invalid` or `Unsupported` with the [`Reason`].
pub fn check_produced(bytes: &Bytes) -> Result<Bytes> {
    let corrupt = |e: Error| Error::invalid(e.message().to_owned()).with_reason(Reason::CorruptBatch);
    let batch = Batch::parse(bytes).map_err(corrupt)?;
    if batch.bytes().len() != bytes.len() {
        return Err(invalid("a request has one batch for each partition"));
    }
    check_header(batch.header())?;
    if batch.header().is_compressed() {
        return Ok(bytes.clone());
    }
    let max_timestamp = check_records(&batch)?;
    if max_timestamp == batch.header().max_timestamp {
        return Ok(bytes.clone());
    }
    Ok(with_times(bytes, batch.header().attributes, max_timestamp))
}

fn check_header(header: &BatchHeader) -> Result<()> {
    let codec = header.attributes & COMPRESSION;
    if codec > MAX_COMPRESSION {
        let error = Error::unsupported(format!("compression {codec} is unknown"));
        return Err(error.with_reason(Reason::UnsupportedCompression));
    }
    if header.is_control() {
        return Err(invalid("control batches are the log's own"));
    }
    if header.has_append_time() {
        return Err(Error::invalid("the log's own time is the log's to set").with_reason(Reason::InvalidTimestamp));
    }
    if header.attributes & !PRODUCED != 0 {
        return Err(invalid(format!("attributes {:#06x} are not a producer's", header.attributes)));
    }
    if header.record_count == 0 || header.record_count - 1 != header.last_offset_delta {
        let (count, last) = (header.record_count, header.last_offset_delta);
        return Err(invalid(format!("{count} records, the last of which has offset delta {last}")));
    }
    check_producer(header)
}

/// Sequences belong to a producer id, and transactions too.
pub(crate) fn check_producer(header: &BatchHeader) -> Result<()> {
    if header.has_producer() {
        if header.producer_epoch < 0 || header.base_sequence < 0 {
            let (epoch, sequence) = (header.producer_epoch, header.base_sequence);
            let id = header.producer_id;
            return Err(invalid(format!("producer {id} has epoch {epoch} and sequence {sequence}")));
        }
    } else if header.is_transactional() {
        return Err(invalid("a batch of a transaction has no producer id"));
    }
    Ok(())
}

/// Checks each record, and finds the greatest of their times.
fn check_records(batch: &Batch) -> Result<i64> {
    let mut records = batch.records();
    let base_offset = batch.header().base_offset;
    let mut max_timestamp = i64::MIN;
    for (expected, record) in (base_offset..).zip(&mut records) {
        let record = record.map_err(|e| invalid(e.message().to_owned()))?;
        if record.offset != expected {
            let (found, wanted) = (record.offset - base_offset, expected - base_offset);
            return Err(invalid(format!("offset delta {found} where {wanted} belongs")));
        }
        max_timestamp = max_timestamp.max(record.timestamp);
        let mut headers = record.headers;
        for header in &mut headers {
            header.map_err(|e| invalid(e.message().to_owned()))?;
        }
        if !headers.is_used_up() {
            return Err(invalid("a record is longer than what it holds"));
        }
    }
    match records.is_used_up() {
        true => Ok(max_timestamp),
        false => Err(invalid("the batch is longer than its records")),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::invalid(message).with_reason(Reason::InvalidRecord)
}

/// The batch with the log's own time for all its records, and a CRC to match.
pub fn stamp_append_time(batch: &[u8], now: Timestamp) -> Bytes {
    let attributes = i16::from_be_bytes([batch[21], batch[22]]);
    with_times(batch, attributes | APPEND_TIME, now.0)
}

fn with_times(batch: &[u8], attributes: i16, max_timestamp: i64) -> Bytes {
    let mut bytes = batch.to_vec();
    bytes[21..23].copy_from_slice(&attributes.to_be_bytes());
    bytes[35..43].copy_from_slice(&max_timestamp.to_be_bytes());
    let crc = crc32c(&bytes[CRC_START..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    Bytes::from(bytes)
}
