//! Reads records out of a batch without copying: the hot loop of every reader.

use bytes::Bytes;

use super::{BatchHeader, HEADER_LEN};
use crate::{
    Error, Result,
    record::{FetchedRecord, Header, Timestamp},
};

/// One record of a batch; its slices point into the batch.
#[derive(Debug, Clone, Copy)]
pub struct RecordRef<'a> {
    /// Its offset.
    pub offset: i64,
    /// Its timestamp.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
    /// Its headers, not yet decoded.
    pub headers: Headers<'a>,
}

impl RecordRef<'_> {
    /// The record as a value of its own that shares the memory of `batch`, the bytes it was scanned from.
    ///
    /// # Errors
    /// `Corrupt` where a header is malformed.
    pub fn to_owned_in(&self, batch: &Bytes) -> Result<FetchedRecord> {
        let own = |slice: &[u8]| batch.slice_ref(slice);
        let headers = self
            .headers
            .map(|header| header.map(|HeaderRef { name, value }| Header { name: own(name), value: value.map(own) }));
        Ok(FetchedRecord {
            offset: self.offset,
            timestamp: Timestamp(self.timestamp),
            key: self.key.map(own),
            value: self.value.map(own),
            headers: headers.collect::<Result<_>>()?,
        })
    }
}

/// Iterates over the records of one batch. A malformed record ends it with an error.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    cursor: Cursor<'a>,
    left: u32,
    base_offset: i64,
    last_offset_delta: i64,
    base_timestamp: i64,
    /// The log's own time, which all records bear.
    append_time: Option<i64>,
    fault: Option<&'static str>,
}

impl<'a> Records<'a> {
    pub(super) fn new(header: &BatchHeader, batch: &'a [u8]) -> Self {
        Self {
            cursor: Cursor { rest: batch.get(HEADER_LEN..).unwrap_or_default() },
            left: header.record_count,
            base_offset: header.base_offset,
            last_offset_delta: i64::from(header.last_offset_delta),
            base_timestamp: header.base_timestamp,
            append_time: header.has_append_time().then_some(header.max_timestamp),
            fault: header.is_compressed().then_some("compressed records are not supported yet"),
        }
    }

    /// The bytes of the records still to come.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.cursor.rest
    }

    /// Whether no byte is left after the last record.
    pub(super) fn is_used_up(&self) -> bool {
        self.left == 0 && self.cursor.rest.is_empty()
    }

    fn record(&mut self) -> Option<RecordRef<'a>> {
        let length = usize::try_from(self.cursor.varint()?).ok()?;
        let mut body = Cursor { rest: self.cursor.take(length)? };
        body.take(1)?;
        let timestamp = self.base_timestamp.wrapping_add(body.varint()?);
        let timestamp = self.append_time.unwrap_or(timestamp);
        let delta = body.varint()?;
        if !(0..=self.last_offset_delta).contains(&delta) {
            return None;
        }
        let key = body.nullable_bytes()?;
        let value = body.nullable_bytes()?;
        let count = usize::try_from(body.varint()?).ok()?;
        let headers = Headers { cursor: body, left: count };
        Some(RecordRef { offset: self.base_offset + delta, timestamp, key, value, headers })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RecordRef<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        if let Some(fault) = self.fault.take() {
            self.left = 0;
            return Some(Err(Error::unsupported(fault)));
        }
        self.left -= 1;
        let record = self.record();
        if record.is_none() {
            self.left = 0;
        }
        Some(record.ok_or_else(|| Error::corrupt("batch holds a malformed record")))
    }
}

/// A header of a record, by reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderRef<'a> {
    /// The name; UTF-8 if the producer kept to the format.
    pub name: &'a [u8],
    /// The value; `None` is null.
    pub value: Option<&'a [u8]>,
}

/// Iterates over the headers of one record.
#[derive(Debug, Clone, Copy)]
pub struct Headers<'a> {
    cursor: Cursor<'a>,
    left: usize,
}

impl<'a> Headers<'a> {
    /// The value of the first header of this name; `None` where there is none, or a null.
    pub fn get(mut self, name: &str) -> Option<&'a [u8]> {
        self.find_map(|header| header.ok().filter(|h| h.name == name.as_bytes()).and_then(|h| h.value))
    }

    /// Whether no byte of the record is left after the last header.
    pub(super) fn is_used_up(&self) -> bool {
        self.left == 0 && self.cursor.rest.is_empty()
    }

    fn header(&mut self) -> Option<HeaderRef<'a>> {
        let name = self.cursor.nullable_bytes()??;
        Some(HeaderRef { name, value: self.cursor.nullable_bytes()? })
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = Result<HeaderRef<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let header = self.header();
        if header.is_none() {
            self.left = 0;
        }
        Some(header.ok_or_else(|| Error::corrupt("record holds a malformed header")))
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    #[inline]
    pub(super) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(taken)
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Option<i64> {
        let mut bits = 0u64;
        for (i, byte) in self.rest.iter().enumerate().take(10) {
            bits |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[i + 1..];
                return Some((bits >> 1) as i64 ^ -((bits & 1) as i64));
            }
        }
        None
    }

    #[inline]
    fn nullable_bytes(&mut self) -> Option<Option<&'a [u8]>> {
        let length = self.varint()?;
        if length == -1 {
            return Some(None);
        }
        self.take(usize::try_from(length).ok()?).map(Some)
    }
}
