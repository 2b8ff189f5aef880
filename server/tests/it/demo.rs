//! `tidemill demo`: ends well, opens no port, and leaves what it printed commands for.

use std::{collections::BTreeSet, time::Duration};

use crate::support::{Folder, poll};

/// Sockets of TCP on which a process listens, by inode.
fn listening(pid: u32) -> BTreeSet<String> {
    let mut inodes = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        let lines = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        inodes
            .extend(lines.filter(|f| f.get(3) == Some(&"0A")).filter_map(|f| Some(format!("socket:[{}]", f.get(9)?))));
    }
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeSet::new() };
    let links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
    links.map(|link| link.to_string_lossy().into_owned()).filter(|link| inodes.contains(link)).collect()
}

#[test]
fn the_demo_ends_well_opens_no_port_and_leaves_nothing() {
    let folder = Folder::new();
    let temp = folder.text("temp");
    std::fs::create_dir(&temp).unwrap();
    let mut demo =
        folder.start_program("env", &[&format!("TMPDIR={temp}"), crate::support::TIDEMILL, "demo", "--seconds", "3"]);
    let mut looked = 0;
    poll(Duration::from_secs(60), || {
        assert_eq!(listening(demo.pid()), BTreeSet::new(), "the demo listens on a TCP port");
        looked += 1;
        (!demo.is_running()).then_some(())
    });
    let out = demo.end().ok();
    assert!(looked > 20, "looked {looked} times only");
    assert!(out.contains("In step: ") && out.contains("orders") && !out.contains("NOT equal"), "{out}");
    assert_eq!(std::fs::read_dir(&temp).unwrap().count(), 0, "files are left");

    // The twin: where a port is open, it is seen.
    let mut start = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", "data"]);
    start.wait_err("serving");
    assert_eq!(listening(start.pid()).len(), 1, "the check of ports sees nothing");
}

#[test]
fn commands_that_the_demo_prints_work_on_the_files_it_keeps() {
    let folder = Folder::new();
    let out = folder.run(&["demo", "--seconds", "3", "--keep", "kept shop"]).ok();
    let commands: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix("  tidemill ")).collect();
    let [sync, sql] = commands[..] else { panic!("not two commands in {out}") };
    let count = |text: String| text.lines().find_map(|line| line.trim().parse::<u64>().ok()).expect("a count");
    let before = count(folder.bash(&format!("tidemill {sql}")).ok());
    assert!(before > 10, "{before} orders");
    let mut following = folder.start_program("bash", &["-c", &format!("exec tidemill {sync}")]);
    following.wait_err("in step, following");
    let insert = "insert into orders (customer_id, sku, quantity, cents, ordered_at) values (1, 'TEA-01', 1, 450, 0)";
    folder.sql("kept shop/shop.sqlite", &[insert]);
    let arrived = poll(Duration::from_secs(20), || {
        (count(folder.bash(&format!("tidemill {sql}")).ok()) == before + 1).then_some(())
    });
    assert!(arrived.is_some(), "the new order did not arrive");
    following.stop("INT");
    folder.run(&["demo", "--seconds", "1", "--keep", "kept shop"]).fails(4, &["holds a shop already"]);
}

#[test]
fn the_estimate_of_the_first_build_counts_cores_and_load() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/estimate");
    let estimate = |cores: &str, load: &str| Folder::new().bash(&format!("{script} {cores} {load}")).ok();
    for (cores, load, minutes) in [("2", "0", 8), ("2", "4", 24), ("8", "0", 2), ("64", "0", 1)] {
        let said = format!("an estimated {minutes} minutes, for {cores} cores with a load of {load} ");
        assert!(estimate(cores, load).starts_with(&said), "{}", estimate(cores, load));
    }
    assert!(estimate("", "").starts_with("an estimated "));
}
