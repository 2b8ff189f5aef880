//! Binlogs that MySQL servers wrote, read by these decoders and by the driver's: every cell must be the same. The files
//! are those of a folder that `TIDEMILL_BINLOGS` names, such as `test-data/binlogs` of `blackbeam/rust_mysql_common`.

use std::{collections::HashMap, fs, panic::catch_unwind, path::Path};

use mysql_common::{
    Value as Wire,
    binlog::{
        BinlogFile,
        consts::BinlogVersion,
        events::{Event as DriverEvent, EventData, TransactionPayloadEvent},
        value::BinlogValue,
    },
};

use super::{
    bytes::Bytes,
    event::{self, Event, RowsKind},
    rows::{Binding, Reader},
    table_map::{MapColumn, TableMap},
};
use crate::{
    change::{Row, Value},
    mysql::{
        binlog::cell::Cell,
        declared::Declared,
        text::Charset,
        value::{date, datetime, instant, time},
    },
};

/// What became of the row events of a file.
#[derive(Debug, Default)]
struct Outcome {
    events: usize,
    decoded: usize,
    rows: usize,
    cells: usize,
    refused: Vec<String>,
    differences: Vec<String>,
    rows_text: String,
}

#[test]
fn recorded_binlogs_are_read_as_the_driver_reads_them_or_refused() {
    let Ok(folder) = std::env::var("TIDEMILL_BINLOGS") else { return };
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let mut wrong = Vec::new();
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let outcome = catch_unwind(|| examine(&file)).unwrap_or_else(|_| panic!("{name}: a decoder panicked"));
        println!(
            "{name}: {} events, {} of rows decoded with {} rows and {} cells, refused {:?}, differences {:?}",
            outcome.events, outcome.decoded, outcome.rows, outcome.cells, outcome.refused, outcome.differences
        );
        if std::env::var("TIDEMILL_BINLOGS_ROWS").is_ok() {
            println!("{}", outcome.rows_text);
        }
        wrong.extend(outcome.differences.into_iter().map(|difference| format!("{name}: {difference}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn examine(file: &Path) -> Outcome {
    let bytes = fs::read(file).unwrap();
    let mut outcome = Outcome::default();
    let mut maps = HashMap::new();
    let mut binlog = match BinlogFile::new(BinlogVersion::Version4, &bytes[..]) {
        Ok(binlog) => binlog,
        Err(error) => {
            outcome.refused.push(format!("by the driver: {error}"));
            return outcome;
        }
    };
    while let Some(next) = binlog.next() {
        let event = match next {
            Ok(event) => event,
            Err(error) => {
                outcome.refused.push(format!("by the driver: {error}"));
                break;
            }
        };
        let payload = take(&event, &mut maps, binlog.reader(), &mut outcome);
        let Some(size) = payload else { continue };
        let packed = event.read_event::<TransactionPayloadEvent<'_>>().unwrap();
        let mut unpacked = packed.decompressed().unwrap();
        let mut total = 0;
        while let Some(inner) = binlog.reader_mut().read_decompressed(&mut unpacked).unwrap() {
            total += u64::from(inner.header().event_size());
            take(&inner, &mut maps, binlog.reader(), &mut outcome);
        }
        if total != size {
            outcome.differences.push(format!("a payload of {size} bytes has {total}"));
        }
    }
    outcome
}

/// Reads an event both ways; the size of a compressed transaction that follows.
fn take(
    event: &DriverEvent,
    maps: &mut HashMap<u64, (TableMap, Result<Binding, String>)>,
    driver: &mysql_common::binlog::EventStreamReader,
    outcome: &mut Outcome,
) -> Option<u64> {
    outcome.events += 1;
    let header = event.header();
    let kind = header.event_type_raw();
    let rows = match event::read(kind, header.server_id(), event.data()) {
        Ok(Event::Payload { size }) => return Some(size),
        Ok(Event::TableMap(map)) => {
            let bound = binding(&map);
            maps.insert(map.table_id, (map, bound));
            return None;
        }
        Ok(Event::Rows(rows)) => rows,
        Ok(_) => {
            assert!(!matches!(event.read_data(), Ok(Some(EventData::RowsEvent(_)))), "a row event was passed over");
            return None;
        }
        Err(error) => {
            outcome.refused.push(format!("event {kind}: {error}"));
            return None;
        }
    };
    let (map, bound) = match maps.get(&rows.table_id) {
        Some((map, Ok(bound))) => (map, bound),
        Some((map, Err(why))) => {
            outcome.refused.push(format!("rows of {}: {why}", map.table));
            return None;
        }
        None => {
            outcome.refused.push("rows without a map".into());
            return None;
        }
    };
    if rows.kind == RowsKind::Partial || !rows.full {
        outcome.refused.push(format!("rows of {}: event {kind} is not whole", map.table));
        return None;
    }
    let mut reader = match Reader::new(rows, bound) {
        Ok(reader) => reader,
        Err(error) => {
            outcome.refused.push(format!("rows of {}: {error}", map.table));
            return None;
        }
    };
    let mut own = Vec::new();
    let failed = loop {
        match reader.next(bound) {
            Ok(Some(image)) => own.push((image.before, image.after)),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    let Ok(Some(EventData::RowsEvent(theirs))) = event.read_data() else {
        outcome.refused.push(format!("rows of {}: the driver reads no rows", map.table));
        return None;
    };
    let table = driver.get_tme(theirs.table_id()).unwrap();
    let theirs: Result<Vec<_>, _> = theirs.rows(table).collect();
    match (failed, theirs) {
        (None, Ok(theirs)) => {
            if own.len() != theirs.len() {
                outcome.differences.push(format!("{}: {} rows, and {}", map.table, own.len(), theirs.len()));
            }
            for (own, theirs) in own.into_iter().zip(theirs) {
                outcome.rows += 1;
                outcome.rows_text += &format!("{kind} {} {own:?}\n", map.table);
                for (own, theirs) in [(own.0, theirs.0), (own.1, theirs.1)] {
                    match (own, theirs) {
                        (Some(own), Some(theirs)) => compare(map, &own, theirs.unwrap(), outcome),
                        (None, None) => {}
                        _ => outcome.differences.push(format!("{}: an image is missing", map.table)),
                    }
                }
            }
            outcome.decoded += 1;
        }
        (own, theirs) => {
            let theirs = theirs.err().map(|error| error.to_string());
            match own {
                Some(own) => outcome.refused.push(format!("rows of {}: {own}; the driver: {theirs:?}", map.table)),
                None => outcome.differences.push(format!("{}: the driver alone says {theirs:?}", map.table)),
            }
        }
    }
    None
}

fn compare(map: &TableMap, own: &Row, theirs: Vec<BinlogValue<'static>>, outcome: &mut Outcome) {
    if own.len() != theirs.len() {
        outcome.differences.push(format!("{}: {} cells, and {}", map.table, own.len(), theirs.len()));
    }
    for ((column, own), theirs) in map.columns.iter().zip(own).zip(theirs) {
        outcome.cells += 1;
        let told = format!("{theirs:?}");
        if !same(column, own, theirs) {
            let (table, kind) = (&map.table, column.kind);
            outcome.differences.push(format!("{table}, type {kind}: {own:.200?}, and {told:.200}"));
        }
    }
}

/// The charsets of the collations that occur.
fn charset(column: &MapColumn) -> Option<Charset> {
    Some(match column.collation? {
        63 => Charset::Binary,
        5 | 8 | 15 | 31 | 47..=49 | 94 => Charset::Latin1,
        11 | 33 | 45 | 46 | 65 | 76 | 83 | 192..=215 | 224..=247 | 255..=323 => Charset::Utf8,
        _ => return None,
    })
}

/// Every column, by what the binlog alone says of it.
fn binding(map: &TableMap) -> Result<Binding, String> {
    if let Some(why) = &map.unreadable {
        return Err(why.clone());
    }
    let cell = |(i, column): (usize, &MapColumn)| {
        let charset = charset(column).unwrap_or(Charset::Binary);
        let declared = match column.kind {
            1 | 2 | 3 | 8 | 9 => "bigint",
            4 | 5 => "double",
            246 => "decimal",
            16 => "bit",
            13 => "year",
            10 | 14 => "date",
            11 | 19 => "time",
            12 | 18 => "datetime",
            7 | 17 => "timestamp",
            247 => "enum",
            248 => "set",
            245 => "json",
            255 => "geometry",
            _ if charset == Charset::Binary => "varbinary",
            _ => "text",
        };
        let mut declared = Declared::parse(declared);
        if column.members.is_none() {
            declared.members = (1..=64).map(|n| format!("m{n}")).collect();
        }
        Ok((Cell::new(column, &declared, Some(charset)).map_err(|why| format!("column {}: {why}", i + 1))?, Some(i)))
    };
    let cells: Result<Vec<_>, String> = map.columns.iter().enumerate().map(cell).collect();
    let cells = cells?;
    Ok(Binding { empty: vec![Value::Null; cells.len()], cells })
}

fn member(column: &MapColumn, n: u64) -> String {
    let told = column.members.as_ref().map(|members| {
        let member = &members[usize::try_from(n).unwrap()];
        match charset(column).unwrap_or(Charset::Binary).text(member) {
            Value::Text(text) => text,
            _ => String::from_utf8_lossy(member).into_owned(),
        }
    });
    told.unwrap_or_else(|| format!("m{}", n + 1))
}

fn same(column: &MapColumn, own: &Value, theirs: BinlogValue<'static>) -> bool {
    let text = |expected: String| *own == Value::Text(expected);
    let wire = match theirs {
        BinlogValue::Value(wire) => wire,
        BinlogValue::Jsonb(json) => {
            let (Value::Text(own), Ok(theirs)) = (own, json.parse()) else { return false };
            return loose(&serde_json::from_str(own).unwrap()) == loose(&theirs.into());
        }
        BinlogValue::JsonDiff(_) => return false,
    };
    match (column.kind, wire) {
        (_, Wire::NULL) => *own == Value::Null,
        (247, Wire::Int(0)) => text(String::new()),
        (247, Wire::Int(n)) => text(member(column, n as u64 - 1)),
        (248, Wire::Bytes(bytes)) => {
            let bits = Bytes::new(&bytes).le(bytes.len()).unwrap();
            let chosen: Vec<_> = (0..64).filter(|n| bits >> n & 1 == 1).map(|n| member(column, n)).collect();
            text(chosen.join(","))
        }
        (7, Wire::Int(seconds)) => text(instant(seconds as u32, 0)),
        (_, Wire::Int(number)) => *own == Value::Integer(number),
        (_, Wire::UInt(number)) => *own == super::super::value::unsigned(number),
        (_, Wire::Float(number)) => *own == super::super::value::float(number),
        (_, Wire::Double(number)) => *own == Value::Real(number),
        (16, Wire::Bytes(bytes)) => *own == super::super::value::unsigned(Bytes::new(&bytes).be(bytes.len()).unwrap()),
        (13, Wire::Bytes(year)) => {
            // The driver takes the year 0 for 1900.
            let year: i64 = String::from_utf8(year).unwrap().parse().unwrap();
            *own == Value::Integer(if year == 1900 { 0 } else { year })
        }
        (17, Wire::Bytes(moment)) => {
            let moment = String::from_utf8(moment).unwrap();
            let (seconds, micros) = moment.split_once('.').unwrap_or((&moment, "0"));
            text(instant(seconds.parse().unwrap(), micros.parse().unwrap()))
        }
        (246, Wire::Bytes(digits)) => text(String::from_utf8(digits).unwrap()),
        (10 | 14, Wire::Date(y, m, d, ..)) => text(date(y.into(), m.into(), d.into())),
        (_, Wire::Date(y, m, d, h, min, s, micros)) => {
            text(datetime([y.into(), m.into(), d.into(), h.into(), min.into(), s.into()], micros, false))
        }
        (_, Wire::Time(negative, days, h, m, s, micros)) => {
            text(time(negative, days * 24 + u32::from(h), m.into(), s.into(), micros))
        }
        (_, Wire::Bytes(bytes)) => *own == charset(column).unwrap_or(Charset::Binary).text(&bytes),
    }
}

/// Numbers as text of one form: the driver gives exact ones as strings.
fn loose(json: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match json {
        Json::Number(number) => Json::String(number.as_f64().unwrap().to_string()),
        Json::String(text) => Json::String(text.parse::<f64>().map_or_else(|_| text.clone(), |n| n.to_string())),
        Json::Array(all) => Json::Array(all.iter().map(loose).collect()),
        Json::Object(all) => Json::Object(all.iter().map(|(key, value)| (key.clone(), loose(value))).collect()),
        other => other.clone(),
    }
}
