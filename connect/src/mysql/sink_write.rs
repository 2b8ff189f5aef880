//! Writes the changes of one topic into its table.

use mysql_async::{Conn, prelude::Queryable};

use super::{endpoint::driver_error, sink::Session, sink_table::Prepared};
use crate::{
    Error, ErrorKind, Result,
    change::{Row, Value},
    converter::TopicSchema,
    diff::key_text,
    target::fold::{Folding, Step, fold},
    types::Kind,
};

/// Bytes of a statement, unless one row has more.
const STATEMENT_BYTES: usize = 1 << 20;
/// Keys in one `DELETE`.
const DELETE_ROWS: usize = 500;
/// The number of a violation of a unique index.
const DUPLICATE: u16 = 1062;

/// Applies steps in the open transaction.
///
/// # Errors
/// `Conflict` names the topic, and the key where one row was refused.
pub(super) async fn apply(
    session: &mut Session,
    schema: &TopicSchema,
    prepared: &Prepared,
    steps: Vec<Step>,
) -> Result<()> {
    if steps.len() == 1 {
        return one_by_one(session, schema, prepared, &steps).await;
    }
    let folded = fold(&prepared.translation, &steps);
    let filling = session.filling.get(&schema.topic).copied().unwrap_or(false) && folded.only_new;
    session.filling.insert(schema.topic.clone(), filling);
    if folded.in_order || (prepared.other_unique && !filling) {
        return one_by_one(session, schema, prepared, &steps).await;
    }
    let on_duplicate = if prepared.other_unique { "" } else { &prepared.on_duplicate };
    let written = rows(session, prepared, &folded.deletes, &folded.upserts, on_duplicate).await;
    match written {
        Err(Failed::Server(DUPLICATE, _)) if prepared.other_unique => {
            session.filling.insert(schema.topic.clone(), false);
            return one_by_one(session, schema, prepared, &steps).await;
        }
        Err(failed) => return Err(named(schema, failed.into())),
        Ok(()) => {}
    }
    for row in folded.partials {
        step(session, schema, prepared, &Step::Partial(row.into_owned())).await?;
    }
    Ok(())
}

enum Failed {
    Server(u16, Error),
    Other(Error),
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Server(_, error) | Failed::Other(error) => error,
        }
    }
}

