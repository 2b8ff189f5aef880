//! The log's own topics in memory: topics, positions, writers, and so on. Each is a compacted topic of one partition
//! whose newest records per key are held here; the same function applies a record live and at recovery.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    batch::Batch,
    topic::{INTERNAL_PREFIX, PartitionId, TopicInfo},
};

/// First number of a user's partition; those below belong to the internal topics.
pub(super) const FIRST_USER_PARTITION: u32 = 16;

/// An internal topic that holds one record a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// Topics by name.
    Topics,
    /// Source positions by owner and name.
    Positions,
    /// Epochs of fenced writers by owner.
    Writers,
    /// Schemas of topics by id.
    Schemas,
    /// What groups have read.
    Groups,
    /// Ids of producers, and transactions of Kafka's protocol by their id.
    Producers,
    /// Where partitions begin whose records were deleted, by the partition's number.
    LogStarts,
}

impl Table {
    /// All tables, by their partition's number.
    pub const ALL: [Self; 7] =
        [Self::Topics, Self::Positions, Self::Writers, Self::Schemas, Self::Groups, Self::Producers, Self::LogStarts];

    /// The partition that holds the table.
    pub fn partition(self) -> PartitionId {
        PartitionId(self as u32)
    }

    fn of(partition: PartitionId) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.partition() == partition)
    }

    /// The topic's name.
    pub fn topic(self) -> String {
        let name = match self {
            Self::Topics => "topics",
            Self::Positions => "positions",
            Self::Writers => "writers",
            Self::Schemas => "schemas",
            Self::Groups => "groups",
            Self::Producers => "producers",
            Self::LogStarts => "log_starts",
        };
        format!("{INTERNAL_PREFIX}{name}")
    }
}

/// What a key's newest record says, and which record it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Offset of the record: the version that a replacement names.
    pub version: i64,
    /// The value, UTF-8.
    pub value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Catalog {
    #[serde(deserialize_with = "all_tables")]
    tables: Vec<BTreeMap<String, Entry>>,
    pub(super) next_partition: u32,
}

/// What applying a batch changed in the set of topics.
#[derive(Debug)]
pub(super) enum TopicChange {
    Created(TopicInfo),
    /// Other settings, or more partitions.
    Changed(TopicInfo),
    Deleted(TopicInfo),
    /// Records of a partition were deleted below an offset.
    LogStart(PartitionId, i64),
}

impl Catalog {
    pub(super) fn new() -> Self {
        Self { tables: vec![BTreeMap::new(); Table::ALL.len()], next_partition: FIRST_USER_PARTITION }
    }

    pub(super) fn table(&self, table: Table) -> &BTreeMap<String, Entry> {
        &self.tables[table as usize]
    }

    pub(super) fn topic(&self, name: &str) -> Option<TopicInfo> {
        let entry = self.table(Table::Topics).get(name)?;
        serde_json::from_str(&entry.value).ok()
    }

    pub(super) fn topics(&self) -> Vec<TopicInfo> {
        self.table(Table::Topics).values().filter_map(|entry| serde_json::from_str(&entry.value).ok()).collect()
    }

    /// Where partitions begin whose records were deleted.
    pub(super) fn log_starts(&self) -> Vec<(PartitionId, i64)> {
        let starts = self.table(Table::LogStarts).iter();
        starts.filter_map(|(id, entry)| Some((PartitionId(id.parse().ok()?), entry.value.parse().ok()?))).collect()
    }

    pub(super) fn writer_epoch(&self, owner: &str) -> u64 {
        self.table(Table::Writers).get(owner).and_then(|entry| entry.value.parse().ok()).unwrap_or(0)
    }

    /// Checks that a batch for an internal topic can be applied once it is durable, when nobody may refuse it any more.
    pub(super) fn check(partition: PartitionId, batch: &Batch) -> Result<()> {
        let Some(table) = Table::of(partition) else { return Ok(()) };
        if matches!(table, Table::Topics | Table::Producers | Table::LogStarts) {
            return Err(Error::invalid(format!("{} is not appended to", table.topic())));
        }
        for record in batch.records() {
            let record = record.map_err(|e| Error::invalid(e.message().to_owned()))?;
            let fields = [record.key, record.value];
            if fields.into_iter().flatten().any(|bytes| std::str::from_utf8(bytes).is_err()) {
                return Err(Error::invalid(format!("a record of {} is not UTF-8", table.topic())));
            }
        }
        Ok(())
    }

