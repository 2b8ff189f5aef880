//! What each command says and returns when something is wrong; and names that are not simple.

use crate::support::{Folder, chinook, copy_writable, json_lines};

const SHOP: [&str; 3] = [
    "create table item (id integer primary key, v text)",
    "create table line (o int, n int, primary key (o, n)) without rowid",
    "insert into item values (1, 'a'), (2, 'b')",
];

fn shop() -> Folder {
    let folder = Folder::new();
    folder.sync_file("s");
    folder.sql("source.db", &SHOP);
    folder
}

#[test]
fn faults_of_a_sync_file_are_named() {
    let folder = shop();
    let good = std::fs::read_to_string(folder.path("s.toml")).unwrap();
    let write = |text: &str| std::fs::write(folder.path("bad.toml"), text).unwrap();
    for command in [&["sync", "run", "bad.toml", "--data-dir", "data"][..], &["sync", "check", "bad.toml"]] {
        write(&good.replace("tables", "tabels"));
        folder.run(command).fails(78, &["bad.toml", "unknown key sync.s.tabels", "did you mean sync.s.tables?"]);
        write("[sync.s\n");
        folder.run(command).fails(78, &["bad.toml"]);
        write(&good.replace("sqlite:source.db", "oracle:x"));
        folder.run(command).fails(78, &["sync.s.from", "oracle"]);
        write(&good.replace("source.db", "nowhere.db"));
        folder.run(command).fails(69, &["nowhere.db does not exist"]);
        write(&good.replace("'*'", "'itme'"));
        folder.run(command).fails(3, &["itme"]);
    }
    for command in ["run", "check", "verify", "rm"] {
        folder.run(&["sync", command, "absent.toml"]).fails(78, &["absent.toml", "No such file"]);
    }
    assert!(!folder.path("replica.db").exists());
}

#[test]
fn a_table_without_a_key_is_refused_with_what_to_do() {
    let folder = shop();
    folder.sql("source.db", &["create table loose (a, b)"]);
    let run = ["sync", "run", "s.toml", "--data-dir", "data"];
    for command in [&run[..], &[&run[..], &["--once"]].concat()] {
        let said = folder.run(command).fails(4, &["loose"]).err;
        assert!(said.to_lowercase().contains("primary key"), "{said}");
    }
    let check = folder.run(&["sync", "check", "s.toml"]);
    assert_eq!(check.code, Some(4), "{check:?}");
    let refused = check.out.lines().find(|line| line.trim().starts_with("refuse")).expect("a line that refuses");
    assert!(refused.contains("loose") && check.out.to_lowercase().contains("primary key"), "{}", check.out);
    assert!(check.out.contains("ok     item"), "{}", check.out);
    folder.sql("source.db", &["drop table loose"]);
    let out = folder.run(&["sync", "check", "s.toml"]).ok();
    assert!(out.contains("sync s: sqlite:source.db -> sqlite:replica.db") && !out.contains("refuse"), "{out}");
    assert_eq!(
        folder.sql("source.db", &["select count(*) from sqlite_schema"]).to_string(),
        "[[2]]",
        "check changed it"
    );
}

#[test]
fn a_second_owner_is_told_who_the_first_is() {
    let folder = shop();
    let mut first = folder.start(&["sync", "run", "s.toml", "--data-dir", "data"]);
    first.wait_err("in step, following");
    let pid = format!("pid {}", first.pid());
    for second in [&["sync", "run", "s.toml"][..], &["sync", "rm", "s.toml"], &["start"]] {
        let done = folder.run(&[second, &["--data-dir", "data"]].concat());
        done.fails(4, &["data is owned by another process", &pid, "sync run s.toml"]);
    }
    first.stop("TERM");
    folder.run(&["sync", "rm", "s.toml", "--data-dir", "data"]).ok();
}

