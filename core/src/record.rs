//! A record: what users write and read. Batches of them are what is stored.

use bytes::Bytes;

/// An instant in milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

/// A named value beside a record's key and value. Names may repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The name, UTF-8.
    pub name: Bytes,
    /// The value; `None` is null.
    pub value: Option<Bytes>,
}

impl Header {
    /// A header of a text value.
    pub fn text(name: &'static str, value: impl Into<String>) -> Self {
        Self { name: Bytes::from_static(name.as_bytes()), value: Some(Bytes::from(value.into())) }
    }
}

/// A record to be appended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The key; decides the partition and what a compacted topic keeps.
    pub key: Option<Bytes>,
    /// The value; null is a tombstone in a compacted topic.
    pub value: Option<Bytes>,
    /// Named values, in order.
    pub headers: Vec<Header>,
    /// When it happened; `None` takes the time of the append.
    pub timestamp: Option<Timestamp>,
}

impl Record {
    /// A record of a key and a value, stamped when appended.
    pub fn new(key: impl Into<Option<Bytes>>, value: impl Into<Option<Bytes>>) -> Self {
        Self { key: key.into(), value: value.into(), ..Self::default() }
    }

    /// The bytes a budget counts for this record: key, value and headers.
    pub fn size_bytes(&self) -> usize {
        let headers = self.headers.iter().map(|h| h.name.len() + h.value.as_ref().map_or(0, Bytes::len));
        self.key.as_ref().map_or(0, Bytes::len) + self.value.as_ref().map_or(0, Bytes::len) + headers.sum::<usize>()
    }
}

/// A record as fetched: its place and its bytes, which share the memory of the batch they came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedRecord {
    /// Its offset in the partition.
    pub offset: i64,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// Its headers.
    pub headers: Vec<Header>,
}

impl FetchedRecord {
    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().find(|h| h.name == name.as_bytes()).and_then(|h| h.value.as_ref())
    }
}
