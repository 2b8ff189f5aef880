//! What a sync makes in its source, a publication and a replication slot: their names, making, checking and removing them.
//!
//! The publication is made first: a slot that was made before it would decode changes that no publication of the time
//! covers. Both names hold the log's identity, so what bears them was made for this log.

use std::time::Duration;

use sqlx::PgConnection;

use super::{
    endpoint::{execute, identifier, literal, query, query_one, quoted_table},
    position::{Lsn, StreamPosition},
    stop::Stop,
};
use crate::{Error, ErrorKind, Result, change::TableSchema};

/// PostgreSQL cuts longer names.
const MAX_NAME: usize = 63;
/// How long a slot may still be held by a reader that has just gone.
const RELEASE_TRIES: u32 = 50;
const RELEASE_PAUSE: Duration = Duration::from_millis(200);

/// The name of slot and publication: `tidemill_<sync>_<log>`, in the letters a slot may have.
pub(super) fn object_name(sync: &str, log_id: &str) -> String {
    let log: String = log_id.chars().take(8).collect();
    named(sync, &format!("_{}", log.to_ascii_lowercase()))
}

/// The name of a publication that an administrator makes for a sync: it is known before there is a log.
pub(super) fn shared_name(sync: &str) -> String {
    named(sync, "")
}

fn named(sync: &str, end: &str) -> String {
    let plain = |text: &str| -> String {
        let lower = text.to_ascii_lowercase();
        lower.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' { c } else { '_' }).collect()
    };
    let (end, mut name) = (plain(end), plain(sync));
    let room = MAX_NAME - "tidemill_".len() - end.len();
    if name != sync || name.len() > room {
        // Names that become alike stay apart.
        let hash = sync.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        name.truncate(room - 9);
        name.push_str(&format!("_{hash:08x}"));
    }
    format!("tidemill_{name}{end}")
}

/// A slot as the server shows it.
struct Slot {
    fits: bool,
    pid: Option<String>,
    confirmed: Lsn,
    lost: bool,
}

async fn find_slot(conn: &mut PgConnection, name: &str) -> Result<Option<Slot>> {
    let sql = format!(
        "SELECT (slot_type = 'logical' AND plugin = 'pgoutput' AND database = current_database())::text, active_pid::text, \
         COALESCE(confirmed_flush_lsn, '0/0')::text, (wal_status = 'lost')::text \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
        literal(name)
    );
    let Some(row) = query(conn, "look at the slot", sql).await?.pop() else { return Ok(None) };
    let [fits, pid, confirmed, lost] = &row[..] else { return Err(Error::internal("look at the slot")) };
    let yes = |text: &Option<String>| text.as_deref() == Some("true");
    Ok(Some(Slot {
        fits: yes(fits),
        pid: pid.clone(),
        confirmed: confirmed.clone().unwrap_or_default().try_into()?,
        lost: yes(lost),
    }))
}

/// Waits a while until nobody reads the slot.
async fn free_slot(conn: &mut PgConnection, name: &str) -> Result<Option<Slot>> {
    for _ in 0..RELEASE_TRIES {
        match find_slot(conn, name).await? {
            Some(slot) if slot.fits && slot.pid.is_some() => tokio::time::sleep(RELEASE_PAUSE).await,
            other => return Ok(other),
        }
    }
    match find_slot(conn, name).await? {
        Some(Slot { pid: Some(pid), .. }) => Err(Stop::SlotActive { slot: name.to_owned(), pid }.into()),
        other => Ok(other),
    }
}

/// Makes the slot at the present end of the log. One of the name that no position knows was left by a start that ended
/// before it stored one: it goes.
///
/// # Errors
/// `Unavailable` where a transaction stays open for a minute: a slot begins between transactions.
pub(super) async fn create_slot(conn: &mut PgConnection, name: &str) -> Result<Lsn> {
    if let Some(slot) = free_slot(conn, name).await? {
        if !slot.fits {
            return Err(Stop::SlotForeign(name.to_owned()).into());
        }
        drop_slot(conn, name).await?;
    }
    execute(conn, "make the slot", "SET statement_timeout = '60s'").await?;
    let sql =
        format!("SELECT lsn::text FROM pg_catalog.pg_create_logical_replication_slot({}, 'pgoutput')", literal(name));
    let made = query_one(conn, "make the slot", sql).await;
    execute(conn, "make the slot", "SET statement_timeout = 0").await?;
    match made {
        Ok(lsn) => lsn.unwrap_or_default().try_into(),
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            Err(error.context("a slot can be made only once all transactions that are open now have ended"))
        }
        Err(error) => Err(error),
    }
}

