//! SQLite behind the worker's traits: a follower, a reader of snapshots, a sink. All of them block, so every call runs
//! on a blocking thread.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use serde_json::{Map, Value as Json};
use tokio::task::spawn_blocking;

use super::{
    Capture, Position, Pruned, Snapshot, SqliteSink,
    capture::DEFAULT_BUDGET,
    catalog::open_source,
    position::{CopyState, TablePosition},
};
use crate::{
    Error, Result,
    change::{Change, Op, Row, TableSchema},
    connector::{Copied, Polled, Sink, Source, SourceLag, TableState, TopicChanges},
    converter::TopicSchema,
    diff::key_text,
    target::{existing::OnExisting, lanes::Positions},
    translate::{Translation, check_names},
    types::Dialect,
};

const MAX_ROWS: usize = 2_000;
/// How long an idle source is left alone: a change is seen within this and the poll's own time.
const IDLE_PAUSE: Duration = Duration::from_millis(20);
const PRUNE_INTERVAL: Duration = Duration::from_secs(10);
const PRUNE_AGAIN: Duration = Duration::from_millis(100);
/// Name of the part of the position that changes with every poll; the others are `table/<number>`.
const HEAD: &str = "capture";

/// Runs `work` on a blocking thread, lending it the value in `slot`.
async fn blocking<T: Send + 'static, R: Send + 'static>(
    slot: &mut Option<T>,
    work: impl FnOnce(&mut T) -> Result<R> + Send + 'static,
) -> Result<R> {
    // A caller that dropped the future of an earlier call has lost the value with it.
    let mut value = slot.take().ok_or_else(|| Error::closed("the connection was given up"))?;
    let joined = spawn_blocking(move || {
        let result = work(&mut value);
        (value, result)
    });
    let (value, result) = joined.await.map_err(|e| Error::internal("a connector panicked").with_source(e))?;
    *slot = Some(value);
    result
}

/// Follows a file with triggers.
pub struct Follower {
    capture: Option<Capture>,
    tables: Vec<TableSchema>,
    /// The position as stored or about to be, by part.
    parts: BTreeMap<String, String>,
    latest: Position,
    /// The tables of the stored position that are not copied anew.
    known: Vec<String>,
    /// Readers do not hold up writers: no pause is needed while there is more.
    wal: bool,
    next_prune: Instant,
    /// Ends when everything that was there at the start has been read.
    once: bool,
}

impl Follower {
    /// Opens a source at the stored parts of a position; installs the capture where there are none.
    ///
    /// # Errors
    /// `Conflict` where the source is not what the position says, with the way out.
    pub async fn open(
        path: PathBuf,
        tables: Vec<TableSchema>,
        stored: BTreeMap<String, String>,
        recopy: Vec<String>,
        once: bool,
    ) -> Result<Self> {
        let position = join_position(&stored)?;
        let known = position.iter().flat_map(|position| &position.tables).map(|table| table.schema.name.clone());
        let known = known.filter(|name| !recopy.contains(name)).collect();
        let opened = spawn_blocking(move || -> Result<_> {
            let wal = is_wal(&path)?;
            Ok((Capture::open(&path, tables, position, &recopy)?, wal))
        });
        let (capture, wal) = opened.await.map_err(|e| Error::internal("open a source").with_source(e))??;
        let latest = capture.position().clone();
        let tables = capture.tables().cloned().collect();
        let next_prune = Instant::now() + PRUNE_INTERVAL;
        Ok(Self { capture: Some(capture), tables, parts: stored, latest, known, wal, next_prune, once })
    }

    /// Notes the parts that differ from those stored.
    fn changed_parts(&mut self) -> Result<Vec<(String, String)>> {
        let parts = split_position(&self.latest)?;
        let changed = parts.into_iter().filter(|(name, value)| self.parts.get(name) != Some(value));
        let changed: Vec<_> = changed.collect();
        self.parts.extend(changed.iter().cloned());
        Ok(changed)
    }
}

fn is_wal(path: &Path) -> Result<bool> {
    let mode: rusqlite::Result<String> = open_source(path)?.query_row("PRAGMA journal_mode", [], |row| row.get(0));
    Ok(mode.is_ok_and(|mode| mode.eq_ignore_ascii_case("wal")))
}

