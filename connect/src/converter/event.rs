//! Change events as bytes, written from rows and read into rows: a tree of JSON values in between cost more than all else
//! of a sync, and so did a piece of memory for each name.

use std::{collections::HashMap, fmt, io::Write};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value as Json};
use tidemill_core::record::{Header, Record, Timestamp};

use super::{SCHEMA_HEADER, TopicSchema, decode_tagged, encode_value};
use crate::{
    Error, Result,
    change::{Change, Op, Row, Value},
    types::Kind,
};

/// From this size on an event's row before the change leaves out large values.
const LARGE_EVENT: usize = 1 << 20;
/// Larger than this is large for a value.
const LARGE_VALUE: usize = 64 << 10;
/// Memory that the bytes of many records share.
const BUFFER_BYTES: usize = 32 << 10;

/// Writes the events of one schema: what all of them have in common is made once.
pub(crate) struct Encoder {
    /// Each column's name as it stands in an object, and what its values look like.
    columns: Vec<(Vec<u8>, Kind)>,
    /// Places of the key's columns, in key order.
    key: Vec<usize>,
    /// The event's source up to the sequence.
    source: String,
    headers: Vec<Header>,
}

impl Encoder {
    pub(crate) fn new(schema: &TopicSchema) -> Self {
        let name = |name: &String| format!("{}:", json(name)).into_bytes();
        let names = schema.table.columns.iter().map(|column| name(&column.name));
        Self {
            columns: names.zip(schema.kinds.iter().copied()).collect(),
            key: schema.table.key_columns(),
            source: format!(
                ",\"source\":{{\"connector\":{},\"sync\":{},\"table\":{},\"seq\":",
                json(&schema.connector),
                json(&schema.sync),
                json(&schema.table.full_name())
            ),
            headers: vec![Header::text(SCHEMA_HEADER, schema.id.to_string())],
        }
    }

    /// Writes a change as records: one, or for a delete two (the event, then the tombstone). `buffer` lends memory.
    pub(crate) fn encode(&self, change: &Change, now: Timestamp, buffer: &mut BytesMut, out: &mut Vec<Record>) {
        if buffer.capacity() < 1_024 {
            buffer.reserve(BUFFER_BYTES);
        }
        self.write_key(buffer, &change.key);
        let key = buffer.split().freeze();
        self.write_event(buffer, change, change.before.as_deref(), now);
        if buffer.len() > LARGE_EVENT
            && let Some(before) = &change.before
        {
            buffer.clear();
            self.write_event(buffer, change, Some(&self.without_large_values(before)), now);
        }
        let value = buffer.split().freeze();
        let mut push = |value: Option<Bytes>| {
            let headers = self.headers.clone();
            out.push(Record { key: Some(key.clone()), value, headers, timestamp: Some(now) });
        };
        push(Some(value));
        if change.op == Op::Delete {
            push(None);
        }
    }

    fn write_key(&self, out: &mut BytesMut, key: &[Value]) {
        self.write_object(out, self.key.iter().copied().zip(key));
    }

    /// A row with its large values untold, but for the key.
    fn without_large_values(&self, row: &[Value]) -> Row {
        let cell = |(place, value): (usize, &Value)| match value {
            value if value.size_bytes() > LARGE_VALUE && !self.key.contains(&place) => Value::Unchanged,
            value => value.clone(),
        };
        row.iter().enumerate().map(cell).collect()
    }

    fn write_event(&self, out: &mut BytesMut, change: &Change, before: Option<&[Value]>, now: Timestamp) {
        out.put_slice(b"{\"before\":");
        self.write_row(out, before);
        out.put_slice(b",\"after\":");
        self.write_row(out, change.after.as_deref());
        out.put_slice(b",\"op\":\"");
        out.put_u8(op_letter(change.op));
        out.put_u8(b'"');
        out.put_slice(self.source.as_bytes());
        write_json(out, &change.sequence);
        out.put_slice(b"},\"ts_ms\":");
        write_json(out, &now.0);
        out.put_u8(b'}');
    }

    fn write_row(&self, out: &mut BytesMut, row: Option<&[Value]>) {
        match row {
            Some(row) => self.write_object(out, row.iter().take(self.columns.len()).enumerate()),
            None => out.put_slice(b"null"),
        }
    }

    fn write_object<'v>(&self, out: &mut BytesMut, cells: impl Iterator<Item = (usize, &'v Value)>) {
        out.put_u8(b'{');
        for (place, (column, value)) in cells.enumerate() {
            if place > 0 {
                out.put_u8(b',');
            }
            let (name, kind) = &self.columns[column];
            out.put_slice(name);
            write_json(out, &ValueJson(*kind, value));
        }
        out.put_u8(b'}');
    }
}

/// The canonical bytes of one key, by who has no encoder.
pub(super) fn encode_key(schema: &TopicSchema, key: &[Value]) -> String {
    let mut text = String::from("{");
    for (place, (column, value)) in schema.table.key_columns().into_iter().zip(key).enumerate() {
        text.push_str(if place > 0 { "," } else { "" });
        text.push_str(&json(&schema.table.columns[column].name));
        text.push(':');
        text.push_str(&json(&ValueJson(schema.kinds[column], value)));
    }
    text.push('}');
    text
}

