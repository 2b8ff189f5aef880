//! How far groups have read, as records of the log's own topic: one for each group and partition.
//!
//! The record names the partition by its id, which is never used again: an offset of a topic that was deleted, or made
//! anew since, counts no more, whatever is left of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    batch::BatchBuilder,
    engine::{Books, Entry, Table},
    record::{Record, Timestamp},
    topic::{PartitionId, TopicPartition},
};

/// Records that are looked at under one lock.
const AT_ONCE: usize = 1000;

/// Bytes of what is written without waiting for room, in one batch.
const SOON_BYTES: usize = 16 << 10;

const SEPARATOR: char = '\u{1f}';

/// An offset to commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewOffset {
    /// The offset to go on from.
    pub offset: i64,
    /// The leader epoch of the record before it, as far as known.
    pub leader_epoch: Option<i32>,
    /// What the member remembers beside it.
    pub metadata: String,
    /// When it is forgotten, by the committer's wish; else the group's retention counts.
    pub expires: Option<Timestamp>,
}

/// A committed offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The offset to go on from.
    pub offset: i64,
    /// The partition that it is of.
    #[serde(rename = "id")]
    pub partition: PartitionId,
    /// When it was committed, ms since 1970 UTC.
    pub at_ms: i64,
    /// The leader epoch of the record before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_epoch: Option<i32>,
    /// What the member remembers beside it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    /// When it is forgotten, by the committer's wish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<i64>,
    /// What was committed, where the partition's end was before it when the log was opened: records were lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_from: Option<i64>,
}

/// The key of a group's offset.
pub(crate) fn key(group: &str, of: &TopicPartition) -> String {
    format!("{group}{SEPARATOR}{}{SEPARATOR}{}", of.topic, of.partition)
}

/// What the keys of a group's offsets begin with; those of other groups may, too.
pub(crate) fn prefix(group: &str) -> String {
    format!("{group}{SEPARATOR}")
}

/// Group and partition of a key. A group's name may hold anything, a topic's may not.
pub(crate) fn parse_key(key: &str) -> Option<(&str, TopicPartition)> {
    let mut parts = key.rsplitn(3, SEPARATOR);
    let (partition, topic, group) = (parts.next()?, parts.next()?, parts.next()?);
    Some((group, TopicPartition::new(topic, partition.parse().ok()?)))
}

/// A record as it was read; one that this program cannot read counts as none.
pub(crate) fn parse(value: &str) -> Option<Committed> {
    serde_json::from_str(value).ok()
}

/// The key of the record that says since when a group with offsets has no members.
pub(crate) fn idle_key(group: &str) -> String {
    prefix(group)
}

/// The group of such a key; it is none of an offset.
pub(crate) fn parse_idle_key(key: &str) -> Option<&str> {
    key.strip_suffix(SEPARATOR)
}

/// A record's key and value; no value deletes the key.
pub(crate) type Written = (String, Option<String>);

/// The record of an offset.
pub(crate) fn written(key: String, committed: &Committed) -> Result<Written> {
    let value = serde_json::to_string(committed);
    Ok((key, Some(value.map_err(|e| Error::internal("encode an offset").with_source(e))?)))
}

/// Writes records without waiting for room or the disk, in small batches.
pub(crate) fn write_soon(books: Books<'_>, records: Vec<Written>) {
    let now = books.clock().now();
    let (mut some, mut bytes) = (Vec::new(), 0);
    for record in records {
        bytes += record.0.len() + record.1.as_ref().map_or(0, String::len) + 32;
        some.push(record);
        if bytes >= SOON_BYTES {
            books.append_soon(batch(std::mem::take(&mut some), now));
            bytes = 0;
        }
    }
    books.append_soon(batch(some, now));
}

/// Records of the offsets' topic as one batch.
pub(crate) fn batch(records: Vec<Written>, now: Timestamp) -> Result<Vec<(PartitionId, Bytes)>> {
    let mut builder = BatchBuilder::default();
    for (key, value) in records {
        builder.push(&Record::new(Bytes::from(key), value.map(Bytes::from)), now)?;
    }
    Ok(match builder.is_empty() {
        true => Vec::new(),
        false => vec![(Table::Groups.partition(), builder.finish())],
    })
}

/// A group's offsets of partitions that exist.
pub(crate) fn of_group(books: Books<'_>, group: &str) -> BTreeMap<TopicPartition, Committed> {
    let (prefix, mut places) = (prefix(group), books.places());
    let mut found = BTreeMap::new();
    walk(books, &prefix, |key, entry| {
        let is_near = key.starts_with(&prefix);
        if let Some((_, of)) = parse_key(key).filter(|(name, _)| *name == group)
            && let Some(committed) = parse(&entry.value).filter(|found| places.find(&of) == Some(found.partition))
        {
            found.insert(of, committed);
        }
        is_near
    });
    found
}

/// Shows all records from a key on, as long as they are wanted.
pub(crate) fn walk(books: Books<'_>, from: &str, mut show: impl FnMut(&str, &Entry) -> bool) {
    let mut from = from.to_owned();
    loop {
        let some = books.range(Table::Groups, &from, AT_ONCE);
        if !some.iter().all(|(key, entry)| show(key, entry)) || some.len() < AT_ONCE {
            return;
        }
        if let Some((last, _)) = some.last() {
            // The first key behind it.
            from = format!("{last}\0");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_any_group_are_read_back() {
        for group in ["g", "", "a\u{1f}t\u{1f}1", "ä\n"] {
            let of = TopicPartition::new("shop.items", 17);
            let key = key(group, &of);
            assert_eq!(parse_key(&key), Some((group, of)));
            assert!(key.starts_with(&prefix(group)));
            assert_eq!(parse_key(&idle_key(group)), None);
            assert_eq!(parse_idle_key(&idle_key(group)), Some(group));
            assert_eq!(parse_idle_key(&key), None);
        }
        for bad in ["", "g", "g\u{1f}t", "g\u{1f}t\u{1f}x", "g\u{1f}t\u{1f}-1"] {
            assert_eq!(parse_key(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn records_are_as_the_format_says() {
        let plain = Committed {
            offset: 120,
            partition: PartitionId(16),
            at_ms: 5,
            leader_epoch: None,
            metadata: String::new(),
            expires_ms: None,
            lost_from: None,
        };
        assert_eq!(serde_json::to_string(&plain).unwrap(), r#"{"offset":120,"id":16,"at_ms":5}"#);
        let full = Committed {
            leader_epoch: Some(3),
            metadata: "ä".into(),
            expires_ms: Some(9),
            lost_from: Some(130),
            ..plain
        };
        let text = r#"{"offset":120,"id":16,"at_ms":5,"leader_epoch":3,"metadata":"ä","expires_ms":9,"lost_from":130}"#;
        assert_eq!(serde_json::to_string(&full).unwrap(), text);
        assert_eq!(parse(text), Some(full));
        assert_eq!(parse("{}"), None);
    }
}
