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
        assert!(done.err.contains("s: 1 table, 3 rows read, 3 changed in "), "{done:?}");
        done.ok();
        assert!(bytes == std::fs::read(folder.path("source.db")).unwrap(), "{mode}: the bytes of the source changed");
        assert_eq!(schema(&folder), schema_before);
        folder.wait_equal();
        // A second copy writes only what differs.
        folder.sql("source.db", &["update item set v = 'A' where id = 1", "delete from item where id = 2"]);
        let done = folder.run(&[&RUN[..], &["--once"]].concat());
        assert!(done.err.contains("s: 1 table, 2 rows read, 2 changed in "), "{done:?}");
        done.ok();
        let done = folder.run(&[&RUN[..], &["--once"]].concat());
        assert!(done.err.contains("s: 1 table, 2 rows read, 0 changed in "), "{done:?}");
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
    assert!(out.contains("ok      s.item: 3 rows compared: 3 equal, 0 different"), "{out}");
    sync.stop("INT");
    for (damage, count, row) in [
        ("update item set v = 'other' where id = 2", "2 equal, 1 different", "        different: id=2\n"),
        ("delete from item where id = 1", "1 only in the source", "        only in the source: id=1\n"),
        ("insert into item values (77, 'x')", "1 only in the target", "        only in the target: id=77\n"),
    ] {
        folder.sql("replica.db", &[damage]);
        let done = folder.run(&["sync", "verify", "s.toml", "--wait", "0"]);
        assert_eq!(done.code, Some(1), "{done:?}");
        for said in [
            "differs s.item",
            count,
            row,
            "copy the table anew: tidemill sync run s.toml --data-dir DIR --recopy item\n",
        ] {
            assert!(done.out.contains(said), "{damage}: {}", done.out);
        }
    }
    let many = "insert into item select value, 'x' from (with recursive n(value) as \
                (select 100 union all select value + 1 from n where value < 250) select value from n)";
    folder.sql("replica.db", &[many]);
    // No sync is at work: it does not wait the ten seconds that rows may take.
    let began = std::time::Instant::now();
    let done = folder.run(&["sync", "verify", "s.toml"]);
    assert!(done.out.contains("        and 144 more\n") && done.out.ends_with("not equal\n"), "{done:?}");
    assert!(began.elapsed() < std::time::Duration::from_secs(8), "{:?}", began.elapsed());
    folder.run(&["sync", "rm", "s.toml", "--data-dir", "data"]).ok();
    assert_eq!(schema(&folder), before);
    assert_eq!(folder.run(&["topic", "list", "-o", "jsonl", "--data-dir", "data"]).ok(), "");
    assert_eq!(folder.sql("replica.db", &["select count(*) from item"]).to_string(), "[[154]]", "the tables stay");
    // Nothing is left to remove; saying so again does no harm.
    folder.run(&["sync", "rm", "s.toml", "--data-dir", "data"]).ok();
}

#[test]
fn changed_columns_are_told_by_check_and_verify_which_compares_the_other_tables() {
    let folder = shop("delete");
    folder.sql("source.db", &["create table \"Order Details\" (id integer primary key)"]);
    let check = ["sync", "check", "s.toml", "--data-dir", "data"];
    folder.run(&check).fails(3, &["no log in data"]);
    folder.run(&[&RUN[..], &["--once"]].concat()).ok();
    let out = folder.run(&check).ok();
    assert!(!out.contains("columns changed"), "{out}");
    folder.sql(
        "source.db",
        &["alter table item add column rating int", "alter table \"Order Details\" rename column id to number"],
    );
    let done = folder.run(&check);
    assert_eq!(done.code, Some(4), "{done:?}");
    for said in [
        "refuse item: columns changed: new: rating\n         tidemill sync run s.toml --data-dir data --recopy item\n",
        "refuse Order Details: columns changed: new: number; gone: id\n",
        "--recopy 'Order Details'\n",
    ] {
        assert!(done.out.contains(said), "no {said:?} in {}", done.out);
    }
    let out = folder.run(&["sync", "check", "s.toml"]).ok();
    assert!(!out.contains("columns changed"), "without a log nobody can tell: {out}");
    folder.sql("source.db", &["alter table \"Order Details\" rename column number to id"]);
    let done = folder.run(&["sync", "verify", "s.toml"]);
    assert_eq!(done.code, Some(1), "{done:?}");
    let said = "differs s.item: other columns, rows not compared: only in the source: rating\n";
    assert!(done.out.contains(said) && done.out.contains("ok      s.Order Details: 0 rows compared"), "{done:?}");
    // While another process owns the log, it is asked.
    let mut owner = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", "data"]);
    owner.wait_err("serving");
    assert!(folder.run(&check).out.contains("columns changed: new: rating"));
    owner.stop("TERM");
}

