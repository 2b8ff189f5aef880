//! Change events as they stand in topics: JSON after Debezium's envelope, and the schema record that describes a topic.
//!
//! The key is a canonical JSON object of the key columns in key order, so that equal keys have equal bytes. The value is
//! `{"before", "after", "op", "source", "ts_ms"}`. A delete is its event and a tombstone. A value that does not fit what
//! its column declares, and every blob, infinity and invalid text, is a tagged object: `{"$blob": "<base64>"}`,
//! `{"$real": "Infinity"}`, `{"$text": "abc"}`, `{"$integer": 5}`, `{"$boolean": true}`, `{"$bytes": "<base64>"}` (invalid
//! text), `{"$unchanged": true}` (a value that the source did not tell, or a large one of the row before the change).

mod event;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value as Json, json};
use tidemill_core::{
    record::{FetchedRecord, Record, Timestamp},
    topic,
};

use crate::{
    Error, Result,
    change::{Change, TableSchema, Value},
    types::Dialect,
};

pub(crate) use event::Encoder;

pub use crate::types::Kind;

/// Header that names the schema (by its id in `_tidemill.schemas`) a value was written with.
pub const SCHEMA_HEADER: &str = "tm-schema";

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

    /// Writes a change as records: one, or for a delete two (the event, then the tombstone). Who has many takes an
    /// encoder.
    pub fn encode(&self, change: &Change, now: Timestamp, out: &mut Vec<Record>) {
        self.encoder().encode(change, now, &mut BytesMut::new(), out);
    }

    /// What writes the topic's records.
    pub(crate) fn encoder(&self) -> Encoder {
        Encoder::new(self)
    }

    /// The canonical bytes of a key.
    pub fn encode_key(&self, key: &[Value]) -> String {
        event::encode_key(self, key)
    }

    /// Reads a change back from a record; `None` for a tombstone.
    ///
    /// # Errors
    /// `Corrupt` names the place and the fault.
    pub fn decode_record(&self, record: &FetchedRecord) -> Result<Option<Change>> {
        let Some(value) = &record.value else { return Ok(None) };
        event::decode(self, value).map(Some).map_err(|e| e.context(format!("{}@{}", self.topic, record.offset)))
    }
}

/// The topic of a table of a sync: `<sync>.<schema>.<table>`, without the schema where the database has none.
pub fn topic_of(sync: &str, table: &TableSchema) -> String {
    match &table.schema {
        Some(schema) => format!("{sync}.{}.{}", topic::escape(schema), topic::escape(&table.name)),
        None => format!("{sync}.{}", topic::escape(&table.name)),
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
    use crate::change::{Column, Op};

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
        assert_eq!(records[0].key.as_deref(), Some(schema.encode_key(&change.key).as_bytes()));
        assert_eq!(records[1].value, None);
        // Golden bytes.
        let event = r#"{"before":{"b":1,"a":"k","v":0.99,"x":{"$blob":"AQ=="}},"after":null,"op":"d","source":{"connector":"sqlite","sync":"s","table":"t","seq":42},"ts_ms":5}"#;
        assert_eq!(records[0].value.as_deref(), Some(event.as_bytes()));
        assert_eq!(event::decode(&schema, records[0].value.as_ref().expect("event")).expect("own event"), change);
    }

    #[test]
    fn columns_are_read_by_name_in_whatever_order_they_come() {
        let read = |after: &str| {
            event::decode(
                &schema(),
                format!(r#"{{"op":"c","new":[1],"source":{{"x":1,"seq":1}},"after":{after}}}"#).as_bytes(),
            )
        };
        let row = Some(vec![Value::Integer(1), Value::Text("k".into()), Value::Null, Value::Unsigned(u64::MAX)]);
        let last = u64::MAX;
        for after in [
            format!(r#"{{"b":1,"a":"k","v":null,"x":{last}}}"#),
            format!(r#"{{"b":1,"x":{last},"a":"k","v":null}}"#),
            format!(r#"{{"x":{last},"b":1,"other":[],"a":"k","v":null}}"#).replace("[]", "{\"$blob\":\"\"}"),
            format!(r#"{{"\u0062":1,"a":"k","v":null,"x":{last},"other":1}}"#),
        ] {
            assert_eq!(read(&after).expect("event").after, row, "{after}");
        }
        assert!(read(r#"{"b":1,"a":"k","v":null}"#).is_err());
        assert!(read(r#"{"b":1,"a":"k","x":null,"w":1}"#).is_err());
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
            assert!(event::decode(&schema(), text.as_bytes()).is_err(), "{text}");
        }
    }
}
