//! A SQLite file as a sync file names it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use tokio::task::spawn_blocking;

use super::{
    Snapshot, SqliteSink,
    catalog::{inspect_one, list_tables, match_tables, open_source},
    compare::find,
    install::uninstall,
    preflight::{preflight, preflight_tables},
    source::{Follower, Reader, Target, captured_tables, named},
    value::identifier,
};
use crate::{
    Error, Result,
    change::{Row, TableSchema},
    command::shell_word,
    connector::{Finding, Follow, Sink, SinkConnector, Source, SourceConnector, TableReader},
    converter::TopicSchema,
    target::existing::OnExisting,
    types::Dialect,
};

/// A file, which need not be there yet.
#[derive(Debug, Clone)]
pub struct SqliteFile {
    path: PathBuf,
    /// What it does as a target with tables that exist.
    pub(super) on_existing: OnExisting,
}

impl SqliteFile {
    /// Names a file.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), on_existing: OnExisting::Refuse }
    }

    /// The same as a target that does this with tables that exist.
    pub fn with_existing(self, on_existing: OnExisting) -> Self {
        Self { on_existing, ..self }
    }

    /// Runs `work` with the path on a blocking thread.
    async fn blocking<R: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&Path) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let path = self.path.clone();
        spawn_blocking(move || work(&path)).await.map_err(|e| Error::internal(what).with_source(e))?
    }
}

#[async_trait]
impl SourceConnector for SqliteFile {
    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    async fn tables(&self, patterns: &[String]) -> Result<Vec<TableSchema>> {
        let patterns = patterns.to_vec();
        let list = move |path: &Path| {
            if !path.exists() {
                return Err(Error::unavailable(format!("source {} does not exist", path.display())));
            }
            match_tables(&patterns, &list_tables(&open_source(path)?)?)
        };
        self.blocking("list tables", list).await
    }

    async fn preflight(&self, _: &str, _: &str, tables: &[TableSchema], once: bool) -> Result<Vec<Finding>> {
        let tables = tables.to_vec();
        let examine = move |path: &Path| {
            let conn = open_source(path)?;
            if once { preflight_tables(&conn, &tables) } else { preflight(&conn, &tables) }
        };
        self.blocking("examine a source", examine).await
    }

    fn makes(&self, _: &str, tables: &[TableSchema]) -> Vec<String> {
        let names: Vec<_> = tables.iter().map(|table| table.name.as_str()).collect();
        vec![
            format!("triggers _tm_* at {}", names.join(", ")),
            "tables _tm_* that hold what the triggers saw; tidemill sync rm FILE removes all of it".into(),
        ]
    }

    async fn row_counts(&self, tables: &[TableSchema]) -> Vec<u64> {
        let names: Vec<_> = tables.iter().map(|table| table.name.clone()).collect();
        let none = vec![0; names.len()];
        let count = move |path: &Path| {
            let conn = open_source(path)?;
            let count = |name: &String| {
                let sql = format!("SELECT count(*) FROM {}", identifier(name));
                conn.query_row(&sql, [], |row| row.get::<_, i64>(0)).map_or(0, i64::unsigned_abs)
            };
            Ok(names.iter().map(count).collect())
        };
        self.blocking("count rows", count).await.unwrap_or(none)
    }

    async fn follow(&self, follow: Follow) -> Result<Box<dyn Source>> {
        let Follow { tables, stored, recopy, once, .. } = follow;
        Ok(Box::new(Follower::open(self.path.clone(), tables, stored, recopy, once).await?))
    }

    async fn read(&self, tables: Vec<TableSchema>) -> Result<Box<dyn Source>> {
        Ok(Box::new(Reader::open(self.path.clone(), tables).await?))
    }

    fn captured(&self, stored: &BTreeMap<String, String>) -> Result<Vec<String>> {
        captured_tables(stored)
    }

    async fn remove(&self, _: &str, _: &str, stored: &BTreeMap<String, String>, force: bool) -> Result<Vec<String>> {
        let known = stored.contains_key("capture");
        let remove = move |path: &Path| {
            let shown = path.display();
            if !path.exists() {
                let absent = format!("source {shown} does not exist: nothing removed there");
                return Ok(if known { vec![absent] } else { Vec::new() });
            }
            if !known && !carries_capture(path)? {
                return Ok(Vec::new());
            }
            if !known && !force {
                return Err(Error::conflict(format!(
                    "source {shown} carries a capture that this log knows nothing of: name the right data directory, or, \
                     if that one is lost: tidemill sync rm FILE --force"
                )));
            }
            uninstall(path, None)?;
            Ok(vec![format!("source {shown}: triggers and tables of the capture removed")])
        };
        self.blocking("remove the capture", remove).await
    }

