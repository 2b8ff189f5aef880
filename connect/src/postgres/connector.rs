//! A PostgreSQL database as a source: what a sync asks of it before and after it is followed.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::{
    catalog::{list_tables, match_tables},
    copy::Copier,
    endpoint::{PostgresServer, connect, literal, query, quoted_table},
    position::{CopyState, StreamPosition, decode},
    preflight::{preflight, preflight_tables},
    reader::{Reader, Rows},
    shape::Followed,
    slot::{create_slot, find_publication, object_name, publish, remove, shared_name},
    source::{Parts, PostgresSource, log_end},
    stream::Stream,
};
use crate::{
    Error, ErrorKind, Result,
    change::TableSchema,
    connector::{Finding, Follow, Source, SourceConnector, TableReader},
    patterns::leave_out,
    types::Dialect,
};

/// Tables smaller than this are counted; of larger ones the server's estimate does.
const COUNTED_BYTES: u64 = 8 << 20;

impl PostgresServer {
    /// Opens it to be followed.
    ///
    /// # Errors
    /// As [`SourceConnector::follow`].
    pub async fn open_source(&self, follow: Follow) -> Result<PostgresSource> {
        let mut side = connect(&self.server).await?;
        let end = if follow.once { Some(log_end(&mut side).await?) } else { None };
        if let Some(table) = follow.tables.iter().find(|table| table.key_columns().is_empty()) {
            let name = quoted_table(table.schema.as_deref(), &table.name);
            return Err(Error::unsupported(format!(
                "table {} has no key: ALTER TABLE {name} ADD PRIMARY KEY (...), or {}",
                table.full_name(),
                leave_out(&table.full_name())
            )));
        }
        let (server, by_hand) = (self.server.clone(), shared_name(&follow.sync));
        let Some((position, mut stored)) = decode(&follow.stored)? else {
            let name = object_name(&follow.sync, &follow.log_id);
            let publication = find_publication(&mut side, &follow.sync, &name).await?;
            publish(&mut side, &publication, &follow.tables, &[], true, &by_hand).await?;
            let lsn = create_slot(&mut side, &name).await?;
            let (stream, identity) = Stream::open_new(&self.server, &name, &publication, lsn).await?;
            let position = StreamPosition {
                system: identity.system,
                timeline: identity.timeline,
                slot: name.clone(),
                publication,
                lsn,
                partial: None,
            };
            let tables = follow.tables.into_iter().map(|table| Followed::new(table, None)).collect();
            let copier = Copier::new(&name, true);
            let parts = Parts { server, side, stream, position, tables, forgotten: Vec::new(), copier, end };
            return Ok(PostgresSource::new(parts));
        };
        let stream = Stream::resume(&self.server, &mut side, &position, position.lsn, true).await?;
        let mut published: Vec<TableSchema> = Vec::new();
        let (mut tables, mut begins, mut followed) = (Vec::new(), false, Vec::new());
        let now = log_end(&mut side).await?;
        for table in follow.tables {
            let name = table.full_name();
            published.push(table.clone());
            tables.push(match stored.remove(&name) {
                Some(known) if !follow.recopy.contains(&name) => {
                    if known.copy != CopyState::NotStarted {
                        followed.push(name);
                    }
                    Followed::known(known)
                }
                _ => {
                    begins = true;
                    Followed::new(table, Some(now))
                }
            });
        }
        let added = publish(&mut side, &position.publication, &published, &followed, false, &by_hand).await?;
        // What a table brought before it was published, or before it is copied anew, only the copy can tell.
        if added || begins {
            let now = log_end(&mut side).await?;
            for table in tables.iter_mut().filter(|table| !table.known) {
                table.from = Some(now);
            }
        }
        let copier = Copier::new(&position.slot, added || begins);
        for table in stored.keys() {
            tracing::warn!(table, "table is dropped or named no more; the target keeps it");
        }
        let forgotten = stored.into_keys().map(|name| format!("table/{name}")).collect();
        Ok(PostgresSource::new(Parts { server, side, stream, position, tables, forgotten, copier, end }))
    }
}

