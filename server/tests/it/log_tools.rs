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
    let files = folder.bash("find data -type f ! -name LOCK ! -name VERSION").ok();
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
