//! Record batches in Kafka's format, version 2: the form in which records are stored, served and scanned.
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | base offset, assigned by the log; outside the CRC |
//! | 8 | 4 | length of what follows this field |
//! | 12 | 4 | leader epoch; outside the CRC |
//! | 16 | 1 | magic, 2 |
//! | 17 | 4 | CRC-32C of the bytes from 21 to the end |
//! | 21 | 2 | attributes: compression (bits 0-2), timestamp type (3), transactional (4), control (5), delete horizon (6) |
//! | 23 | 4 | last offset delta |
//! | 27 | 8 | base timestamp; with bit 6, the delete horizon |
//! | 35 | 8 | max timestamp |
//! | 43 | 8 | producer id, -1 for none |
//! | 51 | 2 | producer epoch |
//! | 53 | 4 | base sequence |
//! | 57 | 4 | number of records |
//! | 61 | | records |
//!
//! All numbers are big-endian. A batch is written once by its producer and never decoded on its way to disk or
//! to a reader: only the first 16 bytes are patched, and where a topic takes the log's own time, that is written in.

mod builder;
mod control;
mod produced;
pub(crate) mod rewrite;
mod scan;
#[cfg(test)]
mod tests;

pub use builder::BatchBuilder;
pub use control::{Marker, control_batch};
pub(crate) use produced::check_producer;
pub use produced::{check_produced, stamp_append_time};
pub use scan::{HeaderRef, Headers, RecordRef, Records};

use bytes::Bytes;

use crate::{Error, Result};

/// Bytes before the first record.
pub const HEADER_LEN: usize = 61;
/// The CRC covers the batch from here to its end.
pub const CRC_START: usize = 21;
const LENGTH_END: usize = 12;
const COMPRESSION: i16 = 0x07;
const APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// CRC-32C, as Kafka and the frames of the commit log use it.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The fixed part of a batch, decoded and checked for consistency with its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base_offset: i64,
    /// The whole batch in bytes, header included.
    pub size_bytes: usize,
    /// Stored CRC-32C.
    pub crc: u32,
    /// Attribute bits.
    pub attributes: i16,
    /// Offset of the last record less the base offset; offsets between may be absent.
    pub last_offset_delta: u32,
    /// Timestamp that record timestamps are relative to.
    pub base_timestamp: i64,
    /// The largest timestamp; of all records, where the log's own time is taken.
    pub max_timestamp: i64,
    /// Number of the producer that numbers its batches; -1 for one that does not.
    pub producer_id: i64,
    /// The producer's epoch.
    pub producer_epoch: i16,
    /// Sequence of the first record.
    pub base_sequence: i32,
    /// Number of records.
    pub record_count: u32,
}

impl BatchHeader {
    /// Decodes the header of the batch that `bytes` begins with. The batch itself may be longer than `bytes`.
    ///
    /// # Errors
    /// `Corrupt` where a field contradicts the format. The CRC is not computed here.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let Some(head) = bytes.get(..HEADER_LEN) else {
            return Err(Error::corrupt(format!("batch header cut at {} of {HEADER_LEN} bytes", bytes.len())));
        };
        let length = be_i32(head, 8);
        let header = Self {
            base_offset: be_i64(head, 0),
            size_bytes: LENGTH_END + usize::try_from(length).unwrap_or(0),
            crc: be_i32(head, 17) as u32,
            attributes: i16::from_be_bytes([head[21], head[22]]),
            last_offset_delta: u32::try_from(be_i32(head, 23)).unwrap_or(u32::MAX),
            base_timestamp: be_i64(head, 27),
            max_timestamp: be_i64(head, 35),
            producer_id: be_i64(head, 43),
            producer_epoch: i16::from_be_bytes([head[51], head[52]]),
            base_sequence: be_i32(head, 53),
            record_count: u32::try_from(be_i32(head, 57)).unwrap_or(u32::MAX),
        };
        let fault = if head[16] != 2 {
            Some(format!("magic {} is not 2", head[16]))
        } else if header.size_bytes < HEADER_LEN {
            Some(format!("length {length} is too small"))
        } else if header.base_offset < 0 || header.base_offset > i64::MAX / 2 {
            Some(format!("base offset {} is out of range", header.base_offset))
        } else if header.last_offset_delta > i32::MAX as u32 {
            Some("last offset delta is negative".to_owned())
        } else if header.record_count > header.last_offset_delta.saturating_add(1) {
            Some(format!("{} records in {} offsets", header.record_count, header.last_offset_delta + 1))
        } else {
            None
        };
        match fault {
            Some(fault) => Err(Error::corrupt(format!("batch header: {fault}"))),
            None => Ok(header),
        }
    }

    /// The offset after the batch's last one.
    pub fn next_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta) + 1
    }

    /// Whether the records are compressed.
    pub fn is_compressed(&self) -> bool {
        self.attributes & COMPRESSION != 0
    }

    /// Whether all records bear the time at which the log took them, which is `max_timestamp`.
    pub fn has_append_time(&self) -> bool {
        self.attributes & APPEND_TIME != 0
    }

    /// Whether the batch belongs to a transaction of Kafka's protocol.
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether it is the log's own mark of a transaction's end, and no records of anybody's.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Whether its producer numbers its batches.
    pub fn has_producer(&self) -> bool {
        self.producer_id >= 0
    }
}

/// One whole batch whose CRC holds.
#[derive(Debug, Clone)]
pub struct Batch {
    header: BatchHeader,
    bytes: Bytes,
}

impl Batch {
    /// Takes the batch that `bytes` begins with and checks its CRC. What follows the batch is left out.
    ///
    /// # Errors
    /// `Corrupt` where the bytes are no whole batch or the CRC differs.
    pub fn parse(bytes: &Bytes) -> Result<Self> {
        let header = BatchHeader::decode(bytes)?;
        if bytes.len() < header.size_bytes {
            return Err(Error::corrupt(format!("batch cut at {} of {} bytes", bytes.len(), header.size_bytes)));
        }
        let bytes = bytes.slice(..header.size_bytes);
        let found = crc32c(&bytes[CRC_START..]);
        if found != header.crc {
            return Err(Error::corrupt(format!("batch crc is {found:08x}, header says {:08x}", header.crc)));
        }
        Ok(Self { header, bytes })
    }

    /// Takes a batch that was checked before (when written, or when read from disk).
    pub(crate) fn trusted(header: BatchHeader, bytes: Bytes) -> Self {
        Self { header, bytes }
    }

    /// The fixed part.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch, as it goes over the wire.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The records, in order.
    pub fn records(&self) -> Records<'_> {
        Records::new(&self.header, &self.bytes)
    }
}

/// Writes the offset that the log assigned into a batch.
pub fn patch_base_offset(batch: &mut [u8], base_offset: i64) {
    batch[..8].copy_from_slice(&base_offset.to_be_bytes());
}

fn be_i32(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn be_i64(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
