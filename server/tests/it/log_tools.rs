//! Topics' settings, records printed as one likes, and a log's files looked at.

use crate::support::{Folder, json_lines};

const DATA: [&str; 2] = ["--data-dir", "data"];

fn run(folder: &Folder, args: &[&str]) -> crate::support::Done {
    folder.run(&[args, &DATA].concat())
}

#[test]
fn a_topics_settings_are_shown_and_changed() {
    let folder = Folder::new();
    let run = |args: &[&str]| run(&folder, args);
    run(&["topic", "create", "orders", "--set", "retention.ms=7d", "--set", "cleanup.policy=compact,delete"]).ok();
    let lines = |args: &[&str]| json_lines(&run(&[args, &["-o", "jsonl"]].concat()).ok());
    let value = |lines: &[serde_json::Value], name: &str| {
        lines.iter().find(|line| line["name"] == name).unwrap()["value"].as_str().unwrap().to_owned()
    };
    let shown = lines(&["topic", "config", "orders"]);
    assert_eq!([value(&shown, "retention.ms"), value(&shown, "cleanup.policy")], ["604800000", "compact,delete"]);
    assert_eq!(value(&shown, "segment.bytes"), "-1");
    let changed = ["topic", "config", "orders", "segment.bytes=64MiB", "--unset", "cleanup.policy"];
    let shown = lines(&changed);
    assert_eq!([value(&shown, "segment.bytes"), value(&shown, "cleanup.policy")], ["67108864", "delete"]);
    assert_eq!(lines(&["topic", "config", "orders"]), shown, "and it stays so");
    let table = run(&["topic", "config", "orders"]).ok();
    let row = table.lines().map(str::trim).find(|line| line.starts_with("retention.ms")).unwrap();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["retention.ms", "604800000", "-1"], "value and default");
    run(&["topic", "config", "orders", "retention=1d"])
        .fails(2, &["no setting \"retention\"", "did you mean retention.ms?"]);
    run(&["topic", "config", "orders", "retention.ms=soon"]).fails(2, &["retention.ms is \"soon\"", "like 7d"]);
    run(&["topic", "config", "orders", "retention.ms"]).fails(2, &["not NAME=VALUE"]);
    run(&["topic", "config", "ordres"]).fails(3, &["the nearest is orders"]);
    run(&["topic", "create", "x", "--set", "retention=1"]).fails(2, &["did you mean retention.ms?"]);
    run(&["topic", "config", "x"]).fails(3, &["x"]);
}

#[test]
fn a_topic_grows_and_never_shrinks() {
    let folder = Folder::new();
    let run = |args: &[&str]| run(&folder, args);
    run(&["topic", "create", "a"]).ok();
    run(&["topic", "grow", "a", "--partitions", "3"]).ok();
    assert_eq!(run(&["topic", "list", "-o", "csv"]).ok().lines().count(), 4);
    run(&["topic", "grow", "a", "--partitions", "2"]).fails(2, &["has 3 partitions, which cannot become fewer"]);
}

#[test]
fn records_are_printed_by_a_pattern() {
    let folder = Folder::new();
    folder.run_with(&[&["produce", "notes", "-K", ":"], &DATA[..]].concat(), "a:one\nb:two\n").ok();
    let print = |pattern: &str| run(&folder, &["consume", "notes", "-e", "-f", pattern]);
    assert_eq!(print(r"%t[%p]@%o %k=%s (%K,%S)\n").ok(), "notes[0]@0 a=one (1,3)\nnotes[0]@1 b=two (1,3)\n");
    assert_eq!(print("%s;").ok(), "one;two;");
    print("%q").fails(2, &["%q stands for nothing"]);
    run(&folder, &["consume", "notes", "-e", "-f", "%s", "--json"]).fails(2, &["cannot be used with"]);
}

