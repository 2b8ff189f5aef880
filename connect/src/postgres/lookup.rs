//! Rows of a table by key: the next ones, or some that are named.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::{
    catalog::from_item,
    endpoint::identifier,
    text::{Beyond, column_list, copy_out, key_list, key_literal, kinds, value_literal},
};
use crate::{
    Result,
    change::{Row, TableSchema, Value},
    types::Kind,
};

/// Keys in one statement.
const KEYS: usize = 500;

/// The query of the rows after a key, in the order of keys.
pub(super) fn page_query(table: &TableSchema, from: &str, after: Option<&[Value]>, limit: usize) -> String {
    let (columns, key) = (column_list(table), key_list(table));
    let after = after.map(|after| format!(" WHERE ({key}) > {}", key_literal(after))).unwrap_or_default();
    format!("SELECT {columns} FROM {from}{after} ORDER BY {key} LIMIT {limit}")
}

/// Some columns of the rows of some keys, in the keys' order.
///
/// # Errors
/// After an error the connection is of no use.
pub(super) async fn find_rows(
    conn: &mut PgConnection,
    table: &TableSchema,
    columns: &[usize],
    keys: &[&[Value]],
) -> Result<Vec<Option<Row>>> {
    let from = from_item(conn, table).await?;
    let key: Vec<_> = table.key_columns().into_iter().map(|i| &table.columns[i]).collect();
    let all = kinds(table);
    let found_kinds: Vec<_> = [Kind::Integer].into_iter().chain(columns.iter().map(|i| all[*i])).collect();
    let selected: String = columns.iter().map(|i| format!(", t.{}", identifier(&table.columns[*i].name))).collect();
    let on: Vec<_> =
        key.iter().enumerate().map(|(i, column)| format!("t.{} = k.k{i}", identifier(&column.name))).collect();
    let names: String = (0..key.len()).map(|i| format!(", k{i}")).collect();
    let mut found: HashMap<i64, Row> = HashMap::new();
    for (part, chunk) in keys.chunks(KEYS).enumerate() {
        let values = chunk.iter().enumerate().map(|(i, values)| {
            let cells = values.iter().zip(&key);
            let cells: String = cells
                .map(|(value, column)| format!(", CAST({} AS {})", value_literal(value), column.declared_type))
                .collect();
            format!("({}{cells})", part * KEYS + i)
        });
        let values: Vec<_> = values.collect();
        let sql = format!(
            "SELECT k.place{selected} FROM (VALUES {}) AS k (place{names}) JOIN {from} AS t ON {}",
            values.join(", "),
            on.join(" AND ")
        );
        let (rows, ..) = copy_out(conn, "look up rows", found_kinds.clone(), &sql, usize::MAX, Beyond::Stop).await?;
        for mut row in rows {
            let rest = row.split_off(1);
            if let [Value::Integer(place)] = row[..] {
                found.insert(place, rest);
            }
        }
    }
    Ok((0..keys.len()).map(|i| found.remove(&(i as i64))).collect())
}
