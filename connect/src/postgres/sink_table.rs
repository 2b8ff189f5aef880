//! The target's tables in PostgreSQL: how they are made, changed and looked at, and the statements that change their rows.

use sqlx::PgConnection;

use super::endpoint::{execute, identifier, literal, query, quoted_table};
use crate::{
    Error, ErrorKind, Result,
    change::{Column, TableSchema},
    target::{self, Existing, same_type},
    translate::Translation,
};

/// A table that changes are applied to, and its statements.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) translation: Translation,
    /// The table's name, quoted.
    pub(super) name: String,
    /// Its columns, quoted, in the order of rows.
    pub(super) columns: Vec<String>,
    /// The key's columns, quoted, in key order.
    pub(super) key: Vec<String>,
    /// `COPY` into a table for rows to write.
    pub(super) copy_rows: String,
    /// `COPY` into a table for keys to delete.
    pub(super) copy_keys: String,
    /// Makes those two tables.
    pub(super) stage: String,
    /// Writes the first one's rows.
    pub(super) merge: String,
    /// Deletes by the second one's keys.
    pub(super) delete: String,
    /// Empties both.
    pub(super) clear: String,
    /// `ON CONFLICT ...`.
    pub(super) on_conflict: String,
    pub(super) ties: Ties,
}

/// What ties rows of two keys together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ties {
    /// There is a unique index or an exclusion besides the key's.
    pub(super) rows: bool,
    /// Keys compare text that is not the same as equal.
    pub(super) text: bool,
}

/// The statements of a table that is there.
pub(super) async fn prepare(conn: &mut PgConnection, translation: Translation, number: usize) -> Result<Prepared> {
    let table = translation.table();
    let name = quoted_table(table.schema.as_deref(), &table.name);
    let columns: Vec<String> = table.columns.iter().map(|column| identifier(&column.name)).collect();
    let key: Vec<String> = table.key_columns().into_iter().map(|i| columns[i].clone()).collect();
    let set: Vec<String> = columns.iter().map(|column| format!("{column} = EXCLUDED.{column}")).collect();
    let (all, keys) = (columns.join(", "), key.join(", "));
    let (rows, gone) = (format!("tidemill_rows_{number}"), format!("tidemill_keys_{number}"));
    let same: Vec<String> = key.iter().map(|column| format!("t.{column} = d.{column}")).collect();
    let on_conflict = format!("ON CONFLICT ({keys}) DO UPDATE SET {}", set.join(", "));
    let temporary = |name: &str, columns: &str, of: &str| {
        format!("CREATE TEMPORARY TABLE {name} ON COMMIT DELETE ROWS AS SELECT {columns} FROM {of} WITH NO DATA; ")
    };
    let prepared = Prepared {
        copy_rows: format!("COPY pg_temp.{rows} ({all}) FROM STDIN"),
        copy_keys: format!("COPY pg_temp.{gone} ({keys}) FROM STDIN"),
        stage: temporary(&rows, &all, &name) + &temporary(&gone, &keys, &name),
        merge: format!(
            "INSERT INTO {name} ({all}) OVERRIDING SYSTEM VALUE SELECT {all} FROM pg_temp.{rows} {on_conflict}"
        ),
        delete: format!("DELETE FROM {name} t USING pg_temp.{gone} d WHERE {}", same.join(" AND ")),
        clear: format!("TRUNCATE pg_temp.{rows}, pg_temp.{gone}"),
        on_conflict,
        ties: ties(conn, &name).await?,
        name,
        columns,
        key,
        translation,
    };
    execute(conn, "make temporary tables", prepared.stage.as_str()).await?;
    Ok(prepared)
}

async fn ties(conn: &mut PgConnection, name: &str) -> Result<Ties> {
    let of = format!("i.indrelid = {}::regclass", literal(name));
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM pg_index i WHERE {of} AND NOT i.indisprimary \
                        AND (i.indisunique OR i.indisexclusion))::text, \
                EXISTS (SELECT 1 FROM pg_index i JOIN pg_collation c ON c.oid = ANY (i.indcollation::oid[]) \
                        WHERE {of} AND i.indisprimary AND NOT c.collisdeterministic)::text"
    );
    let row = query(conn, "look at the indexes of a target table", sql).await?.into_iter().next().unwrap_or_default();
    let mut cells = row.into_iter().map(|cell| cell.as_deref() != Some("false"));
    Ok(Ties { rows: cells.next().unwrap_or(true), text: cells.next().unwrap_or(true) })
}

/// Makes the table, and its schema, where they are not there.
pub(super) async fn create(conn: &mut PgConnection, table: &TableSchema) -> Result<()> {
    let doing = format!("make target table {}", table.full_name());
    let schema = table.schema.as_deref().unwrap_or("public");
    let exists = format!("SELECT nspname::text FROM pg_namespace WHERE nspname = {}", literal(schema));
    if query(conn, &doing, exists).await?.is_empty() {
        execute(conn, &doing, format!("CREATE SCHEMA {}", identifier(schema))).await?;
    }
    if state(conn, table).await? != Existing::No {
        return Ok(());
    }
    let mut parts: Vec<String> = table
        .columns
        .iter()
        .map(|column| {
            let not_null = if column.not_null { " NOT NULL" } else { "" };
            format!("{} {}{not_null}", identifier(&column.name), column.declared_type)
        })
        .collect();
    let key: Vec<String> = table.key_columns().iter().map(|&i| identifier(&table.columns[i].name)).collect();
    parts.push(format!("PRIMARY KEY ({})", key.join(", ")));
    let sql = format!("CREATE TABLE {} ({})", quoted_table(Some(schema), &table.name), parts.join(", "));
    execute(conn, &doing, sql).await.map_err(decide)
}