/// A position's parts: its tables, which rarely change, apart from what every poll moves.
fn split_position(position: &Position) -> Result<BTreeMap<String, String>> {
    let encode = |e| Error::internal("encode a position").with_source(e);
    let Json::Object(mut head) = serde_json::to_value(position).map_err(encode)? else {
        return Err(Error::internal("a position is an object"));
    };
    let tables = head.remove("tables").and_then(|tables| tables.as_array().cloned()).unwrap_or_default();
    head.insert("tables".into(), tables.len().into());
    let numbered = tables.iter().enumerate().map(|(i, table)| (format!("table/{i}"), table.to_string()));
    Ok(numbered.chain([(HEAD.to_owned(), Json::Object(head).to_string())]).collect())
}

fn join_position(parts: &BTreeMap<String, String>) -> Result<Option<Position>> {
    let Some(head) = parts.get(HEAD) else { return Ok(None) };
    let bad = |e| Error::corrupt("the stored position of the source is malformed").with_source(e);
    let mut head: Map<String, Json> = serde_json::from_str(head).map_err(bad)?;
    let count = head.get("tables").and_then(Json::as_u64).unwrap_or(0);
    let tables = (0..count).map(|i| {
        let part = parts.get(&format!("table/{i}")).map_or("", String::as_str);
        serde_json::from_str::<Json>(part).map_err(bad)
    });
    head.insert("tables".into(), tables.collect::<Result<Vec<_>>>()?.into());
    serde_json::from_value(Json::Object(head)).map(Some).map_err(bad)
}

/// Names of the tables that the stored parts of a position know.
///
/// # Errors
/// `Corrupt` where the parts are malformed.
pub fn captured_tables(parts: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let position = join_position(parts)?;
    Ok(position.into_iter().flat_map(|position| position.tables).map(|table| table.schema.name).collect())
}

/// The identity of the capture that the stored parts of a position are of.
///
/// # Errors
/// `Corrupt` where the parts are malformed.
pub(crate) fn capture_id(parts: &BTreeMap<String, String>) -> Result<Option<String>> {
    Ok(join_position(parts)?.map(|position| position.source))
}

#[async_trait]
impl Source for Follower {
    fn tables(&self) -> Vec<TableSchema> {
        self.tables.clone()
    }

    fn position(&self) -> Vec<(String, String)> {
        split_position(&self.latest).map(|parts| parts.into_iter().collect()).unwrap_or_default()
    }

    fn rereads(&self) -> bool {
        false
    }

    fn states(&self) -> Vec<TableState> {
        let state = |table: &TablePosition| TableState {
            table: table.schema.name.clone(),
            copied: match table.copy {
                CopyState::NotStarted => Copied::NotStarted,
                CopyState::After(_) => Copied::Begun,
                CopyState::Done => Copied::Done,
            },
            known: self.known.contains(&table.schema.name),
        };
        self.latest.tables.iter().map(state).collect()
    }

    async fn restart_copies(&mut self, tables: &[String]) -> Result<()> {
        // Their journals stay: what they hold is not lost to the copy.
        let names = tables.to_vec();
        let position = blocking(&mut self.capture, move |capture| {
            for table in capture.position.tables.iter_mut().filter(|table| names.contains(&table.schema.name)) {
                table.copy = CopyState::NotStarted;
            }
            Ok(capture.position().clone())
        });
        self.latest = position.await?;
        Ok(())
    }

    async fn poll(&mut self) -> Result<Polled> {
        let started = Instant::now();
        let read = blocking(&mut self.capture, |capture| Ok(capture.read(DEFAULT_BUDGET, MAX_ROWS)?)).await?;
        let busy = started.elapsed();
        self.latest = read.position;
        let pause = match (read.more, self.wal) {
            (true, true) => Duration::ZERO,
            (true, false) => busy * 2,
            (false, _) => IDLE_PAUSE.max(busy * 2),
        };
        let position = self.changed_parts()?;
        let ended = self.once && !read.more;
        Ok(Polled {
            changes: read.changes,
            position,
            finished_tables: read.finished_tables,
            pause,
            more: read.more,
            ended,
            ..Polled::default()
        })
    }

    async fn lag(&mut self) -> Result<SourceLag> {
        Ok(SourceLag { position: Some(self.latest.sequence().to_string()), ..SourceLag::default() })
    }

    async fn commit(&mut self) -> Result<()> {
        let position = self.latest.clone();
        let prune = Instant::now() >= self.next_prune;
        let pruned = blocking(&mut self.capture, move |capture| {
            capture.confirm(&position)?;
            let pruned = if prune { Some(capture.prune()?) } else { None };
            Ok((pruned, capture.position().clone()))
        });
        let (pruned, position) = pruned.await?;
        self.latest = position;
        if let Some(pruned) = pruned {
            let more = matches!(pruned, Pruned::Rows { more: true, .. } | Pruned::NotDurable | Pruned::Busy);
            self.next_prune = Instant::now() + if more { PRUNE_AGAIN } else { PRUNE_INTERVAL };
        }
        Ok(())
    }
}

