//! Writes the changes of one topic into its table.

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::{
    endpoint::execute,
    sink::{Session, refused},
    sink_table::Prepared,
};
use crate::{
    Error, ErrorKind, Result,
    change::{Row, Value},
    converter::TopicSchema,
    diff::key_text,
    target::fold::{Step, fold},
};

/// Up to so many rows are written as literals: a temporary table is not worth its round trips.
const FEW: usize = 40;
/// Bytes sent to a `COPY` at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// Bytes of updates in one query.
const QUERY_BYTES: usize = 256 << 10;
const SAVEPOINT: &str = "SAVEPOINT tidemill";
const BACK: &str = "ROLLBACK TO SAVEPOINT tidemill";

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
    let doing = format!("apply to target table {}", prepared.translation.table().full_name());
    if steps.len() == 1 {
        return one_by_one(&mut session.conn, schema, prepared, &doing, &steps).await;
    }
    let folded = fold(&prepared.translation, steps.clone());
    if folded.in_order {
        return one_by_one(&mut session.conn, schema, prepared, &doing, &steps).await;
    }
    let filling = session.filling.get(&schema.topic).copied().unwrap_or(false) && folded.only_new;
    session.filling.insert(schema.topic.clone(), filling);
    let conn = &mut session.conn;
    execute(conn, &doing, SAVEPOINT).await?;
    if filling {
        let into = format!("COPY {} ({}) FROM STDIN", prepared.name, prepared.columns.join(", "));
        match copy(conn, &into, &folded.upserts).await {
            Err(error) if is_duplicate(&error) => {
                session.filling.insert(schema.topic.clone(), false);
                execute(conn, &doing, BACK).await?;
            }
            other => return other.map_err(|e| named(schema, refused(&doing, e))),
        }
    }
    let merged = match folded.upserts.len() + folded.deletes.len() <= FEW {
        true => few(conn, prepared, &folded.deletes, &folded.upserts).await,
        false => {
            // The temporary tables are emptied at the commit, and a topic may come more than once before it.
            if !session.staged.insert(schema.id) {
                execute(conn, &doing, prepared.clear.as_str()).await?;
            }
            merge(conn, prepared, &folded.deletes, &folded.upserts).await
        }
    };
    match merged {
        Err(error) if is_duplicate(&error) => {
            // Another unique index than the key's: in the source's own order no two rows had the same value.
            execute(conn, &doing, BACK).await?;
            one_by_one(conn, schema, prepared, &doing, &steps).await
        }
        Err(error) => Err(named(schema, refused(&doing, error))),
        Ok(()) => match partials(conn, prepared, &doing, &folded.partials).await {
            Err(Failed::Duplicate) => {
                execute(conn, &doing, BACK).await?;
                one_by_one(conn, schema, prepared, &doing, &steps).await
            }
            Err(Failed::Other(error)) => Err(named(schema, error)),
            Ok(missed) => {
                if missed > 0 {
                    tracing::warn!(
                        topic = schema.topic,
                        rows = missed,
                        "updates of rows that the target does not have"
                    );
                }
                Ok(())
            }
        },
    }
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

async fn merge(conn: &mut PgConnection, prepared: &Prepared, deletes: &[Row], upserts: &[Row]) -> sqlx::Result<()> {
    if !deletes.is_empty() {
        copy(conn, &prepared.copy_keys, deletes).await?;
        run(conn, &prepared.delete).await?;
    }
    if !upserts.is_empty() {
        copy(conn, &prepared.copy_rows, upserts).await?;
        run(conn, &prepared.merge).await?;
    }
    Ok(())
}

async fn few(conn: &mut PgConnection, prepared: &Prepared, deletes: &[Row], upserts: &[Row]) -> sqlx::Result<()> {
    if !deletes.is_empty() {
        run(conn, &delete_sql(prepared, deletes)).await?;
    }
    if !upserts.is_empty() {
        run(conn, &upsert_sql(prepared, upserts)).await?;
    }
    Ok(())
}

async fn run(conn: &mut PgConnection, sql: &str) -> sqlx::Result<u64> {
    conn.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.map(|done| done.rows_affected())
}

enum Failed {
    Duplicate,
    Other(Error),
}

/// Updates rows of which some values are not told; tells how many are not there.
async fn partials(conn: &mut PgConnection, prepared: &Prepared, doing: &str, rows: &[Row]) -> Result<usize, Failed> {
    let failed = |error: sqlx::Error| match is_duplicate(&error) {
        true => Failed::Duplicate,
        false => Failed::Other(refused(doing, error)),
    };
    let (mut sql, mut found) = (String::new(), 0);
    for row in rows {
        sql.push_str(&update_sql(prepared, &prepared.translation.table().key_of(row), row));
        sql.push(';');
        if sql.len() >= QUERY_BYTES {
            found += run(conn, &sql).await.map_err(failed)?;
            sql.clear();
        }
    }
    if !sql.is_empty() {
        found += run(conn, &sql).await.map_err(failed)?;
    }
    Ok(rows.len().saturating_sub(usize::try_from(found).unwrap_or(usize::MAX)))
}

/// Applies steps in the order of the log.
async fn one_by_one(
    conn: &mut PgConnection,
    schema: &TopicSchema,
    prepared: &Prepared,
    doing: &str,
    steps: &[Step],
) -> Result<()> {
    let table = prepared.translation.table();
    for step in steps {
        let (key, sql) = match step {
            Step::Delete(key) => (key.clone(), delete_sql(prepared, std::slice::from_ref(key))),
            Step::Upsert(row) => (table.key_of(row), upsert_sql(prepared, std::slice::from_ref(row))),
            Step::Partial(row) => (table.key_of(row), update_sql(prepared, &table.key_of(row), row)),
            Step::Move(old, row) => (old.clone(), update_sql(prepared, old, row)),
        };
        let written =
            run(conn, &sql).await.map_err(|e| named(schema, refused(doing, e)).context(key_text(table, &key)))?;
        if written == 0 && matches!(step, Step::Partial(_) | Step::Move(..)) {
            tracing::warn!(topic = schema.topic, "an update of a row that the target does not have");
        }
    }
    Ok(())
}

fn delete_sql(prepared: &Prepared, keys: &[Row]) -> String {
    let mut sql = format!("DELETE FROM {} WHERE ({}) IN (", prepared.name, prepared.key.join(", "));
    list(&mut sql, keys);
    sql.push(')');
    sql
}

fn upsert_sql(prepared: &Prepared, rows: &[Row]) -> String {
    let columns = prepared.columns.join(", ");
    let mut sql = format!("INSERT INTO {} ({columns}) OVERRIDING SYSTEM VALUE VALUES ", prepared.name);
    list(&mut sql, rows);
    sql.push(' ');
    sql.push_str(&prepared.on_conflict);
    sql
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

fn list(sql: &mut String, rows: &[Row]) {
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
    while let Some(place) = rest.find(['\\', '\n', '\r', '\t']) {
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
async fn copy(conn: &mut PgConnection, statement: &str, rows: &[Row]) -> sqlx::Result<()> {
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