#[test]
fn a_table_is_altered_by_the_commands_that_sqlite_prints() {
    let folder = shop("delete");
    follow(&folder, &[]).stop("TERM");
    let refused = folder.run_sqlite("source.db", "alter table item drop column v");
    let commands = refused.split("to alter this table: ").nth(1).expect(&refused).split(')').next().unwrap();
    let commands: Vec<_> = commands.replace("FILE", "s.toml").split("; ").map(str::to_owned).collect();
    assert_eq!(commands[1], "alter it", "{refused}");
    folder.run(&["sync", "release", "s.toml", "itme"]).fails(3, &["no capture of table itme", "the nearest is item"]);
    let out = folder.bash(&format!("{} --data-dir data", commands[0])).ok();
    let typed = out.split("copy it anew: ").nth(1).expect(&out).trim();
    assert_eq!(typed, "tidemill sync run s.toml --data-dir data --recopy item");
    assert_eq!(commands[2], "tidemill sync run s.toml --recopy item");
    folder.sql("source.db", &["alter table item drop column v"]);
    folder.run(&RUN).fails(4, &["item", "--recopy item"]);
    let mut sync = folder.start_program("bash", &["-c", &format!("exec {typed}")]);
    sync.wait_err("in step, following");
    folder.sql("source.db", &["insert into item values (50)"]);
    folder.wait_equal();
    sync.stop("TERM");
}

#[test]
fn a_table_to_copy_anew_that_is_not_there_is_an_error() {
    let folder = shop("delete");
    let unknown = [&RUN[..], &["--recopy", "itme"]].concat();
    for once in [&["--once"][..], &[]] {
        folder.run(&[&unknown[..], once].concat()).fails(3, &["itme", "the nearest is item"]);
    }
    folder.run(&[&RUN[..], &["--recopy", "ITEM", "--once"]].concat()).ok();
    folder.wait_equal();
}