#[test]
fn what_is_not_there_is_named() {
    let folder = shop();
    folder.run(&["sync", "run", "s.toml", "--data-dir", "data", "--once"]).ok();
    let run = |args: &[&str]| folder.run(&[args, &["--data-dir", "data"]].concat());
    run(&["consume", "nope", "-e"]).fails(3, &["topic \"nope\" does not exist"]);
    run(&["consume", "s.itme", "-e"]).fails(3, &["topic \"s.itme\" does not exist; the nearest is s.item"]);
    run(&["topic", "delete", "s.itme"]).fails(3, &["the nearest is s.item"]);
    run(&["topic", "delete", "s.item"]).fails(4, &["s.item is written by sync s", "tidemill sync rm FILE"]);
    run(&["topic", "delete", "nope"]).fails(3, &["nope"]);
    run(&["sql", "selec 1"]).fails(2, &["selec"]);
    run(&["sql", "select * from itme"]).fails(3, &["no table itme", "nearest is", "item"]);
    run(&["sql", "select vv from item"]).fails(2, &["vv"]);
    run(&["topic", "create", "s.item"]).fails(4, &["s.item"]);
    run(&["consume", "s.item", "-e", "--from", "middle"]).fails(2, &["middle"]);
    run(&["consume", "s.item", "-e", "--from", "x!end"]).fails(2, &["x!end"]);
    // Whatever is typed as a topic stays the name of a topic.
    for name in ["a b", "s.item?limit=1", "../topics", "é", "s.item/records", "%", ""] {
        let code = run(&["consume", name, "-e"]).code;
        assert!(matches!(code, Some(2 | 3)), "consume {name:?}: {code:?}");
        let code = run(&["topic", "delete", name]).code;
        assert!(matches!(code, Some(2 | 3)), "topic delete {name:?}: {code:?}");
        run(&["produce", name]).fails(2, &["error: "]);
    }
    assert_eq!(run(&["topic", "list", "-o", "csv"]).ok().lines().count(), 3);
}

#[test]
fn a_server_that_does_not_answer_is_told() {
    let folder = Folder::new();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = format!("http://127.0.0.1:{port}");
    for command in [&["sql", "select 1"][..], &["topic", "list"], &["produce", "t"], &["consume", "t"]] {
        folder
            .run(&[command, &["--server", &server]].concat())
            .fails(69, &[&format!("127.0.0.1:{port} does not answer")]);
    }
    folder
        .run(&["topic", "list", "--server", "https://127.0.0.1:1"])
        .fails(2, &["https is not supported; write http://HOST:PORT"]);
    folder.run(&["sql", "select 1", "--server", "http://"]).fails(2, &["is not a server's address"]);
    folder.run(&["sql", "select 1", "--server", "http://x/y"]).fails(2, &["is not a server's address"]);
    assert!(!folder.path("tidemill-data").exists(), "a client made a folder");
}

#[test]
fn bad_flags_are_usage_errors() {
    let folder = Folder::new();
    for command in [
        &["bogus"][..],
        &[],
        &["sync", "run"],
        &["sync", "run", "s.toml", "--onc"],
        &["sql", "-o", "xml", "select 1"],
        &["consume", "t", "--json", "-K", "="],
        &["consume", "t", "-n", "many"],
        &["topic", "list", "--server", "http://127.0.0.1:1", "--data-dir", "data"],
        &["sync", "verify", "s.toml", "--wait", "long"],
        &["start", "--listen", "7600"],
        &["start", "--listen", "localhost:port"],
        &["start", "--listen", ":7600"],
    ] {
        folder.run(command).fails(2, &["--help"]).out.is_empty().then_some(()).expect("nothing on standard output");
    }
    folder.run(&["topic", "create", "t", "-p", "0"]).fails(2, &["partition"]);
    assert!(folder.run(&["--version"]).ok().starts_with("tidemill "));
    assert!(folder.run(&["help", "sync"]).ok().contains("Compare source and target row by row"));
    assert!(folder.run(&["--help"]).ok().contains("Exit codes: 0 ok"));
    assert!(folder.run(&["start", "--help"]).ok().contains("[default: 127.0.0.1:7600"));
}

