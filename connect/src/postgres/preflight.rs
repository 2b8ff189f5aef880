//! What would go wrong with a source, each with the statement that mends it. Changes nothing.

use sqlx::PgConnection;

use super::{
    endpoint::{TextRow, identifier, literal, query, quoted_table},
    slot::{add_tables, create_publication, find_publication, object_name, published, shared_name},
};
use crate::{
    ErrorKind, Result,
    change::TableSchema,
    connector::{Finding, Level},
    patterns::leave_out,
};

/// Before 14 the stream carries no messages, which place the copy's rows.
const OLDEST: u32 = 14;

/// Server, rights and tables.
pub(super) async fn preflight(
    conn: &mut PgConnection,
    sync: &str,
    log_id: &str,
    tables: &[TableSchema],
) -> Result<Vec<Finding>> {
    let mut findings = server(conn).await?;
    findings.extend(rights(conn).await?);
    findings.push(publication(conn, sync, log_id, tables).await?);
    findings.extend(preflight_tables(conn, tables, false).await?);
    Ok(findings)
}

fn text(row: &TextRow, at: usize) -> &str {
    row.get(at).and_then(Option::as_deref).unwrap_or_default()
}

async fn server(conn: &mut PgConnection) -> Result<Vec<Finding>> {
    let sql = "SELECT current_setting('server_version_num'), current_setting('wal_level'), \
        current_setting('max_replication_slots'), (SELECT count(*) FROM pg_catalog.pg_replication_slots)::text, \
        current_setting('max_wal_senders'), (SELECT count(*) FROM pg_catalog.pg_stat_replication)::text, \
        current_setting('max_slot_wal_keep_size'), pg_catalog.pg_is_in_recovery()::text";
    let rows = query(conn, "look at the server's settings", sql).await?;
    let Some(row) = rows.first() else { return Ok(Vec::new()) };
    let number = |at: usize| text(row, at).parse::<u32>().unwrap_or_default();
    let mut findings = Vec::new();
    let mut say = |subject: &str, level, message: String, cure: Option<&str>| {
        findings.push(Finding::new(subject, level, message, cure.map(str::to_owned)));
    };
    let version = number(0) / 10_000;
    match version >= OLDEST {
        true => say("version", Level::Ok, format!("PostgreSQL {version}"), None),
        false => {
            say("version", Level::Refuse, format!("PostgreSQL {version}; {OLDEST} or newer can be followed"), None);
        }
    }
    match text(row, 1) {
        "logical" => say("wal_level", Level::Ok, "logical".into(), None),
        other => say(
            "wal_level",
            Level::Refuse,
            format!("{other}; only logical tells of changes"),
            Some("ALTER SYSTEM SET wal_level = logical; and restart the server"),
        ),
    }
    for (name, limit, used) in [("max_replication_slots", 2, 3), ("max_wal_senders", 4, 5)] {
        let (limit, used) = (number(limit), number(used));
        match used < limit {
            true => say(name, Level::Ok, format!("{used} of {limit} used"), None),
            false => {
                let cure = format!("ALTER SYSTEM SET {name} = {}; and restart the server", limit + 5);
                say(name, Level::Refuse, format!("all {limit} are used"), Some(&cure));
            }
        }
    }
    match text(row, 6) {
        "-1" => say(
            "max_slot_wal_keep_size",
            Level::Warn,
            "no limit: while this sync does not run, the server keeps WAL for it until its disk is full".into(),
            Some("ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf()"),
        ),
        size => say(
            "max_slot_wal_keep_size",
            Level::Warn,
            format!("{size}: a sync that falls behind further must begin anew"),
            None,
        ),
    }
    if text(row, 7) == "true" {
        let message = "the server is a standby; the copy writes messages into its log: name the primary".to_owned();
        say("primary", Level::Refuse, message, None);
    }
    Ok(findings)
}

