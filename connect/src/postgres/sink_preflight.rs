//! What would keep a sync from writing to a PostgreSQL database, and the statement that repairs it.

use sqlx::PgConnection;

use super::{
    endpoint::{PostgresServer, connect, identifier, literal, query, query_one, quoted_table},
    sink_positions::{stored, writers},
    sink_table as table,
};
use crate::{
    ErrorKind, Result,
    connector::{Finding, Level},
    converter::TopicSchema,
    endpoint::Server,
    target::{
        POSITIONS, REPLACE,
        existing::{self, refuse_written},
        ledger::Ledger,
    },
    translate::{Translation, check_names},
    types::Dialect,
};

const DOING: &str = "examine the target";

/// Examines the target; changes nothing.
pub(super) async fn preflight(
    to: &PostgresServer,
    sync: &str,
    log_id: &str,
    tables: &[TopicSchema],
) -> Result<Vec<Finding>> {
    let server = &to.server;
    let mut conn = connect(server).await?;
    let conn = &mut conn;
    let target = format!("postgres://{server}");
    let mut findings = vec![Finding::new(&target, Level::Ok, "connected", None)];
    if let Err(error) = check_names(tables, Dialect::Postgres) {
        findings.push(Finding::new(&target, Level::Refuse, error.to_string(), None));
    }
    settings(conn, &target, &mut findings).await?;
    let rows = match readable(conn, &format!("public.{POSITIONS}")).await? {
        true => stored(conn, sync, false).await?.unwrap_or_default(),
        false => Vec::new(),
    };
    // Who only looks has no log.
    if !log_id.is_empty()
        && let Err(error) = Ledger::new(sync, log_id).check_owner(&target, &rows)
    {
        findings.push(Finding::new(&target, Level::Refuse, error.to_string(), Some(REPLACE.into())));
    }
    rights(conn, server, tables, &mut findings).await?;
    let writers = match readable(conn, &format!("public.{POSITIONS}")).await? {
        true => writers(conn).await?,
        false => Vec::new(),
    };
    for schema in tables {
        let translation = Translation::new(schema, Dialect::Postgres);
        let ours = rows.iter().any(|row| row.topic == schema.topic && row.copy.is_some());
        let own = (sync, schema.topic.as_str());
        let table = translation.table();
        let written = refuse_written(to.on_existing, log_id, Dialect::Postgres, own, table, &writers);
        one_table(conn, to, &translation, (ours, written), &mut findings).await?;
    }
    Ok(findings)
}

async fn settings(conn: &mut PgConnection, target: &str, findings: &mut Vec<Finding>) -> Result<()> {
    let sql = "SELECT current_setting('server_version_num'), current_setting('fsync'), \
               current_setting('transaction_read_only')";
    let row = query(conn, DOING, sql).await?.into_iter().next().unwrap_or_default();
    let cell = |i: usize| row.get(i).and_then(Option::as_deref).unwrap_or_default();
    if cell(0).parse::<u32>().is_ok_and(|version| version < 120_000) {
        findings.push(Finding::new(target, Level::Warn, "PostgreSQL before version 12 is not tested", None));
    }
    if cell(1) == "off" {
        let cure = "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();";
        findings.push(Finding::new(
            target,
            Level::Warn,
            "fsync is off: a crash loses what was written",
            Some(cure.into()),
        ));
    }
    if cell(2) == "on" {
        let said = "the server takes no writes: it is a standby, or default_transaction_read_only is on";
        findings.push(Finding::new(target, Level::Refuse, said, None));
    }
    Ok(())
}