#[test]
fn what_only_reads_makes_no_log() {
    let folder = shop();
    for command in [
        &["sql", "select 1"][..],
        &["consume", "t", "-e"],
        &["topic", "list"],
        &["topic", "delete", "t"],
        &["sync", "rm", "s.toml"],
        &["sync", "check", "s.toml"],
    ] {
        folder.run(&[command, &["--data-dir", "no data"]].concat()).fails(3, &["no log in no data"]);
        assert!(!folder.path("no data").exists(), "{command:?} made a folder");
    }
    let made = folder.run(&["topic", "create", "hand", "--data-dir", "data"]);
    assert_eq!((made.code, made.err.as_str()), (Some(0), "topic hand made, 1 partition\n"));
    let wide = folder.run(&["topic", "create", "wide", "-p", "2", "--data-dir", "data"]);
    assert_eq!(wide.err, "topic wide made, 2 partitions\n");
    assert_eq!(folder.run(&["topic", "delete", "wide", "--data-dir", "data"]).err, "topic wide deleted\n");
    let made = folder.run_with(&["produce", "t", "--data-dir", "new"], "one\n");
    assert_eq!((made.code, made.err.as_str()), (Some(0), "topic t made\n1 record is durable in t\n"));
}

#[test]
fn words_of_the_shell_work_in_scripts() {
    let folder = Folder::new();
    folder.run(&["topic", "create", "hand", "--data-dir", "data"]).ok();
    let script = "select 1 as a;\nhelp\n\\d;\nexit;\nselect 2 as b;\n";
    let out = folder.run_with(&["sql", "-o", "csv", "--data-dir", "data"], script).ok();
    assert!(out.starts_with("a\n1\nStatements end with a semicolon.\n") && out.contains("hand"), "{out}");
    assert!(!out.contains('b') || !out.contains("b\n2"), "{out}");
}

#[test]
fn a_fault_in_a_line_ends_produce_and_says_which() {
    let folder = Folder::new();
    let done = folder.run_with(&["produce", "t", "-K", "=", "--data-dir", "data"], "a=1\nb\n");
    done.fails(2, &["line 2 has no \"=\" between key and value; the record before it is durable"]);
    let consume = |topic: &str| folder.run(&["consume", topic, "-e", "--data-dir", "data"]).ok();
    assert_eq!(consume("t"), "1\n");
    let done = folder.run_with(&["produce", "u", "-K", "=", "--data-dir", "data"], "a=1\nb=2\nc\nd=4\n");
    done.fails(2, &["line 3 has no \"=\"", "; the 2 records before it are durable"]);
    assert_eq!(consume("u"), "1\n2\n");
    let done = folder.bash("printf 'one\\n\\377bad\\nthree\\n' | tidemill produce v --data-dir data");
    done.fails(2, &["line 2 is not valid UTF-8 at byte 1; the record before it is durable"]);
    assert_eq!(consume("v"), "one\n");
    let done = folder.run_with(&["produce", "w", "-K", "=", "--data-dir", "data"], "x\r\n");
    done.fails(2, &["line 1 has no \"=\"", "; nothing was written"]);
}

#[test]
fn an_address_that_others_reach_is_warned_of() {
    let folder = Folder::new();
    for (address, is_warned) in [("0.0.0.0:0", true), ("127.0.0.1:0", false)] {
        let mut server = folder.start(&["start", "--listen", address, "--data-dir", "data"]);
        server.wait_err("http://");
        let done = server.stop("TERM");
        assert_eq!(done.err.contains("may read and write: there are no users and rights yet"), is_warned, "{done:?}");
    }
}

