//! Writes the changes of one topic into its table.

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::{
    endpoint::{execute, postgres_error},
    sink::{Session, refused},
    sink_table::Prepared,
};
use crate::{
    Error, ErrorKind, Result,
    change::Value,
    converter::TopicSchema,
    diff::key_text,
    target::fold::{Folded, Folding, Step, fold},
};

/// Up to so many rows are written as literals in one statement. A `COPY` costs the server a little less for each row, but
/// more round trips; and the driver leaves Nagle's algorithm on, so that the end of a `COPY` waits until the server's system
/// acknowledges the data before it, for 40 ms where nothing hurries it.
const FEW_ROWS: usize = 1_000;
/// And so many values.
const FEW_VALUES: usize = 20_000;
/// And so many bytes of them.
const FEW_BYTES: usize = 512 << 10;
/// Keys of several columns are compared one by one: up to so many are deleted by literals.
const FEW_WIDE_KEYS: usize = 40;
/// Bytes sent to a `COPY` at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// Bytes of updates in one query.
const QUERY_BYTES: usize = 256 << 10;
const SAVEPOINT: &str = "SAVEPOINT tidemill;";
const BACK: &str = "ROLLBACK TO SAVEPOINT tidemill";

/// What is done to a table, and what the transaction is ended with.
struct Work<'a> {
    schema: &'a TopicSchema,
    prepared: &'a Prepared,
    doing: String,
    /// Statements that end the transaction.
    end: Option<&'a str>,
}

/// Applies steps in the open transaction. Where the last statement takes it along, `end` is sent with it: statements that
/// end the transaction. Tells whether that was so.
///
/// # Errors
/// `Conflict` names the topic, and the key where one row was refused.
pub(super) async fn apply(
    session: &mut Session,
    schema: &TopicSchema,
    prepared: &Prepared,
    steps: Vec<Step>,
    end: Option<&str>,
) -> Result<bool> {
    let doing = format!("apply to target table {}", prepared.translation.table().full_name());
    let work = Work { schema, prepared, doing, end };
    if steps.len() == 1 {
        return one_by_one(&mut session.conn, &work, &steps).await;
    }
    let folded = fold(&prepared.translation, &steps);
    if folded.in_order {
        return one_by_one(&mut session.conn, &work, &steps).await;
    }
    let filling = session.filling.get(&schema.topic) && folded.only_new;
    session.filling.set(&schema.topic, filling);
    let mut begin = SAVEPOINT.to_owned();
    if filling {
        let conn = &mut session.conn;
        execute(conn, &work.doing, std::mem::take(&mut begin)).await?;
        let into = format!("COPY {} ({}) FROM STDIN", prepared.name, prepared.columns.join(", "));
        match copy(conn, &into, &folded.upserts).await {
            Err(error) if is_duplicate(&error) => {
                session.filling.set(&schema.topic, false);
                execute(conn, &work.doing, BACK).await?;
            }
            other => return other.map(|()| false).map_err(|e| named(schema, refused(&work.doing, e))),
        }
    }
    match write(session, &work, begin, &folded).await {
        Ok(ended) => Ok(ended),
        Err(error) => {
            // Where that fails, there is no transaction any more: it was its end that failed, or the connection.
            if execute(&mut session.conn, &work.doing, BACK).await.is_err() {
                return Err(postgres_error("commit", error));
            }
            if is_duplicate(&error) {
                // Another unique index than the key's: in the source's own order no two rows had the same value.
                return one_by_one(&mut session.conn, &work, &steps).await;
            }
            Err(named(schema, refused(&work.doing, error)))
        }
    }
}

