//! Rows that the target refuses: their keys are parked, so that all other rows go on.
//!
//! A parked key's later changes wait too, since they come after the one that failed. The first change that failed is also
//! written to the sync's dead-letter topic, with the cause in its headers. What is parked is known to the log before the
//! target's position passes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidemill_core::{
    log::{Session, Writer},
    record::{FetchedRecord, Header, Record, Timestamp},
    topic::{TopicPartition, TopicSpec},
};

use crate::{Error, ErrorKind, Result};

/// With more parked rows than this the sync stops: then it is not rows that are wrong.
pub const MAX_PARKED: usize = 1_000;
/// The last part of the dead-letter topic's name.
const DEAD_LETTERS: &str = "dead-letters";

/// The owner under which a sync's target half writes.
pub(super) fn owner_of(sync: &str) -> String {
    format!("sync/{sync}/target")
}

/// The topic of a sync's dead letters.
pub fn dead_letters_of(sync: &str) -> String {
    format!("{sync}.{DEAD_LETTERS}")
}

/// One parked key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedKey {
    /// The topic.
    pub topic: String,
    /// The key, as its records carry it.
    pub key: String,
    /// The offset of the change that failed.
    pub offset: i64,
    /// Why the target refused it.
    pub cause: String,
    /// When, in milliseconds since 1970.
    pub since_ms: i64,
}

/// The parked keys of a sync and the writer that makes them durable.
pub(super) struct Parked {
    sync: String,
    writer: Box<dyn Writer>,
    keys: BTreeMap<(String, String), ParkedKey>,
}

impl Parked {
    /// Reads what is parked; an older worker of the sync can park no more.
    pub(super) async fn open(session: &dyn Session, sync: &str) -> Result<Self> {
        let writer = session.writer(&owner_of(sync)).await?;
        let keys = decode(writer.positions())?;
        Ok(Self { sync: sync.to_owned(), writer, keys })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn all(&self) -> Vec<ParkedKey> {
        self.keys.values().cloned().collect()
    }

    /// The parked key that a record has.
    pub(super) fn find(&self, topic: &str, record: &FetchedRecord) -> Option<&ParkedKey> {
        if self.keys.is_empty() {
            return None;
        }
        let key = record.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        self.keys.get(&(topic.to_owned(), key.into_owned()))
    }

    /// Parks a record's key and writes the record to the dead letters.
    ///
    /// # Errors
    /// `Conflict` where too many are parked.
    pub(super) async fn park(
        &mut self,
        session: &dyn Session,
        topic: &str,
        record: &FetchedRecord,
        cause: &Error,
        now: Timestamp,
    ) -> Result<()> {
        if self.keys.len() >= MAX_PARKED {
            return Err(Error::conflict(format!(
                "the target refuses more than {MAX_PARKED} rows; the last: {cause}; mend the target, then: tidemill sync run FILE"
            )));
        }
        let letters = dead_letters_of(&self.sync);
        if session.topic(&letters).await?.is_none() {
            match session.create_topic(&letters, &TopicSpec::default()).await {
                Err(error) if error.kind() != ErrorKind::Conflict => return Err(error),
                _ => {}
            }
        }
        let key = record.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default().into_owned();
        let parked = ParkedKey {
            topic: topic.to_owned(),
            key,
            offset: record.offset,
            cause: cause.to_string(),
            since_ms: now.0,
        };
        let told = [
            ("tm-topic", topic.to_owned()),
            ("tm-offset", record.offset.to_string()),
            ("tm-error", parked.cause.clone()),
        ];
        let headers = told.map(|(name, value)| Header::text(name, value)).into_iter().chain(record.headers.clone());
        let letter = Record {
            key: record.key.clone(),
            value: record.value.clone(),
            headers: headers.collect(),
            timestamp: Some(now),
        };
        self.writer.append(&TopicPartition::new(&letters, 0), vec![letter]).await?;
        let value =
            serde_json::to_string(&parked).map_err(|e| Error::internal("encode a parked key").with_source(e))?;
        self.writer.set_position(&name_of(&parked), Some(value));
        self.writer.commit().await?;
        self.keys.insert((parked.topic.clone(), parked.key.clone()), parked);
        Ok(())
    }

    /// Lets keys go.
    pub(super) async fn release(&mut self, released: &[ParkedKey]) -> Result<()> {
        for parked in released {
            self.writer.set_position(&name_of(parked), None);
        }
        self.writer.commit().await?;
        for parked in released {
            self.keys.remove(&(parked.topic.clone(), parked.key.clone()));
        }
        Ok(())
    }
}

/// What is parked in a sync, by the log alone.
///
/// # Errors
/// Of the log.
pub async fn parked_of(session: &dyn Session, sync: &str) -> Result<Vec<ParkedKey>> {
    Ok(decode(&session.positions(&owner_of(sync)).await?)?.into_values().collect())
}

fn name_of(parked: &ParkedKey) -> String {
    format!("parked/{}/{}", parked.topic, parked.key)
}

fn decode(positions: &BTreeMap<String, String>) -> Result<BTreeMap<(String, String), ParkedKey>> {
    let parked = positions.iter().filter(|(name, _)| name.starts_with("parked/")).map(|(_, value)| {
        let parked: ParkedKey = serde_json::from_str(value)
            .map_err(|e| Error::corrupt("a parked key's record is malformed").with_source(e))?;
        Ok(((parked.topic.clone(), parked.key.clone()), parked))
    });
    parked.collect()
}
