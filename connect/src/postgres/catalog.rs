//! Which tables a PostgreSQL database has, with columns, types and keys.
//!
//! Ordinary tables and roots of partitioned ones: no views, no partitions (they are part of their root), nothing of the
//! system's. Generated columns are left out: the stream does not carry them. A domain's type is the one it stands on.

use sqlx::PgConnection;
use tidemill_core::suggest::nearest;

use super::endpoint::{TextRow, literal, query, query_one, quoted_table};
use crate::{
    Result,
    change::{Column, TableSchema},
    patterns::{self, glob},
};

/// The schema of names that have none.
pub(super) const DEFAULT_SCHEMA: &str = "public";

/// The key is what the stream tells of a row that is updated or deleted: the index that the table names as its replica
/// identity, else the primary key. `format_type` of a domain is that of the type at its bottom.
const COLUMNS: &str = "
WITH RECURSIVE base AS (
    SELECT t.oid AS domain, t.typbasetype AS type, t.typtypmod AS modifier FROM pg_catalog.pg_type t WHERE t.typtype = 'd'
    UNION ALL
    SELECT b.domain, t.typbasetype, CASE WHEN t.typtypmod = -1 THEN b.modifier ELSE t.typtypmod END
    FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.type WHERE t.typtype = 'd'
), bottom AS (
    SELECT b.* FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.type WHERE t.typtype <> 'd'
)
SELECT n.nspname::text, c.relname::text, a.attname::text,
       pg_catalog.format_type(COALESCE(b.type, a.atttypid), COALESCE(b.modifier, a.atttypmod)),
       a.attnotnull::text,
       array_position((i.indkey::int2[])[0:i.indnkeyatts - 1], a.attnum)::text
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute a
    ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
LEFT JOIN bottom b ON b.domain = a.atttypid
LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid
    AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname NOT LIKE 'pg\\_%'
  AND n.nspname <> '_tidemill' AND c.relname NOT LIKE '\\_tidemill\\_%'";

/// All tables, in the order of their names.
pub(super) async fn list_tables(conn: &mut PgConnection) -> Result<Vec<TableSchema>> {
    let rows = query(conn, "list the tables", format!("{COLUMNS} ORDER BY n.nspname, c.relname, a.attnum")).await?;
    Ok(tables_of(rows))
}

/// One table, or nothing where there is none of the name, which is matched exactly.
pub(super) async fn find_table(conn: &mut PgConnection, schema: &str, name: &str) -> Result<Option<TableSchema>> {
    let (schema, name) = (literal(schema), literal(name));
    let sql = format!("{COLUMNS} AND n.nspname = {schema} AND c.relname = {name} ORDER BY a.attnum");
    Ok(tables_of(query(conn, "look at a table", sql).await?).pop())
}

/// What to select from: a table without those that inherit from it, or a partitioned one with its partitions.
pub(super) async fn from_item(conn: &mut PgConnection, table: &TableSchema) -> Result<String> {
    let name = quoted_table(table.schema.as_deref(), &table.name);
    let sql = format!("SELECT relkind::text FROM pg_catalog.pg_class WHERE oid = to_regclass({})", literal(&name));
    let kind = query_one(conn, "look at a table", sql).await?;
    Ok(if kind.as_deref() == Some("p") { name } else { format!("ONLY {name}") })
}

fn tables_of(rows: Vec<TextRow>) -> Vec<TableSchema> {
    let mut tables: Vec<TableSchema> = Vec::new();
    for row in rows {
        let [schema, name, column, declared_type, not_null, place] = &row[..] else { continue };
        let (Some(schema), Some(name)) = (schema, name) else { continue };
        if tables.last().is_none_or(|last| last.schema.as_ref() != Some(schema) || last.name != *name) {
            tables.push(TableSchema { schema: Some(schema.clone()), name: name.clone(), columns: Vec::new() });
        }
        // A table may have no columns.
        let (Some(table), Some(column)) = (tables.last_mut(), column) else { continue };
        let key = place.as_ref().and_then(|place| place.parse::<u32>().ok());
        table.columns.push(Column {
            name: column.clone(),
            declared_type: declared_type.clone().unwrap_or_default(),
            not_null: not_null.as_deref() == Some("true") || key.is_some(),
            key,
        });
    }
    for table in &mut tables {
        // Generated columns are left out, and arrays count from 1 or from 0.
        let mut places: Vec<u32> = table.columns.iter().filter_map(|column| column.key).collect();
        places.sort_unstable();
        for column in &mut table.columns {
            column.key = column.key.and_then(|key| places.iter().position(|place| *place == key)).map(|at| at as u32);
        }
    }
    tables
}

/// The tables that patterns name. `*` stands for anything; a pattern without a schema also names tables of `public`.
pub(super) fn match_tables(patterns: &[String], tables: &[TableSchema]) -> Result<Vec<TableSchema>> {
    patterns::select(patterns, tables.to_vec(), matches, no_match)
}

fn matches(pattern: &str, table: &TableSchema) -> bool {
    let fits = |name: &str| glob(&pattern.to_lowercase(), &name.to_lowercase());
    fits(&table.full_name()) || (table.schema.as_deref() == Some(DEFAULT_SCHEMA) && fits(&table.name))
}

fn no_match(pattern: &str, tables: &[TableSchema]) -> String {
    let names: Vec<_> = tables.iter().map(TableSchema::full_name).collect();
    let qualified = if pattern.contains('.') { pattern.to_owned() } else { format!("{DEFAULT_SCHEMA}.{pattern}") };
    match nearest(&qualified, names.iter().map(String::as_str)) {
        Some(name) => format!("no table matches {pattern:?}; the nearest is {name:?}"),
        None if names.is_empty() => format!("no table matches {pattern:?}: the database has no tables"),
        None => format!("no table matches {pattern:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_tables_with_and_without_schema() {
        let table = |schema: &str, name: &str| TableSchema {
            schema: Some(schema.into()),
            name: name.into(),
            columns: Vec::new(),
        };
        let tables = [table("public", "Orders"), table("sales", "orders"), table("sales", "items")];
        let found = |pattern: &str| {
            let found = match_tables(&[pattern.into()], &tables).unwrap_or_default();
            found.iter().map(TableSchema::full_name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(found("orders"), "public.Orders");
        assert_eq!(found("public.*"), "public.Orders");
        assert_eq!(found("*"), "public.Orders sales.orders sales.items");
        assert_eq!(found("*.orders"), "public.Orders sales.orders");
        assert_eq!(found("SALES.o*"), "sales.orders");
        let error = match_tables(&["ordrs".into()], &tables).unwrap_err().to_string();
        assert!(error.contains("public.Orders"), "{error}");
    }
}
