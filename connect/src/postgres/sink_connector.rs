//! A PostgreSQL database as a target: opened, replaced, forgotten.

use async_trait::async_trait;
use sqlx::PgConnection;

use super::{
    endpoint::{PostgresServer, connect, execute, literal, query_one},
    sink::PostgresSink,
    sink_positions::stored,
    sink_table as table,
};
use crate::{
    Error, Result,
    connector::{Finding, Sink, SinkConnector, SourceConnector, TableReader},
    converter::TopicSchema,
    target::{Existing, POSITIONS, ledger::Ledger},
    translate::{Translation, check_names},
    types::Dialect,
};

#[async_trait]
impl SinkConnector for PostgresServer {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    async fn preflight(&self, sync: &str, log_id: &str, tables: &[TopicSchema]) -> Result<Vec<Finding>> {
        super::sink_preflight::preflight(self, sync, log_id, tables).await
    }

    async fn open(&self, sync: &str, log_id: &str) -> Result<Box<dyn Sink>> {
        Ok(Box::new(PostgresSink::open(self, sync, log_id).await?))
    }

    async fn replace(&self, sync: &str, log_id: &str, tables: &[TopicSchema]) -> Result<(Box<dyn Sink>, Vec<String>)> {
        check_names(tables, Dialect::Postgres)?;
        let mut conn = connect(&self.server).await?;
        let doing = || format!("replace tables of target postgres://{}", self.server);
        execute(&mut conn, &doing(), "BEGIN").await?;
        let known = stored(&mut conn, sync, true).await?.is_some();
        let mut dropped = Vec::new();
        for schema in tables {
            if known {
                give_up_rows_of_others(&mut conn, sync, log_id, schema).await?;
            }
            let table = Translation::new(schema, Dialect::Postgres).table().clone();
            if table::state(&mut conn, &table).await? != Existing::No {
                table::drop_table(&mut conn, &table).await?;
                dropped.push(table.full_name());
            }
        }
        if known {
            let forget = format!("DELETE FROM public.{POSITIONS} WHERE sync = {}", literal(sync));
            execute(&mut conn, &doing(), forget).await?;
        }
        execute(&mut conn, &doing(), "COMMIT").await?;
        Ok((Box::new(PostgresSink::open(self, sync, log_id).await?), dropped))
    }

    async fn forget(&self, sync: &str, log_id: &str) -> Result<Option<String>> {
        let target = format!("postgres://{}", self.server);
        let mut conn = connect(&self.server).await?;
        let doing = "forget the sync's positions";
        execute(&mut conn, doing, "BEGIN").await?;
        let Some(rows) = stored(&mut conn, sync, true).await? else { return Ok(None) };
        Ledger::new(sync, log_id).check_owner(&target, &rows)?;
        execute(&mut conn, doing, format!("DELETE FROM public.{POSITIONS} WHERE sync = {}", literal(sync))).await?;
        let left = query_one(&mut conn, doing, format!("SELECT count(*)::text FROM public.{POSITIONS}")).await?;
        if left.as_deref() == Some("0") {
            execute(&mut conn, doing, format!("DROP TABLE public.{POSITIONS}")).await?;
        }
        execute(&mut conn, doing, "COMMIT").await?;
        Ok(Some(format!("target {target}: positions removed, its tables stay")))
    }

    async fn reader(&self) -> Result<Box<dyn TableReader>> {
        SourceConnector::reader(self).await
    }
}

/// Forgets that syncs of other logs wrote a table that is about to go; refuses where one of this log does.
async fn give_up_rows_of_others(conn: &mut PgConnection, sync: &str, log_id: &str, schema: &TopicSchema) -> Result<()> {
    let doing = "read the target's positions";
    let suffix = literal(schema.topic.strip_prefix(sync).unwrap_or(&schema.topic));
    let others = format!(
        "FROM public.{POSITIONS} WHERE sync <> {} AND split_part(topic, '#', 1) = sync || {suffix}",
        literal(sync)
    );
    let sql = format!("SELECT sync {others} AND log_id = {} LIMIT 1", literal(log_id));
    if let Some(other) = query_one(conn, doing, sql).await? {
        return Err(Error::conflict(format!(
            "target table {} is written by sync {other} of this log: remove that one first",
            schema.table.full_name()
        )));
    }
    execute(conn, doing, format!("DELETE {others}")).await
}