/// Drops the table, if it is there.
pub(super) async fn drop_table(conn: &mut PgConnection, table: &TableSchema) -> Result<()> {
    let sql = format!("DROP TABLE IF EXISTS {}", quoted_table(table.schema.as_deref(), &table.name));
    execute(conn, &format!("drop target table {}", table.full_name()), sql).await.map_err(decide)
}

/// Adds columns that are missing, and gives others their wider types. Rows that are there have NULL in new columns until
/// they change.
pub(super) async fn evolve(conn: &mut PgConnection, table: &TableSchema) -> Result<()> {
    let Some(found) = inspect(conn, table).await? else { return Ok(()) };
    let mut actions = Vec::new();
    for column in &table.columns {
        let name = identifier(&column.name);
        let declared = &column.declared_type;
        match found.table.columns.iter().find(|own| own.name == column.name) {
            None => actions.push(format!("ADD COLUMN {name} {declared}")),
            Some(own) => {
                if !same_type(&own.declared_type, declared) {
                    actions.push(format!("ALTER COLUMN {name} TYPE {declared} USING {name}::{declared}"));
                }
                if own.not_null && !column.not_null && own.key.is_none() {
                    actions.push(format!("ALTER COLUMN {name} DROP NOT NULL"));
                }
            }
        }
    }
    // A column that the source no longer has gets no value from now on.
    for own in found.table.columns.iter().filter(|own| own.not_null && own.key.is_none()) {
        if !table.columns.iter().any(|column| column.name == own.name) && !found.optional.contains(&own.name) {
            actions.push(format!("ALTER COLUMN {} DROP NOT NULL", identifier(&own.name)));
        }
    }
    if actions.is_empty() {
        return Ok(());
    }
    let sql = format!("ALTER TABLE {} {}", quoted_table(table.schema.as_deref(), &table.name), actions.join(", "));
    execute(conn, &format!("change the columns of target table {}", table.full_name()), sql).await.map_err(decide)
}

fn decide(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Invalid | ErrorKind::NotFound => Error::new(ErrorKind::Conflict, error.to_string()),
        _ => error,
    }
}

/// A table as the server has it.
pub(super) struct Found {
    pub(super) table: TableSchema,
    /// Columns that need no value.
    pub(super) optional: Vec<String>,
}

/// Looks at a table; `None` where there is none.
///
/// # Errors
/// `Conflict` where something else has its name.
pub(super) async fn inspect(conn: &mut PgConnection, table: &TableSchema) -> Result<Option<Found>> {
    let doing = format!("look at target table {}", table.full_name());
    let schema = table.schema.as_deref().unwrap_or("public");
    let found = format!(
        "SELECT c.relkind::text, c.oid::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = {} AND c.relname = {}",
        literal(schema),
        literal(&table.name)
    );
    let found = query(conn, &doing, found).await?;
    let [kind, oid] = match found.into_iter().next().and_then(|row| <[Option<String>; 2]>::try_from(row).ok()) {
        None => return Ok(None),
        Some(row) => row.map(Option::unwrap_or_default),
    };
    if !matches!(kind.as_str(), "r" | "p") {
        return Err(Error::conflict(format!(
            "the target has something named {} that is no table; drop it or leave the table out",
            table.full_name()
        )));
    }
    let columns = format!(
        "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull::text, \
         (SELECT k.place::text FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, place) \
          WHERE i.indrelid = a.attrelid AND i.indisprimary AND k.attnum = a.attnum), \
         (NOT a.attnotnull OR a.atthasdef OR a.attidentity <> '')::text \
         FROM pg_attribute a WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
    );
    let mut found = Found {
        table: TableSchema { schema: Some(schema.to_owned()), name: table.name.clone(), columns: Vec::new() },
        optional: Vec::new(),
    };
    for row in query(conn, &doing, columns).await? {
        let Ok([name, declared, not_null, place, optional]) = <[Option<String>; 5]>::try_from(row) else { continue };
        let name = name.unwrap_or_default();
        if optional.as_deref() == Some("true") {
            found.optional.push(name.clone());
        }
        let key = place.and_then(|place| place.parse::<u32>().ok()).and_then(|place| place.checked_sub(1));
        let (declared_type, not_null) = (declared.unwrap_or_default(), not_null.as_deref() == Some("true"));
        found.table.columns.push(Column { name, declared_type, not_null, key });
    }
    Ok(Some(found))
}

/// Whether the table exists, and whether it holds rows.
pub(super) async fn state(conn: &mut PgConnection, table: &TableSchema) -> Result<Existing> {
    if inspect(conn, table).await?.is_none() {
        return Ok(Existing::No);
    }
    let sql = format!("SELECT '1'::text FROM {} LIMIT 1", quoted_table(table.schema.as_deref(), &table.name));
    let rows = query(conn, &format!("look at target table {}", table.full_name()), sql).await?;
    Ok(if rows.is_empty() { Existing::Empty } else { Existing::WithRows })
}

/// What keeps an empty table from being used.
pub(super) async fn unfit(conn: &mut PgConnection, table: &TableSchema) -> Result<Option<String>> {
    let Some(found) = inspect(conn, table).await? else { return Ok(None) };
    Ok(target::unfit(table, &found.table, |name| found.optional.iter().any(|own| own == name)))
}
