//! What would go wrong, and the statement that mends it.

use mysql_async::Conn;

use super::{
    catalog::{Found, flavour, list, value},
    copy::{column_list, full_identifier},
    declared::{Declared, Family},
    endpoint::connect,
    position::Flavour,
    stream::run,
    text::Charset,
};
use crate::{
    ErrorKind, Result,
    change::TableSchema,
    connector::{Finding, Level},
    endpoint::Server,
    patterns::leave_out,
};

const DAY_SECONDS: f64 = 86_400.0;

/// Examines a server and tables of it; changes nothing. `once` asks for a copy alone, which needs no binlog.
///
/// # Errors
/// `Unavailable`, `Denied`.
pub async fn preflight(server: &Server, tables: &[TableSchema], once: bool) -> Result<Vec<Finding>> {
    let mut conn = connect(server).await?;
    let flavour = flavour(&mut conn).await?;
    let mut findings = Vec::new();
    if !once {
        settings(&mut conn, flavour, &mut findings).await?;
        rights(&mut conn, server, flavour, &mut findings).await?;
        unlogged(&mut conn, server, tables, &mut findings).await?;
    }
    may_read(&mut conn, server, tables, &mut findings).await?;
    for found in list(&mut conn, &server.database).await? {
        if tables.iter().any(|table| table.name == found.schema.name) {
            examine(&found, once, &mut findings);
        }
    }
    Ok(findings)
}

async fn settings(conn: &mut Conn, flavour: Flavour, findings: &mut Vec<Finding>) -> Result<()> {
    let set = |name: &str, value: &str| Some(format!("SET GLOBAL {name} = '{value}'"));
    let mut setting = async |name: &str| value(conn, &format!("SELECT @@GLOBAL.{name}")).await;
    let log_bin = setting("log_bin").await?.unwrap_or_default();
    findings.push(match log_bin.as_str() {
        "1" | "ON" => Finding::new("log_bin", Level::Ok, "the server writes a binlog", None),
        _ => {
            let cure = "in the server's configuration under [mysqld]: log_bin and server_id = 1, then start it again";
            Finding::new("log_bin", Level::Refuse, "the server writes no binlog", Some(cure.into()))
        }
    });
    for (name, wanted) in [("binlog_format", "ROW"), ("binlog_row_image", "FULL")] {
        let has = setting(name).await?.unwrap_or_default();
        let level = if has == wanted { Level::Ok } else { Level::Refuse };
        let cure = set(name, wanted).filter(|_| level != Level::Ok);
        let cure = cure.map(|cure| format!("{cure}, and have sessions begin anew"));
        findings.push(Finding::new(name, level, format!("it is {has}"), cure));
    }
    // Servers older than the setting have none.
    let name = "binlog_row_metadata";
    let has = setting(name).await.ok().flatten().unwrap_or_else(|| "not there".into());
    findings.push(match has.as_str() {
        "FULL" => Finding::new(name, Level::Ok, "the binlog names columns", None),
        _ => {
            let message =
                format!("it is {has}: the binlog does not name columns, and a change of columns ends the sync");
            Finding::new(name, Level::Warn, message, set(name, "FULL"))
        }
    });
    if flavour == Flavour::Mariadb {
        let on = setting("log_bin_compress").await?.unwrap_or_default();
        if on == "1" {
            let message = "the binlog is compressed, which is understood and costs time";
            findings.push(Finding::new("log_bin_compress", Level::Ok, message, None));
        }
    } else if setting("binlog_row_value_options").await.ok().flatten().is_some_and(|options| !options.is_empty()) {
        let name = "binlog_row_value_options";
        findings.push(Finding::new(name, Level::Refuse, "the binlog has parts of JSON documents", set(name, "")));
    }
    if setting("server_id").await?.as_deref() == Some("0") {
        let cure = Some("SET GLOBAL server_id = 1".into());
        findings.push(Finding::new("server_id", Level::Refuse, "a server with the number 0 sends no binlog", cure));
    }
    let seconds = match setting("binlog_expire_logs_seconds").await.ok().flatten() {
        Some(seconds) => seconds.parse().unwrap_or(0.0),
        None => {
            let days = setting("expire_logs_days").await.ok().flatten().unwrap_or_default();
            days.parse::<f64>().unwrap_or(0.0) * DAY_SECONDS
        }
    };
    if seconds > 0.0 && seconds < DAY_SECONDS {
        let message = format!("the server keeps its binlog for {seconds} s: a sync that rests longer cannot go on");
        let cure = Some("SET GLOBAL binlog_expire_logs_seconds = 604800".into());
        findings.push(Finding::new("binlog_expire_logs_seconds", Level::Warn, message, cure));
    }
    Ok(())
}