#[test]
fn one_sync_that_stops_leaves_the_others_of_its_file_running() {
    let folder = shop("delete");
    folder.sql("second.db", &ITEMS);
    let more = "[sync.b]\nfrom = 'sqlite:second.db'\nto = 'sqlite:second replica.db'\ntables = ['*']\n";
    let text = std::fs::read_to_string(folder.path("s.toml")).unwrap();
    std::fs::write(folder.path("s.toml"), format!("{more}{text}")).unwrap();
    let mut sync = folder.start(&RUN);
    sync.wait_err("s: 3 rows copied; in step, following");
    sync.wait_err("b: 3 rows copied; in step, following");
    folder.sql("second.db", &["alter table item add column colour"]);
    sync.wait_err("error: sync b: the columns of table item");
    folder.sql("source.db", &["insert into item values (9, 'later')"]);
    folder.wait_equal();
    assert!(sync.is_running());
    sync.signal("TERM");
    sync.end().fails(4, &["sync b: "]);
    // One that cannot begin does not keep the other from it.
    std::fs::remove_file(folder.path("second.db")).unwrap();
    folder.sql("source.db", &["insert into item values (10, 'once')"]);
    let done =
        folder.run(&[&RUN[..], &["--once"]].concat()).fails(69, &["error: sync b: ", "second.db does not exist"]);
    assert!(done.err.contains("s: 1 table, ") && done.err.matches("error: ").count() == 1, "{done:?}");
    folder.wait_equal();
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

/// The commands at the end of an error.
fn named_commands(said: &str) -> Vec<String> {
    let last = said.trim_end().rsplit(": ").next().unwrap();
    println!("named: {last}");
    last.split(", then ").map(str::to_owned).collect()
}

/// Begins a sync anew with the command that an error named.
fn begin_anew(folder: &Folder, command: &str) {
    let mut sync = folder.start_program("bash", &["-c", &format!("exec {command}")]);
    sync.wait_err("s: dropped in the target, to be copied anew: item");
    sync.wait_err("in step, following");
    folder.sql("source.db", &["insert into item values (50, 'anew')"]);
    folder.wait_equal();
    sync.stop("INT");
}

/// A source that is not what it was: the sync stops; with the commands that it names it begins anew.
fn stops_until_begun_anew(folder: &Folder, said: &str) {
    let before = folder.dump("replica.db");
    for more in [&[][..], &["--replace"]] {
        folder.run(&[&RUN, more].concat()).fails(4, &["source.db", said]);
    }
    assert_eq!(folder.dump("replica.db"), before, "the target was touched");
    let commands = named_commands(&folder.run(&RUN).err);
    assert_eq!(
        commands,
        ["tidemill sync rm s.toml --data-dir data", "tidemill sync run s.toml --data-dir data --replace"]
    );
    folder.bash(&commands[0]).ok();
    folder.run(&RUN).fails(4, &["replica.db exists and holds rows that this log did not write", &commands[1]]);
    begin_anew(folder, &commands[1]);
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
    stops_until_begun_anew(&folder, "put the right file back");
}

#[test]
fn a_source_swapped_while_it_is_followed_stops_the_sync() {
    let folder = shop("delete");
    let sync = follow(&folder, &[]);
    folder.sql("other.db", &ITEMS);
    std::fs::rename(folder.path("other.db"), folder.path("source.db")).unwrap();
    sync.end().fails(4, &["source.db"]);
    stops_until_begun_anew(&folder, "put the right file back");
}

#[test]
fn a_lost_data_directory_stops_the_sync() {
    let folder = shop("delete");
    let before = schema(&folder);
    follow(&folder, &[]).stop("INT");
    std::fs::remove_dir_all(folder.path("data")).unwrap();
    folder.run(&["sync", "rm", "s.toml", "--data-dir", "data"]).fails(3, &["no log in data", "--force"]);
    assert!(!folder.path("data").exists(), "rm made a log");
    let stopped = folder.run(&RUN).fails(4, &["from another log"]);
    let replace = named_commands(&stopped.err);
    assert_eq!(replace, ["tidemill sync run s.toml --data-dir data --replace"]);
    let rows = folder.dump("replica.db");
    let stopped = folder.bash(&replace[0]).fails(4, &["already carries a capture"]);
    assert_eq!(folder.dump("replica.db"), rows, "the target was given up for nothing");
    let refused = folder.run(&["sync", "rm", "s.toml", "--data-dir", "data"]).fails(4, &["knows nothing of"]);
    assert_ne!(schema(&folder), before, "another log may still follow it");
    let commands = named_commands(&stopped.err);
    assert_eq!(commands, ["tidemill sync rm s.toml --data-dir data --force", &replace[0]]);
    assert_eq!(named_commands(&refused.err), commands[..1]);
    folder.bash(&commands[0]).ok();
    assert_eq!(schema(&folder), before, "rm works without the data directory that was lost");
    begin_anew(&folder, &commands[1]);
    // A capture can be removed without making a log for it.
    std::fs::remove_dir_all(folder.path("data")).unwrap();
    folder.run(&["sync", "rm", "s.toml", "--data-dir", "data", "--force"]).ok();
    assert_eq!(schema(&folder), before);
    assert!(!folder.path("data").exists(), "rm made a log");
}

#[test]
fn a_capture_that_somebody_dropped_is_begun_anew() {
    let folder = shop("delete");
    follow(&folder, &[]).stop("INT");
    folder.sql("source.db", &["drop table _tm_seq"]);
    stops_until_begun_anew(&folder, "the capture tables in");
}

#[test]
fn the_second_wish_to_stop_is_heard_after_a_second() {
    let folder = shop("delete");
    let mut sync = follow(&folder, &[]);
    // A target that stays locked holds up the end: it is tried for five seconds.
    let lock = "import sqlite3, sys\nc = sqlite3.connect('replica.db', isolation_level=None)\n\
                c.execute('begin immediate')\nprint('locked', flush=True)\nsys.stdin.read()\n";
    let mut locked = folder.start_program("python3", &["-c", lock]);
    locked.wait_out("locked");
    folder.sql("source.db", &["insert into item values (60, 'late')"]);
    sync.wait_err("s: waiting for the target: ");
    std::thread::sleep(std::time::Duration::from_millis(700));
    sync.signal("TERM");
    sync.signal("INT");
    std::thread::sleep(std::time::Duration::from_millis(1200));
    assert!(sync.is_running(), "two signals at once are one: {}", sync.err());
    sync.signal("INT");
    sync.end().fails(130, &["interrupted again: ended without waiting"]);
}

#[test]
fn a_target_of_another_log_is_refused() {
    let folder = shop("delete");
    folder.run(&[&RUN[..], &["--once"]].concat()).ok();
    for once in [&["--once"][..], &[]] {
        folder.run(&[&["sync", "run", "s.toml", "--data-dir", "other"], once].concat()).fails(4, &["another log"]);
    }
}

#[test]
fn any_number_of_rows_may_be_gone_when_a_table_is_copied_again() {
    let folder = Folder::new();
    folder.sync_file("s");
    // Their deletes are more than one transaction of the log takes.
    let fill = "insert into t with recursive n(i) as (select 1 union all select i + 1 from n where i < 110000) \
                select i, printf('%0500d', i) from n";
    folder.sql("source.db", &["create table t (id integer primary key, v text)", fill]);
    let once = [&RUN[..], &["--once"]].concat();
    folder.run(&once).ok();
    folder.sql("source.db", &["delete from t where id <> 7"]);
    folder.run(&once).ok();
    folder.wait_equal();
    let left = folder.run(&["sql", "--data-dir", "data", "-o", "csv", "select count(*) as n from s.t"]).ok();
    assert_eq!(left.trim(), "n\n1");
}