/// Writes what is left of each key, `begin` before it; whether the transaction was ended with it.
async fn write(session: &mut Session, work: &Work<'_>, begin: String, folded: &Folded<'_>) -> sqlx::Result<bool> {
    let (prepared, Folded { deletes, upserts, partials, .. }) = (work.prepared, folded);
    let (mut sql, mut last) = (begin, String::new());
    let listed = if prepared.key.len() == 1 { FEW_ROWS } else { FEW_WIDE_KEYS };
    let few_deletes = deletes.len() <= listed && are_few(deletes);
    let few_upserts = are_few(upserts);
    let copied = !few_deletes || !few_upserts;
    if copied && !session.staged.insert(work.schema.id) {
        // The temporary tables are emptied at the commit, and a topic may come more than once before it.
        sql.push_str(&prepared.clear);
        sql.push(';');
    }
    if few_deletes && !deletes.is_empty() {
        sql.push_str(&delete_sql(prepared, deletes));
        sql.push(';');
    }
    let conn = &mut session.conn;
    if copied {
        if !sql.is_empty() {
            run(conn, &std::mem::take(&mut sql)).await?;
        }
        if !few_deletes {
            copy(conn, &prepared.copy_keys, deletes).await?;
            last.push_str(&prepared.delete);
            last.push(';');
        }
        if !few_upserts {
            copy(conn, &prepared.copy_rows, upserts).await?;
            last.push_str(&prepared.merge);
            last.push(';');
        }
    }
    sql.push_str(&last);
    if few_upserts && !upserts.is_empty() {
        upsert_sql(&mut sql, prepared, upserts);
        sql.push(';');
    }
    if partials.is_empty() {
        sql.push_str(work.end.unwrap_or_default());
        run(conn, &sql).await?;
        return Ok(work.end.is_some());
    }
    if !sql.is_empty() {
        run(conn, &sql).await?;
    }
    let missed = partly(conn, prepared, partials).await?;
    if missed > 0 {
        tracing::warn!(topic = work.schema.topic, rows = missed, "updates of rows that the target does not have");
    }
    Ok(false)
}

/// Whether rows are written as literals.
fn are_few(rows: &[Folding<'_>]) -> bool {
    let size = |value: &Value| match value {
        Value::Text(text) => text.len(),
        Value::Blob(bytes) | Value::InvalidText(bytes) => 2 * bytes.len(),
        _ => 0,
    };
    let values = rows.first().map_or(0, |row| row.len()) * rows.len();
    rows.len() <= FEW_ROWS
        && values <= FEW_VALUES
        && rows.iter().flat_map(|row| row.iter()).map(size).sum::<usize>() <= FEW_BYTES
}

fn named(schema: &TopicSchema, error: Error) -> Error {
    if error.kind() != ErrorKind::Conflict {
        return error;
    }
    error.context(format!("topic {}: the target's own columns or constraints refuse a row of the source", schema.topic))
}

fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|said| said.code().as_deref() == Some("23505"))
}

async fn run(conn: &mut PgConnection, sql: &str) -> sqlx::Result<u64> {
    conn.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.map(|done| done.rows_affected())
}

