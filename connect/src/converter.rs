//! Change events as they stand in topics: JSON after Debezium's envelope, and the schema record that describes a topic.
//!
//! The key is a canonical JSON object of the key columns in key order, so that equal keys have equal bytes. The value is
//! `{"before", "after", "op", "source", "ts_ms"}`. A delete is its event and a tombstone. A value that does not fit what
//! its column declares, and every blob, infinity and invalid text, is a tagged object: `{"$blob": "<base64>"}`,
//! `{"$real": "Infinity"}`, `{"$text": "abc"}`, `{"$integer": 5}`, `{"$boolean": true}`, `{"$bytes": "<base64>"}` (invalid
//! text), `{"$unchanged": true}` (a value that the source did not tell, or a large one of the row before the change).

use std::{collections::HashMap, fmt};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, MapAccess, Visitor},
};
use serde_json::{Map, Number, Value as Json, json};
use tidemill_core::{
    record::{FetchedRecord, Header, Record, Timestamp},
    topic,
};

use crate::{
    Error, Result,
    change::{Change, Column, Op, Row, TableSchema, Value},
    types::Dialect,
};

pub use crate::types::Kind;

/// Header that names the schema (by its id in `_tidemill.schemas`) a value was written with.
pub const SCHEMA_HEADER: &str = "tm-schema";

/// From this size on an event's row before the change leaves out large values.
const LARGE_EVENT: usize = 1 << 20;
/// Larger than this is large for a value.
const LARGE_VALUE: usize = 64 << 10;

/// What `_tidemill.schemas` holds under a schema's id: the table a topic's values describe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicSchema {
    /// Number of the schema, unique among those the log holds; a table whose columns change gets a new one. 0 before it
    /// is stored.
    pub id: u64,
    /// The schema that the topic's rows were copied under: another one than before means that all rows come again. With
    /// the same one, columns were added or widened and the rows that were there stay. `None` is this schema itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<u64>,
    /// The topic.
    pub topic: String,
    /// The kind of source.
    pub connector: Dialect,
    /// The sync that fills the topic; the schema's name in SQL.
    pub sync: String,
    /// The table, with its columns.
    pub table: TableSchema,
    /// One for each column.
    pub kinds: Vec<Kind>,
}

impl TopicSchema {
    /// The schema's record key.
    pub fn record_key(id: u64) -> String {
        id.to_string()
    }

    /// What a table's topic will hold, with no number yet.
    pub fn draft(sync: &str, connector: Dialect, table: &TableSchema) -> Self {
        Self {
            id: 0,
            copy: None,
            topic: topic_of(sync, table),
            connector,
            sync: sync.to_owned(),
            kinds: table.columns.iter().map(|column| connector.kind(&column.declared_type)).collect(),
            table: table.clone(),
        }
    }

    /// The schema that the rows were copied under.
    pub fn copy_id(&self) -> u64 {
        self.copy.unwrap_or(self.id)
    }

    /// Reads a schema record's value.
    ///
    /// # Errors
    /// `Corrupt` where it is no schema.
    pub fn decode(value: &[u8]) -> Result<Self> {
        serde_json::from_slice(value).map_err(|e| Error::corrupt("schema record is malformed").with_source(e))
    }

    /// Writes a change as records: one, or for a delete two (the event, then the tombstone).
    pub fn encode(&self, change: &Change, now: Timestamp, out: &mut Vec<Record>) {
        let key = Bytes::from(self.encode_key(&change.key));
        let mut event = EventJson {
            before: self.row_json(change.before.as_deref()),
            after: self.row_json(change.after.as_deref()),
            op: op_letter(change.op),
            source: SourceJson {
                connector: self.connector,
                sync: &self.sync,
                table: self.table.full_name(),
                seq: change.sequence,
            },
            ts_ms: now.0,
        };
        let headers = vec![Header::text(SCHEMA_HEADER, self.id.to_string())];
        let mut value = Bytes::from(written(&event));
        let short: Row;
        if value.len() > LARGE_EVENT
            && let Some(before) = &change.before
        {
            short = self.without_large_values(before);
            event.before = self.row_json(Some(&short));
            value = Bytes::from(written(&event));
        }
        out.push(Record { key: Some(key.clone()), value: Some(value), headers: headers.clone(), timestamp: Some(now) });
        if change.op == Op::Delete {
            out.push(Record { key: Some(key), value: None, headers, timestamp: Some(now) });
        }
    }

