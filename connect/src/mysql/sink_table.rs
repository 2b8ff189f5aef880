//! The target's tables in MariaDB and MySQL: how they are made, changed and looked at.

use mysql_async::{Conn, prelude::Queryable};

use super::{
    endpoint::identifier,
    sink::first,
    sink_write::{literal, refused, run},
};
use crate::{
    Error, Result,
    change::{Column, TableSchema},
    target::{self, Existing, same_type},
    translate::Translation,
};

/// A table that changes are applied to, and parts of its statements.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) translation: Translation,
    /// The table's name, quoted.
    pub(super) name: String,
    /// Its columns, quoted, in the order of rows.
    pub(super) columns: Vec<String>,
    /// The key's columns, in key order, as indexes into `columns`.
    pub(super) key: Vec<usize>,
    /// `ON DUPLICATE KEY UPDATE ...`.
    pub(super) on_duplicate: String,
    /// There is a unique index besides the key's, whose rows an upsert would overwrite.
    pub(super) other_unique: bool,
    /// Keys that differ in a byte are two keys.
    pub(super) exact_text: bool,
}

/// The statements of a table that is there.
pub(super) async fn prepare(conn: &mut Conn, translation: Translation) -> Result<Prepared> {
    let table = translation.table();
    let other_unique = !unique_indexes(conn, table).await?.is_empty();
    let exact_text = exact_text(conn, table).await?;
    let columns: Vec<String> = table.columns.iter().map(|column| identifier(&column.name)).collect();
    let key = table.key_columns();
    let others = columns.iter().enumerate().filter(|(i, _)| !key.contains(i));
    let mut set: Vec<String> = others.map(|(_, column)| format!("{column} = VALUES({column})")).collect();
    if set.is_empty() {
        set.extend(key.iter().map(|&i| format!("{0} = VALUES({0})", columns[i])));
    }
    let on_duplicate = format!(" ON DUPLICATE KEY UPDATE {}", set.join(", "));
    Ok(Prepared { name: identifier(&table.name), columns, key, on_duplicate, other_unique, exact_text, translation })
}

/// Names of the table's unique indexes besides the key's.
pub(super) async fn unique_indexes(conn: &mut Conn, table: &TableSchema) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT DISTINCT INDEX_NAME FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = DATABASE() \
         AND TABLE_NAME = {} AND NON_UNIQUE = 0 AND INDEX_NAME <> 'PRIMARY'",
        literal(&table.name)
    );
    conn.query(sql).await.map_err(|e| refused(&format!("look at target table {}", table.name), &e))
}

/// Whether all text of the key is compared byte by byte, spaces at its end too.
async fn exact_text(conn: &mut Conn, table: &TableSchema) -> Result<bool> {
    let sql = format!(
        "SELECT COUNT(*) FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = {} \
         AND COLUMN_KEY = 'PRI' AND COLLATION_NAME NOT IN ('utf8mb4_nopad_bin', 'utf8mb4_0900_bin')",
        literal(&table.name)
    );
    let other: Option<u64> = first(conn, &format!("look at target table {}", table.name), &sql).await?;
    Ok(other == Some(0))
}

/// A column as a table declares it. NULL is named, for a `timestamp` would refuse it otherwise.
fn declaration(column: &Column) -> String {
    let null = if column.not_null || column.key.is_some() { "NOT NULL" } else { "NULL" };
    format!("{} {} {null}", identifier(&column.name), column.declared_type)
}

/// Makes the table where it is not there.
pub(super) async fn create(conn: &mut Conn, table: &TableSchema, collation: &str) -> Result<()> {
    let mut parts: Vec<String> = table.columns.iter().map(declaration).collect();
    let key: Vec<String> = table.key_columns().iter().map(|&i| identifier(&table.columns[i].name)).collect();
    parts.push(format!("PRIMARY KEY ({})", key.join(", ")));
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS {} ({}) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = {collation}",
        identifier(&table.name),
        parts.join(", ")
    );
    run(conn, &format!("make target table {}", table.name), sql).await
}

/// Drops the table, if it is there.
pub(super) async fn drop_table(conn: &mut Conn, table: &TableSchema) -> Result<()> {
    let sql = format!("DROP TABLE IF EXISTS {}", identifier(&table.name));
    run(conn, &format!("drop target table {}", table.name), sql).await
}