async fn drop_slot(conn: &mut PgConnection, name: &str) -> Result<()> {
    query_one(conn, "drop the slot", format!("SELECT pg_catalog.pg_drop_replication_slot({})::text", literal(name)))
        .await
        .map(drop)
}

/// Whether the slot can go on where the position is. `patient` waits for a reader that has just gone.
///
/// # Errors
/// `Conflict` names what is wrong.
pub(super) async fn check_slot(conn: &mut PgConnection, position: &StreamPosition, patient: bool) -> Result<()> {
    let name = || position.slot.clone();
    let found = if patient { free_slot(conn, &position.slot).await? } else { find_slot(conn, &position.slot).await? };
    match found {
        None => Err(Stop::SlotGone(name()).into()),
        Some(slot) if !slot.fits => Err(Stop::SlotForeign(name()).into()),
        Some(slot) if slot.lost => Err(Stop::SlotLost(name()).into()),
        Some(slot) if slot.confirmed > position.lsn => {
            Err(Stop::SlotAhead { slot: name(), at: slot.confirmed.to_string(), stored: position.lsn.to_string() }
                .into())
        }
        Some(_) => Ok(()),
    }
}

/// What a statement that publishes these tables says of them.
pub(super) fn table_list(tables: &[TableSchema]) -> String {
    // Tables that inherit are tables of their own; partitions come with their root all the same.
    let name = |table: &TableSchema| format!("ONLY {}", quoted_table(table.schema.as_deref(), &table.name));
    tables.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// The statement that makes the publication.
pub(super) fn create_publication(name: &str, tables: &[TableSchema]) -> String {
    format!(
        "CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)",
        identifier(name),
        table_list(tables)
    )
}

/// Full names of the tables that the publication covers; nothing where there is none. An error where it does not publish
/// everything that happens to them.
pub(super) async fn published(conn: &mut PgConnection, name: &str) -> Result<Option<Vec<String>>> {
    let sql = format!(
        "SELECT (pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot)::text \
         FROM pg_catalog.pg_publication WHERE pubname = {}",
        literal(name)
    );
    match query_one(conn, "look at the publication", sql).await?.as_deref() {
        None => return Ok(None),
        Some("true") => {}
        Some(_) => {
            return Err(Error::conflict(format!(
                "publication {name} leaves changes out; to mend it: ALTER PUBLICATION {} SET (publish = \
                 'insert, update, delete, truncate', publish_via_partition_root = true)",
                identifier(name)
            )));
        }
    }
    // A filter leaves rows or columns out; servers before 15 have none.
    let filtered = format!(
        "SELECT (to_jsonb(r) ->> 'prqual' IS NOT NULL OR to_jsonb(r) ->> 'prattrs' IS NOT NULL)::text \
         FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
         WHERE p.pubname = {} ORDER BY 1 DESC LIMIT 1",
        literal(name)
    );
    if query_one(conn, "look at the publication", filtered).await?.as_deref() == Some("true") {
        return Err(Error::conflict(format!(
            "publication {name} has a row filter or a list of columns, and leaves changes out: it must publish whole tables"
        )));
    }
    let sql = format!(
        "SELECT schemaname || '.' || tablename FROM pg_catalog.pg_publication_tables WHERE pubname = {}",
        literal(name)
    );
    let rows = query(conn, "look at the publication", sql).await?;
    Ok(Some(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect()))
}

/// The publication that a sync reads: its own, or else one that an administrator made for it; its own where there is none.
pub(super) async fn find_publication(conn: &mut PgConnection, sync: &str, own: &str) -> Result<String> {
    for name in [own.to_owned(), shared_name(sync)] {
        let exists = format!("SELECT pubname::text FROM pg_catalog.pg_publication WHERE pubname = {}", literal(&name));
        if query_one(conn, "look at the publication", exists).await?.is_some() {
            return Ok(name);
        }
    }
    Ok(own.to_owned())
}

/// The statement that adds tables to a publication.
pub(super) fn add_tables(name: &str, tables: &[TableSchema]) -> String {
    format!("ALTER PUBLICATION {} ADD TABLE {}", identifier(name), table_list(tables))
}

/// Lets the publication cover these tables, making it if `make`. Tells whether tables were added. Tables that are `known`
/// must be covered already. `by_hand` is the name of one that an administrator makes; other logs may read it.
///
/// # Errors
/// `Denied` with the statement for somebody who may; `Conflict` where it is gone.
pub(super) async fn publish(
    conn: &mut PgConnection,
    name: &str,
    tables: &[TableSchema],
    known: &[String],
    make: bool,
    by_hand: &str,
) -> Result<bool> {
    let present = published(conn, name).await?;
    // A table that was followed and is published no more was made anew, or taken out: what happened since is unknown.
    if let Some(present) = &present
        && let Some(left) = known.iter().find(|known| !present.contains(known))
    {
        return Err(Stop::Unpublished(left.clone()).into());
    }
    let (doing, statement, other) = match &present {
        None if !make => return Err(Stop::PublicationGone(name.to_owned()).into()),
        None => ("make the publication", create_publication(name, tables), Some(create_publication(by_hand, tables))),
        Some(present) => {
            let missing: Vec<_> =
                tables.iter().filter(|table| !present.contains(&table.full_name())).cloned().collect();
            let covered = missing.is_empty();
            if covered && (present.len() == tables.len() || name == by_hand) {
                return Ok(false);
            }
            let alter = format!("ALTER PUBLICATION {} SET TABLE {}", identifier(name), table_list(tables));
            if covered {
                // What is published beyond need does no harm: whoever owns the publication may see to it.
                let _ = execute(conn, "alter the publication", alter).await;
                return Ok(false);
            }
            let add = add_tables(name, &missing);
            ("alter the publication", if name == by_hand { add.clone() } else { alter }, Some(add))
        }
    };
    match execute(conn, doing, statement.clone()).await {
        Err(error) if error.kind() == ErrorKind::Denied => Err(Error::new(
            ErrorKind::Denied,
            format!("{}; let the tables' owner, or a superuser, type: {}", error.message(), other.unwrap_or(statement)),
        )),
        other => other.map(|()| true),
    }
}

/// Looks whether tables that are followed still bring their changes. Names of those that are not there any more.
///
/// # Errors
/// `Conflict` where one was made anew or is published no more: no event would tell what happens to it.
pub(super) async fn look_at_tables(
    conn: &mut PgConnection,
    name: &str,
    tables: &[&TableSchema],
) -> Result<Vec<String>> {
    let Some(present) = published(conn, name).await? else {
        return Err(Stop::PublicationGone(name.to_owned()).into());
    };
    let mut gone = Vec::new();
    for table in tables.iter().filter(|table| !present.contains(&table.full_name())) {
        let quoted = literal(&quoted_table(table.schema.as_deref(), &table.name));
        let exists = format!("SELECT 'yes' WHERE pg_catalog.to_regclass({quoted}) IS NOT NULL");
        match query_one(conn, "look at the tables", exists).await? {
            Some(_) => return Err(Stop::Unpublished(table.full_name()).into()),
            None => gone.push(table.full_name()),
        }
    }
    Ok(gone)
}

/// Drops slot and publication; a line for each.
pub(super) async fn remove(conn: &mut PgConnection, name: &str, shown: &str) -> Result<Vec<String>> {
    let mut said = Vec::new();
    match free_slot(conn, name).await? {
        None => {}
        Some(slot) if !slot.fits => return Err(Stop::SlotForeign(name.to_owned()).into()),
        Some(_) => {
            drop_slot(conn, name).await?;
            said.push(format!("source {shown}: replication slot {name} dropped"));
        }
    }
    let exists = format!("SELECT 'yes' FROM pg_catalog.pg_publication WHERE pubname = {}", literal(name));
    if query_one(conn, "look at the publication", exists).await?.is_some() {
        let statement = format!("DROP PUBLICATION {}", identifier(name));
        said.push(match execute(conn, "drop the publication", statement.clone()).await {
            Ok(()) => format!("source {shown}: publication {name} dropped"),
            Err(error) if error.kind() == ErrorKind::Denied => {
                format!(
                    "source {shown}: publication {name} is somebody else's and stays; its owner may type: {statement}"
                )
            }
            Err(error) => return Err(error),
        });
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_a_slot_may_have() {
        assert_eq!(object_name("shop", "0123456789abcdef"), "tidemill_shop_01234567");
        let (a, b) = (object_name("My-shop", "0123456789"), object_name("my_shop", "0123456789"));
        assert_ne!(a, b);
        assert_eq!(shared_name("shop"), "tidemill_shop");
        assert_ne!(shared_name("My-shop"), shared_name("my_shop"));
        assert_eq!(shared_name(&"x".repeat(200)).len(), MAX_NAME);
        let long = object_name(&"x".repeat(200), "0123456789");
        assert_eq!(long.len(), MAX_NAME);
        for name in [a, b, long] {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
        }
    }
}
