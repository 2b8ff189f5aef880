//! Rows that are gone from the source without an event of their own: a delete for each that the topic has.

use std::collections::HashMap;

use tidemill_core::{
    log::{FetchOptions, Session},
    record::FetchedRecord,
    topic::TopicPartition,
};

use super::{
    reconcile::{Gone, KeyHash, gone, hash_key, scan},
    schemas::Schemas,
};
use crate::{Result, change::Op, converter::TopicSchema};

/// About so many bytes of the topic are looked through at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Live rows of one topic, by the offset of their newest record: some 40 bytes each.
pub(super) struct Deletes {
    partition: TopicPartition,
    newest: HashMap<KeyHash, i64>,
    offset: i64,
    end: i64,
}

impl Deletes {
    /// Looks through a topic for those of its rows that are gone. What is in an open transaction is not seen.
    pub(super) async fn of(
        session: &dyn Session,
        topic: &str,
        is_gone: impl Fn(&KeyHash) -> bool + Send + Sync,
    ) -> Result<Self> {
        let partition = TopicPartition::new(topic, 0);
        let mut newest = HashMap::new();
        let bounds = session.bounds(std::slice::from_ref(&partition)).await?;
        let (offset, end) = bounds.first().map_or((0, 0), |b| (b.log_start_offset, b.durable_offset));
        scan(session, topic, |record| {
            let Some(key) = &record.key else { return Ok(()) };
            let key = hash_key(key);
            match record.value {
                // Of an event that deletes, the tombstone follows.
                Some(_) if is_gone(&key) => newest.insert(key, record.offset),
                Some(_) => None,
                None => newest.remove(&key),
            };
            Ok(())
        })
        .await?;
        Ok(Self { partition, newest, offset, end })
    }

    /// The next rows to delete; none where all are given out. `present` is the topic's schema now; `kept` as for [`gone`].
    pub(super) async fn next(
        &mut self,
        session: &dyn Session,
        schemas: &Schemas,
        present: &TopicSchema,
        kept: bool,
    ) -> Result<Option<Vec<Gone>>> {
        while self.offset < self.end && !self.newest.is_empty() {
            let options = FetchOptions { max_bytes: CHUNK_BYTES, end: Some(self.end), ..FetchOptions::default() };
            let chunk = session.fetch(&self.partition, self.offset, &options).await?;
            self.offset = chunk.next_offset;
            let mut changes = Vec::new();
            for record in &chunk.records {
                changes.extend(self.delete(record, schemas, present, kept)?);
            }
            if !changes.is_empty() {
                return Ok(Some(changes));
            }
        }
        Ok(None)
    }

    fn delete(
        &self,
        record: &FetchedRecord,
        schemas: &Schemas,
        present: &TopicSchema,
        kept: bool,
    ) -> Result<Option<Gone>> {
        let Some(key) = &record.key else { return Ok(None) };
        if self.newest.get(&hash_key(key)) != Some(&record.offset) {
            return Ok(None);
        }
        let Some((schema, change)) = schemas.decode(record)? else { return Ok(None) };
        Ok((change.op != Op::Delete).then(|| gone(key.clone(), schema, change, present, kept)))
    }
}