/// The rights to make tables in the schemas that the sync needs.
async fn rights(
    conn: &mut PgConnection,
    server: &Server,
    tables: &[TopicSchema],
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let user = identifier(&server.user);
    let mut schemas = vec!["public".to_owned()];
    schemas.extend(tables.iter().filter_map(|s| Translation::new(s, Dialect::Postgres).table().schema.clone()));
    schemas.sort();
    schemas.dedup();
    for schema in schemas {
        let name = literal(&schema);
        let sql = format!(
            "SELECT CASE WHEN EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = {name}) \
             THEN has_schema_privilege({name}, 'CREATE, USAGE')::text \
             ELSE 'no schema, ' || has_database_privilege(current_database(), 'CREATE')::text END"
        );
        // Of several rights named at once one is enough, so USAGE is looked at by itself.
        let usage = format!(
            "SELECT CASE WHEN EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = {name}) THEN \
             (has_schema_privilege({name}, 'CREATE') AND has_schema_privilege({name}, 'USAGE'))::text ELSE 'none' END"
        );
        let may = query_one(conn, DOING, sql).await?.unwrap_or_default();
        let both = query_one(conn, DOING, usage).await?.unwrap_or_default();
        let finding = match (may.as_str(), both.as_str()) {
            (_, "true") | ("no schema, true", _) => {
                Finding::new(format!("schema {schema}"), Level::Ok, "tables may be made", None)
            }
            ("no schema, false", _) => Finding::new(
                format!("schema {schema}"),
                Level::Refuse,
                "it does not exist, and the user may not make it",
                Some(format!("CREATE SCHEMA {} AUTHORIZATION {user};", identifier(&schema))),
            ),
            _ => Finding::new(
                format!("schema {schema}"),
                Level::Refuse,
                "the user may not make tables in it",
                Some(format!("GRANT USAGE, CREATE ON SCHEMA {} TO {user};", identifier(&schema))),
            ),
        };
        findings.push(finding);
    }
    let temporary = "SELECT has_database_privilege(current_database(), 'TEMPORARY')::text";
    if query_one(conn, DOING, temporary).await?.as_deref() != Some("true") {
        let cure = format!("GRANT TEMPORARY ON DATABASE {} TO {user};", identifier(&server.database));
        let said = "the user may not make temporary tables";
        findings.push(Finding::new(format!("database {}", server.database), Level::Refuse, said, Some(cure)));
    }
    Ok(())
}

async fn readable(conn: &mut PgConnection, name: &str) -> Result<bool> {
    let sql = format!(
        "SELECT (to_regclass({0}) IS NOT NULL AND has_table_privilege(to_regclass({0}), 'SELECT'))::text",
        literal(name)
    );
    Ok(query_one(conn, DOING, sql).await?.as_deref() == Some("true"))
}

async fn one_table(
    conn: &mut PgConnection,
    to: &PostgresServer,
    translation: &Translation,
    (ours, written): (bool, Result<()>),
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let wanted = translation.table();
    let subject = wanted.full_name();
    let mut note = |level, message: String, cure| findings.push(Finding::new(&subject, level, message, cure));
    let found = match table::inspect(conn, wanted).await {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
        Err(error) => {
            note(Level::Refuse, error.to_string(), None);
            return Ok(());
        }
    };
    if found.is_none() {
        note(Level::Ok, "it will be made".into(), None);
        return Ok(());
    }
    let name = quoted_table(wanted.schema.as_deref(), &wanted.name);
    let may = format!(
        "SELECT bool_and(has_table_privilege({}, p))::text FROM unnest(ARRAY['SELECT','INSERT','UPDATE','DELETE']) p",
        literal(&name)
    );
    if query_one(conn, DOING, may).await?.as_deref() != Some("true") {
        let cure = format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO {};", identifier(&to.server.user));
        note(Level::Refuse, "the user may not write to it".into(), Some(cure));
        return Ok(());
    }
    if ours {
        findings.push(existing::own(wanted));
    } else {
        let unfit = table::unfit(conn, wanted).await?;
        findings.push(existing::finding(to.on_existing, table::state(conn, wanted).await?, wanted, unfit, written));
    }
    let mut note = |level, message: String, cure| findings.push(Finding::new(&subject, level, message, cure));
    let constraints = format!(
        "SELECT c.conname::text, c.conrelid::regclass::text FROM pg_constraint c \
         WHERE c.contype = 'f' AND {0}::regclass IN (c.conrelid, c.confrelid)",
        literal(&name)
    );
    // One that is checked at the end of a transaction would not do either: rows of other tables may come in the next.
    for row in query(conn, DOING, constraints).await? {
        let cell = |i: usize| row.get(i).and_then(Option::as_deref).unwrap_or_default();
        let (constraint, table) = (identifier(cell(0)), cell(1));
        note(
            Level::Refuse,
            format!("foreign key {constraint} of {table} would refuse rows that come table by table"),
            Some(format!("ALTER TABLE {table} DROP CONSTRAINT {constraint};")),
        );
    }
    let unique = format!(
        "SELECT i.indexrelid::regclass::text FROM pg_index i WHERE i.indrelid = {}::regclass AND i.indisunique \
         AND NOT i.indisprimary",
        literal(&name)
    );
    for row in query(conn, DOING, unique).await? {
        let index = row.into_iter().next().flatten().unwrap_or_default();
        let said =
            format!("unique index {index}: where it refuses a batch, rows are written one by one, which is slower");
        note(Level::Warn, said, None);
    }
    Ok(())
}
