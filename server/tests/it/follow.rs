//! A sync from its first copy to its removal, and what stops it.

use crate::support::{Folder, Running};

const ITEMS: [&str; 2] =
    ["create table item (id integer primary key, v text)", "insert into item values (1, 'a'), (2, 'b'), (3, null)"];
const RUN: [&str; 5] = ["sync", "run", "s.toml", "--data-dir", "data"];

fn shop(mode: &str) -> Folder {
    let folder = Folder::new();
    folder.sync_file("s");
    folder.sql("source.db", &[&[format!("pragma journal_mode = {mode}").as_str()], &ITEMS[..]].concat());
    folder
}

fn follow(folder: &Folder, more: &[&str]) -> Running {
    let mut sync = folder.start(&[&RUN, more].concat());
    sync.wait_err("in step, following");
    sync
}

fn schema(folder: &Folder) -> String {
    folder.sql("source.db", &["select type, name, tbl_name, sql from sqlite_schema order by name"]).to_string()
}

#[test]
fn a_copy_installs_nothing_in_the_source() {
    for mode in ["delete", "wal"] {
        let folder = shop(mode);
        let (schema_before, bytes) = (schema(&folder), std::fs::read(folder.path("source.db")).unwrap());
        let done = folder.run(&[&RUN[..], &["--once"]].concat());
        assert!(done.err.contains("1 tables, 3 rows copied"), "{done:?}");
        done.ok();
        assert!(bytes == std::fs::read(folder.path("source.db")).unwrap(), "{mode}: the bytes of the source changed");
        assert_eq!(schema(&folder), schema_before);
        folder.wait_equal();
        // A second copy writes only what differs.
        folder.sql("source.db", &["update item set v = 'A' where id = 1", "delete from item where id = 2"]);
        folder.run(&[&RUN[..], &["--once"]].concat()).ok();
        folder.wait_equal();
        let records = folder.run(&["consume", "s.item", "-e", "--data-dir", "data", "--json"]).ok();
        assert_eq!(records.lines().count(), 3 + 1 + 2, "{records}");
    }
}

#[test]
fn changes_arrive_within_a_second() {
    for mode in ["wal", "delete"] {
        let folder = shop(mode);
        let sync = follow(&folder, &[]);
        let [source, replica] = ["source.db", "replica.db"].map(|file| folder.text(file));
        let taken = folder.python(&["latency", &source, &replica, "102"]);
        let mut taken: Vec<f64> = serde_json::from_value(taken).unwrap();
        taken.sort_by(f64::total_cmp);
        let at = |part: f64| taken[(taken.len() as f64 * part) as usize];
        println!("change to visible, {mode}, {} changes: p50 {:.0} ms, p99 {:.0} ms", taken.len(), at(0.5), at(0.99));
        assert!(at(0.99) < 1000.0, "{taken:?}");
        folder.wait_equal();
        sync.stop("INT");
    }
}

#[test]
fn in_step_is_said_when_the_copy_is_whole() {
    let folder = shop("wal");
    let many = "insert into item select value, 'row' from (with recursive n(value) as \
                (select 10 union all select value + 1 from n where value < 20000) select value from n)";
    folder.sql("source.db", &[many]);
    let sync = follow(&folder, &[]);
    let count = folder.run(&["sql", "-o", "csv", "select count(*) as n from item", "--data-dir", "data"]).ok();
    assert_eq!(count, "n\n19994\n");
    assert_eq!(folder.sql("replica.db", &["select count(*) from item"]).to_string(), "[[19994]]");
    assert!(sync.err().contains("19994 rows copied; in step, following"), "{}", sync.err());
    sync.stop("TERM");
    // One that goes on says so too, although it copies nothing.
    follow(&folder, &[]).stop("TERM");
}

#[test]
fn verify_sees_what_differs_and_rm_leaves_the_source_as_it_was() {
    let folder = shop("delete");
    let before = schema(&folder);
    let sync = follow(&folder, &[]);
    assert_ne!(schema(&folder), before);
    let out = folder.run(&["sync", "verify", "s.toml"]).ok();
    assert!(out.contains("ok      s.item: 3 rows equal"), "{out}");
    sync.stop("INT");
    for (damage, row) in [
        ("update item set v = 'other' where id = 2", "1 differ"),
        ("delete from item where id = 1", "1 missing"),
        ("insert into item values (77, 'x')", "1 only in the target"),
    ] {
        folder.sql("replica.db", &[damage]);
        let done = folder.run(&["sync", "verify", "s.toml", "--wait", "0"]);
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.out.contains("differs s.item") && done.out.contains(row), "{damage}: {}", done.out);
    }
    folder.run(&["sync", "rm", "s.toml", "--data-dir", "data"]).ok();
    assert_eq!(schema(&folder), before);
    assert_eq!(folder.run(&["topic", "list", "-o", "jsonl", "--data-dir", "data"]).ok(), "");
    assert_eq!(folder.sql("replica.db", &["select count(*) from item"]).to_string(), "[[3]]", "the tables stay");
    // Nothing is left to remove; saying so again does no harm.
    folder.run(&["sync", "rm", "s.toml", "--data-dir", "data"]).ok();
}

/// Types the command that an error names.
fn type_what_it_says(folder: &Folder, said: &str) -> Running {
    let command = said.split("to copy the table anew: ").nth(1).expect(said).lines().next().unwrap();
    println!("typed: {command}");
    folder.start_program("bash", &["-c", &format!("exec {command}")])
}