    /// A row with its large values untold, but for the key.
    fn without_large_values(&self, row: &[Value]) -> Row {
        let cells = row.iter().zip(&self.table.columns);
        let cell = |(value, column): (&Value, &Column)| match value {
            Value::Text(text) if column.key.is_none() && text.len() > LARGE_VALUE => Value::Unchanged,
            Value::Blob(bytes) | Value::InvalidText(bytes) if column.key.is_none() && bytes.len() > LARGE_VALUE => {
                Value::Unchanged
            }
            value => value.clone(),
        };
        cells.map(cell).collect()
    }

    fn row_json<'a>(&'a self, row: Option<&'a [Value]>) -> Option<RowJson<'a>> {
        row.map(|row| RowJson { columns: &self.table.columns, kinds: &self.kinds, row })
    }

    /// The canonical bytes of a key.
    pub fn encode_key(&self, key: &[Value]) -> String {
        written(&KeyJson { schema: self, key })
    }

    /// Reads a change back from a record; `None` for a tombstone.
    ///
    /// # Errors
    /// `Corrupt` names the place and the fault.
    pub fn decode_record(&self, record: &FetchedRecord) -> Result<Option<Change>> {
        let Some(value) = &record.value else { return Ok(None) };
        self.decode_event(value).map(Some).map_err(|e| e.context(format!("{}@{}", self.topic, record.offset)))
    }

    fn decode_event(&self, value: &[u8]) -> Result<Change> {
        let event: Event =
            serde_json::from_slice(value).map_err(|e| Error::corrupt("not a change event").with_source(e))?;
        let op = match event.op.as_str() {
            "r" => Op::Read,
            "c" => Op::Create,
            "u" => Op::Update,
            "d" => Op::Delete,
            other => return Err(Error::corrupt(format!("op {other:?} is none of r, c, u, d"))),
        };
        let before = event.before.map(|object| self.row(object)).transpose()?;
        let after = event.after.map(|object| self.row(object)).transpose()?;
        let image = if op == Op::Delete { &before } else { &after };
        let Some(image) = image else { return Err(Error::corrupt(format!("op {:?} without its image", event.op))) };
        Ok(Change { table: 0, op, key: self.table.key_of(image), sequence: event.source.seq, before, after })
    }

    fn row(&self, cells: Cells) -> Result<Row> {
        let columns = &self.table.columns;
        let in_order =
            cells.0.len() == columns.len() && columns.iter().zip(&cells.0).all(|(c, (name, _))| c.name == *name);
        if in_order {
            return Ok(cells.0.into_iter().map(|(_, value)| value).collect());
        }
        let mut by_name: HashMap<String, Value> = cells.0.into_iter().collect();
        let value =
            |name: &String| by_name.remove(name).ok_or_else(|| Error::corrupt(format!("column {name:?} is missing")));
        columns.iter().map(|column| &column.name).map(value).collect()
    }
}

/// JSON as text; writing to memory does not fail, and nothing here has keys that are no text.
fn written(json: &impl Serialize) -> String {
    serde_json::to_string(json).unwrap_or_else(|e| unreachable!("{e}"))
}

// Events are written straight from rows: a tree of JSON values in between cost more than all else of a sync.

#[derive(Serialize)]
struct EventJson<'a> {
    before: Option<RowJson<'a>>,
    after: Option<RowJson<'a>>,
    op: &'static str,
    source: SourceJson<'a>,
    ts_ms: i64,
}

#[derive(Serialize)]
struct SourceJson<'a> {
    connector: Dialect,
    sync: &'a str,
    table: String,
    seq: i64,
}

struct RowJson<'a> {
    columns: &'a [Column],
    kinds: &'a [Kind],
    row: &'a [Value],
}

impl Serialize for RowJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let cells = self.columns.iter().zip(self.kinds).zip(self.row);
        serializer.collect_map(cells.map(|((column, kind), value)| (&column.name, ValueJson(*kind, value))))
    }
}

struct KeyJson<'a> {
    schema: &'a TopicSchema,
    key: &'a [Value],
}

impl Serialize for KeyJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let columns = self.schema.table.key_columns().into_iter().zip(self.key);
        serializer.collect_map(columns.map(|(column, value)| {
            (&self.schema.table.columns[column].name, ValueJson(self.schema.kinds[column], value))
        }))
    }
}

struct ValueJson<'a>(Kind, &'a Value);