#[test]
fn tables_with_odd_names_go_the_whole_way() {
    let folder = Folder::new();
    folder.sync_file("s");
    let tables = [
        r#"create table "Order Details" ("Order ID" integer primary key, "group" text, "Ünï" real)"#,
        r#"create table "naïve 表" (id integer primary key, v text)"#,
        r#"create table "select" ("from" integer primary key, "where" text)"#,
        r#"create table "quo""te's" (id integer primary key, "c""ol" text)"#,
        r#"create table "a.b/c%d" (id integer primary key, v text)"#,
        r#"create table "CamelCase" ("Id" integer primary key, "Name" text)"#,
    ];
    let rows = [
        r#"insert into "Order Details" values (1, 'g', 1.5), (2, null, null)"#,
        r#"insert into "naïve 表" values (1, 'größe')"#,
        r#"insert into "select" values (1, 'x')"#,
        r#"insert into "quo""te's" values (1, 'q')"#,
        r#"insert into "a.b/c%d" values (1, 'p')"#,
        r#"insert into "CamelCase" values (1, 'c')"#,
    ];
    folder.sql("source.db", &[&tables[..], &rows].concat());
    folder.run(&["sync", "run", "s.toml", "--data-dir", "data", "--once"]).ok();
    folder.wait_equal();
    let run = |args: &[&str]| folder.run(&[args, &["--data-dir", "data"]].concat());
    let ask = |query: &str| run(&["sql", "-o", "csv", query]).ok();
    assert_eq!(ask(r#"select "group", "Ünï" from "Order Details" order by "Order ID""#), "group,Ünï\ng,1.5\n,\n");
    assert_eq!(ask(r#"select v from "naïve 表""#), "v\ngröße\n");
    assert_eq!(ask(r#"select "where" from s."select""#), "where\nx\n");
    assert_eq!(ask(r#"select count(*) as n from "quo""te's""#), "n\n1\n");
    assert_eq!(ask(r#"select v from "a.b/c%d""#), "v\np\n");
    assert_eq!(ask("select Name from camelcase"), "Name\nc\n", "an unquoted name is found whatever its case");

    let mut follow = folder.start(&["sync", "run", "s.toml", "--data-dir", "data"]);
    follow.wait_err("in step, following");
    folder.sql("source.db", &[r#"update "Order Details" set "group" = 'h'"#, r#"delete from "naïve 表""#]);
    folder.wait_equal();
    follow.stop("TERM");
    // Every topic that is listed can be read under the name it is listed by.
    let list = run(&["topic", "list", "-o", "jsonl"]).ok();
    assert_eq!(list.lines().count(), tables.len());
    for topic in json_lines(&list) {
        let records = json_lines(&run(&["consume", topic["name"].as_str().unwrap(), "-e", "--json"]).ok());
        assert!(!records.is_empty(), "{topic}");
    }
    folder.run(&["sync", "verify", "s.toml"]).ok();
}

#[test]
fn chinook_is_copied_with_one_command_and_answers() {
    let Some(file) = chinook() else { return };
    let folder = Folder::new();
    folder.sync_file("chinook");
    copy_writable(&file, &folder.path("source.db"));
    let done = folder.run(&["sync", "run", "chinook.toml", "--data-dir", "D", "--once"]);
    assert!(done.err.contains("chinook: 11 tables, 15607 rows read, 15607 changed in "), "{done:?}");
    done.ok();
    folder.wait_equal();
    let ask = |query: &str| folder.run(&["sql", "--data-dir", "D", "-o", "csv", query]).ok();
    assert_eq!(ask("select count(*) as n from \"Track\""), "n\n3503\n");
    let query = "with sold as (select TrackId, sum(Quantity) as q from InvoiceLine group by TrackId) \
                 select g.Name as genre, sum(q) as q from sold join Track t on t.TrackId = sold.TrackId \
                 join Genre g on g.GenreId = t.GenreId group by g.Name order by q desc, genre limit 2";
    let same = folder.sql("source.db", &[query]);
    assert_eq!(
        ask(query),
        format!(
            "genre,q\n{},{}\n{},{}\n",
            same[0][0].as_str().unwrap(),
            same[0][1],
            same[1][0].as_str().unwrap(),
            same[1][1]
        )
    );
}
