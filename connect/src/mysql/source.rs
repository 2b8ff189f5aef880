//! A database on a MariaDB or MySQL server as a source.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::{
    catalog::{list, match_tables, strings},
    endpoint::{MysqlServer, connect},
    follow::Follower,
    position::join,
    preflight::preflight,
    reader::{Comparer, SnapshotReader},
};
use crate::{
    Error, Result,
    change::TableSchema,
    connector::{Finding, Follow, Source, SourceConnector, TableReader},
    types::Dialect,
};

#[async_trait]
impl SourceConnector for MysqlServer {
    fn dialect(&self) -> Dialect {
        Dialect::Mysql
    }

    async fn tables(&self, patterns: &[String]) -> Result<Vec<TableSchema>> {
        let mut conn = connect(&self.server).await?;
        let spelled = strings(&mut conn, "SELECT DATABASE()", &[]).await?.into_iter().flatten().next().flatten();
        // The binlog has the server's own spelling, and names are compared with it.
        if let Some(spelled) = spelled.filter(|spelled| *spelled != self.server.database) {
            return Err(Error::invalid(format!(
                "the server calls database {} {spelled}: name it so in the URL",
                self.server.database
            )));
        }
        match_tables(patterns, list(&mut conn, &self.server.database).await?)
    }

    async fn preflight(&self, _: &str, _: &str, tables: &[TableSchema], once: bool) -> Result<Vec<Finding>> {
        preflight(&self.server, tables, once).await
    }

    fn makes(&self, _: &str, _: &[TableSchema]) -> Vec<String> {
        vec!["nothing: it is read like a primary by its replica".into()]
    }

    async fn row_counts(&self, tables: &[TableSchema]) -> Vec<u64> {
        let found = async {
            let mut conn = connect(&self.server).await?;
            list(&mut conn, &self.server.database).await
        };
        let found = found.await.unwrap_or_default();
        let count = |table: &TableSchema| {
            let found = found.iter().find(|found| found.schema.name == table.name);
            found.map_or(0, |found| found.rows)
        };
        tables.iter().map(count).collect()
    }

    async fn follow(&self, follow: Follow) -> Result<Box<dyn Source>> {
        Ok(Box::new(Box::pin(Follower::open(self.server.clone(), self.knobs, follow)).await?))
    }

    async fn read(&self, tables: Vec<TableSchema>) -> Result<Box<dyn Source>> {
        Ok(Box::new(SnapshotReader::open(&self.server, tables).await?))
    }

    fn captured(&self, stored: &BTreeMap<String, String>) -> Result<Vec<String>> {
        let parts = join(stored)?.map(|(_, parts)| parts).unwrap_or_default();
        Ok(parts.iter().map(|part| part.schema.full_name()).collect())
    }

    async fn remove(&self, _: &str, _: &str, stored: &BTreeMap<String, String>, _: bool) -> Result<Vec<String>> {
        if stored.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![format!("source mysql://{}: nothing was installed there, nothing to remove", self.server)])
    }

    async fn reader(&self) -> Result<Box<dyn TableReader>> {
        Ok(Box::new(Comparer::open(&self.server).await?))
    }
}
