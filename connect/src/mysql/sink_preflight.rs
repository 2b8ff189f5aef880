//! What would keep a sync from writing to a MariaDB or MySQL database, and the statement that repairs it.

use mysql_async::{Conn, prelude::Queryable};

use super::{
    endpoint::{MysqlServer, connect, identifier},
    sink::first,
    sink_positions::{stored, writers},
    sink_table as table,
    sink_write::{literal, refused},
};
use crate::{
    ErrorKind, Result,
    connector::{Finding, Level},
    converter::TopicSchema,
    endpoint::Server,
    target::{
        REPLACE,
        existing::{self, OnExisting, refuse_written},
        ledger::Ledger,
    },
    translate::{Translation, check_names},
    types::Dialect,
};

const DOING: &str = "examine the target";
/// A batch of changes has this size; a statement of ours is smaller, but a row may not be.
const PACKET_BYTES: u64 = 4 << 20;

/// Examines the target; changes nothing.
pub(super) async fn preflight(
    to: &MysqlServer,
    sync: &str,
    log_id: &str,
    tables: &[TopicSchema],
) -> Result<Vec<Finding>> {
    let server = &to.server;
    let mut conn = connect(server).await?;
    let conn = &mut conn;
    let target = format!("mysql://{server}");
    let mut findings = vec![Finding::new(&target, Level::Ok, "connected", None)];
    if let Err(error) = check_names(tables, Dialect::Mysql) {
        findings.push(Finding::new(&target, Level::Refuse, error.to_string(), None));
    }
    settings(conn, &target, &mut findings).await?;
    rights(conn, server, &mut findings).await?;
    let rows = stored(conn, sync, false).await?.unwrap_or_default();
    // Who only looks has no log.
    if !log_id.is_empty()
        && let Err(error) = Ledger::new(sync, log_id).check_owner(&target, &rows)
    {
        findings.push(Finding::new(&target, Level::Refuse, error.to_string(), Some(REPLACE.into())));
    }
    let writers = writers(conn).await?;
    for schema in tables {
        let translation = Translation::new(schema, Dialect::Mysql);
        let ours = rows.iter().any(|row| row.topic == schema.topic && row.copy.is_some());
        let own = (sync, schema.topic.as_str());
        let written = refuse_written(to.on_existing, log_id, Dialect::Mysql, own, translation.table(), &writers);
        one_table(conn, to.on_existing, &translation, (ours, written), &mut findings).await?;
    }
    Ok(findings)
}

async fn settings(conn: &mut Conn, target: &str, findings: &mut Vec<Finding>) -> Result<()> {
    let packet: Option<u64> = first(conn, DOING, "SELECT @@max_allowed_packet").await?;
    if let Some(packet) = packet.filter(|packet| *packet < PACKET_BYTES) {
        let said = format!("max_allowed_packet is {packet}: a longer row is refused");
        let cure = format!("SET GLOBAL max_allowed_packet = {};", 64 << 20);
        findings.push(Finding::new(target, Level::Warn, said, Some(cure)));
    }
    let flush: Option<u64> = first(conn, DOING, "SELECT @@innodb_flush_log_at_trx_commit").await?;
    if flush != Some(1) {
        let said = "innodb_flush_log_at_trx_commit is not 1: a crash of the machine loses what was written last";
        let cure = "SET GLOBAL innodb_flush_log_at_trx_commit = 1;";
        findings.push(Finding::new(target, Level::Warn, said, Some(cure.into())));
    }
    let read_only: Option<u64> = first(conn, DOING, "SELECT @@read_only").await?;
    if read_only == Some(1) {
        let said = "the server takes no writes (read_only is on); where it is a replica, write to its primary";
        findings.push(Finding::new(target, Level::Warn, said, None));
    }
    Ok(())
}