impl Serialize for ValueJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let Self(kind, value) = self;
        match value {
            Value::Null => serializer.serialize_unit(),
            Value::Integer(i) if kind.fits(value) => serializer.serialize_i64(*i),
            Value::Real(r) if r.is_finite() && kind.fits(value) => serializer.serialize_f64(*r),
            Value::Text(text) if kind.fits(value) => serializer.serialize_str(text),
            other => encode_value(*kind, other).serialize(serializer),
        }
    }
}

#[derive(Deserialize)]
struct Event {
    before: Option<Cells>,
    after: Option<Cells>,
    op: String,
    source: EventSource,
}

/// The columns of an image, in the order in which they stand there.
struct Cells(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Cells {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Image;

        impl<'de> Visitor<'de> for Image {
            type Value = Cells;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a row")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Cells, A::Error> {
                let mut cells = Vec::with_capacity(map.size_hint().unwrap_or(8));
                while let Some(name) = map.next_key::<String>()? {
                    let value = map
                        .next_value_seed(ValueSeed)
                        .map_err(|e| <A::Error as serde::de::Error>::custom(format!("column {name:?}: {e}")))?;
                    cells.push((name, value));
                }
                Ok(Cells(cells))
            }
        }

        deserializer.deserialize_map(Image)
    }
}

struct ValueSeed;

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that a source writes")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Unsigned(value), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(Value::Real(value))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> std::result::Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((tag, content)) = map.next_entry::<String, Json>()? {
            object.insert(tag, content);
        }
        decode_tagged(&object).ok_or_else(|| serde::de::Error::custom("a tag that no source writes"))
    }
}

#[derive(Deserialize)]
struct EventSource {
    seq: i64,
}

/// The topic of a table of a sync: `<sync>.<schema>.<table>`, without the schema where the database has none.
pub fn topic_of(sync: &str, table: &TableSchema) -> String {
    match &table.schema {
        Some(schema) => format!("{sync}.{}.{}", topic::escape(schema), topic::escape(&table.name)),
        None => format!("{sync}.{}", topic::escape(&table.name)),
    }
}

fn op_letter(op: Op) -> &'static str {
    match op {
        Op::Read => "r",
        Op::Create => "c",
        Op::Update => "u",
        Op::Delete => "d",
    }
}

fn encode_value(kind: Kind, value: &Value) -> Json {
    let fits = kind.fits(value);
    match value {
        Value::Null => Json::Null,
        Value::Unchanged => json!({ "$unchanged": true }),
        Value::Boolean(b) if fits => json!(b),
        Value::Boolean(b) => json!({ "$boolean": b }),
        Value::Integer(i) if fits => json!(i),
        Value::Integer(i) => json!({ "$integer": i }),
        Value::Unsigned(u) if fits => json!(u),
        Value::Unsigned(u) => json!({ "$integer": u }),
        Value::Real(r) => match Number::from_f64(*r) {
            Some(number) if fits => Json::Number(number),
            Some(number) => json!({ "$real": number }),
            None if r.is_nan() => json!({ "$real": "NaN" }),
            None => json!({ "$real": if *r > 0.0 { "Infinity" } else { "-Infinity" } }),
        },
        Value::Text(text) if fits => json!(text),
        Value::Text(text) => json!({ "$text": text }),
        Value::InvalidText(bytes) => json!({ "$bytes": BASE64_STANDARD.encode(bytes) }),
        Value::Blob(bytes) => json!({ "$blob": BASE64_STANDARD.encode(bytes) }),
    }
}

/// Reads one value of an event's image, tagged or plain.
///
/// # Errors
/// `Corrupt` where the JSON is none that a source writes.
pub fn decode_value(json: Json) -> Result<Value> {
    let fault = |json: &Json| Error::corrupt(format!("value {json} is none that a source writes"));
    match &json {
        Json::Null => Ok(Value::Null),
        Json::Bool(boolean) => Ok(Value::Boolean(*boolean)),
        Json::Number(number) => match integer(&json) {
            Some(integer) => Ok(integer),
            None => number.as_f64().map(Value::Real).ok_or_else(|| fault(&json)),
        },
        Json::String(_) => match json {
            Json::String(text) => Ok(Value::Text(text)),
            _ => unreachable!("matched above"),
        },
        Json::Object(object) => decode_tagged(object).ok_or_else(|| fault(&json)),
        Json::Array(_) => Err(fault(&json)),
    }
}

fn integer(json: &Json) -> Option<Value> {
    json.as_i64().map(Value::Integer).or_else(|| json.as_u64().map(Value::Unsigned))
}

