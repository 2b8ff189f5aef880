//! The Chinook database, all of its tables, answered as SQLite answers.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, types::ValueRef};
use tidemill_connect::change::Value;

use crate::{log::Log, music::compare, session};

pub fn value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(value) => Value::Integer(value),
        ValueRef::Real(value) => Value::Real(value),
        ValueRef::Text(bytes) => Value::Text(String::from_utf8(bytes.to_vec()).expect("Chinook is UTF-8")),
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    }
}

fn strings(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(sql).expect("catalog");
    let rows = statement.query_map([], |row| row.get(0)).expect("catalog");
    rows.collect::<Result<_, _>>().expect("names")
}

fn load(log: &mut Log, connection: &Connection, table: &str) -> usize {
    let sql = format!("SELECT name, type, \"notnull\", pk FROM pragma_table_info('{table}')");
    let mut statement = connection.prepare(&sql).expect("columns");
    let columns: Vec<(String, String, bool, u32)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .expect("columns")
        .collect::<Result<_, _>>()
        .expect("columns");
    let key = |pk: u32| pk.checked_sub(1);
    let specs: Vec<_> =
        columns.iter().map(|(n, t, nn, pk)| (n.as_str(), t.as_str(), *nn || *pk > 0, key(*pk))).collect();
    let schema = log.table("chinook", table, 1, &specs);
    let mut statement = connection.prepare(&format!("SELECT * FROM \"{table}\"")).expect("rows");
    let width = specs.len();
    let rows: Vec<Vec<Value>> = statement
        .query_map([], |row| (0..width).map(|i| row.get_ref(i).map(value)).collect())
        .expect("rows")
        .collect::<Result<_, _>>()
        .expect("rows");
    let count = rows.len();
    log.rows(&schema, rows);
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn chinook_is_answered_as_sqlite_answers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/chinook/Chinook_Sqlite.sqlite");
    if !path.exists() {
        eprintln!("chinook_is_answered_as_sqlite_answers: not run, {} is absent", path.display());
        return;
    }
    let sqlite = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("Chinook opens");
    let mut log = Log::default();
    let tables = strings(&sqlite, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'");
    assert_eq!(tables.len(), 11);
    let rows: usize = tables.iter().map(|table| load(&mut log, &sqlite, table)).sum();
    let session = session(log);
    let mut compared = 0;
    for table in &tables {
        compared += compare(&session, &sqlite, &format!("select * from \"{table}\"")).await;
    }
    assert_eq!(compared, rows);
    for sql in QUERIES {
        assert!(compare(&session, &sqlite, sql).await > 0, "{sql}: no rows prove nothing");
    }
    eprintln!("chinook: {rows} rows of {} tables and {} queries agree", tables.len(), QUERIES.len());
}

const QUERIES: &[&str] = &[
    "select count(*) as n from Track",
    "select g.Name, count(*) as n from Genre g join Track t on t.GenreId = g.GenreId group by g.Name order by n desc, g.Name",
    "select r.Name, sum(l.UnitPrice * l.Quantity) as s from Artist r join Album a using (ArtistId) join Track t using (AlbumId)
     join InvoiceLine l using (TrackId) group by r.Name order by s desc, r.Name limit 10",
    "select c.Country, count(distinct c.CustomerId) as customers, sum(i.Total) as total from Customer c
     left join Invoice i on i.CustomerId = c.CustomerId group by c.Country order by c.Country",
    "select e.LastName, m.LastName as boss from Employee e left join Employee m on m.EmployeeId = e.ReportsTo",
    "select BillingCountry, avg(Total) from Invoice group by BillingCountry having count(*) > 10",
    "select Name from Track where Composer is null and Milliseconds > (select avg(Milliseconds) from Track)",
    "with lengths as (select AlbumId, sum(Milliseconds) as ms from Track group by AlbumId)
     select a.Title, l.ms from lengths l join Album a using (AlbumId) order by l.ms desc limit 5",
    "select InvoiceId, Total, rank() over (partition by BillingCountry order by Total desc, InvoiceId) as r from Invoice",
    "select p.Name, count(t.TrackId) from Playlist p left join PlaylistTrack t on p.PlaylistId = t.PlaylistId group by p.PlaylistId, p.Name",
    "select Country from Customer union select BillingCountry from Invoice",
    "select TrackId from Track except select TrackId from InvoiceLine",
    "select m.Name, min(t.UnitPrice), max(t.Bytes) from MediaType m join Track t using (MediaTypeId) group by m.Name",
    "select substr(InvoiceDate, 1, 7) as month, count(*), sum(Total) from Invoice group by 1 order by 1",
    "select FirstName || ' ' || LastName as who from Customer where Company is not null order by who",
    "select Title from Album where Title like '%Live%' order by Title",
];
