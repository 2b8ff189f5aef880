//! The schemas of topics, as the log keeps them: found, made, evolved.

use std::{collections::HashMap, sync::Arc};

use tidemill_core::{
    log::{Session, Table},
    record::FetchedRecord,
};

use crate::{
    Error, ErrorKind, Result,
    change::{Change, TableSchema},
    converter::{SCHEMA_HEADER, TopicSchema},
};

/// All schemas of the log, by id.
#[derive(Debug, Clone, Default)]
pub(super) struct Schemas {
    by_id: HashMap<u64, Arc<TopicSchema>>,
}

impl Schemas {
    pub(super) async fn load(session: &dyn Session) -> Result<Self> {
        let mut schemas = Self::default();
        for entry in session.table(Table::Schemas).await?.values() {
            schemas.add(TopicSchema::decode(entry.value.as_bytes())?);
        }
        Ok(schemas)
    }

    pub(super) fn add(&mut self, schema: TopicSchema) {
        self.by_id.insert(schema.id, Arc::new(schema));
    }

    /// The newest schema of a topic.
    pub(super) fn newest(&self, topic: &str) -> Option<&Arc<TopicSchema>> {
        self.by_id.values().filter(|schema| schema.topic == topic).max_by_key(|schema| schema.id)
    }

    /// Whether the schema that a record names is known; later ones may have been made since the load.
    pub(super) fn know(&self, record: &FetchedRecord) -> bool {
        named(record).is_none_or(|id| self.by_id.contains_key(&id))
    }

    /// The change a record holds and the schema it was written with; `None` for a tombstone.
    pub(super) fn decode(&self, record: &FetchedRecord) -> Result<Option<(&Arc<TopicSchema>, Change)>> {
        if record.value.is_none() {
            return Ok(None);
        }
        let schema = self.of(record)?;
        Ok(schema.decode_record(record)?.map(|change| (schema, change)))
    }

    /// The schema a record was written with.
    pub(super) fn of(&self, record: &FetchedRecord) -> Result<&Arc<TopicSchema>> {
        let id = named(record);
        let schema = id.and_then(|id| self.by_id.get(&id));
        schema.ok_or_else(|| {
            Error::corrupt(format!("record at offset {} names schema {id:?}, which is unknown", record.offset))
        })
    }
}

fn named(record: &FetchedRecord) -> Option<u64> {
    let id = record.header(SCHEMA_HEADER)?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// The schema of a topic's present copy that is the draft's, if there is one; else the draft under a number of its own,
/// which begins a new copy. `anew` begins one in any case.
pub(super) async fn find_or_make(session: &dyn Session, draft: &TopicSchema, anew: bool) -> Result<TopicSchema> {
    put(session, |schemas| {
        let copy = schemas.newest(&draft.topic).filter(|_| !anew).map(|newest| newest.copy_id());
        let same = |s: &&Arc<TopicSchema>| {
            s.topic == draft.topic && Some(s.copy_id()) == copy && s.table == draft.table && s.kinds == draft.kinds
        };
        match schemas.by_id.values().filter(same).max_by_key(|schema| schema.id) {
            Some(present) => Found::There((**present).clone()),
            None => Found::New(draft.clone()),
        }
    })
    .await
}

/// The schema of the same copy with other columns. After a crash it may be there already.
pub(super) async fn evolve(session: &dyn Session, present: &TopicSchema, table: TableSchema) -> Result<TopicSchema> {
    let draft = TopicSchema::draft(&present.sync, present.connector, &table);
    let draft = TopicSchema { copy: Some(present.copy_id()), topic: present.topic.clone(), ..draft };
    put(session, |schemas| {
        let same = |s: &&Arc<TopicSchema>| {
            s.topic == draft.topic && s.copy_id() == present.copy_id() && s.table == draft.table && s.id > present.id
        };
        match schemas.by_id.values().find(same) {
            Some(there) => Found::There((**there).clone()),
            None => Found::New(draft.clone()),
        }
    })
    .await
}

enum Found {
    There(TopicSchema),
    New(TopicSchema),
}

/// Looks, and stores what is new under the next number; looks again where another was faster.
async fn put(session: &dyn Session, look: impl Fn(&Schemas) -> Found) -> Result<TopicSchema> {
    loop {
        let schemas = Schemas::load(session).await?;
        let draft = match look(&schemas) {
            Found::There(schema) => return Ok(schema),
            Found::New(draft) => draft,
        };
        let id = schemas.by_id.keys().max().unwrap_or(&0) + 1;
        let schema = TopicSchema { id, ..draft };
        let value = serde_json::to_string(&schema).map_err(|e| Error::internal("encode a schema").with_source(e))?;
        match session.put(Table::Schemas, &TopicSchema::record_key(id), Some(value), None).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            other => return other.map(|_| schema),
        }
    }
}