/// Whether the user may read every column of the tables.
async fn may_read(conn: &mut Conn, server: &Server, tables: &[TableSchema], findings: &mut Vec<Finding>) -> Result<()> {
    for table in tables {
        let (columns, from) = (column_list(table), full_identifier(table));
        let Err(error) = run(conn, &format!("SELECT {columns} FROM {from} LIMIT 0")).await else { continue };
        let cure = match error.kind() {
            ErrorKind::Unavailable => return Err(error),
            ErrorKind::Denied => Some(format!("GRANT SELECT ON {from} TO {}", user(conn, server).await?)),
            _ => None,
        };
        let message = format!("it cannot be read: {}", error.message());
        findings.push(Finding::new(table.full_name(), Level::Refuse, message, cure));
    }
    Ok(())
}

/// Changes that the binlog would not have: of a filtered database, on a replica that does not log, by a cascade.
async fn unlogged(conn: &mut Conn, server: &Server, tables: &[TableSchema], findings: &mut Vec<Finding>) -> Result<()> {
    let mut status = super::catalog::strings(conn, "SHOW MASTER STATUS", &[]).await;
    if status.is_err() {
        status = super::catalog::strings(conn, "SHOW BINARY LOG STATUS", &[]).await;
    }
    let row = status.unwrap_or_default().into_iter().next().unwrap_or_default();
    let list = |at: usize| -> Vec<String> {
        let listed = row.get(at).cloned().flatten().unwrap_or_default();
        listed.split(',').map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()).collect()
    };
    let (logged, ignored, database) = (list(2), list(3), server.database.to_ascii_lowercase());
    if (!logged.is_empty() && !logged.contains(&database)) || ignored.contains(&database) {
        let cure =
            "in the server's configuration: let binlog_do_db and binlog_ignore_db have the database in the binlog";
        let message = format!("the binlog leaves out database {}", server.database);
        findings.push(Finding::new("binlog_do_db", Level::Refuse, message, Some(cure.into())));
    }
    let replica = super::catalog::strings(conn, "SHOW SLAVE STATUS", &[]).await;
    let logs = value(conn, "SELECT @@GLOBAL.log_slave_updates").await.ok().flatten();
    if logs.as_deref() == Some("0") && replica.is_ok_and(|rows| !rows.is_empty()) {
        let cure = "in the server's configuration under [mysqld]: log_slave_updates = 1, then start it again";
        let message = "this is a replica that does not write its primary's changes into its own binlog";
        findings.push(Finding::new("log_slave_updates", Level::Refuse, message, Some(cure.into())));
    }
    let cascades = "SELECT TABLE_NAME, CONSTRAINT_NAME, DELETE_RULE, UPDATE_RULE \
                    FROM information_schema.REFERENTIAL_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = ? \
                    AND (DELETE_RULE NOT IN ('RESTRICT', 'NO ACTION') OR UPDATE_RULE NOT IN ('RESTRICT', 'NO ACTION'))";
    for row in super::catalog::strings(conn, cascades, &[&server.database]).await? {
        let cell = |at: usize| row.get(at).cloned().flatten().unwrap_or_default();
        let Some(table) = tables.iter().find(|table| table.name == cell(0)) else { continue };
        let (constraint, name) = (cell(1), full_identifier(table));
        let message = format!(
            "foreign key {constraint} (ON DELETE {}, ON UPDATE {}) changes rows that the binlog does not have",
            cell(2),
            cell(3)
        );
        let cure = format!(
            "ALTER TABLE {name} DROP FOREIGN KEY {}, then add it with ON DELETE RESTRICT ON UPDATE RESTRICT",
            super::endpoint::identifier(&constraint)
        );
        findings.push(Finding::new(table.full_name(), Level::Refuse, message, Some(cure)));
    }
    Ok(())
}