/// Deletes, then inserts, many rows a statement.
async fn rows(
    session: &mut Session,
    prepared: &Prepared,
    deletes: &[Folding<'_>],
    upserts: &[Folding<'_>],
    on_duplicate: &str,
) -> Result<(), Failed> {
    for keys in deletes.chunks(DELETE_ROWS) {
        send(session, prepared, delete_sql(prepared, keys)).await?;
    }
    let head = insert_head(prepared);
    let mut sql = head.clone();
    let most = STATEMENT_BYTES.min(session.max_packet / 2);
    for row in upserts {
        let before = sql.len();
        if before > head.len() {
            sql.push(b',');
        }
        row_sql(&mut sql, prepared, row);
        if sql.len() > most && before > head.len() {
            let next = sql.split_off(before);
            sql.extend_from_slice(on_duplicate.as_bytes());
            send(session, prepared, std::mem::replace(&mut sql, head.clone())).await?;
            // Without the comma.
            sql.extend_from_slice(&next[1..]);
        }
    }
    if sql.len() > head.len() {
        sql.extend_from_slice(on_duplicate.as_bytes());
        send(session, prepared, sql).await?;
    }
    Ok(())
}

/// Runs a statement; tells how many rows it found.
async fn send(session: &mut Session, prepared: &Prepared, sql: Vec<u8>) -> Result<u64, Failed> {
    let table = &prepared.translation.table().name;
    if sql.len() + 16 > session.max_packet {
        return Err(Failed::Other(Error::conflict(format!(
            "a row of table {table} takes {} bytes, the server takes no statement beyond {}: SET GLOBAL \
             max_allowed_packet = {}",
            sql.len(),
            session.max_packet,
            (sql.len() + 1024).next_power_of_two()
        ))));
    }
    session.conn.query_drop(sql).await.map_err(|error| {
        let failed = refused(&format!("apply to target table {table}"), &error);
        match &error {
            mysql_async::Error::Server(said) => Failed::Server(said.code, failed),
            _ => Failed::Other(failed),
        }
    })?;
    // An update that changes nothing counts no row as affected, but tells those that it found.
    let info = session.conn.info();
    let matched = info.split_once("Rows matched: ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    Ok(matched.unwrap_or_else(|| session.conn.affected_rows()))
}

/// Applies steps in the order of the log.
async fn one_by_one(session: &mut Session, schema: &TopicSchema, prepared: &Prepared, steps: &[Step]) -> Result<()> {
    for one in steps {
        step(session, schema, prepared, one).await?;
    }
    Ok(())
}

async fn step(session: &mut Session, schema: &TopicSchema, prepared: &Prepared, step: &Step) -> Result<()> {
    let table = prepared.translation.table();
    let (key, done) = match step {
        Step::Delete(key) => {
            (key.clone(), send(session, prepared, delete_sql(prepared, &[key.as_slice().into()])).await)
        }
        Step::Partial(row) => {
            let key = table.key_of(row);
            let done = send(session, prepared, update_sql(prepared, &key, row)).await;
            (key, done)
        }
        Step::Move(old, row) => (old.clone(), send(session, prepared, update_sql(prepared, old, row)).await),
        Step::Upsert(row) => {
            let key = table.key_of(row);
            let done = upsert(session, prepared, &key, row).await;
            (key, done)
        }
    };
    match done {
        Ok(0) if matches!(step, Step::Partial(_) | Step::Move(..)) => {
            tracing::warn!(topic = schema.topic, "an update of a row that the target does not have");
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(failed) => Err(named(schema, failed.into()).context(key_text(table, &key))),
    }
}

/// Writes one row: over the row of its key alone.
async fn upsert(session: &mut Session, prepared: &Prepared, key: &[Value], row: &Row) -> Result<u64, Failed> {
    let mut insert = insert_head(prepared);
    row_sql(&mut insert, prepared, row);
    if !prepared.other_unique {
        insert.extend_from_slice(prepared.on_duplicate.as_bytes());
        return send(session, prepared, insert).await;
    }
    match send(session, prepared, update_sql(prepared, key, row)).await? {
        0 => send(session, prepared, insert).await,
        found => Ok(found),
    }
}

fn insert_head(prepared: &Prepared) -> Vec<u8> {
    format!("INSERT INTO {} ({}) VALUES ", prepared.name, prepared.columns.join(",")).into_bytes()
}

fn row_sql(sql: &mut Vec<u8>, prepared: &Prepared, row: &[Value]) {
    sql.push(b'(');
    for (column, value) in row.iter().enumerate() {
        if column > 0 {
            sql.push(b',');
        }
        value_sql(sql, prepared.translation.kinds()[column], value);
    }
    sql.push(b')');
}

fn condition(sql: &mut Vec<u8>, prepared: &Prepared, key: &[Value]) {
    sql.push(b'(');
    for (place, (column, value)) in prepared.key.iter().zip(key).enumerate() {
        if place > 0 {
            sql.extend_from_slice(b" AND ");
        }
        sql.extend_from_slice(prepared.columns[*column].as_bytes());
        sql.push(b'=');
        value_sql(sql, prepared.translation.kinds()[*column], value);
    }
    sql.push(b')');
}

fn delete_sql(prepared: &Prepared, keys: &[Folding<'_>]) -> Vec<u8> {
    let mut sql = format!("DELETE FROM {} WHERE ", prepared.name).into_bytes();
    if let [column] = prepared.key[..] {
        sql.extend_from_slice(prepared.columns[column].as_bytes());
        sql.extend_from_slice(b" IN (");
        for (place, value) in keys.iter().flat_map(|key| key.iter()).enumerate() {
            if place > 0 {
                sql.push(b',');
            }
            value_sql(&mut sql, prepared.translation.kinds()[column], value);
        }
        sql.push(b')');
        return sql;
    }
    for (place, key) in keys.iter().enumerate() {
        if place > 0 {
            sql.extend_from_slice(b" OR ");
        }
        condition(&mut sql, prepared, key);
    }
    sql
}

fn update_sql(prepared: &Prepared, key: &[Value], row: &[Value]) -> Vec<u8> {
    let mut sql = format!("UPDATE {} SET ", prepared.name).into_bytes();
    let told = row.iter().enumerate().filter(|(_, value)| **value != Value::Unchanged);
    for (place, (column, value)) in told.enumerate() {
        if place > 0 {
            sql.push(b',');
        }
        sql.extend_from_slice(prepared.columns[column].as_bytes());
        sql.push(b'=');
        value_sql(&mut sql, prepared.translation.kinds()[column], value);
    }
    sql.extend_from_slice(b" WHERE ");
    condition(&mut sql, prepared, key);
    sql
}

/// A value as a literal.
fn value_sql(sql: &mut Vec<u8>, kind: Kind, value: &Value) {
    use std::io::Write as _;
    // Writing to a vector does not fail.
    let _ = match value {
        Value::Null | Value::Unchanged => sql.write_all(b"NULL"),
        Value::Boolean(b) => write!(sql, "{}", u8::from(*b)),
        Value::Integer(i) => write!(sql, "{i}"),
        Value::Unsigned(u) => write!(sql, "{u}"),
        // With an exponent it is a double from the start; without, it would be a decimal, which has no -0.
        Value::Real(real) => write!(sql, "{real:e}"),
        // As text it would be compared as a double.
        Value::Text(text) if kind == Kind::Decimal && is_decimal(text) => sql.write_all(text.as_bytes()),
        // The session is in UTC, and older servers know no zone in a literal.
        Value::Text(text) if matches!(kind, Kind::Instant | Kind::Timestamp) => {
            quoted(sql, text.trim_end_matches('Z').replace('T', " ").as_bytes());
            Ok(())
        }
        Value::Text(text) => {
            quoted(sql, text.as_bytes());
            Ok(())
        }
        Value::InvalidText(bytes) | Value::Blob(bytes) => {
            sql.extend_from_slice(b"_binary");
            quoted(sql, bytes);
            Ok(())
        }
    };
}

fn is_decimal(text: &str) -> bool {
    !text.is_empty() && text.len() < 80 && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
}

/// Text between single quotes. Sessions are without `NO_BACKSLASH_ESCAPES`.
fn quoted(sql: &mut Vec<u8>, text: &[u8]) {
    sql.push(b'\'');
    for &byte in text {
        match byte {
            b'\'' | b'\\' => sql.extend_from_slice(&[b'\\', byte]),
            0 => sql.extend_from_slice(b"\\0"),
            _ => sql.push(byte),
        }
    }
    sql.push(b'\'');
}

/// A text as an SQL literal.
pub(super) fn literal(text: &str) -> String {
    let mut sql = Vec::with_capacity(text.len() + 2);
    quoted(&mut sql, text.as_bytes());
    String::from_utf8(sql).unwrap_or_default()
}

/// Runs a statement that gives nothing.
pub(super) async fn run(conn: &mut Conn, doing: &str, sql: impl Into<String>) -> Result<()> {
    conn.query_drop(sql.into()).await.map_err(|e| refused(doing, &e))
}

fn named(schema: &TopicSchema, error: Error) -> Error {
    if error.kind() != ErrorKind::Conflict {
        return error;
    }
    error.context(format!("topic {}: the target's own columns or constraints refuse a row of the source", schema.topic))
}

/// An error of a statement that writes: a full disk passes, what the server refuses about a row or a table is for a
/// person to decide.
pub(super) fn refused(doing: &str, error: &mysql_async::Error) -> Error {
    /// A full disk: of a temporary file, of a table, of an engine.
    const FULL: [u16; 4] = [3, 1026, 1030, 1114];
    let failed = driver_error(error);
    let kind = match (error, failed.kind()) {
        (mysql_async::Error::Server(said), _) if FULL.contains(&said.code) => ErrorKind::Unavailable,
        (_, ErrorKind::NotFound) => ErrorKind::Conflict,
        (_, kind) => kind,
    };
    Error::new(kind, failed.to_string()).context(doing.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_may_pass_and_a_refused_row_does_not() {
        let error = |code| {
            let said = mysql_async::ServerError { code, message: "x".into(), state: "HY000".into() };
            refused("d", &mysql_async::Error::Server(said)).kind()
        };
        for (code, kind) in [
            (1114, ErrorKind::Unavailable),
            (1021, ErrorKind::Unavailable),
            (1213, ErrorKind::Unavailable),
            (1205, ErrorKind::Unavailable),
            (1062, ErrorKind::Conflict),
            (1264, ErrorKind::Conflict),
            (1146, ErrorKind::Conflict),
        ] {
            assert_eq!(error(code), kind, "{code}");
        }
    }

    #[test]
    fn values_are_literals_of_their_kind() {
        let sql = |kind, value: Value| {
            let mut sql = Vec::new();
            value_sql(&mut sql, kind, &value);
            String::from_utf8(sql).unwrap()
        };
        assert_eq!(sql(Kind::Text, Value::Text("it's \\ \0".into())), "'it\\'s \\\\ \\0'");
        assert_eq!(sql(Kind::Decimal, Value::Text("-1.50".into())), "-1.50");
        assert_eq!(sql(Kind::Decimal, Value::Text("1 or 1".into())), "'1 or 1'");
        assert_eq!(sql(Kind::Instant, Value::Text("2024-01-01T00:00:00.5Z".into())), "'2024-01-01 00:00:00.5'");
        assert_eq!(sql(Kind::Real, Value::Real(-0.0)), "-0e0");
        assert_eq!(sql(Kind::Blob, Value::Blob(vec![b'\'', 0])), "_binary'\\'\\0'");
    }
}