/// Reads all tables and ends; installs nothing. Where another program writes meanwhile, it reads again, the last time
/// inside one read transaction.
pub struct Reader {
    snapshot: Option<Snapshot>,
    tables: Vec<TableSchema>,
    table: usize,
    after: Option<Row>,
    pass: u32,
    version: i64,
    wal: bool,
}

const LAST_PASS: u32 = 3;

impl Reader {
    /// Opens a file for reading its tables.
    ///
    /// # Errors
    /// `Unsupported` for a table without a key.
    pub async fn open(path: PathBuf, tables: Vec<TableSchema>) -> Result<Self> {
        let listed = tables.clone();
        let opened = spawn_blocking(move || -> Result<_> {
            let wal = is_wal(&path)?;
            let mut snapshot = Snapshot::open(&path, listed)?;
            if wal {
                // Readers of a WAL file hold nobody up: one transaction sees one state.
                snapshot.begin_held()?;
            }
            let version = snapshot.data_version()?;
            Ok((snapshot, version, wal))
        });
        let (snapshot, version, wal) = opened.await.map_err(|e| Error::internal("open a source").with_source(e))??;
        Ok(Self { snapshot: Some(snapshot), tables, table: 0, after: None, pass: 1, version, wal })
    }

    /// Whether all has been read at one state of the file; else begins again.
    async fn end_of_pass(&mut self) -> Result<bool> {
        let held = self.wal || self.pass == LAST_PASS;
        let last = self.pass + 1 == LAST_PASS;
        let version = blocking(&mut self.snapshot, move |snapshot| {
            if held {
                snapshot.end_held()?;
                return Ok(None);
            }
            let version = snapshot.data_version()?;
            if last {
                snapshot.begin_held()?;
            }
            Ok(Some(version))
        });
        match version.await? {
            Some(version) if version != self.version => {
                (self.version, self.pass, self.table, self.after) = (version, self.pass + 1, 0, None);
                Ok(false)
            }
            _ => Ok(true),
        }
    }
}

#[async_trait]
impl Source for Reader {
    fn tables(&self) -> Vec<TableSchema> {
        self.tables.clone()
    }