async fn rights(conn: &mut PgConnection) -> Result<Vec<Finding>> {
    // From PostgreSQL 17 on the function has one more parameter.
    let sql = "WITH emit AS (SELECT oid FROM pg_catalog.pg_proc WHERE proname = 'pg_logical_emit_message' \
        AND pronamespace = 'pg_catalog'::regnamespace AND proargtypes[2] = 'text'::regtype) \
        SELECT current_user::text, (rolreplication OR rolsuper)::text, \
        (SELECT bool_and(has_function_privilege(p.oid, 'EXECUTE'))::text FROM emit p), \
        (SELECT min(p.oid::regprocedure::text) FROM emit p) FROM pg_catalog.pg_roles WHERE rolname = current_user";
    let rows = query(conn, "look at our rights", sql).await?;
    let Some(row) = rows.first() else { return Ok(Vec::new()) };
    let (role, yes) = (identifier(text(row, 0)), |at: usize| text(row, at) == "true");
    let mut findings = Vec::new();
    let mut say = |subject: &str, level, message: String, cure: Option<String>| {
        findings.push(Finding::new(subject, level, message, cure));
    };
    match yes(1) {
        true => say("role", Level::Ok, format!("{role} may replicate"), None),
        false => {
            say(
                "role",
                Level::Refuse,
                format!("{role} may not replicate"),
                Some(format!("ALTER ROLE {role} REPLICATION")),
            );
        }
    }
    if !yes(2) {
        let cure = format!("GRANT EXECUTE ON FUNCTION pg_catalog.{} TO {role}", text(row, 3));
        say("messages", Level::Refuse, format!("{role} may not write messages into the log"), Some(cure));
    }
    Ok(findings)
}

/// Whether the publication covers the tables, or the run can make it so; else the statement for an administrator.
async fn publication(conn: &mut PgConnection, sync: &str, log_id: &str, tables: &[TableSchema]) -> Result<Finding> {
    let say = |level, message: String, cure: Option<String>| Ok(Finding::new("publication", level, message, cure));
    let sql = "SELECT current_user::text, rolsuper::text, has_database_privilege(current_database(), 'CREATE')::text \
               FROM pg_catalog.pg_roles WHERE rolname = current_user";
    let rows = query(conn, "look at our rights", sql).await?;
    let row = rows.into_iter().next().unwrap_or_default();
    let (role, yes) = (identifier(text(&row, 0)), |at: usize| text(&row, at) == "true");
    // Who publishes a table without a key lets the source refuse its updates; such a table is refused on its own.
    let tables: Vec<_> = tables.iter().filter(|table| !table.key_columns().is_empty()).cloned().collect();
    if tables.is_empty() {
        return say(Level::Ok, "there is nothing to publish".into(), None);
    }
    let own = object_name(sync, log_id);
    let name = find_publication(conn, sync, &own).await?;
    let present = match published(conn, &name).await {
        Ok(present) => present,
        Err(error) if error.kind() == ErrorKind::Conflict => {
            return say(Level::Refuse, error.message().to_owned(), None);
        }
        Err(error) => return Err(error),
    };
    let covered = present.clone().unwrap_or_default();
    let missing: Vec<_> = tables.iter().filter(|table| !covered.contains(&table.full_name())).cloned().collect();
    if present.is_some() && missing.is_empty() {
        return say(Level::Ok, format!("{name} covers the tables"), None);
    }
    let names: Vec<_> = missing.iter().map(|t| literal(&quoted_table(t.schema.as_deref(), &t.name))).collect();
    let foreign = format!(
        "SELECT c.oid::regclass::text FROM pg_catalog.pg_class c WHERE c.oid IN (SELECT to_regclass(n) FROM \
         unnest(ARRAY[{}]::text[]) n) AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE') LIMIT 1",
        names.join(", ")
    );
    let foreign = query(conn, "look at the tables' owners", foreign).await?;
    let alters = format!(
        "SELECT pg_catalog.pg_has_role(pubowner, 'USAGE')::text FROM pg_catalog.pg_publication WHERE pubname = {}",
        literal(&name)
    );
    let alters = query(conn, "look at the publication", alters).await?;
    let lacks = match (foreign.first(), alters.first()) {
        _ if yes(1) => None,
        (Some(table), _) => Some(format!("{role} does not own {}", text(table, 0))),
        (None, Some(owns)) if text(owns, 0) != "true" => Some(format!("{role} does not own publication {name}")),
        (None, None) if !yes(2) => Some(format!("{role} may not create in the database")),
        _ => None,
    };
    let Some(lacks) = lacks else { return say(Level::Ok, format!("{role} may make it"), None) };
    let statement = match present {
        Some(_) => add_tables(&name, &missing),
        None => create_publication(&shared_name(sync), &tables),
    };
    if log_id.is_empty()
        && let Some(made) = made_before(conn, &own, &tables).await?
    {
        let message = format!("{made} does for the log that it was made for: --data-dir DIR tells whether it is yours");
        return say(Level::Warn, message, Some(format!("for any other log: {statement}")));
    }
    let message = format!("{lacks}: the owner of the tables, or a superuser, makes it");
    say(Level::Refuse, message, Some(statement))
}