fn op_letter(op: Op) -> u8 {
    match op {
        Op::Read => b'r',
        Op::Create => b'c',
        Op::Update => b'u',
        Op::Delete => b'd',
    }
}

/// JSON as text; writing to memory does not fail, and nothing here has keys that are no text.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|e| unreachable!("{e}"))
}

fn write_json(out: &mut BytesMut, value: &impl Serialize) {
    /// Without the checks that a writer of any buffer makes.
    struct Into<'a>(&'a mut BytesMut);

    impl Write for Into<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    serde_json::to_writer(Into(out), value).unwrap_or_else(|e| unreachable!("{e}"));
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

/// Reads an event.
pub(super) fn decode(schema: &TopicSchema, value: &[u8]) -> Result<Change> {
    let malformed = |e| Error::corrupt("not a change event").with_source(e);
    let mut json = serde_json::Deserializer::from_slice(value);
    let event = json.deserialize_map(EventVisitor(schema)).map_err(malformed)?;
    json.end().map_err(malformed)?;
    let Event { op, before, after, sequence } = event;
    let image = if op == Op::Delete { &before } else { &after };
    let Some(image) = image else {
        return Err(Error::corrupt(format!("op {:?} without its image", char::from(op_letter(op)))));
    };
    Ok(Change { table: 0, op, key: schema.table.key_of(image), sequence, before, after })
}

struct Event {
    op: Op,
    before: Option<Row>,
    after: Option<Row>,
    sequence: i64,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    Before,
    After,
    Op,
    Source,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct EventSource {
    seq: i64,
}

#[derive(Deserialize)]
enum Letter {
    #[serde(rename = "r")]
    Read,
    #[serde(rename = "c")]
    Create,
    #[serde(rename = "u")]
    Update,
    #[serde(rename = "d")]
    Delete,
}

struct EventVisitor<'a>(&'a TopicSchema);

impl<'de> Visitor<'de> for EventVisitor<'_> {
    type Value = Event;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a change event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Event, A::Error> {
        let (mut before, mut after, mut op, mut sequence) = (None, None, None, None);
        while let Some(field) = map.next_key::<Field>()? {
            match field {
                Field::Before => before = map.next_value_seed(ImageSeed(self.0))?,
                Field::After => after = map.next_value_seed(ImageSeed(self.0))?,
                Field::Op => {
                    op = Some(match map.next_value::<Letter>()? {
                        Letter::Read => Op::Read,
                        Letter::Create => Op::Create,
                        Letter::Update => Op::Update,
                        Letter::Delete => Op::Delete,
                    });
                }
                Field::Source => sequence = Some(map.next_value::<EventSource>()?.seq),
                Field::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let op = op.ok_or_else(|| A::Error::missing_field("op"))?;
        let sequence = sequence.ok_or_else(|| A::Error::missing_field("source"))?;
        Ok(Event { op, before, after, sequence })
    }
}

/// A row, or null.
struct ImageSeed<'a>(&'a TopicSchema);

impl<'de> DeserializeSeed<'de> for ImageSeed<'_> {
    type Value = Option<Row>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Option<Row>, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for ImageSeed<'_> {
    type Value = Option<Row>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a row")
    }

    fn visit_none<E>(self) -> std::result::Result<Option<Row>, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> std::result::Result<Option<Row>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Option<Row>, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Option<Row>, A::Error> {
        let columns = &self.0.table.columns;
        let mut row = Row::with_capacity(columns.len());
        // Columns by name, once they come in another order than ours.
        let mut others: Option<HashMap<String, Value>> = None;
        loop {
            let expected = if others.is_none() { columns.get(row.len()).map(|c| c.name.as_str()) } else { None };
            let Some(name) = map.next_key_seed(NameSeed(expected))? else { break };
            let value = map.next_value_seed(ValueSeed).map_err(|e| {
                let name = name.as_deref().or(expected).unwrap_or_default();
                A::Error::custom(format!("column {name:?}: {e}"))
            })?;
            match name {
                None => row.push(value),
                Some(name) => {
                    let known = || columns.iter().map(|c| c.name.clone()).zip(std::mem::take(&mut row)).collect();
                    others.get_or_insert_with(known).insert(name, value);
                }
            }
        }
        if others.is_none() && row.len() == columns.len() {
            return Ok(Some(row));
        }
        let mut by_name = others.unwrap_or_else(|| columns.iter().map(|column| column.name.clone()).zip(row).collect());
        let missing = |name: &String| A::Error::custom(format!("column {name:?} is missing"));
        let value = |name: &String| by_name.remove(name).ok_or_else(|| missing(name));
        columns.iter().map(|column| &column.name).map(value).collect::<std::result::Result<_, _>>().map(Some)
    }
}

/// A column's name: `None` where it is the one that is expected.
struct NameSeed<'a>(Option<&'a str>);

impl<'de> DeserializeSeed<'de> for NameSeed<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Option<String>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a column's name")
    }

    fn visit_str<E>(self, name: &str) -> std::result::Result<Option<String>, E> {
        Ok(if self.0 == Some(name) { None } else { Some(name.to_owned()) })
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