#[test]
fn a_new_column_stops_the_sync_and_what_it_says_works() {
    for (file, table) in [("s.toml", "item"), ("my sync's.toml", "Order Details")] {
        let folder = Folder::new();
        folder.sync_file("s");
        std::fs::rename(folder.path("s.toml"), folder.path("moved")).unwrap();
        std::fs::rename(folder.path("moved"), folder.path(file)).unwrap();
        let make = format!("create table \"{table}\" (id integer primary key, v text)");
        folder.sql("source.db", &[&make, &format!("insert into \"{table}\" values (1, 'a')")]);
        let mut sync = folder.start(&["sync", "run", file, "--data-dir", "the data"]);
        sync.wait_err("in step, following");
        folder.sql("source.db", &[&format!("alter table \"{table}\" add column colour text default 'red'")]);
        let done = sync.end().fails(4, &["the columns of table", table, "colour"]);
        // It stays stopped until the person decides.
        let again = folder.run(&["sync", "run", file, "--data-dir", "the data"]).fails(4, &["colour"]);
        assert_eq!(again.err.lines().last(), done.err.lines().last());
        let mut sync = type_what_it_says(&folder, &done.err);
        sync.wait_err("in step, following");
        folder.sql("source.db", &[&format!("insert into \"{table}\" values (2, 'b', 'blue')")]);
        folder.wait_equal();
        sync.stop("TERM");
        let sql = format!("select colour from \"{table}\" order by id");
        assert_eq!(folder.run(&["sql", "-o", "csv", &sql, "--data-dir", "the data"]).ok(), "colour\nred\nblue\n");
    }
}

#[test]
fn a_rebuilt_table_stops_the_sync_and_what_it_says_works() {
    let folder = shop("delete");
    follow(&folder, &[]).stop("INT");
    let rebuild = [
        "create table new_item (id integer primary key, v text)",
        "insert into new_item select id, v || '!' from item",
        "drop table item",
        "alter table new_item rename to item",
    ];
    folder.sql("source.db", &rebuild);
    let done = folder.run(&RUN).fails(4, &["item"]);
    let mut sync = type_what_it_says(&folder, &done.err);
    sync.wait_err("in step, following");
    folder.wait_equal();
    sync.stop("INT");
}

/// A source that is not what it was: the sync stops; removed and begun anew with an empty target it works.
fn stops_until_begun_anew(folder: &Folder, said: &str) {
    let before = folder.dump("replica.db");
    for _ in 0..2 {
        folder.run(&RUN).fails(4, &["source.db", said]);
    }
    assert_eq!(folder.dump("replica.db"), before, "the target was touched");
    folder.run(&["sync", "rm", "s.toml", "--data-dir", "data"]).ok();
    folder.run(&RUN).fails(4, &["replica.db exists and holds rows"]);
    std::fs::remove_file(folder.path("replica.db")).unwrap();
    let sync = follow(folder, &[]);
    folder.sql("source.db", &["insert into item values (50, 'anew')"]);
    folder.wait_equal();
    sync.stop("INT");
}

#[test]
fn a_restored_backup_stops_the_sync() {
    let folder = shop("delete");
    let sync = follow(&folder, &[]);
    std::fs::copy(folder.path("source.db"), folder.path("backup.db")).unwrap();
    folder.sql("source.db", &["insert into item values (9, 'after the backup')"]);
    folder.wait_equal();
    sync.stop("INT");
    std::fs::copy(folder.path("backup.db"), folder.path("source.db")).unwrap();
    stops_until_begun_anew(&folder, "went backwards");
}

#[test]
fn a_swapped_source_stops_the_sync() {
    let folder = shop("delete");
    follow(&folder, &[]).stop("INT");
    folder.sql("other.db", &ITEMS);
    std::fs::rename(folder.path("other.db"), folder.path("source.db")).unwrap();
    stops_until_begun_anew(&folder, "remove the sync and start it anew");
}

#[test]
fn a_source_swapped_while_it_is_followed_stops_the_sync() {
    let folder = shop("delete");
    let sync = follow(&folder, &[]);
    folder.sql("other.db", &ITEMS);
    std::fs::rename(folder.path("other.db"), folder.path("source.db")).unwrap();
    sync.end().fails(4, &["source.db"]);
    stops_until_begun_anew(&folder, "remove the sync and start it anew");
}

#[test]
fn a_lost_data_directory_stops_the_sync() {
    let folder = shop("delete");
    let before = schema(&folder);
    follow(&folder, &[]).stop("INT");
    std::fs::remove_dir_all(folder.path("data")).unwrap();
    folder.run(&RUN).fails(4, &["from another log"]);
    std::fs::remove_file(folder.path("replica.db")).unwrap();
    folder.run(&RUN).fails(4, &["already carries a capture"]);
    folder.run(&["sync", "rm", "s.toml", "--data-dir", "data"]).fails(4, &["knows nothing of", "--force"]);
    assert_ne!(schema(&folder), before, "another log may still follow it");
    folder.run(&["sync", "rm", "s.toml", "--data-dir", "data", "--force"]).ok();
    assert_eq!(schema(&folder), before, "rm works without the data directory that was lost");
    let sync = follow(&folder, &[]);
    folder.wait_equal();
    sync.stop("INT");
}

#[test]
fn a_target_of_another_log_is_refused() {
    let folder = shop("delete");
    folder.run(&[&RUN[..], &["--once"]].concat()).ok();
    for once in [&["--once"][..], &[]] {
        folder.run(&[&["sync", "run", "s.toml", "--data-dir", "other"], once].concat()).fails(4, &["another log"]);
    }
}