#[test]
fn a_log_is_verified_and_its_files_are_dumped() {
    let folder = Folder::new();
    let run = |args: &[&str]| run(&folder, args);
    let lines: String = (0..200).map(|i| format!("k{i}:value {i}\n")).collect();
    folder.run_with(&[&["produce", "notes", "-K", ":"], &DATA[..]].concat(), &lines).ok();
    let told = run(&["log", "verify"]).ok();
    let row = told.lines().map(str::trim).find(|line| line.starts_with("notes[0]")).unwrap();
    assert_eq!(row.split_whitespace().take(3).collect::<Vec<_>>(), ["notes[0]", "0..200", "200"], "{told}");
    assert!(told.trim_end().ends_with("sound") && !told.contains("NOT"), "{told}");
    let json: serde_json::Value = serde_json::from_str(&run(&["log", "verify", "-o", "json"]).ok()).unwrap();
    assert_eq!(json["sound"], true);
    // Every file of the data directory says something.
    let files = folder.bash("find data -type f ! -name LOCK ! -name VERSION ! -name reserve").ok();
    let mut kinds = std::collections::BTreeSet::new();
    for file in files.lines() {
        let text = folder.run(&["log", "dump", file]).ok();
        assert!(!text.contains("DAMAGED"), "{file}: {text}");
        kinds.insert(file.rsplit('/').next().unwrap().trim_start_matches(|c: char| c.is_ascii_digit()).to_owned());
    }
    assert!(kinds.contains("superblock") && kinds.contains(".log"), "{kinds:?}");
    let segment = folder.bash("ls data/topics/*/notes-0/*.log").ok();
    let records = folder.run(&["log", "dump", "-r", segment.trim()]).ok();
    assert!(records.contains(r#"offset 199 time"#) && records.contains(r#"key "k199" value "value 199""#), "{records}");
    folder.run(&["log", "dump", "data/VERSION"]).fails(2, &["VERSION is none of superblock"]);
    folder.run(&["log", "dump", "data/manifest-9"]).fails(1, &["manifest-9"]);
    folder.run(&["log", "verify", "--data-dir", "nowhere"]).fails(3, &["no log in nowhere"]);
    // One bit of the segment.
    folder.bash(&format!("printf 'X' | dd of={} bs=1 seek=300 conv=notrunc status=none", segment.trim())).ok();
    let hurt = run(&["log", "verify"]);
    assert!(
        hurt.code == Some(1) && hurt.out.contains("DAMAGE in notes[0]: 00000000000000000000.log at byte"),
        "{hurt:#?}"
    );
    assert!(folder.run(&["log", "dump", segment.trim()]).ok().contains("DAMAGED"));
}

#[test]
fn a_log_that_is_owned_is_not_looked_into() {
    let folder = Folder::new();
    let mut owner = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", "data"]);
    owner.wait_err("http://127.0.0.1:");
    run(&folder, &["log", "verify"]).fails(4, &["data is owned by another process", &format!("pid {}", owner.pid())]);
    owner.stop("TERM");
    run(&folder, &["log", "verify"]).ok();
}

#[test]
fn the_doctor_tells_what_the_disk_does() {
    let folder = Folder::new();
    let told = folder.run(&["doctor", "--data-dir", "to/be/made"]).ok();
    for part in ["file system", "free of", "files may be open", "fdatasync of 4 KiB: p50", "MB/s in pieces of 1 MiB"] {
        assert!(told.contains(part), "{told}");
    }
    assert!(
        !folder.path("to").exists() && std::fs::read_dir(folder.path("")).unwrap().next().is_none(),
        "it leaves nothing"
    );
}

#[test]
fn a_served_log_is_copied_while_it_goes_on() {
    let folder = Folder::new();
    let mut owner = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", "data"]);
    owner.wait_err("http://127.0.0.1:");
    folder.run_with(&[&["produce", "notes"], &DATA[..]].concat(), "one\ntwo\n").ok();
    let said = run(&folder, &["log", "backup", "copy"]).ok();
    assert!(said.contains("it is a log: tidemill log verify --data-dir"), "{said}");
    folder.run_with(&[&["produce", "notes"], &DATA[..]].concat(), "three\n").ok();
    assert_eq!(folder.run(&["consume", "notes", "-e", "--data-dir", "copy"]).ok(), "one\ntwo\n");
    run(&folder, &["log", "backup", "copy"]).fails(4, &["copy is not empty"]);
    owner.stop("TERM");
    assert!(folder.run(&["log", "verify", "--data-dir", "copy"]).ok().contains("sound"));
    assert_eq!(folder.run(&["consume", "notes", "-e", "--data-dir", "copy"]).ok(), "one\ntwo\n");
    run(&folder, &["log", "backup", "other"]).ok();
    assert_eq!(folder.run(&["consume", "notes", "-e", "--data-dir", "other"]).ok(), "one\ntwo\nthree\n");
    folder.run(&["log", "backup", "x", "--data-dir", "nowhere"]).fails(3, &["no log in nowhere"]);
}

#[test]
fn records_are_read_from_a_time_on() {
    let folder = Folder::new();
    for line in ["one\n", "two\n"] {
        folder.run_with(&[&["produce", "notes"], &DATA[..]].concat(), line).ok();
    }
    let consume =
        |from: &str, rest: &[&str]| run(&folder, &[&["consume", "notes", "-e", "--from", from], rest].concat());
    let times = consume("start", &["-f", "%T\n"]).ok();
    let times: Vec<i64> = times.lines().map(|line| line.parse().unwrap()).collect();
    assert!(times[0] < times[1], "{times:?}");
    assert_eq!(consume(&format!("@{}", times[1]), &[]).ok(), "two\n");
    assert_eq!(consume(&format!("@{}", times[0]), &[]).ok(), "one\ntwo\n");
    assert_eq!(consume(&format!("@{}", times[1] + 1), &[]).ok(), "");
    assert_eq!(consume("-1h", &[]).ok(), "one\ntwo\n");
    assert_eq!(consume("2020-01-01T00:00:00Z", &[]).ok(), "one\ntwo\n");
    assert_eq!(consume("2120-01-01", &[]).ok(), "");
    consume("-1w", &[]).fails(2, &["-1w", "no moment", "-15m"]);
}

#[test]
fn a_groups_offsets_are_set_shown_and_forgotten() {
    let folder = Folder::new();
    let run = |args: &[&str]| run(&folder, args);
    folder.run_with(&[&["produce", "notes"], &DATA[..]].concat(), "one\ntwo\nthree\n").ok();
    assert_eq!(run(&["group", "list"]).ok().lines().count(), 1, "none");
    run(&["group", "describe", "readers"]).fails(3, &["readers"]);
    let reset =
        |to: &str, rest: &[&str]| run(&[&["group", "reset", "readers", "--topic", "notes", "--to", to], rest].concat());
    let tried = reset("2", &["--dry-run"]);
    assert!(tried.out.contains("notes") && tried.err.contains("nothing was changed"), "{tried:#?}");
    run(&["group", "describe", "readers"]).fails(3, &["readers"]);
    reset("2", &[]).ok();
    let shown: serde_json::Value =
        serde_json::from_str(&run(&["group", "describe", "readers", "-o", "json"]).ok()).unwrap();
    let offset = &shown["offsets"][0];
    assert_eq!(
        (&offset["offset"], &offset["lag"], &offset["log_end_offset"]),
        (&2.into(), &1.into(), &3.into()),
        "{shown}"
    );
    assert!(offset["lag_seconds"].as_f64().unwrap() >= 0.0);
    assert!(reset("-1", &[]).ok().contains("notes"));
    let table = run(&["group", "describe", "readers"]).ok();
    let row = table.lines().map(str::trim).find(|line| line.starts_with("notes")).unwrap();
    assert_eq!(row.split_whitespace().take(5).collect::<Vec<_>>(), ["notes", "0", "1", "3", "2"], "{table}");
    assert!(reset("latest", &["-o", "json"]).ok().contains("\"to\": 3"));
    assert!(reset("-1h", &["-o", "json"]).ok().contains("\"to\": 0"));
    reset("middle", &[]).fails(2, &["middle", "earliest, latest"]);
    run(&["group", "reset", "readers", "--topic", "note", "--to", "0"]).fails(3, &["the nearest is notes"]);
    assert!(run(&["group", "list"]).ok().contains("readers"));
    run(&["group", "delete", "readers"]).ok();
    run(&["group", "delete", "readers"]).fails(3, &["readers"]);
}
