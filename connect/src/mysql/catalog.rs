//! What the server says of itself and of its tables.

use std::collections::{BTreeMap, HashMap, HashSet};

use mysql_async::{Conn, Row as WireRow, prelude::Queryable};
use tidemill_core::suggest::nearest;

use super::{
    endpoint::driver_error,
    gtid::MariaPosition,
    position::{Flavour, Head},
    stop::Stop,
    text::Charset,
};
use crate::{
    Error, ErrorKind, Result,
    change::{Column, TableSchema},
    patterns::{self, glob},
};

/// A column as the catalog has it, generated ones too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Physical {
    pub name: String,
    pub declared_type: String,
    pub charset: Option<String>,
    pub not_null: bool,
    pub generated: bool,
    pub default: Option<String>,
}

/// A table as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What is followed of it: no generated columns.
    pub schema: TableSchema,
    pub columns: Vec<Physical>,
    pub engine: String,
    pub rows: u64,
}

/// Rows of a query of strings.
pub async fn strings(conn: &mut Conn, sql: &str, parameters: &[&str]) -> Result<Vec<Vec<Option<String>>>> {
    let parameters: Vec<mysql_async::Value> = parameters.iter().map(|text| (*text).into()).collect();
    let rows: Vec<WireRow> = match parameters.is_empty() {
        true => conn.query(sql).await,
        false => conn.exec(sql, parameters).await,
    }
    .map_err(|e| driver_error(&e))?;
    let text = |value: mysql_async::Value| match value {
        mysql_async::Value::NULL => None,
        mysql_async::Value::Bytes(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        mysql_async::Value::Int(number) => Some(number.to_string()),
        mysql_async::Value::UInt(number) => Some(number.to_string()),
        other => Some(other.as_sql(true)),
    };
    Ok(rows.into_iter().map(|row| row.unwrap().into_iter().map(text).collect()).collect())
}

/// The one value of a query, if there is a row.
pub async fn value(conn: &mut Conn, sql: &str) -> Result<Option<String>> {
    Ok(strings(conn, sql, &[]).await?.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
}

/// Whose server it is.
pub async fn flavour(conn: &mut Conn) -> Result<Flavour> {
    let version = value(conn, "SELECT VERSION()").await?.unwrap_or_default();
    Ok(if version.contains("MariaDB") { Flavour::Mariadb } else { Flavour::Mysql })
}

/// The tables of a database, without views.
pub async fn list(conn: &mut Conn, database: &str) -> Result<Vec<Found>> {
    let cell = |row: &[Option<String>], n: usize| row.get(n).cloned().flatten().unwrap_or_default();
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    let tables = "SELECT TABLE_NAME, ENGINE, TABLE_ROWS FROM information_schema.TABLES \
                  WHERE TABLE_SCHEMA = ? AND TABLE_TYPE = 'BASE TABLE'";
    for row in strings(conn, tables, &[database]).await? {
        let name = cell(&row, 0);
        let schema = TableSchema { schema: Some(database.to_owned()), name: name.clone(), columns: Vec::new() };
        let rows = cell(&row, 2).parse().unwrap_or(0);
        found.insert(name, Found { schema, columns: Vec::new(), engine: cell(&row, 1), rows });
    }
    let checked = json_checks(conn, database).await?;
    let keys = "SELECT TABLE_NAME, COLUMN_NAME, SEQ_IN_INDEX, SUB_PART FROM information_schema.STATISTICS \
                WHERE TABLE_SCHEMA = ? AND INDEX_NAME = 'PRIMARY'";
    let mut places: HashMap<(String, String), u32> = HashMap::new();
    // A key of which a part is the start of a value, or is left out, does not tell rows apart.
    let mut keyless: HashSet<String> = HashSet::new();
    for row in strings(conn, keys, &[database]).await? {
        if !cell(&row, 3).is_empty() {
            keyless.insert(cell(&row, 0));
        }
        let place: u32 = cell(&row, 2).parse().unwrap_or(1);
        places.insert((cell(&row, 0), cell(&row, 1)), place.saturating_sub(1));
    }
    let columns = "SELECT TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, IS_NULLABLE, CHARACTER_SET_NAME, EXTRA, COLUMN_DEFAULT \
                   FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = ? ORDER BY TABLE_NAME, ORDINAL_POSITION";
    for row in strings(conn, columns, &[database]).await? {
        let (table, name) = (cell(&row, 0), cell(&row, 1));
        let Some(found) = found.get_mut(&table) else { continue };
        let place = (table, name.clone());
        let is_json = checked.contains(&place) && cell(&row, 2).starts_with("longtext");
        let declared_type = if is_json { "json".to_owned() } else { cell(&row, 2) };
        let extra = cell(&row, 5).to_ascii_uppercase();
        let generated = extra.contains("VIRTUAL GENERATED") || extra.contains("STORED GENERATED");
        let not_null = cell(&row, 3) == "NO";
        if generated && places.contains_key(&place) {
            keyless.insert(place.0.clone());
        }
        if !generated {
            let key = places.get(&place).copied();
            let column = Column { name: name.clone(), declared_type: declared_type.clone(), not_null, key };
            found.schema.columns.push(column);
        }
        let charset = row.get(4).cloned().flatten();
        let default = row.get(6).cloned().flatten().filter(|default| default != "NULL");
        found.columns.push(Physical { name, declared_type, charset, not_null, generated, default });
    }
    for name in keyless {
        let columns = found.get_mut(&name).map(|found| &mut found.schema.columns);
        columns.into_iter().flatten().for_each(|column| column.key = None);
    }
    Ok(found.into_values().collect())
}

/// Columns that MariaDB checks to hold JSON: what was declared as such.
async fn json_checks(conn: &mut Conn, database: &str) -> Result<Vec<(String, String)>> {
    if flavour(conn).await? == Flavour::Mysql {
        return Ok(Vec::new());
    }
    let sql = "SELECT TABLE_NAME, CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = ?";
    let rows = strings(conn, sql, &[database]).await?;
    let checked = rows.into_iter().filter_map(|row| {
        let mut cells = row.into_iter().flatten();
        let (table, clause) = (cells.next()?, cells.next()?);
        let column = clause.strip_prefix("json_valid(`")?.strip_suffix("`)")?.replace("``", "`");
        Some((table, column))
    });
    Ok(checked.collect())
}

/// Character sets by the numbers of their collations.
pub async fn collations(conn: &mut Conn) -> Result<HashMap<u32, Charset>> {
    let newer = "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATION_CHARACTER_SET_APPLICABILITY";
    let older = "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATIONS";
    let rows = match strings(conn, newer, &[]).await {
        Err(error) if error.kind() != ErrorKind::Unavailable => strings(conn, older, &[]).await?,
        other => other?,
    };
    let known = rows.into_iter().filter_map(|row| {
        let mut cells = row.into_iter().flatten();
        Some((cells.next()?.parse().ok()?, Charset::named(&cells.next()?)?))
    });
    Ok(known.chain([(63, Charset::Binary)]).collect())
}

/// The tables that patterns name: `orders`, `shop.orders`, `*`, `shop.*`.
///
/// # Errors
/// `NotFound` for a pattern that matches nothing, with the nearest table.
pub fn match_tables(patterns: &[String], found: Vec<Found>) -> Result<Vec<TableSchema>> {
    let matches = |pattern: &str, table: &TableSchema| {
        glob(pattern, &table.name) || (pattern.contains('.') && glob(pattern, &table.full_name()))
    };
    let no_match =
        |pattern: &str, tables: &[TableSchema]| match nearest(pattern, tables.iter().map(|t| t.name.as_str())) {
            Some(name) => format!("no table matches {pattern:?}; the nearest is {name:?}"),
            None => format!("no table matches {pattern:?} in the database that the URL names"),
        };
    patterns::select(patterns, found.into_iter().map(|found| found.schema).collect(), matches, no_match)
}

/// Where the server's binlog ends now.
///
/// # Errors
/// `Conflict` where it writes none.
pub async fn present(conn: &mut Conn) -> Result<Head> {
    let flavour = flavour(conn).await?;
    let rows = match strings(conn, "SHOW MASTER STATUS", &[]).await {
        // MySQL from 8.4 on.
        Err(error) if error.kind() == ErrorKind::Internal => strings(conn, "SHOW BINARY LOG STATUS", &[]).await?,
        other => other?,
    };
    let row = rows.into_iter().next().ok_or(Stop::NoBinlog)?;
    let cell = |n: usize| row.get(n).cloned().flatten().unwrap_or_default();
    let (file, position) = (cell(0), cell(1).parse().unwrap_or(4));
    let (server, gtid) = match flavour {
        Flavour::Mariadb => {
            let server = value(conn, "SELECT @@server_id").await?;
            (server, gtid_at(conn, &file, position).await?.unwrap_or_default())
        }
        Flavour::Mysql => {
            let on = value(conn, "SELECT @@gtid_mode").await?.is_some_and(|mode| mode == "ON");
            let server = value(conn, "SELECT @@server_uuid").await?;
            (server, if on { cell(4).replace('\n', "") } else { String::new() })
        }
    };
    Ok(Head { flavour, server: server.unwrap_or_default(), gtid, file, position, inside: None })
}

/// MariaDB's position of GTIDs at a place of its binlog; `None` where it has no such place.
pub async fn gtid_at(conn: &mut Conn, file: &str, position: u64) -> Result<Option<String>> {
    let rows = strings(conn, "SELECT BINLOG_GTID_POS(?, ?)", &[file, &position.to_string()]).await?;
    Ok(rows.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
}

/// Checks that the server is the one that was followed, and has not gone back.
///
/// # Errors
/// `Conflict`, named.
pub async fn check(conn: &mut Conn, head: &Head) -> Result<()> {
    let present = present(conn).await?;
    if present.flavour != head.flavour {
        return Err(Stop::OtherFlavour { is: present.flavour }.into());
    }
    if present.server != head.server {
        return Err(Stop::OtherServer { is: present.server, was: head.server.clone() }.into());
    }
    if head.flavour == Flavour::Mysql {
        return Ok(());
    }
    let state = value(conn, "SELECT @@gtid_binlog_state").await?.unwrap_or_default();
    let parse = |text: &str| {
        let bad = || Error::new(ErrorKind::Corrupt, format!("{text:?} is no position of GTIDs"));
        MariaPosition::parse(text).ok_or_else(bad)
    };
    let (own, seen) = (parse(&head.gtid)?, parse(&state)?);
    if !own.is_within(&seen) {
        return Err(Stop::WentBack { has: state, position: head.gtid.clone() }.into());
    }
    // A file that is gone tells nothing; the dump itself says whether the transaction is still there.
    let there = gtid_at(conn, &head.file, head.position).await?.filter(|text| !text.is_empty());
    match there {
        Some(has) if parse(&has)? != own => {
            Err(Stop::OtherHistory { file: head.file.clone(), position: head.position, has, was: head.gtid.clone() }
                .into())
        }
        _ => Ok(()),
    }
}