/// The rights that the user's grants on the database tell.
async fn rights(conn: &mut Conn, server: &Server, findings: &mut Vec<Finding>) -> Result<()> {
    let sql = "SELECT PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES \
               WHERE GRANTEE = CONCAT('''', REPLACE(CURRENT_USER(), '@', '''@'''), '''') \
               UNION SELECT PRIVILEGE_TYPE FROM information_schema.SCHEMA_PRIVILEGES \
               WHERE GRANTEE = CONCAT('''', REPLACE(CURRENT_USER(), '@', '''@'''), '''') \
               AND DATABASE() LIKE TABLE_SCHEMA";
    let granted: Vec<String> = conn.query(sql).await.map_err(|e| refused(DOING, &e))?;
    let needed = ["SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP"];
    let missing: Vec<&str> = needed.into_iter().filter(|right| !granted.iter().any(|own| own == right)).collect();
    let subject = format!("database {}", server.database);
    if missing.is_empty() {
        findings.push(Finding::new(subject, Level::Ok, "tables may be made and written", None));
        return Ok(());
    }
    let user: Option<String> = first(conn, DOING, "SELECT CURRENT_USER()").await?;
    let user = user.unwrap_or_default();
    let (name, host) = user.rsplit_once('@').unwrap_or((&user, "%"));
    let database = identifier(&server.database);
    let cure = format!("GRANT {} ON {database}.* TO {}@{};", missing.join(", "), literal(name), literal(host));
    // Rights that come by a role stand elsewhere: the user may have them all the same.
    let said = format!("the user's own grants do not tell {}", missing.join(", "));
    let role: Option<Option<String>> = first(conn, DOING, "SELECT CURRENT_ROLE()").await.unwrap_or_default();
    let by_role = role.flatten().is_some_and(|role| role != "NONE");
    let level = if by_role { Level::Warn } else { Level::Refuse };
    findings.push(Finding::new(subject, level, said, Some(cure)));
    Ok(())
}

async fn one_table(
    conn: &mut Conn,
    on_existing: OnExisting,
    translation: &Translation,
    (ours, written): (bool, Result<()>),
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let wanted = translation.table();
    let subject = wanted.name.clone();
    let mut note = |level, message: String, cure| findings.push(Finding::new(&subject, level, message, cure));
    match table::inspect(conn, wanted).await {
        Ok(None) => {
            note(Level::Ok, "it will be made".into(), None);
            return Ok(());
        }
        Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
        Err(error) => {
            note(Level::Refuse, error.to_string(), None);
            return Ok(());
        }
        Ok(Some(_)) => {}
    }
    if ours {
        findings.push(existing::own(wanted));
    } else {
        let unfit = table::unfit(conn, wanted).await?;
        findings.push(existing::finding(on_existing, table::state(conn, wanted).await?, wanted, unfit, written));
    }
    let mut note = |level, message: String, cure| findings.push(Finding::new(&subject, level, message, cure));
    let name = literal(&wanted.name);
    let keys = format!(
        "SELECT DISTINCT CONSTRAINT_NAME, TABLE_NAME FROM information_schema.KEY_COLUMN_USAGE \
         WHERE TABLE_SCHEMA = DATABASE() AND REFERENCED_TABLE_NAME IS NOT NULL \
         AND (TABLE_NAME = {name} OR REFERENCED_TABLE_NAME = {name})"
    );
    let keys: Vec<(String, String)> = conn.query(keys).await.map_err(|e| refused(DOING, &e))?;
    for (constraint, table) in keys {
        note(
            Level::Refuse,
            format!("foreign key {constraint} of {table} would refuse rows that come table by table"),
            Some(format!("ALTER TABLE {} DROP FOREIGN KEY {};", identifier(&table), identifier(&constraint))),
        );
    }
    for index in table::unique_indexes(conn, wanted).await? {
        note(
            Level::Warn,
            format!("because of unique index {index} rows are written one by one, which is slower"),
            None,
        );
    }
    Ok(())
}
