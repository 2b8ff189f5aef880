//! Reads the columns of a change event into the builders, in one pass of the JSON parser.

use std::fmt;

use datafusion::common::HashMap;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value as Json};
use tidemill_connect::{
    change::Value,
    converter::{Kind, decode_value},
};
use tidemill_core::{Error, Result, batch::RecordRef};

use super::{Decoder, Known, Projected, column::bytes_text};
use crate::{catalog::quoted, table::Form};

/// Which row of an event is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Image {
    Before,
    After,
}

/// Why a row cannot be read.
enum Fault {
    /// The value of this projected column does not fit it; NULL where the column refuses that.
    Misfit(usize, Value),
    /// The event is damaged.
    Damaged(String),
}

impl Decoder {
    /// Reads the projected columns of the image; `false` where the event has no such image, and then no column has
    /// gathered anything.
    ///
    /// # Errors
    /// `Invalid` names a value that does not fit its column, `Corrupt` an event that is none.
    pub(crate) fn read_event(&mut self, record: &RecordRef<'_>, image: Image) -> Result<bool> {
        let value = record.value.unwrap_or_default();
        let mut row = RowReader {
            known: &self.known,
            by_name: &self.by_name,
            projected: &mut self.projected,
            rows: self.rows,
            next: 0,
            fault: None,
        };
        let mut json = serde_json::Deserializer::from_slice(value);
        let read =
            EventSeed { row: &mut row, image }.deserialize(&mut json).and_then(|event| json.end().map(|()| event));
        let fault = row.fault.take();
        match (read, fault) {
            (Ok(event), None) => {
                self.op = event.op;
                if event.found {
                    self.end_row(record)?;
                }
                Ok(event.found)
            }
            (_, Some(Fault::Misfit(column, value))) => Err(self.misfit(record, column, &value)),
            (_, Some(Fault::Damaged(what))) => Err(self.fault(record, &what)),
            (Err(e), None) => Err(Error::corrupt("not a change event").with_source(e).context(self.at(record))),
        }
    }

    /// Columns that the record's schema did not have are NULL.
    fn end_row(&mut self, record: &RecordRef<'_>) -> Result<()> {
        for i in 0..self.projected.len() {
            let column = &mut self.projected[i];
            if !matches!(column.source, super::ColumnSource::Column(_)) || column.builder.len() > self.rows {
                continue;
            }
            if !column.nullable {
                return Err(self.misfit(record, i, &Value::Null));
            }
            column.builder.append_null();
        }
        Ok(())
    }

    fn misfit(&self, record: &RecordRef<'_>, projected: usize, value: &Value) -> Error {
        let known = self.known.iter().find(|known| known.projected == Some(projected));
        let (name, declared) = known.map_or(("?", "?"), |known| (known.name.as_str(), kind_text(known.kind)));
        let declared = if *value == Value::Null { "NOT NULL" } else { declared };
        let key = String::from_utf8_lossy(record.key.unwrap_or_default());
        let (column, table) = (quoted(name), &self.place.table);
        let as_it_is = match (self.place.form, declared) {
            (Form::Changes, _) => format!("_offset, _value from records_of({table})"),
            (_, "BIGINT" | "DOUBLE") => format!("try_cast({column} as {declared}) from texts_of({table})"),
            _ => format!("{column} from texts_of({table})"),
        };
        let advice = format!(
            "correct the row {key} in the source, or leave {column} out, or read it as it is: select {as_it_is}"
        );
        Error::invalid(format!(
            "{}: \"{name}\" is {}, column is {declared}; {advice}",
            self.at(record),
            value_text(value)
        ))
    }
}

/// The columns of one row, as the parser meets them.
struct RowReader<'d> {
    known: &'d [Known],
    by_name: &'d HashMap<String, usize>,
    projected: &'d mut [Projected],
    rows: usize,
    /// The column expected next: events hold them in the schema's order.
    next: usize,
    fault: Option<Fault>,
}

impl RowReader<'_> {
    /// The column of this name; columns that the present schema no longer has are none.
    fn column(&mut self, name: &str) -> Option<usize> {
        let expected = self.known.get(self.next).filter(|known| known.name == name).map(|_| self.next);
        let found = expected.or_else(|| self.by_name.get(name).copied())?;
        self.next = found + 1;
        Some(found)
    }

    fn put(&mut self, known: usize, value: Value) {
        let Some(index) = self.known[known].projected else { return };
        let column = &mut self.projected[index];
        if column.builder.len() != self.rows {
            self.damaged(format!("column {:?} occurs twice", self.known[known].name));
            return;
        }
        if matches!(value, Value::Null | Value::Unchanged) {
            match column.nullable {
                true => column.builder.append_null(),
                false => self.misfit(index, value),
            }
            return;
        }
        if let Err(value) = column.builder.append_value(self.known[known].kind, value) {
            self.misfit(index, value);
        }
    }

    /// Text without an allocation of its own.
    fn put_text(&mut self, known: usize, text: &str) {
        let Some(index) = self.known[known].projected else { return };
        let column = &mut self.projected[index];
        // Other columns of text hold text too: dates, times, documents.
        let takes_text = !matches!(self.known[known].kind, Kind::Blob | Kind::Integer | Kind::Real);
        if takes_text && column.builder.is_text() && column.builder.len() == self.rows {
            column.builder.append_text(text);
        } else {
            self.put(known, Value::Text(text.to_owned()));
        }
    }

    fn misfit(&mut self, projected: usize, value: Value) {
        self.fault.get_or_insert(Fault::Misfit(projected, value));
    }

    fn damaged(&mut self, what: String) {
        self.fault.get_or_insert(Fault::Damaged(what));
    }
}