    async fn reader(&self) -> Result<Box<dyn TableReader>> {
        Ok(Box::new(self.clone()))
    }
}

fn carries_capture(source: &Path) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND substr(name, 1, 4) = '_tm_')";
    let found = open_source(source)?.query_row(sql, [], |row| row.get(0));
    found.map_err(|e| Error::unavailable(format!("look into {}", source.display())).with_source(e))
}

#[async_trait]
impl SinkConnector for SqliteFile {
    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    async fn preflight(&self, _: &str, _: &str, _: &[TopicSchema]) -> Result<Vec<Finding>> {
        // The sink's own check names all tables that stand in the way.
        Ok(Vec::new())
    }

    async fn existing(&self, sync: &str, log_id: &str, tables: &[TopicSchema]) -> Result<Vec<Finding>> {
        let (sync, log_id, tables, on_existing) = (sync.to_owned(), log_id.to_owned(), named(tables), self.on_existing);
        let look = move |path: &Path| SqliteSink::findings(path, (&sync, &log_id), on_existing, &tables);
        self.blocking("examine a target", look).await
    }

    async fn open(&self, sync: &str, log_id: &str) -> Result<Box<dyn Sink>> {
        Ok(Box::new(Target::open(self.path.clone(), sync.to_owned(), log_id.to_owned(), self.on_existing).await?))
    }

    async fn replace(&self, sync: &str, log_id: &str, tables: &[TopicSchema]) -> Result<(Box<dyn Sink>, Vec<String>)> {
        let (sync, log_id) = (sync.to_owned(), log_id.to_owned());
        let (target, dropped) =
            Target::replace(self.path.clone(), sync, log_id, self.on_existing, tables.to_vec()).await?;
        Ok((Box::new(target), dropped))
    }

    async fn forget(&self, sync: &str, log_id: &str) -> Result<Option<String>> {
        let (sync, log_id) = (sync.to_owned(), log_id.to_owned());
        let forget = move |path: &Path| {
            if !path.exists() {
                return Ok(None);
            }
            SqliteSink::open(path, &sync, &log_id)?.forget(&sync)?;
            Ok(Some(format!("target {}: positions removed, its tables stay", path.display())))
        };
        self.blocking("forget a sync", forget).await
    }

    async fn reader(&self) -> Result<Box<dyn TableReader>> {
        if !self.path.exists() {
            return Err(Error::unavailable(format!(
                "target {} does not exist",
                shell_word(&self.path.to_string_lossy())
            )));
        }
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl TableReader for SqliteFile {
    async fn table(&mut self, _: Option<&str>, name: &str) -> Result<Option<TableSchema>> {
        let name = name.to_owned();
        let look = move |path: &Path| Ok(inspect_one(&open_source(path)?, &name)?.map(|found| found.schema));
        self.blocking("look at a table", look).await
    }

    async fn rows(&mut self, table: &TableSchema, after: Option<&Row>, limit: usize) -> Result<Vec<Row>> {
        let (table, after) = (table.clone(), after.cloned());
        let read = move |path: &Path| {
            let name = &table.name;
            let found = inspect_one(&open_source(path)?, name)?;
            let found =
                found.ok_or_else(|| Error::not_found(format!("{} has no table {name}", path.display())))?.schema;
            // The table may have columns of its own.
            let place = |name: &str| found.columns.iter().position(|own| own.name.eq_ignore_ascii_case(name));
            let places: Option<Vec<usize>> = table.columns.iter().map(|column| place(&column.name)).collect();
            let gone = || Error::conflict(format!("the columns of table {name} changed while it was read"));
            let (places, whole) = (places.ok_or_else(gone)?, found.columns.len());
            let rows = Snapshot::open(path, vec![found])?.rows(0, after.as_ref(), limit)?;
            let asked = |row: Row| places.iter().map(|&at| row[at].clone()).collect();
            Ok(match places.len() == whole && places.is_sorted() {
                true => rows,
                false => rows.into_iter().map(asked).collect(),
            })
        };
        self.blocking("read rows", read).await
    }

    async fn find(&mut self, table: &TableSchema, keys: &[Row]) -> Result<Vec<Option<Row>>> {
        let (table, keys) = (table.clone(), keys.to_vec());
        let look = move |path: &Path| {
            let conn = open_source(path)?;
            keys.iter().map(|key| find(&conn, &table, key)).collect()
        };
        self.blocking("look up rows", look).await
    }
}