fn decode_tagged(object: &Map<String, Json>) -> Option<Value> {
    let (tag, content) = object.iter().next().filter(|_| object.len() == 1)?;
    let bytes = || BASE64_STANDARD.decode(content.as_str()?).ok();
    match tag.as_str() {
        "$unchanged" => (*content == Json::Bool(true)).then_some(Value::Unchanged),
        "$boolean" => content.as_bool().map(Value::Boolean),
        "$integer" => integer(content),
        "$real" => match content.as_str() {
            Some("Infinity") => Some(Value::Real(f64::INFINITY)),
            Some("-Infinity") => Some(Value::Real(f64::NEG_INFINITY)),
            Some("NaN") => Some(Value::Real(f64::NAN)),
            Some(_) => None,
            None => content.as_f64().map(Value::Real),
        },
        "$text" => content.as_str().map(|text| Value::Text(text.to_owned())),
        "$bytes" => bytes().map(Value::InvalidText),
        "$blob" => bytes().map(Value::Blob),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Column;

    fn schema() -> TopicSchema {
        let column = |name: &str, declared: &str, key| Column {
            name: name.into(),
            declared_type: declared.into(),
            not_null: false,
            key,
        };
        let columns = vec![
            column("b", "INTEGER", Some(1)),
            column("a", "TEXT", Some(0)),
            column("v", "NUMERIC(10,2)", None),
            column("x", "", None),
        ];
        let table = TableSchema { schema: None, name: "t".into(), columns };
        TopicSchema { id: 7, ..TopicSchema::draft("s", Dialect::Sqlite, &table) }
    }

    #[test]
    fn keys_are_canonical() {
        // Golden bytes: a change here breaks every topic that exists.
        let key = schema().encode_key(&[Value::Text("ä\"\n".into()), Value::Integer(-1)]);
        assert_eq!(key, r#"{"a":"ä\"\n","b":-1}"#);
        assert_eq!(
            schema().encode_key(&[Value::Blob(vec![0, 255]), Value::Real(1.0)]),
            r#"{"a":{"$blob":"AP8="},"b":{"$real":1.0}}"#
        );
    }

    #[test]
    fn every_value_survives() {
        let odd = [
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Integer(i64::MAX),
            Value::Real(1.0),
            Value::Real(-0.0),
            Value::Real(0.1 + 0.2),
            Value::Real(5e-324),
            Value::Real(f64::MAX),
            Value::Real(9.223372036854776e18),
            Value::Real(f64::INFINITY),
            Value::Real(f64::NEG_INFINITY),
            Value::Real(f64::NAN),
            Value::Boolean(true),
            Value::Unsigned(u64::MAX),
            Value::Unchanged,
            Value::Text("a\0b \u{1F300}".into()),
            Value::Text(r#"{"$blob":"AA=="}"#.into()),
            Value::InvalidText(vec![0xff, 0x41]),
            Value::Blob((0..=255).collect()),
            Value::Blob(vec![]),
        ];
        for kind in
            [Kind::Integer, Kind::Real, Kind::Text, Kind::Blob, Kind::Any, Kind::Unsigned, Kind::Boolean, Kind::Json]
        {
            for value in &odd {
                let text = encode_value(kind, value).to_string();
                let back = decode_value(serde_json::from_str(&text).expect("json")).expect("own value");
                assert_eq!(format!("{back:?}"), format!("{value:?}"), "{kind:?} {text}");
            }
        }
    }

    #[test]
    fn events_survive_and_deletes_leave_a_tombstone() {
        let schema = schema();
        let row = vec![Value::Integer(1), Value::Text("k".into()), Value::Real(0.99), Value::Blob(vec![1])];
        let key = schema.table.key_of(&row);
        let change = Change { table: 0, op: Op::Delete, key, before: Some(row), after: None, sequence: 42 };
        let mut records = Vec::new();
        schema.encode(&change, Timestamp(5), &mut records);
        assert_eq!(records.len(), 2);
        assert_eq!(records[1].value, None);
        assert_eq!(schema.decode_event(records[0].value.as_ref().expect("event")).expect("own event"), change);
    }

    #[test]
    fn malformed_events_are_named() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"op":"z","source":{"seq":1}}"#,
            r#"{"op":"c","source":{"seq":1}}"#,
            r#"{"op":"c","source":{"seq":1},"after":{"a":[]}}"#,
        ] {
            assert!(schema().decode_event(text.as_bytes()).is_err(), "{text}");
        }
    }
}