/// The user, as a GRANT names it.
async fn user(conn: &mut Conn, server: &Server) -> Result<String> {
    let user = value(conn, "SELECT CURRENT_USER()").await?.unwrap_or_default();
    let (name, host) = user.rsplit_once('@').unwrap_or((&server.user, "%"));
    Ok(format!("'{}'@'{}'", name.replace('\'', "''"), host.replace('\'', "''")))
}

/// The rights of the user, as the server lists them.
async fn rights(conn: &mut Conn, server: &Server, flavour: Flavour, findings: &mut Vec<Finding>) -> Result<()> {
    let grants = super::catalog::strings(conn, "SHOW GRANTS", &[]).await?;
    let user = user(conn, server).await?;
    let has = |right: &str| {
        grants.iter().flatten().flatten().any(|grant| {
            let upper = grant.to_ascii_uppercase();
            let Some((rights, rest)) = upper.strip_prefix("GRANT ").and_then(|rest| rest.split_once(" ON ")) else {
                return false;
            };
            let global = rest.starts_with("*.*");
            global && rights.split(',').any(|own| own.trim() == right || own.trim() == "ALL PRIVILEGES")
        })
    };
    let needed: &[&[&str]] = match flavour {
        Flavour::Mariadb => &[&["REPLICATION SLAVE"], &["BINLOG MONITOR", "REPLICATION CLIENT", "SUPER"]],
        Flavour::Mysql => &[&["REPLICATION SLAVE"], &["REPLICATION CLIENT", "SUPER"]],
    };
    for rights in needed {
        let right = rights[0];
        findings.push(match rights.iter().any(|right| has(right)) {
            true => Finding::new(right, Level::Ok, "the user has the right", None),
            false => {
                let cure = Some(format!("GRANT {right} ON *.* TO {user}"));
                Finding::new(right, Level::Refuse, "the user has not the right", cure)
            }
        });
    }
    Ok(())
}

/// A table's engine, key, types and character sets.
fn examine(found: &Found, once: bool, findings: &mut Vec<Finding>) {
    let (table, name) = (full_identifier(&found.schema), found.schema.full_name());
    let before = findings.len();
    let mut find = |level, message: String, cure: Option<String>| {
        findings.push(Finding::new(name.clone(), level, message, cure));
    };
    if !found.engine.eq_ignore_ascii_case("InnoDB") {
        let cure = Some(format!("ALTER TABLE {table} ENGINE = InnoDB"));
        find(Level::Refuse, format!("its engine is {}, which has no snapshots", found.engine), cure);
    }
    let keys = found.schema.key_columns();
    if keys.is_empty() {
        let message = format!("it has no primary key: make one, or {}", leave_out(&found.schema.name));
        find(Level::Refuse, message, Some(format!("ALTER TABLE {table} ADD PRIMARY KEY (...)")));
    }
    for column in found.columns.iter().filter(|column| column.generated) {
        find(Level::Warn, format!("column {} is generated, and is left out", column.name), None);
    }
    for (i, column) in found.schema.columns.iter().enumerate() {
        let declared = Declared::parse(&column.declared_type);
        let family = declared.family();
        if family.is_none() {
            find(
                Level::Refuse,
                format!("column {} is of the unknown type {}", column.name, column.declared_type),
                None,
            );
        }
        if declared.compressed && !once {
            find(Level::Refuse, format!("column {} is COMPRESSED, which is not understood", column.name), None);
        }
        // These do not come in the order in which they are compared.
        let odd = matches!(family, Some(Family::Enum | Family::Set | Family::Json | Family::Geometry));
        if keys.contains(&i) && (odd || declared.base == "float") {
            let message = format!(
                "key column {} is of the type {}, by which no copy goes on: {}",
                column.name,
                declared.base,
                leave_out(&found.schema.name)
            );
            find(Level::Refuse, message, None);
        }
        let physical = found.columns.iter().find(|physical| physical.name == column.name);
        let charset = physical.and_then(|physical| physical.charset.as_deref());
        if let Some(charset) = charset.filter(|charset| !once && Charset::named(charset).is_none()) {
            let cure = Some(format!("ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb4"));
            let message = format!("column {} has the character set {charset}, which is not understood", column.name);
            find(Level::Refuse, message, cure);
        }
    }
    if findings.len() == before {
        findings.push(Finding::new(found.schema.full_name(), Level::Ok, "it can be followed", None));
    }
}
