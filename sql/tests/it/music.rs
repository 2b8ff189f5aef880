//! A small music shop, in the log and in SQLite: updates, deletes, NULLs, odd names, several partitions.

use rusqlite::Connection;
use serde_json::Value as Json;
use tidemill_connect::{
    change::{Op, Value},
    converter::TopicSchema,
};
use tidemill_sql::{Format, Session};

use crate::{
    log::{ColumnSpec, Log},
    text,
};

pub struct Music {
    pub log: Log,
    pub sqlite: Connection,
}

pub fn integer(value: i64) -> Value {
    Value::Integer(value)
}

pub fn string(value: &str) -> Value {
    Value::Text(value.to_owned())
}

const ARTIST: &[ColumnSpec<'_>] = &[("ArtistId", "INTEGER", true, Some(0)), ("Name", "NVARCHAR(120)", false, None)];
const ALBUM: &[ColumnSpec<'_>] = &[
    ("AlbumId", "INTEGER", true, Some(0)),
    ("Title", "NVARCHAR(160)", true, None),
    ("ArtistId", "INTEGER", true, None),
];
pub const TRACK: &[ColumnSpec<'_>] = &[
    ("TrackId", "INTEGER", true, Some(0)),
    ("Name", "NVARCHAR(200)", true, None),
    ("AlbumId", "INTEGER", false, None),
    ("Milliseconds", "INTEGER", true, None),
    ("UnitPrice", "NUMERIC(10,2)", true, None),
];
const DETAILS: &[ColumnSpec<'_>] = &[
    ("Order Id", "INTEGER", true, Some(0)),
    ("line", "INTEGER", true, Some(1)),
    ("select", "TEXT", false, None),
    ("Quantity", "INTEGER", true, None),
];

impl Music {
    /// The shop after its changes.
    pub fn new() -> Self {
        let mut music = Self { log: Log::default(), sqlite: Connection::open_in_memory().expect("sqlite") };
        let artist = music.table("Artist", 1, ARTIST);
        let album = music.table("Album", 1, ALBUM);
        let track = music.table("Track", 3, TRACK);
        let details = music.table("Order Details", 2, DETAILS);
        music.insert(&artist, (1..=5).map(|i| vec![integer(i), string(&format!("Artist {i}"))]));
        music.insert(&artist, [vec![integer(6), Value::Null], vec![integer(7), string("Mötley, \"Crüe\"\n")]]);
        let title = |i: i64| string(if i % 3 == 0 { "Best of" } else { "Live" });
        music.insert(&album, (1..=9).map(|i| vec![integer(i), title(i), integer(i % 5 + 1)]));
        music.insert(&track, (1..=60).map(track_row));
        let note = |i: i64| if i % 2 == 0 { Value::Null } else { string("a,b") };
        music.insert(&details, (1..=20).map(|i| vec![integer(i / 3), integer(i % 3), note(i), integer(i * i)]));
        for i in [3, 9, 27] {
            let after = vec![integer(i), string("Renamed"), Value::Null, integer(1), Value::Real(1.99)];
            music.update(&track, track_row(i), after);
        }
        for i in [10, 20, 30, 60] {
            music.delete(&track, track_row(i));
        }
        // One comes back under the same key.
        music.insert(&track, [vec![integer(20), string("Again"), integer(1), integer(7), Value::Real(0.5)]]);
        music
    }

    pub fn session(self) -> (Session, Connection) {
        (crate::session(self.log), self.sqlite)
    }

    fn table(&mut self, name: &str, partitions: u32, columns: &[ColumnSpec<'_>]) -> TopicSchema {
        let declared: Vec<String> = columns.iter().map(|(name, kind, ..)| format!("\"{name}\" {kind}")).collect();
        self.sqlite.execute(&format!("CREATE TABLE \"{name}\" ({})", declared.join(", ")), []).expect("create");
        self.log.table("chinook", name, partitions, columns)
    }

    fn insert(&mut self, schema: &TopicSchema, rows: impl IntoIterator<Item = Vec<Value>>) {
        let rows: Vec<Vec<Value>> = rows.into_iter().collect();
        for row in &rows {
            let marks = vec!["?"; row.len()].join(", ");
            let sql = format!("INSERT INTO \"{}\" VALUES ({marks})", schema.table.name);
            self.sqlite.execute(&sql, rusqlite::params_from_iter(row.iter().map(bound))).expect("insert");
        }
        self.log.rows(schema, rows);
    }

    fn update(&mut self, schema: &TopicSchema, before: Vec<Value>, after: Vec<Value>) {
        self.remove(schema, &before);
        let marks = vec!["?"; after.len()].join(", ");
        let sql = format!("INSERT INTO \"{}\" VALUES ({marks})", schema.table.name);
        self.sqlite.execute(&sql, rusqlite::params_from_iter(after.iter().map(bound))).expect("update");
        self.log.change(schema, Op::Update, Some(before), Some(after));
    }

    fn delete(&mut self, schema: &TopicSchema, before: Vec<Value>) {
        self.remove(schema, &before);
        self.log.change(schema, Op::Delete, Some(before), None);
    }

    fn remove(&mut self, schema: &TopicSchema, row: &[Value]) {
        let sql = format!("DELETE FROM \"{}\" WHERE \"{}\" = ?", schema.table.name, schema.table.columns[0].name);
        assert_eq!(self.sqlite.execute(&sql, [bound(&row[0])]).expect("delete"), 1);
    }
}

fn track_row(i: i64) -> Vec<Value> {
    let album = if i % 11 == 0 { Value::Null } else { integer(i % 9 + 1) };
    vec![integer(i), string(&format!("Track {i}")), album, integer(i * 1_000), Value::Real(0.99 + (i % 4) as f64)]
}

fn bound(value: &Value) -> rusqlite::types::Value {
    use rusqlite::types::Value as Sqlite;
    match value {
        Value::Null => Sqlite::Null,
        Value::Integer(value) => Sqlite::Integer(*value),
        Value::Real(value) => Sqlite::Real(*value),
        Value::Text(value) => Sqlite::Text(value.clone()),
        Value::Blob(value) | Value::InvalidText(value) => Sqlite::Blob(value.clone()),
        other => unreachable!("SQLite has no {other:?}"),
    }
}

/// The rows as text, in order; doubles with nine digits, so that sums may round differently.
pub async fn ours(session: &Session, sql: &str) -> Vec<String> {
    let result = session.query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let lines = text(result, Format::Jsonl).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let row = |line: &str| {
        let Json::Object(row) = serde_json::from_str(line).expect("a row is JSON") else { panic!("{line}") };
        row.values().map(cell).collect::<Vec<_>>().join("|")
    };
    lines.lines().map(row).collect()
}

fn cell(value: &Json) -> String {
    match value {
        Json::Null => "NULL".to_owned(),
        Json::Number(number) if number.is_f64() => real(number.as_f64().expect("a double")),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn real(value: f64) -> String {
    format!("{value:.9e}")
}

pub fn sqlites(connection: &Connection, sql: &str) -> Vec<String> {
    use rusqlite::types::ValueRef;
    let mut statement = connection.prepare(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    let columns = statement.column_count();
    let cell = |value: ValueRef<'_>| match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(value) => value.to_string(),
        ValueRef::Real(value) => real(value),
        ValueRef::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        ValueRef::Blob(bytes) => bytes.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}")),
    };
    let row = |row: &rusqlite::Row<'_>| {
        let cells = (0..columns).map(|i| row.get_ref(i).map(cell));
        cells.collect::<Result<Vec<_>, _>>().map(|cells| cells.join("|"))
    };
    let rows = statement.query_map([], row).unwrap_or_else(|e| panic!("{sql}: {e}"));
    rows.collect::<Result<_, _>>().unwrap_or_else(|e| panic!("{sql}: {e}"))
}

/// Both answers to one statement are the same rows; in the same order if it says one.
pub async fn compare(session: &Session, connection: &Connection, sql: &str) -> usize {
    compare_with(session, connection, sql, sql).await
}

pub async fn compare_with(session: &Session, connection: &Connection, sql: &str, theirs: &str) -> usize {
    let mut ours = ours(session, sql).await;
    let mut sqlites = sqlites(connection, theirs);
    if !orders_its_answer(sql) {
        ours.sort();
        sqlites.sort();
    }
    assert_eq!(ours, sqlites, "{sql}");
    ours.len()
}

/// Whether there is an ORDER BY outside all brackets.
fn orders_its_answer(sql: &str) -> bool {
    let mut depth = 0;
    let outside = |c: &char| {
        depth += i32::from(*c == '(') - i32::from(*c == ')');
        depth == 0
    };
    sql.chars().filter(outside).collect::<String>().to_lowercase().contains("order by")
}