/// Updates rows of which some values are not told; tells how many are not there.
async fn partly(conn: &mut PgConnection, prepared: &Prepared, rows: &[Folding<'_>]) -> sqlx::Result<usize> {
    let (mut sql, mut found) = (String::new(), 0);
    for row in rows {
        sql.push_str(&update_sql(prepared, &prepared.translation.table().key_of(row), row));
        sql.push(';');
        if sql.len() >= QUERY_BYTES {
            found += run(conn, &sql).await?;
            sql.clear();
        }
    }
    if !sql.is_empty() {
        found += run(conn, &sql).await?;
    }
    Ok(rows.len().saturating_sub(usize::try_from(found).unwrap_or(usize::MAX)))
}

/// Applies steps in the order of the log. Does not end the transaction.
async fn one_by_one(conn: &mut PgConnection, work: &Work<'_>, steps: &[Step]) -> Result<bool> {
    let Work { schema, prepared, doing, .. } = work;
    let table = prepared.translation.table();
    for step in steps {
        let (key, sql) = match step {
            Step::Delete(key) => (key.clone(), delete_sql(prepared, &[key.as_slice().into()])),
            Step::Upsert(row) => {
                let mut sql = String::new();
                upsert_sql(&mut sql, prepared, &[row.as_slice().into()]);
                (table.key_of(row), sql)
            }
            Step::Partial(row) => (table.key_of(row), update_sql(prepared, &table.key_of(row), row)),
            Step::Move(old, row) => (old.clone(), update_sql(prepared, old, row)),
        };
        let written =
            run(conn, &sql).await.map_err(|e| named(schema, refused(doing, e)).context(key_text(table, &key)))?;
        if written == 0 && matches!(step, Step::Partial(_) | Step::Move(..)) {
            tracing::warn!(topic = schema.topic, "an update of a row that the target does not have");
        }
    }
    Ok(false)
}

fn delete_sql(prepared: &Prepared, keys: &[Folding<'_>]) -> String {
    let mut sql = format!("DELETE FROM {} WHERE ({}) IN (", prepared.name, prepared.key.join(", "));
    list(&mut sql, keys);
    sql.push(')');
    sql
}

fn upsert_sql(sql: &mut String, prepared: &Prepared, rows: &[Folding<'_>]) {
    for part in
        ["INSERT INTO ", &prepared.name, " (", &prepared.columns.join(", "), ") OVERRIDING SYSTEM VALUE VALUES "]
    {
        sql.push_str(part);
    }
    list(sql, rows);
    sql.push(' ');
    sql.push_str(&prepared.on_conflict);
}

fn update_sql(prepared: &Prepared, key: &[Value], row: &[Value]) -> String {
    let mut sql = format!("UPDATE {} SET ", prepared.name);
    let told = prepared.columns.iter().zip(row).filter(|(_, value)| **value != Value::Unchanged);
    for (place, (column, value)) in told.enumerate() {
        if place > 0 {
            sql.push_str(", ");
        }
        sql.push_str(column);
        sql.push_str(" = ");
        literal(value, &mut sql);
    }
    sql.push_str(" WHERE ");
    for (place, (column, value)) in prepared.key.iter().zip(key).enumerate() {
        if place > 0 {
            sql.push_str(" AND ");
        }
        sql.push_str(column);
        sql.push_str(" = ");
        literal(value, &mut sql);
    }
    sql
}

fn list(sql: &mut String, rows: &[Folding<'_>]) {
    for (place, row) in rows.iter().enumerate() {
        sql.push_str(if place > 0 { ",(" } else { "(" });
        for (place, value) in row.iter().enumerate() {
            if place > 0 {
                sql.push(',');
            }
            literal(value, sql);
        }
        sql.push(')');
    }
}

/// A value as a literal whose type the column gives.
fn literal(value: &Value, sql: &mut String) {
    if matches!(value, Value::Null | Value::Unchanged) {
        sql.push_str("NULL");
        return;
    }
    sql.push('\'');
    match value {
        Value::Text(text) if text.contains('\'') => sql.push_str(&text.replace('\'', "''")),
        _ => plain(value, sql, false),
    }
    sql.push('\'');
}

/// A value in PostgreSQL's own text; in a `COPY` some characters are escaped.
fn plain(value: &Value, out: &mut String, copied: bool) {
    use std::fmt::Write as _;
    // Writing to a string does not fail.
    let _ = match value {
        Value::Null | Value::Unchanged => write!(out, "\\N"),
        Value::Boolean(b) => write!(out, "{}", if *b { "t" } else { "f" }),
        Value::Integer(i) => write!(out, "{i}"),
        Value::Unsigned(u) => write!(out, "{u}"),
        Value::Real(real) if real.is_nan() => write!(out, "NaN"),
        Value::Real(real) if real.is_infinite() => write!(out, "{}Infinity", if *real < 0.0 { "-" } else { "" }),
        Value::Real(real) => write!(out, "{real:?}"),
        Value::Text(text) if copied => {
            escape(text, out);
            Ok(())
        }
        Value::Text(text) => write!(out, "{text}"),
        // No translation gives it: it would be refused before.
        Value::InvalidText(bytes) => write!(out, "{}", String::from_utf8_lossy(bytes)),
        Value::Blob(bytes) => {
            out.push_str(if copied { "\\\\x" } else { "\\x" });
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            out.reserve(bytes.len() * 2);
            for byte in bytes {
                out.push(char::from(DIGITS[usize::from(byte >> 4)]));
                out.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
            Ok(())
        }
    };
}

fn escape(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(place) = rest.bytes().position(|byte| matches!(byte, b'\\' | b'\n' | b'\r' | b'\t')) {
        out.push_str(&rest[..place]);
        out.push('\\');
        out.push(match rest.as_bytes()[place] {
            b'\n' => 'n',
            b'\r' => 'r',
            b'\t' => 't',
            _ => '\\',
        });
        rest = &rest[place + 1..];
    }
    out.push_str(rest);
}

/// Sends rows to a `COPY`.
async fn copy(conn: &mut PgConnection, statement: &str, rows: &[Folding<'_>]) -> sqlx::Result<()> {
    let mut into = conn.copy_in_raw(statement).await?;
    let mut text = String::with_capacity(CHUNK_BYTES + (16 << 10));
    for row in rows {
        for (place, value) in row.iter().enumerate() {
            if place > 0 {
                text.push('\t');
            }
            plain(value, &mut text, true);
        }
        text.push('\n');
        if text.len() >= CHUNK_BYTES {
            into.send(text.as_bytes()).await?;
            text.clear();
        }
    }
    into.send(text.as_bytes()).await?;
    into.finish().await.map(drop)
}