struct Event {
    found: bool,
    op: Option<char>,
}

struct EventSeed<'r, 'd> {
    row: &'r mut RowReader<'d>,
    image: Image,
}

impl<'de> DeserializeSeed<'de> for EventSeed<'_, '_> {
    type Value = Event;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Event, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EventSeed<'_, '_> {
    type Value = Event;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a change event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Event, A::Error> {
        let mut event = Event { found: false, op: None };
        while let Some(field) = map.next_key_seed(FieldSeed)? {
            match field {
                Field::Image(image) if image == self.image => {
                    event.found = map.next_value_seed(RowSeed(&mut *self.row))?
                }
                Field::Op => event.op = map.next_value_seed(LetterSeed)?,
                Field::Image(_) | Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(event)
    }
}

enum Field {
    Image(Image),
    Op,
    Other,
}

struct FieldSeed;

impl<'de> DeserializeSeed<'de> for FieldSeed {
    type Value = Field;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Field, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldSeed {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field of a change event")
    }

    fn visit_str<E>(self, name: &str) -> Result<Field, E> {
        Ok(match name {
            "before" => Field::Image(Image::Before),
            "after" => Field::Image(Image::After),
            "op" => Field::Op,
            _ => Field::Other,
        })
    }
}

struct LetterSeed;

impl<'de> DeserializeSeed<'de> for LetterSeed {
    type Value = Option<char>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<char>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for LetterSeed {
    type Value = Option<char>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the letter of a change")
    }

    fn visit_str<E>(self, text: &str) -> Result<Option<char>, E> {
        Ok(text.chars().next())
    }
}

/// Yields whether there is a row: the image may be null.
struct RowSeed<'r, 'd>(&'r mut RowReader<'d>);

impl<'de> DeserializeSeed<'de> for RowSeed<'_, '_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RowSeed<'_, '_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a row or null")
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        while let Some(column) = map.next_key_seed(ColumnSeed(&mut *self.0))? {
            match column.filter(|known| self.0.known[*known].projected.is_some()) {
                Some(known) => map.next_value_seed(ValueSeed { row: &mut *self.0, known })?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(true)
    }
}

struct ColumnSeed<'r, 'd>(&'r mut RowReader<'d>);

impl<'de> DeserializeSeed<'de> for ColumnSeed<'_, '_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for ColumnSeed<'_, '_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a column")
    }

    fn visit_str<E>(self, name: &str) -> Result<Option<usize>, E> {
        Ok(self.0.column(name))
    }
}

struct ValueSeed<'r, 'd> {
    row: &'r mut RowReader<'d>,
    known: usize,
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.row.put(self.known, Value::Null);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.row.put(self.known, Value::Integer(value));
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.row.put(self.known, i64::try_from(value).map_or(Value::Unsigned(value), Value::Integer));
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.row.put(self.known, Value::Boolean(value));
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.row.put(self.known, Value::Real(value));
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.row.put_text(self.known, text);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut object = Map::new();
        while let Some((tag, content)) = map.next_entry::<String, Json>()? {
            object.insert(tag, content);
        }
        match decode_value(Json::Object(object)) {
            Ok(value) => self.row.put(self.known, value),
            Err(e) => self.row.damaged(e.context(format!("column {:?}", self.row.known[self.known].name)).to_string()),
        }
        Ok(())
    }
}

fn kind_text(kind: Kind) -> &'static str {
    match kind {
        Kind::Integer => "BIGINT",
        Kind::Real => "DOUBLE",
        Kind::Text => "TEXT",
        Kind::Blob => "BYTEA",
        Kind::Any => "ANY",
        Kind::Unsigned => "BIGINT UNSIGNED",
        Kind::Boolean => "BOOLEAN",
        Kind::Decimal => "DECIMAL",
        Kind::Date | Kind::Time | Kind::Timestamp | Kind::Instant | Kind::Json | Kind::Uuid => "TEXT",
    }
}

/// The kind and the value, cut to what a message bears.
fn value_text(value: &Value) -> String {
    let cut = |text: &str| match text.char_indices().nth(60) {
        Some((at, _)) => format!("{:?}...", &text[..at]),
        None => format!("{text:?}"),
    };
    match value {
        Value::Null | Value::Unchanged => "NULL".to_owned(),
        Value::Boolean(b) => format!("boolean {b}"),
        Value::Unsigned(u) => format!("integer {u}"),
        Value::Integer(i) => format!("integer {i}"),
        Value::Real(r) => format!("real {r:?}"),
        Value::Text(text) => format!("text {}", cut(text)),
        Value::InvalidText(bytes) => format!("text that is not UTF-8, {}", cut(&bytes_text(bytes))),
        Value::Blob(bytes) => format!("a blob of {} bytes", bytes.len()),
    }
}
