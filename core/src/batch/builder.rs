//! Encodes records into a batch.

use bytes::Bytes;

use super::{CRC_START, HEADER_LEN, crc32c};
use crate::{
    Error, Result,
    record::{Header, Record, Timestamp},
};

/// Largest batch that is accepted, header included.
pub const MAX_BATCH_BYTES: usize = 1 << 30;

/// Builds one batch, record by record. The base offset is 0 until the log assigns it.
#[derive(Debug)]
pub struct BatchBuilder {
    buf: Vec<u8>,
    body: Vec<u8>,
    count: u32,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self { buf: vec![0; HEADER_LEN], body: Vec::new(), count: 0, base_timestamp: 0, max_timestamp: i64::MIN }
    }
}

impl BatchBuilder {
    /// Adds a record; `now` stamps one without a timestamp.
    ///
    /// # Errors
    /// `Invalid` where the batch would exceed what its format can say.
    pub fn push(&mut self, record: &Record, now: Timestamp) -> Result<()> {
        if self.buf.len() + record.size_bytes() > MAX_BATCH_BYTES || self.count == i32::MAX as u32 {
            return Err(Error::invalid(format!("batch exceeds {MAX_BATCH_BYTES} bytes")));
        }
        let timestamp = record.timestamp.unwrap_or(now).0;
        if self.count == 0 {
            self.base_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.body.clear();
        self.body.push(0);
        put_varint(&mut self.body, timestamp.wrapping_sub(self.base_timestamp));
        put_varint(&mut self.body, i64::from(self.count));
        put_bytes(&mut self.body, record.key.as_deref());
        put_bytes(&mut self.body, record.value.as_deref());
        put_varint(&mut self.body, record.headers.len() as i64);
        for Header { name, value } in &record.headers {
            put_bytes(&mut self.body, Some(name));
            put_bytes(&mut self.body, value.as_deref());
        }
        put_varint(&mut self.buf, self.body.len() as i64);
        self.buf.extend_from_slice(&self.body);
        self.count += 1;
        Ok(())
    }

    /// The batch's size so far.
    pub fn size_bytes(&self) -> usize {
        self.buf.len()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Ends the batch. One without records is valid and takes one offset.
    pub fn finish(self) -> Bytes {
        self.finish_as(-1, -1, -1, false)
    }

    /// Ends the batch as one of a producer that numbers its records.
    pub fn finish_as(mut self, producer_id: i64, epoch: i16, base_sequence: i32, transactional: bool) -> Bytes {
        let buf = &mut self.buf;
        let length = (buf.len() - 12) as i32;
        buf[8..12].copy_from_slice(&length.to_be_bytes());
        buf[16] = 2;
        if transactional {
            buf[22] |= super::TRANSACTIONAL as u8;
        }
        buf[23..27].copy_from_slice(&(self.count.max(1) - 1).to_be_bytes());
        buf[27..35].copy_from_slice(&self.base_timestamp.to_be_bytes());
        buf[35..43].copy_from_slice(&self.max_timestamp.to_be_bytes());
        buf[43..51].copy_from_slice(&producer_id.to_be_bytes());
        buf[51..53].copy_from_slice(&epoch.to_be_bytes());
        buf[53..57].copy_from_slice(&base_sequence.to_be_bytes());
        buf[57..61].copy_from_slice(&self.count.to_be_bytes());
        let crc = crc32c(&buf[CRC_START..]);
        buf[17..21].copy_from_slice(&crc.to_be_bytes());
        Bytes::from(self.buf)
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

/// Zig-zag variable-length integer, seven bits a byte, low bits first.
pub(super) fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut bits = ((value << 1) ^ (value >> 63)) as u64;
    while bits >= 0x80 {
        out.push(bits as u8 | 0x80);
        bits >>= 7;
    }
    out.push(bits as u8);
}