#[async_trait]
impl SourceConnector for PostgresServer {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    async fn tables(&self, patterns: &[String]) -> Result<Vec<TableSchema>> {
        let mut conn = connect(&self.server).await?;
        match_tables(patterns, &list_tables(&mut conn).await?)
    }

    async fn preflight(&self, sync: &str, log_id: &str, tables: &[TableSchema], once: bool) -> Result<Vec<Finding>> {
        let mut conn = connect(&self.server).await?;
        match once {
            true => preflight_tables(&mut conn, tables, true).await,
            false => preflight(&mut conn, sync, log_id, tables).await,
        }
    }

    fn makes(&self, sync: &str, tables: &[TableSchema]) -> Vec<String> {
        let name = object_name(sync, "");
        let tables: Vec<_> = tables.iter().map(TableSchema::full_name).collect();
        vec![
            format!("replication slot {name}<log>, which keeps WAL until this sync has it"),
            format!("publication {name}<log> for {}", tables.join(", ")),
        ]
    }

    async fn row_counts(&self, tables: &[TableSchema]) -> Vec<u64> {
        let mut counts = vec![0; tables.len()];
        // For progress only: what cannot be counted counts as nothing.
        let Ok(mut conn) = connect(&self.server).await else { return counts };
        for (count, table) in counts.iter_mut().zip(tables) {
            let name = quoted_table(table.schema.as_deref(), &table.name);
            let sql = format!(
                "SELECT pg_catalog.pg_total_relation_size(p.relid)::text, GREATEST(c.reltuples, 0)::bigint::text \
                 FROM (SELECT relid FROM pg_catalog.pg_partition_tree(to_regclass({0})) WHERE isleaf \
                 UNION SELECT to_regclass({0})) p JOIN pg_catalog.pg_class c ON c.oid = p.relid",
                literal(&name)
            );
            let Ok(rows) = query(&mut conn, "estimate rows", sql).await else { continue };
            let sum =
                |at: usize| -> u64 { rows.iter().filter_map(|row| row.get(at)?.as_ref()?.parse::<u64>().ok()).sum() };
            *count = sum(1);
            if sum(0) < COUNTED_BYTES
                && let Ok(rows) = query(&mut conn, "count rows", format!("SELECT count(*)::text FROM {name}")).await
            {
                let counted = rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok());
                *count = counted.unwrap_or(*count);
            }
        }
        counts
    }

    async fn follow(&self, follow: Follow) -> Result<Box<dyn Source>> {
        Ok(Box::new(self.open_source(follow).await?))
    }

    async fn read(&self, tables: Vec<TableSchema>) -> Result<Box<dyn Source>> {
        Ok(Box::new(Reader::open(self.server.clone(), tables).await?))
    }

    fn captured(&self, stored: &BTreeMap<String, String>) -> Result<Vec<String>> {
        Ok(decode(stored)?.map(|(_, tables)| tables.into_keys().collect()).unwrap_or_default())
    }

    async fn remove(
        &self,
        sync: &str,
        log_id: &str,
        stored: &BTreeMap<String, String>,
        force: bool,
    ) -> Result<Vec<String>> {
        let (name, publication) = match decode(stored) {
            Ok(Some((position, _))) => (position.slot, position.publication),
            _ => (object_name(sync, log_id), object_name(sync, log_id)),
        };
        // What an administrator made for the sync is his to keep.
        let by_hand = (publication == shared_name(sync)).then(|| {
            format!("publication {publication} was not made by this sync and stays; who made it may type: DROP PUBLICATION {publication}")
        });
        let shown = format!("postgres://{}", self.server);
        let removed = async { remove(&mut connect(&self.server).await?, &name, &shown).await };
        match removed.await {
            Err(error) if force && matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Denied) => {
                Ok(vec![format!(
                    "source {shown}: {error}; if it is there again, its slot keeps WAL until this is typed: SELECT \
                     pg_drop_replication_slot('{name}'); DROP PUBLICATION IF EXISTS {name}"
                )])
            }
            other => other
                .map(|said| said.into_iter().chain(by_hand.map(|said| format!("source {shown}: {said}"))).collect()),
        }
    }

    async fn reader(&self) -> Result<Box<dyn TableReader>> {
        Ok(Box::new(Rows::open(self.server.clone()).await?))
    }
}