/// A publication of this sync, made for some log, that covers the tables. `begin` is what its name begins with.
async fn made_before(conn: &mut PgConnection, begin: &str, tables: &[TableSchema]) -> Result<Option<String>> {
    // Another sync's name may begin like this one's, but is not followed by a log's alone.
    let pattern = literal(&format!("^{begin}[0-9a-z]{{8}}$"));
    let sql = format!("SELECT pubname::text FROM pg_catalog.pg_publication WHERE pubname ~ {pattern} ORDER BY 1");
    for row in query(conn, "look at publications", sql).await? {
        let present = published(conn, text(&row, 0)).await.ok().flatten().unwrap_or_default();
        if tables.iter().all(|table| present.contains(&table.full_name())) {
            return Ok(Some(text(&row, 0).to_owned()));
        }
    }
    Ok(None)
}

/// The tables alone; `once` where they are only read.
pub(super) async fn preflight_tables(
    conn: &mut PgConnection,
    tables: &[TableSchema],
    once: bool,
) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let role = query(conn, "look at our rights", "SELECT current_user::text").await?;
    let role = role.first().map(|row| identifier(text(row, 0))).unwrap_or_default();
    for table in tables {
        let (name, quoted) = (table.full_name(), quoted_table(table.schema.as_deref(), &table.name));
        let sql = format!(
            "SELECT c.relreplident::text, c.relpersistence::text, \
             (has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(c.relnamespace, 'USAGE'))::text, \
             (SELECT string_agg(a.attname, ', ') FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid \
              AND a.attgenerated <> '' AND NOT a.attisdropped)::text, c.relkind::text, \
             (SELECT string_agg(l.oid::regclass::text, ', ') FROM pg_catalog.pg_partition_tree(c.oid) p \
              JOIN pg_catalog.pg_class l ON l.oid = p.relid WHERE p.isleaf AND l.relreplident NOT IN ('d', 'f'))::text \
             FROM pg_catalog.pg_class c WHERE c.oid = to_regclass({})",
            literal(&quoted)
        );
        let rows = query(conn, "look at a table", sql).await?;
        let Some(row) = rows.first() else { continue };
        let before = findings.len();
        let mut say = |level, message: String, cure: Option<String>| {
            findings.push(Finding::new(name.clone(), level, message, cure));
        };
        if text(row, 2) != "true" {
            let schema = identifier(table.schema.as_deref().unwrap_or_default());
            let cure = format!("GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON {quoted} TO {role}");
            say(Level::Refuse, format!("{role} may not read it"), Some(cure));
        }
        if table.key_columns().is_empty() {
            let message = format!("it has no key: make one, or {}", leave_out(&name));
            say(Level::Refuse, message, Some(format!("ALTER TABLE {quoted} ADD PRIMARY KEY (...)")));
        } else if !once && text(row, 0) == "n" {
            let cure = format!("ALTER TABLE {quoted} REPLICA IDENTITY DEFAULT");
            say(Level::Refuse, "its replica identity is NOTHING: updates of it would fail".into(), Some(cure));
        }
        if !once && text(row, 1) == "u" {
            let cure = format!("ALTER TABLE {quoted} SET LOGGED, or {}", leave_out(&name));
            say(Level::Refuse, "it is unlogged: nothing tells of its changes".into(), Some(cure));
        }
        if !text(row, 3).is_empty() {
            say(Level::Warn, format!("generated columns are left out: {}", text(row, 3)), None);
        }
        if !once && !text(row, 5).is_empty() {
            let cure = "ALTER TABLE (each of them) REPLICA IDENTITY DEFAULT".to_owned();
            say(Level::Refuse, format!("partitions have another replica identity: {}", text(row, 5)), Some(cure));
        }
        if !once && text(row, 4) == "p" {
            let message =
                "rows that come with ATTACH PARTITION, or go with DETACH or TRUNCATE of one partition, are not told";
            let cure = format!("after one: tidemill sync run FILE --recopy {}", crate::command::shell_word(&name));
            say(Level::Warn, message.into(), Some(cure));
        }
        if findings.len() == before {
            findings.push(Finding::new(name, Level::Ok, "can be read", None));
        }
    }
    Ok(findings)
}
