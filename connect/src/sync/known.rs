//! What a log knows that decides whether a sync may run on it: shapes of topics, and what its other syncs follow and write.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidemill_core::log::{Session, Table};

use super::{owner_of, rounds::ENDS};
use crate::{Error, Result, converter::TopicSchema, sqlite};

/// What a log knows of its syncs. Empty where there is no log.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Known {
    /// The log's identity; empty where none is named.
    pub log_id: String,
    /// The schemas of topics that syncs write.
    pub schemas: Vec<TopicSchema>,
    /// The syncs that have begun, by name.
    pub syncs: BTreeMap<String, KnownSync>,
}

/// A sync that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownSync {
    /// Between which databases it runs; none where it only copies.
    pub ends: Option<Ends>,
    /// The identity of the capture in a SQLite file that feeds it.
    pub capture: Option<String>,
}

/// The databases of a sync, as [`Endpoint::identity`](crate::endpoint::Endpoint::identity) names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ends {
    /// Where rows come from.
    pub from: String,
    /// Where they go.
    pub to: String,
}

impl Known {
    /// Reads it from a log.
    ///
    /// # Errors
    /// Of the log.
    pub async fn of(session: &dyn Session) -> Result<Self> {
        let mut known = Self { log_id: session.log_id(), ..Self::default() };
        for entry in session.table(Table::Schemas).await?.values() {
            known.schemas.push(TopicSchema::decode(entry.value.as_bytes())?);
        }
        let mut names = Vec::new();
        for key in session.table(Table::Positions).await?.keys() {
            let sync =
                key.split('\u{1f}').next().and_then(|owner| owner.strip_prefix("sync/")?.strip_suffix("/source"));
            names.extend(sync.map(str::to_owned));
        }
        names.sort_unstable();
        names.dedup();
        for name in names {
            let stored = session.positions(&owner_of(&name)).await?;
            if stored.is_empty() {
                continue;
            }
            let ends = stored.get(ENDS).map(|ends| serde_json::from_str(ends)).transpose();
            let ends =
                ends.map_err(|e| Error::corrupt(format!("the ends of sync {name} are malformed")).with_source(e))?;
            known.syncs.insert(name, KnownSync { ends, capture: sqlite::source::capture_id(&stored)? });
        }
        Ok(known)
    }
}