/// Adds columns that are missing, and gives others their wider types. Rows that are there have NULL in new columns until
/// they change. May be repeated.
pub(super) async fn evolve(conn: &mut Conn, table: &TableSchema) -> Result<()> {
    let Some(found) = inspect(conn, table).await? else { return Ok(()) };
    let mut actions = Vec::new();
    for column in &table.columns {
        match found.table.columns.iter().find(|own| own.name.eq_ignore_ascii_case(&column.name)) {
            None => actions.push(format!("ADD COLUMN {} {} NULL", identifier(&column.name), column.declared_type)),
            Some(own) => {
                let loosened = own.not_null && !column.not_null && own.key.is_none();
                if loosened || !same_type(&own.declared_type, &column.declared_type) {
                    // A column that was added later may have NULLs, whatever the source says now.
                    let not_null = own.not_null && column.not_null;
                    actions.push(format!("MODIFY COLUMN {}", declaration(&Column { not_null, ..column.clone() })));
                }
            }
        }
    }
    // A column that the source no longer has gets no value from now on.
    for own in found.table.columns.iter().filter(|own| own.not_null && own.key.is_none()) {
        let gone = !table.columns.iter().any(|column| column.name.eq_ignore_ascii_case(&own.name));
        if gone && !found.optional.contains(&own.name) {
            let column = Column { not_null: false, ..own.clone() };
            actions.push(format!("MODIFY COLUMN {}", declaration(&column)));
        }
    }
    if actions.is_empty() {
        return Ok(());
    }
    let sql = format!("ALTER TABLE {} {}", identifier(&table.name), actions.join(", "));
    run(conn, &format!("change the columns of target table {}", table.name), sql).await
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
/// `Conflict` where something else has its name, or its engine knows no transactions.
pub(super) async fn inspect(conn: &mut Conn, table: &TableSchema) -> Result<Option<Found>> {
    let doing = format!("look at target table {}", table.name);
    let named = format!("TABLE_SCHEMA = DATABASE() AND TABLE_NAME = {}", literal(&table.name));
    let engine = format!("SELECT TABLE_TYPE, ENGINE FROM information_schema.TABLES WHERE {named}");
    let found: Option<(String, Option<String>)> = first(conn, &doing, &engine).await?;
    let Some((kind, engine)) = found else { return Ok(None) };
    if kind != "BASE TABLE" {
        return Err(Error::conflict(format!(
            "the target has something named {} that is no table; drop it or leave the table out",
            table.name
        )));
    }
    if !engine.as_deref().is_some_and(|engine| engine.eq_ignore_ascii_case("InnoDB")) {
        return Err(Error::conflict(format!(
            "target table {} is of an engine without transactions: ALTER TABLE {} ENGINE = InnoDB",
            table.name,
            identifier(&table.name)
        )));
    }
    let columns = format!(
        "SELECT c.COLUMN_NAME, c.COLUMN_TYPE, c.IS_NULLABLE, c.COLUMN_DEFAULT IS NOT NULL OR c.EXTRA <> '', \
         (SELECT s.SEQ_IN_INDEX FROM information_schema.STATISTICS s WHERE s.TABLE_SCHEMA = c.TABLE_SCHEMA \
          AND s.TABLE_NAME = c.TABLE_NAME AND s.COLUMN_NAME = c.COLUMN_NAME AND s.INDEX_NAME = 'PRIMARY') \
         FROM information_schema.COLUMNS c WHERE c.{} ORDER BY c.ORDINAL_POSITION",
        named.replace("AND TABLE_NAME", "AND c.TABLE_NAME")
    );
    type Cells = (String, String, String, bool, Option<u32>);
    let rows: Vec<Cells> = conn.query(columns).await.map_err(|e| refused(&doing, &e))?;
    let mut found = Found {
        table: TableSchema { schema: None, name: table.name.clone(), columns: Vec::new() },
        optional: Vec::new(),
    };
    for (name, declared_type, nullable, filled, place) in rows {
        let not_null = nullable == "NO";
        if filled || !not_null {
            found.optional.push(name.clone());
        }
        let key = place.and_then(|place| place.checked_sub(1));
        found.table.columns.push(Column { name, declared_type, not_null, key });
    }
    Ok(Some(found))
}

/// Whether the table exists, and whether it holds rows.
pub(super) async fn state(conn: &mut Conn, table: &TableSchema) -> Result<Existing> {
    if inspect(conn, table).await?.is_none() {
        return Ok(Existing::No);
    }
    let sql = format!("SELECT 1 FROM {} LIMIT 1", identifier(&table.name));
    let row: Option<u8> = first(conn, &format!("look at target table {}", table.name), &sql).await?;
    Ok(if row.is_none() { Existing::Empty } else { Existing::WithRows })
}

/// What keeps an empty table from being used.
pub(super) async fn unfit(conn: &mut Conn, table: &TableSchema) -> Result<Option<String>> {
    let Some(found) = inspect(conn, table).await? else { return Ok(None) };
    // Keys that the table's own rules take for one would be one row.
    let lax = format!(
        "SELECT c.COLUMN_NAME FROM information_schema.STATISTICS s JOIN information_schema.COLUMNS c \
         USING (TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME) WHERE s.TABLE_SCHEMA = DATABASE() AND s.TABLE_NAME = {} \
         AND s.INDEX_NAME = 'PRIMARY' AND (s.SUB_PART IS NOT NULL OR c.COLLATION_NAME IS NOT NULL \
         AND c.COLLATION_NAME NOT LIKE '%\\_nopad\\_bin' AND c.COLLATION_NAME NOT LIKE '%\\_0900\\_bin') LIMIT 1",
        literal(&table.name)
    );
    let doing = format!("look at target table {}", table.name);
    let lax: Option<String> = first(conn, &doing, &lax).await?;
    if let Some(column) = lax {
        return Ok(Some(format!(
            "key column {column} does not tell all keys apart: it needs the collation utf8mb4_nopad_bin"
        )));
    }
    Ok(target::unfit(table, &found.table, |name| found.optional.iter().any(|own| own == name)))
}