    fn position(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn rereads(&self) -> bool {
        true
    }

    fn states(&self) -> Vec<TableState> {
        Vec::new()
    }

    async fn restart_copies(&mut self, _: &[String]) -> Result<()> {
        Ok(())
    }

    async fn poll(&mut self) -> Result<Polled> {
        if self.table == self.tables.len() {
            let ended = self.end_of_pass().await?;
            return Ok(Polled { ended, more: !ended, ..Polled::default() });
        }
        let (table, after) = (self.table, self.after.take());
        let started = Instant::now();
        let rows =
            blocking(&mut self.snapshot, move |snapshot| snapshot.next_chunk(table, after.as_ref(), DEFAULT_BUDGET))
                .await?;
        let free = self.wal || self.pass == LAST_PASS;
        let pause = if free { Duration::ZERO } else { started.elapsed() * 2 };
        let mut finished_tables = Vec::new();
        let schema = &self.tables[table];
        match rows.last() {
            Some(last) => self.after = Some(schema.key_of(last)),
            None => {
                finished_tables.push(table);
                self.table += 1;
            }
        }
        let change = |row: Row| Change {
            table,
            op: Op::Read,
            key: schema.key_of(&row),
            before: None,
            after: Some(row),
            sequence: 0,
        };
        let changes = rows.into_iter().map(change).collect();
        Ok(Polled { changes, finished_tables, pause, more: true, ..Polled::default() })
    }

    async fn commit(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A SQLite file as a target.
pub struct Target {
    sink: Option<SqliteSink>,
}

impl Target {
    /// Opens the target of a sync, making the file if there is none.
    ///
    /// # Errors
    /// `Conflict` where the file belongs to another log.
    pub async fn open(path: PathBuf, sync: String, log_id: String, on_existing: OnExisting) -> Result<Self> {
        let open = move || SqliteSink::open(&path, &sync, &log_id).map(|sink| sink.with_existing(on_existing));
        let opened = spawn_blocking(open);
        let sink = opened.await.map_err(|e| Error::internal("open a target").with_source(e))??;
        Ok(Self { sink: Some(sink) })
    }

    /// As [`Target::open`], after giving up what the file holds under the names of `tables`. Tells which were dropped.
    ///
    /// # Errors
    /// As [`SqliteSink::replace`].
    pub async fn replace(
        path: PathBuf,
        sync: String,
        log_id: String,
        on_existing: OnExisting,
        tables: Vec<TopicSchema>,
    ) -> Result<(Self, Vec<String>)> {
        let tables = named(&tables);
        let opened = spawn_blocking(move || -> Result<_> {
            let dropped = SqliteSink::replace(&path, &sync, &log_id, &tables)?;
            Ok((SqliteSink::open(&path, &sync, &log_id)?.with_existing(on_existing), dropped))
        });
        let (sink, dropped) = opened.await.map_err(|e| Error::internal("replace a target").with_source(e))??;
        Ok((Self { sink: Some(sink) }, dropped))
    }
}

#[async_trait]
impl Sink for Target {
    async fn positions(&mut self) -> Result<Positions> {
        blocking(&mut self.sink, |sink| sink.positions()).await.map(Positions::from)
    }

    async fn check(&mut self, tables: &[TopicSchema]) -> Result<()> {
        check_names(tables, Dialect::Sqlite)?;
        let tables = named(tables);
        blocking(&mut self.sink, move |sink| sink.check_targets(&tables)).await
    }

    async fn put(&mut self, changes: Vec<TopicChanges>, next_offsets: Vec<(String, i64)>) -> Result<()> {
        blocking(&mut self.sink, move |sink| {
            let mut translated = Vec::with_capacity(changes.len());
            for TopicChanges { schema, changes } in changes {
                let translation = Translation::new(&schema, Dialect::Sqlite);
                let changes = match schema.connector {
                    Dialect::Sqlite => changes,
                    _ => translate(&schema, &translation, changes)?,
                };
                translated.push((schema, translation, changes));
            }
            let rows: Vec<_> = translated.iter_mut().map(|(_, _, changes)| std::mem::take(changes)).collect();
            let named = translated.iter().zip(rows).map(|((schema, translation, _), rows)| {
                (schema.topic.as_str(), translation.table(), schema.copy_id(), rows)
            });
            let changes: Vec<_> = named.collect();
            let offsets: Vec<_> = next_offsets.iter().map(|(topic, offset)| (topic.as_str(), *offset)).collect();
            sink.apply(&changes, &offsets)
        })
        .await
    }
}

/// Changes of another database's table in SQLite's terms. A key that SQLite cannot hold has no row here: its delete has
/// nothing to do.
fn translate(schema: &TopicSchema, translation: &Translation, mut changes: Vec<Change>) -> Result<Vec<Change>> {
    changes.retain(|change| change.after.is_some() || translation.key(change.key.clone()).is_ok());
    for change in &mut changes {
        let translated = translation
            .key(change.key.clone())
            .and_then(|key| Ok((key, change.after.take().map(|row| translation.row(row)).transpose()?)));
        let (key, after) = translated
            .map_err(|e| e.context(format!("topic {}, {}", schema.topic, key_text(&schema.table, &change.key))))?;
        (change.key, change.after, change.before) = (key, after, None);
    }
    Ok(changes)
}

pub(super) fn named(tables: &[TopicSchema]) -> Vec<(String, TableSchema)> {
    let table = |schema: &TopicSchema| Translation::new(schema, Dialect::Sqlite).table().clone();
    tables.iter().map(|schema| (schema.topic.clone(), table(schema))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Column, Value};

    #[test]
    fn a_delete_of_a_key_that_sqlite_cannot_hold_has_nothing_to_do() {
        let column =
            Column { name: "k".into(), declared_type: "double precision".into(), not_null: true, key: Some(0) };
        let table = TableSchema { schema: Some("public".into()), name: "t".into(), columns: vec![column] };
        let schema = TopicSchema::draft("s", Dialect::Postgres, &table);
        let translation = Translation::new(&schema, Dialect::Sqlite);
        let change = |op, key: f64, after: Option<Row>| Change {
            table: 0,
            op,
            key: vec![Value::Real(key)],
            before: None,
            after,
            sequence: 0,
        };
        let made = vec![change(Op::Create, f64::NAN, Some(vec![Value::Real(f64::NAN)]))];
        assert!(translate(&schema, &translation, made).is_err(), "such a row is refused");
        let gone = vec![change(Op::Delete, f64::NAN, None), change(Op::Delete, 1.5, None)];
        let left = translate(&schema, &translation, gone).expect("deletes");
        assert_eq!(left.iter().map(|change| change.key.clone()).collect::<Vec<_>>(), [vec![Value::Real(1.5)]]);
    }
}