    /// Applies a durable batch of an internal topic; batches of other topics change nothing, nor do records older than
    /// what is known: a manifest's catalog may be newer than the place where replay begins.
    pub(super) fn apply(&mut self, partition: PartitionId, batch: &Batch) -> Result<Vec<TopicChange>> {
        let Some(table) = Table::of(partition) else { return Ok(Vec::new()) };
        let mut changes = Vec::new();
        for record in batch.records() {
            let record = record?;
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec());
            let key = text(record.key.unwrap_or_default()).map_err(|e| {
                Error::corrupt(format!("{}@{}: key is not UTF-8", table.topic(), record.offset)).with_source(e)
            })?;
            let value = record.value.map(text).transpose();
            let value = value.map_err(|e| Error::corrupt("metadata value is not UTF-8").with_source(e))?;
            if self.tables[table as usize].get(&key).is_some_and(|known| known.version > record.offset) {
                continue;
            }
            if table == Table::Topics {
                changes.extend(self.topic_change(&key, value.as_deref())?);
            }
            if table == Table::LogStarts
                && let (Ok(id), Some(Ok(to))) = (key.parse(), value.as_deref().map(str::parse))
            {
                changes.push(TopicChange::LogStart(PartitionId(id), to));
            }
            match value {
                Some(value) => self.tables[table as usize].insert(key, Entry { version: record.offset, value }),
                None => self.tables[table as usize].remove(&key),
            };
        }
        Ok(changes)
    }

    fn topic_change(&mut self, name: &str, value: Option<&str>) -> Result<Option<TopicChange>> {
        let Some(value) = value else {
            let deleted = self.topic(name);
            for id in deleted.iter().flat_map(|info| &info.partitions) {
                self.tables[Table::LogStarts as usize].remove(&id.0.to_string());
            }
            return Ok(deleted.map(TopicChange::Deleted));
        };
        let info: TopicInfo = serde_json::from_str(value)
            .map_err(|e| Error::corrupt(format!("topic record of {name:?} is malformed")).with_source(e))?;
        let after = info.partitions.iter().map(|p| p.0 + 1).max().unwrap_or(0);
        self.next_partition = self.next_partition.max(after);
        let known = self.topic(name).is_some_and(|known| known.id == info.id);
        Ok(Some(if known { TopicChange::Changed(info) } else { TopicChange::Created(info) }))
    }
}

/// A manifest written before a table existed has fewer of them.
fn all_tables<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> std::result::Result<Vec<BTreeMap<String, Entry>>, D::Error> {
    let mut tables = Vec::<BTreeMap<String, Entry>>::deserialize(from)?;
    if tables.len() > Table::ALL.len() {
        return Err(serde::de::Error::custom(format!("{} tables", tables.len())));
    }
    tables.resize(Table::ALL.len(), BTreeMap::new());
    Ok(tables)
}

/// The key under which an owner's position is stored.
pub(super) fn position_key(owner: &str, name: &str) -> Bytes {
    Bytes::from(format!("{owner}\u{1f}{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_of_fewer_tables_is_read() {
        let entry = r#"{"version":7,"value":"{\"name\":\"a\",\"id\":\"0f\",\"partitions\":[16],\"created_ms\":5}"}"#;
        let older = format!(r#"{{"tables":[{{"a":{entry}}},{{}},{{}},{{}}],"next_partition":17}}"#);
        let catalog: Catalog = serde_json::from_str(&older).unwrap();
        assert_eq!(catalog.topic("a").unwrap().config, crate::topic::TopicConfig::default());
        assert!(Table::ALL.into_iter().skip(4).all(|table| catalog.table(table).is_empty()));
        let newer = serde_json::to_string(&catalog).unwrap().replacen('[', "[{},", 1);
        assert!(serde_json::from_str::<Catalog>(&newer).is_err(), "more tables than this program knows");
    }
}
