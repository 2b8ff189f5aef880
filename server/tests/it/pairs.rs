//! All nine pairs of databases from one file each source, equality judged by the databases' own clients.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use crate::{
    servers::{ADMIN, MariaDb, PASSWORD, Postgres, SINK, chinook, client, judge},
    support::{Folder, PATIENCE, Running, poll},
};

/// A database of a server, or a file.
pub enum Place {
    Postgres(&'static Postgres, String),
    MariaDb(&'static MariaDb, String),
    Sqlite(PathBuf),
}

impl Place {
    /// A new, empty one of each kind.
    pub fn fresh(kind: &str, folder: &Folder, name: &str) -> Self {
        match kind {
            "postgres" => Self::Postgres(Postgres::shared(), Postgres::shared().fresh_database()),
            "mariadb" => Self::MariaDb(MariaDb::shared(), MariaDb::shared().fresh_database()),
            _ => Self::Sqlite(folder.path(&format!("{name}.db"))),
        }
    }

    /// As a sync file names it.
    pub fn endpoint(&self, user: &str) -> String {
        let server = |url: String| format!("{{ url = '{url}', password = '${{env:PAIRS_PW}}' }}");
        match self {
            Self::Postgres(s, db) => server(s.url(user, db)),
            Self::MariaDb(s, db) => server(s.url(user, db)),
            Self::Sqlite(path) => format!("'sqlite:{}'", path.display()),
        }
    }

    /// Statements by its own client.
    pub fn exec(&self, sql: &str) {
        match self {
            Self::Postgres(s, db) => s.exec(db, sql),
            Self::MariaDb(s, db) => s.exec(db, sql),
            Self::Sqlite(path) => {
                let mut command = std::process::Command::new("sqlite3");
                command.args(["-batch", "-bail", "-cmd", ".timeout 30000"]).arg(path);
                client::run(&mut command, sql.as_bytes()).unwrap();
            }
        }
    }

    fn side<'a>(&'a self, table: &'a str) -> judge::Side<'a> {
        match self {
            Self::Postgres(s, db) => judge::Side::Postgres(s, db, table),
            Self::MariaDb(s, db) => judge::Side::MariaDb(s, db, table),
            Self::Sqlite(path) => judge::Side::Sqlite(path, table),
        }
    }

    /// What differs, as both own clients tell it; also where the other has no such table yet.
    pub fn differences(&self, other: &Self, tables: &[String]) -> Vec<String> {
        let differ = |table: &String| {
            let compare = std::panic::AssertUnwindSafe(|| judge::differences(self.side(table), other.side(table)));
            std::panic::catch_unwind(compare).unwrap_or_else(|_| vec![format!("{table} cannot be read")])
        };
        tables.iter().flat_map(differ).collect()
    }
}

const KINDS: [&str; 3] = ["postgres", "mariadb", "sqlite"];

/// Chinook where it is, else a shop of our own with the same shapes; the names of its tables.
fn fill(place: &Place) -> Vec<String> {
    let real = match place {
        Place::Postgres(s, db) => chinook::postgres(s, db),
        Place::MariaDb(s, db) => chinook::mariadb(s, db),
        Place::Sqlite(path) => chinook::sqlite(path),
    };
    let postgres = matches!(place, Place::Postgres(..));
    if real.is_some() {
        return chinook::TABLES.iter().map(|(pg, other)| if postgres { pg } else { other }.to_string()).collect();
    }
    place.exec(
        "create table album (album_id int primary key, title varchar(160) not null, price numeric(10,2), made timestamp); \
         create table playlist_track (playlist_id int, track_id int, primary key (playlist_id, track_id)); \
         insert into album values (1, 'Für Elise', 0.99, '2009-01-01 00:00:00'), (2, 'x', null, null); \
         insert into playlist_track values (1, 1), (1, 2), (2, 1);",
    );
    vec!["album".into(), "playlist_track".into()]
}

/// Changes of rows that are there, in the spelling of the source.
fn changes(place: &Place, round: usize) -> String {
    let there = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/chinook").exists();
    let text = match place {
        _ if !there => {
            "delete from playlist_track where track_id = 2; \
             update playlist_track set track_id = 9 where playlist_id = 2; \
             update album set price = 1.5, title = 'y' where album_id = 2; \
             update album set album_id = 3 where album_id = 1;"
        }
        Place::Postgres(..) => {
            "delete from playlist_track where playlist_id = 1 and track_id < 500; \
             update track set unit_price = unit_price + 1 where track_id % 7 = 0; \
             update track set composer = null where track_id % 11 = 0; \
             insert into genre values (101, 'Žánr ♫'), (102, null); \
             update genre set genre_id = 201 where genre_id = 101; \
             delete from invoice_line where invoice_line_id % 3 = 0;"
        }
        _ => {
            "delete from PlaylistTrack where PlaylistId = 1 and TrackId < 500; \
             update Track set UnitPrice = UnitPrice + 1 where TrackId % 7 = 0; \
             update Track set Composer = null where TrackId % 11 = 0; \
             insert into Genre values (101, 'Žánr ♫'), (102, null); \
             update Genre set GenreId = 201 where GenreId = 101; \
             delete from InvoiceLine where InvoiceLineId % 3 = 0;"
        }
    };
    // A later round makes rows that are not there yet.
    ["101", "102", "201"].iter().fold(text.to_owned(), |text, id| {
        text.replace(id, &format!("{}", id.parse::<usize>().unwrap() + 1_000 * round))
    })
}

/// One source in step with a database of each kind, over its whole life: all by one file, but for SQLite, whose
/// triggers serve one sync.
fn one_source(kind: &str) {
    let at_once = if kind == "sqlite" { 1 } else { KINDS.len() };
    let folder = Folder::with_env(&[("PAIRS_PW", PASSWORD)]);
    let source = Place::fresh(kind, &folder, "source");
    let tables = fill(&source);
    for (round, kinds) in KINDS.chunks(at_once).enumerate() {
        let targets: Vec<Place> = kinds.iter().map(|kind| Place::fresh(kind, &folder, "target")).collect();
        life(&folder, &source, &tables, kinds, &targets, round);
    }
}

fn life(folder: &Folder, source: &Place, tables: &[String], kinds: &[&str], targets: &[Place], round: usize) {
    let sync = |(kind, target): (&&str, &Place)| {
        let (from, to) = (source.endpoint(ADMIN), target.endpoint(SINK));
        format!("[sync.to_{kind}]\nfrom = {from}\nto = {to}\ntables = ['*']\n")
    };
    let file: String = kinds.iter().zip(targets).map(sync).collect();
    std::fs::write(folder.path("pairs.toml"), file).unwrap();

    folder.run(&["sync", "check", "pairs.toml"]).ok();
    let plan = folder.run(&["sync", "plan", "pairs.toml"]).ok();
    assert!(plan.contains("makes in the target"), "{plan}");
    let mut running = folder.start(&["sync", "run", "pairs.toml", "--data-dir", "log"]);
    kinds.iter().for_each(|kind| running.wait_err(&format!("to_{kind}: ")));
    wait_equal(source, targets, tables, &running);
    source.exec(&changes(source, round));
    wait_equal(source, targets, tables, &running);
    // The place that is waited for is read in the source itself.
    source.exec(&changes(source, round + 10));
    let verified = folder.run(&["sync", "verify", "pairs.toml", "--data-dir", "log"]).ok();
    assert_eq!(verified.matches("the target has what the source had at ").count(), kinds.len(), "{verified}");
    assert!(verified.trim_end().ends_with("equal") && !verified.contains("not equal"), "{verified}");
    // What a person changes in a target is told, row by row.
    targets.iter().for_each(|target| target.exec(&format!("delete from {}", quoted(target, &tables[0]))));
    folder.run(&["sync", "verify", "pairs.toml", "--wait", "0"]).fails(1, &[]);
    assert_eq!(running.stop("TERM").code, Some(0));
    folder.run(&["sync", "rm", "pairs.toml", "--data-dir", "log"]).ok();
    assert!(left_behind(source).is_empty(), "{:?}", left_behind(source));
}

/// Waits until all targets hold what the source does.
fn wait_equal(source: &Place, targets: &[Place], tables: &[String], running: &Running) {
    for target in targets {
        let mut seen = Vec::new();
        let equal = poll(PATIENCE, || {
            seen = source.differences(target, tables);
            seen.is_empty().then_some(())
        });
        let first = seen.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
        assert!(equal.is_some(), "{first}\n{}", running.err());
    }
}

fn quoted(place: &Place, table: &str) -> String {
    match place {
        Place::MariaDb(..) => format!("`{table}`"),
        _ => format!("\"{table}\""),
    }
}

/// What of ours is still in a source.
fn left_behind(place: &Place) -> Vec<String> {
    let of = |rows: Vec<Vec<Option<String>>>| rows.into_iter().flatten().flatten().collect();
    match place {
        Place::Postgres(s, db) => of(s.query(
            db,
            &format!(
                "select slot_name from pg_replication_slots where database = '{db}'; select pubname from pg_publication; \
                 select relname from pg_class where relname like '%tidemill%'"
            ),
        )),
        Place::MariaDb(s, db) => of(s.query(db, "show tables like '%tidemill%'")),
        Place::Sqlite(path) => judge::sqlite(path, "select name from sqlite_schema where name like '\\_tm\\_%' escape '\\'")
            .into_iter()
            .map(|row| format!("{row:?}"))
            .collect(),
    }
}

#[test]
fn rows_that_only_the_target_has_are_merged_with_or_replaced() {
    let folder = Folder::with_env(&[("PAIRS_PW", PASSWORD)]);
    let source = Place::fresh("postgres", &folder, "source");
    let targets: Vec<_> = KINDS.iter().map(|kind| Place::fresh(kind, &folder, &format!("to_{kind}"))).collect();
    source.exec("create table t (id int primary key, v varchar(20)); insert into t values (1, 'a'), (2, 'b');");
    let write = |how: &str| {
        let mut file = String::new();
        for (kind, target) in KINDS.iter().zip(&targets) {
            let (from, to) = (source.endpoint(ADMIN), target.endpoint(SINK));
            writeln!(file, "[sync.{kind}]\nfrom = {from}\nto = {to}\ntables = ['*']\n{how}").unwrap();
        }
        std::fs::write(folder.path("s.toml"), file).unwrap();
    };
    let run = ["sync", "run", "s.toml", "--data-dir", "log"];
    let follow = |more: &[&str]| {
        let running = folder.start(&[&run[..], more].concat());
        let all = poll(PATIENCE, || (running.err().matches("in step, following").count() == KINDS.len()).then_some(()));
        assert!(all.is_some(), "{}", running.err());
        assert_eq!(running.stop("TERM").code, Some(0));
    };
    write("");
    folder.run(&[&run[..], &["--once"]].concat()).ok();
    folder.run(&["sync", "rm", "s.toml", "--data-dir", "log"]).ok();
    // They have rows now that nobody owns, and one of their own.
    targets.iter().for_each(|target| target.exec("insert into t values (9, 'own');"));
    folder.run(&run).fails(4, &["rows"]);
    write("on_existing = 'merge'\n");
    source.exec("update t set v = 'A' where id = 1;");
    follow(&[]);
    let extra = |wanted: bool| {
        let verified = folder.run(&["sync", "verify", "s.toml", "--wait", "0"]);
        let found = verified.out.matches("0 different, 0 only in the source, 1 only in the target, 0 parked").count();
        assert_eq!(found, if wanted { KINDS.len() } else { 0 }, "{verified:?}");
        assert_eq!(verified.code, Some(i32::from(wanted)), "{verified:?}");
    };
    extra(true);
    source.exec("delete from t where id = 2; insert into t values (3, 'c');");
    follow(&["--recopy", "t"]);
    extra(true);
    folder.run(&["sync", "rm", "s.toml", "--data-dir", "log"]).ok();
    write("on_existing = 'replace'\n");
    follow(&[]);
    extra(false);
    // What it wrote itself is not dropped by the next start.
    targets.iter().for_each(|target| target.exec("insert into t values (9, 'own');"));
    follow(&[]);
    extra(true);
}

#[test]
fn a_table_that_comes_is_taken_up_or_left_out() {
    let folder = Folder::with_env(&[("PAIRS_PW", PASSWORD)]);
    let sources: Vec<_> = KINDS.iter().map(|kind| Place::fresh(kind, &folder, kind)).collect();
    let targets: Vec<_> = KINDS.iter().map(|kind| Place::fresh("sqlite", &folder, &format!("to_{kind}"))).collect();
    let mut file = String::new();
    for ((kind, source), target) in KINDS.iter().zip(&sources).zip(&targets) {
        source.exec("create table t (id int primary key, v varchar(20)); insert into t values (1, 'a');");
        let (from, to) = (source.endpoint(ADMIN), target.endpoint(SINK));
        writeln!(file, "[sync.{kind}]\nfrom = {from}\nto = {to}\ntables = ['*']").unwrap();
    }
    std::fs::write(folder.path("s.toml"), file).unwrap();
    let mut running = folder.start(&["sync", "run", "s.toml", "--data-dir", "log"]);
    KINDS.iter().for_each(|kind| running.wait_err(&format!("{kind}: 1 row copied")));
    for source in &sources {
        source.exec(
            "create table keyless (v varchar(20)); create table u (id int primary key, v varchar(20)); \
             insert into u values (1, 'b'); insert into t values (2, 'c');",
        );
    }
    let tables = ["t".to_owned(), "u".to_owned()];
    for (source, target) in sources.iter().zip(&targets) {
        wait_equal(source, std::slice::from_ref(target), &tables, &running);
        source.exec("insert into u values (2, 'd');");
        wait_equal(source, std::slice::from_ref(target), &tables, &running);
    }
    for kind in KINDS {
        assert!(running.err().contains(&format!("sync {kind}: left out: table ")), "{}", running.err());
    }
    assert_eq!(running.stop("TERM").code, Some(0));
    // Also at the next start.
    let mut running = folder.start(&["sync", "run", "s.toml", "--data-dir", "log"]);
    KINDS.iter().for_each(|kind| running.wait_err(&format!("sync {kind}: left out")));
    assert_eq!(running.stop("TERM").code, Some(0));
}

#[test]
fn a_sync_that_writes_back_is_refused() {
    let folder = Folder::with_env(&[("PAIRS_PW", PASSWORD)]);
    let (a, b) = (Place::fresh("postgres", &folder, "a"), Place::fresh("mariadb", &folder, "b"));
    // Without rows nothing else is in the way.
    for place in [&a, &b] {
        place.exec("create table t (id int primary key, v varchar(20)); create table u (id int primary key);");
    }
    let sync = |name: &str, from: &Place, to: &Place, table: &str| {
        let (from, to) = (from.endpoint(ADMIN), to.endpoint(ADMIN));
        format!("[sync.{name}]\nfrom = {from}\nto = {to}\ntables = ['{table}']\n")
    };
    let write = |name: &str, text: String| std::fs::write(folder.path(name), text).unwrap();
    write("there.toml", sync("there", &a, &b, "t"));
    write("back.toml", sync("back", &b, &a, "t"));
    write("other.toml", sync("other", &b, &a, "u"));
    let run = |file: &str| folder.start(&["sync", "run", file, "--data-dir", "log"]);
    let mut running = run("there.toml");
    running.wait_err("in step, following");
    assert_eq!(running.stop("TERM").code, Some(0));
    // Check says the same, and gives up no table of the other's source for it.
    a.exec("insert into t values (1, 'a');");
    let checked = folder.run(&["sync", "check", "back.toml", "--data-dir", "log"]).fails(4, &[]).out;
    assert!(checked.contains("t is written by sync there") && !checked.contains("--replace"), "{checked}");
    for more in [&[][..], &["--replace"]] {
        let args = [&["sync", "run", "back.toml", "--data-dir", "log"], more].concat();
        folder.run(&args).fails(4, &["t is written by sync there", "round for ever"]);
    }
    let mut running = run("other.toml");
    running.wait_err("in step, following");
    assert_eq!(running.stop("TERM").code, Some(0));
    folder.run(&["sync", "rm", "there.toml", "--data-dir", "log"]).ok();
    a.exec("delete from t;");
    b.exec("delete from t;");
    folder.run(&["sync", "run", "back.toml", "--data-dir", "log", "--once"]).ok();
    // Of two that begin at one moment the first one of the file has its way.
    b.exec("drop table t; create table t (id int primary key, v varchar(20));");
    a.exec("drop table t; create table t (id int primary key, v varchar(20)); insert into t values (1, 'a');");
    write("both.toml", sync("d1", &a, &b, "t") + &sync("d2", &b, &a, "t"));
    let checked = folder.run(&["sync", "check", "both.toml"]).fails(4, &[]).out;
    let (first, second) = checked.split_once("sync d2: ").unwrap();
    assert!(second.contains("t is written by sync d1") && !second.contains("--replace"), "{checked}");
    assert!(!first.contains("is written by"), "{checked}");
    let mut running = folder.start(&["sync", "run", "both.toml", "--data-dir", "new"]);
    running.wait_err("in step, following");
    running.wait_err("t is written by sync d1");
    running.signal("TERM");
    running.end().fails(4, &["sync d2: "]);
}

#[test]
fn postgres_keeps_all_three_in_step() {
    one_source("postgres");
}

#[test]
fn mariadb_keeps_all_three_in_step() {
    one_source("mariadb");
}

#[test]
fn sqlite_keeps_all_three_in_step() {
    one_source("sqlite");
}

/// Columns come and go and tables are emptied while a sync runs.
fn a_changing_table(kind: &str) {
    let folder = Folder::with_env(&[("PAIRS_PW", PASSWORD)]);
    let (source, target) = (Place::fresh(kind, &folder, "source"), Place::fresh("sqlite", &folder, "target"));
    let tables = ["t".to_owned()];
    source.exec("create table t (id int primary key, v varchar(20)); insert into t values (1, 'a'), (2, 'b');");
    let file = format!("[sync.s]\nfrom = {}\nto = {}\ntables = ['t']\n", source.endpoint(ADMIN), target.endpoint(SINK));
    std::fs::write(folder.path("s.toml"), file).unwrap();
    let run = ["sync", "run", "s.toml", "--data-dir", "log"];
    let mut running = folder.start(&run);
    running.wait_err("in step, following");
    let targets = [target];
    let widened = match kind {
        // No event tells what became of the rows, of their keys either.
        "postgres" => "alter table t alter id type bigint using id * 10, alter v type text using v || '!';",
        _ => "alter table t modify id bigint, modify v varchar(30);",
    };
    let widened = format!("{widened} insert into t values (3000000000, '30 characters are fine in here', 1, 1);");
    for step in [
        "insert into t values (3, 'c');",
        "alter table t add column w int; insert into t values (4, 'd', 7); update t set v = 'A' where id = 1;",
        // Rows that were there have it too, without a change of their own; PostgreSQL tells of it with the next change.
        "alter table t add column n int default 5; update t set n = 6 where id = 4;",
        &widened,
        "truncate table t;",
        "insert into t values (5, 'e', 8, 9), (6, 'f', null, null);",
        "truncate table t; insert into t values (5, 'g', 1, 1);",
    ] {
        println!("{kind}: {step}");
        source.exec(step);
        wait_equal(&source, &targets, &tables, &running);
    }
    source.exec("alter table t drop column w; insert into t (id, v) values (7, 'h');");
    running.wait_err("--recopy");
    running.end().fails(4, &["sync run s.toml --data-dir log --recopy", "column"]);
    // The bare name does: no other table of the sync has it.
    let running = folder.start(&[&run[..], &["--recopy", "t"]].concat());
    wait_equal(&source, &targets, &tables, &running);
    assert_eq!(running.stop("TERM").code, Some(0));
    folder.run(&["sync", "verify", "s.toml"]).ok();
    let sum = folder.run(&["sql", "--data-dir", "log", "-o", "csv", "select sum(id) as n from s.t"]).ok();
    assert_eq!(sum.trim(), "n\n12");
    folder.run(&["sql", "--data-dir", "log", "select * from changes_of(s.t)"]).ok();
}

#[test]
fn columns_come_and_tables_are_emptied_in_postgres() {
    a_changing_table("postgres");
}

#[test]
fn columns_come_and_tables_are_emptied_in_mariadb() {
    a_changing_table("mariadb");
}

/// A server that shuts down waits for those who read its stream.
#[test]
fn a_source_can_be_shut_down_under_a_sync() {
    let folder = Folder::with_env(&[("PAIRS_PW", PASSWORD)]);
    let mut server = Postgres::start();
    let db = server.fresh_database();
    server.exec(&db, "create table t (id int primary key, v text); insert into t values (1, 'a')");
    let from = format!("{{ url = '{}', password = '${{env:PAIRS_PW}}' }}", server.url(ADMIN, &db));
    let file = format!("[sync.s]\nfrom = {from}\nto = 'sqlite:target.db'\ntables = ['t']\n");
    std::fs::write(folder.path("s.toml"), file).unwrap();
    let mut running = folder.start(&["sync", "run", "s.toml", "--data-dir", "log"]);
    running.wait_err("in step, following");
    let begun = std::time::Instant::now();
    server.restart();
    assert!(begun.elapsed().as_secs() < 20, "the server waited {:?} to end", begun.elapsed());
    server.exec(&db, "insert into t values (2, 'b')");
    let equal = poll(PATIENCE, || {
        let path = folder.path("target.db");
        let count = client::run(std::process::Command::new("sqlite3").arg(&path), b"select count(*) from t;").ok()?;
        (count == b"2\n").then_some(())
    });
    assert!(equal.is_some(), "{}", running.err());
    assert_eq!(running.stop("TERM").code, Some(0));
}

/// Rows of some megabytes, more of them than one statement of a target takes.
fn large_rows(kind: &str) {
    let folder = Folder::with_env(&[("PAIRS_PW", PASSWORD)]);
    let source = Place::fresh(kind, &folder, "source");
    let targets: Vec<_> = KINDS.iter().map(|kind| Place::fresh(kind, &folder, kind)).collect();
    let tables = ["t".to_owned()];
    let (blob, filled) = match kind {
        "postgres" => ("bytea", "convert_to(repeat('x', SIZE), 'UTF8')"),
        _ => ("longblob", "repeat('x', SIZE)"),
    };
    let filled = |size: usize| filled.replace("SIZE", &size.to_string());
    let insert = |ids: [u32; 2]| {
        let rows = ids.map(|id| format!("({id}, {}, 'a')", filled(5_000_000)));
        format!("insert into t values {};", rows.join(", "))
    };
    source.exec(&format!("create table t (id int primary key, b {blob}, v text); {}", insert([1, 2])));
    let mut file = String::new();
    for (kind, target) in KINDS.iter().zip(&targets) {
        let (from, to) = (source.endpoint(ADMIN), target.endpoint(SINK));
        writeln!(file, "[sync.{kind}]\nfrom = {from}\nto = {to}\ntables = ['t']").unwrap();
    }
    std::fs::write(folder.path("s.toml"), file).unwrap();
    let mut running = folder.start(&["sync", "run", "s.toml", "--data-dir", "log"]);
    wait_equal(&source, &targets, &tables, &running);
    source.exec(&insert([3, 4]));
    source.exec("update t set v = 'b' where id in (1, 3); delete from t where id in (2, 4);");
    wait_equal(&source, &targets, &tables, &running);
    source.exec(&format!("insert into t values (9, {}, 'too large')", filled(9_000_000)));
    running.wait_err("row {\"id\":9} of table");
    running.end().fails(4, &["leave the table out"]);
}

#[test]
fn rows_of_megabytes_go_from_postgres_to_all() {
    large_rows("postgres");
}

#[test]
fn rows_of_megabytes_go_from_mariadb_to_all() {
    large_rows("mariadb");
}
