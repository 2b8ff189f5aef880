//! A database of MariaDB or MySQL as a target: opened, replaced, forgotten.

use async_trait::async_trait;
use mysql_async::Conn;

use super::{
    endpoint::{MysqlServer, connect},
    sink::{MysqlSink, first},
    sink_positions::stored,
    sink_table as table,
    sink_write::{literal, run},
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
impl SinkConnector for MysqlServer {
    fn dialect(&self) -> Dialect {
        Dialect::Mysql
    }

    async fn preflight(&self, sync: &str, log_id: &str, tables: &[TopicSchema]) -> Result<Vec<Finding>> {
        super::sink_preflight::preflight(self, sync, log_id, tables).await
    }

    async fn open(&self, sync: &str, log_id: &str) -> Result<Box<dyn Sink>> {
        Ok(Box::new(MysqlSink::open(self, sync, log_id).await?))
    }

    async fn replace(&self, sync: &str, log_id: &str, tables: &[TopicSchema]) -> Result<(Box<dyn Sink>, Vec<String>)> {
        check_names(tables, Dialect::Mysql)?;
        let mut conn = connect(&self.server).await?;
        let known = stored(&mut conn, sync, false).await?.is_some();
        // Dropping a table ends a transaction: whether all may go is looked at first, and positions go before tables.
        for schema in tables.iter().filter(|_| known) {
            give_up_rows_of_others(&mut conn, sync, log_id, schema, false).await?;
        }
        let mut present = Vec::new();
        for schema in tables {
            let table = Translation::new(schema, Dialect::Mysql).table().clone();
            if table::state(&mut conn, &table).await? != Existing::No {
                present.push(table);
            }
        }
        if known {
            for schema in tables {
                give_up_rows_of_others(&mut conn, sync, log_id, schema, true).await?;
            }
            let forget = format!("DELETE FROM {POSITIONS} WHERE sync = {}", literal(sync));
            run(&mut conn, "forget the sync's positions", forget).await?;
        }
        for table in &present {
            table::drop_table(&mut conn, table).await?;
        }
        let dropped = present.iter().map(|table| table.name.clone()).collect();
        Ok((Box::new(MysqlSink::open(self, sync, log_id).await?), dropped))
    }

    async fn forget(&self, sync: &str, log_id: &str) -> Result<Option<String>> {
        let target = format!("mysql://{}", self.server);
        let mut conn = connect(&self.server).await?;
        let doing = "forget the sync's positions";
        let Some(rows) = stored(&mut conn, sync, false).await? else { return Ok(None) };
        Ledger::new(sync, log_id).check_owner(&target, &rows)?;
        run(&mut conn, doing, format!("DELETE FROM {POSITIONS} WHERE sync = {}", literal(sync))).await?;
        let left: Option<u8> = first(&mut conn, doing, &format!("SELECT 1 FROM {POSITIONS} LIMIT 1")).await?;
        if left.is_none() {
            run(&mut conn, doing, format!("DROP TABLE {POSITIONS}")).await?;
        }
        Ok(Some(format!("target {target}: positions removed, its tables stay")))
    }

    async fn reader(&self) -> Result<Box<dyn TableReader>> {
        SourceConnector::reader(self).await
    }
}

/// Refuses where another sync of this log writes a table that is about to go; if `forget`, forgets that syncs of other
/// logs did.
async fn give_up_rows_of_others(
    conn: &mut Conn,
    sync: &str,
    log_id: &str,
    schema: &TopicSchema,
    forget: bool,
) -> Result<()> {
    let doing = "read the target's positions";
    let suffix = literal(schema.topic.strip_prefix(sync).unwrap_or(&schema.topic));
    let others = format!(
        "FROM {POSITIONS} WHERE sync <> {} AND SUBSTRING_INDEX(topic, '#', 1) = CONCAT(sync, {suffix})",
        literal(sync)
    );
    let sql = format!("SELECT sync {others} AND log_id = {} LIMIT 1", literal(log_id));
    let other: Option<String> = first(conn, doing, &sql).await?;
    if let Some(other) = other {
        return Err(Error::conflict(format!(
            "target table {} is written by sync {other} of this log: remove that one first",
            schema.table.full_name()
        )));
    }
    match forget {
        true => run(conn, doing, format!("DELETE {others}")).await,
        false => Ok(()),
    }
}
