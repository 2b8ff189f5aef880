//! One process owns a data directory; every other command reaches the log through it and behaves the same.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    time::Duration,
};

use crate::support::{Done, Folder, Running, json_lines, poll};

fn shop(folder: &Folder) {
    folder.sync_file("s");
    let rows = "insert into \"Track\" select value, 'track ' || value from (with recursive n(value) as \
                (select 1 union all select value + 1 from n where value < 3503) select value from n)";
    folder.sql("source.db", &["create table \"Track\" (\"TrackId\" integer primary key, \"Name\" text)", rows]);
}

fn follow(folder: &Folder, data: &str) -> Running {
    let mut owner = folder.start(&["sync", "run", "s.toml", "--data-dir", data]);
    owner.wait_err("in step, following");
    owner
}

/// What one walk through the commands printed and returned, without what changes from run to run.
fn walk(run: &dyn Fn(&[&str], &str) -> Done) -> Vec<(String, Option<i32>, String)> {
    let steps: [(&[&str], &str); 24] = [
        (&["sql", "-o", "csv", "select count(*) as n from \"Track\""], ""),
        (&["sql", "-o", "json", "select \"TrackId\", \"Name\" from \"Track\" where \"TrackId\" < 3 order by 1"], ""),
        (&["sql", "-o", "jsonl", "select 1 as a, null as b"], ""),
        (&["sql", "select max(\"TrackId\") as m from s.\"Track\""], ""),
        (&["sql", "select * from \"Trakc\""], ""),
        (&["sql", "selec"], ""),
        (&["produce", "notes"], "one\ntwo\n\nthree\n"),
        (&["produce", "notes", "-K", "="], "k=v\nk2=v=2\n"),
        (&["consume", "notes", "-e"], ""),
        (&["consume", "notes", "-n", "2"], ""),
        (&["consume", "notes", "-e", "-n", "0"], ""),
        (&["consume", "notes", "-e", "--from", "4", "-K", ": "], ""),
        (&["consume", "notes", "-e", "--from", "end"], ""),
        (&["consume", "notes", "-e", "--json"], ""),
        (&["sql", "-o", "csv", "select _offset, _key, _value from notes order by _offset"], ""),
        (&["topic", "create", "wide", "-p", "3"], ""),
        (&["topic", "create", "wide", "-p", "3"], ""),
        (&["topic", "create", "no good"], ""),
        (&["topic", "list", "-o", "csv"], ""),
        (&["topic", "list"], ""),
        (&["topic", "delete", "wide"], ""),
        (&["consume", "wide", "-e"], ""),
        (&["consume", "s.Track", "-n", "1", "-K", " "], ""),
        (&["sql", "-o", "csv"], "select 1 as a;\nselect ';' as b -- c;\n; select 3 as c"),
    ];
    let walked = steps.into_iter().map(|(args, stdin)| {
        let done = run(args, stdin);
        let tidy = |text: &str| match args.contains(&"--json") {
            // Only the time of a record differs.
            true => json_lines(text)
                .into_iter()
                .map(|mut record| {
                    record.as_object_mut().unwrap().remove("timestamp");
                    format!("{record}\n")
                })
                .collect(),
            false => text.split("\"ts_ms\"").next().unwrap_or_default().to_owned(),
        };
        (format!("{}\n{}", args.join(" "), tidy(&done.out)), done.code, done.err)
    });
    walked.collect()
}

#[test]
fn commands_do_the_same_as_owner_over_the_socket_and_over_http() {
    let walk_in = |data: &str, own: Option<&str>| {
        let folder = Folder::new();
        shop(&folder);
        let own = own.map(|command| match command {
            "sync" => follow(&folder, data),
            _ => {
                folder.run(&["sync", "run", "s.toml", "--data-dir", data, "--once"]).ok();
                let mut server = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", data]);
                server.wait_err("http://");
                server
            }
        });
        let server = own.as_ref().and_then(|own| Some(own.err().split_once("http://")?.1.trim().to_owned()));
        let reach = match &server {
            Some(server) => vec!["--server", server],
            None => vec!["--data-dir", data],
        };
        if own.is_none() {
            folder.run(&["sync", "run", "s.toml", "--data-dir", data, "--once"]).ok();
        }
        let steps = walk(&|args, stdin| folder.run_with(&[args, &reach].concat(), stdin));
        if let Some(own) = own {
            own.stop("TERM");
        }
        steps
    };
    let owner = walk_in("data", None);
    assert_eq!(owner[0], ("sql -o csv select count(*) as n from \"Track\"\nn\n3503\n".into(), Some(0), String::new()));
    assert_eq!(owner[8].0, "consume notes -e\none\ntwo\n\nthree\nv\nv=2\n");
    assert_eq!(owner[9].0, "consume notes -n 2\none\ntwo\n");
    assert_eq!(owner[10].0, "consume notes -e -n 0\n");
    assert_eq!(owner[11].0, "consume notes -e --from 4 -K : \nk: v\nk2: v=2\n");
    assert_eq!(owner[12].0, "consume notes -e --from end\n");
    assert_eq!(owner[13].0.lines().count(), 7);
    assert_eq!(owner[14].0.lines().nth(2), Some("0,,one"));
    let codes: Vec<_> = owner.iter().map(|(_, code, _)| code.unwrap()).collect();
    assert_eq!(codes, [0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 2, 0, 0, 0, 3, 0, 0]);
    assert_eq!(owner[23].0, "sql -o csv\na\n1\nb\n;\nc\n3\n");
    // A unix socket's address holds some 100 bytes; the folder's path is longer.
    let long = format!("{}/{}", "d".repeat(90), "e".repeat(90));
    for (how, steps) in [("socket", walk_in(&long, Some("sync"))), ("http", walk_in("data", Some("start")))] {
        for (owned, reached) in owner.iter().zip(&steps) {
            assert_eq!(owned, reached, "over {how}");
        }
    }
}

#[test]
fn consume_follows_what_is_produced() {
    let folder = Folder::new();
    let mut owner = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", "data"]);
    owner.wait_err("serving");
    let produce = |text: &str| folder.run_with(&["produce", "t", "--data-dir", "data"], text).ok();
    produce("old\n");
    let mut all = folder.start(&["consume", "t", "--data-dir", "data"]);
    let mut two = folder.start(&["consume", "t", "--from", "end", "-n", "2", "--data-dir", "data"]);
    all.wait_out("old\n");
    // It begins at the end that it finds: lines are sent until the first is seen.
    let mut sent = 0;
    let came = poll(Duration::from_secs(30), || {
        sent += 1;
        produce(&format!("new {sent}\n"));
        (!two.is_running()).then_some(())
    });
    assert!(came.is_some(), "two records did not come: {}", two.out());
    let two = two.end().ok();
    let numbers: Vec<u32> = two.lines().map(|line| line.strip_prefix("new ").unwrap().parse().unwrap()).collect();
    assert!(matches!(numbers[..], [a, b] if b == a + 1), "{two}");
    all.wait_out(&format!("new {sent}\n"));
    let out = all.stop("INT").out;
    let expected: String = (1..=sent).map(|n| format!("new {n}\n")).collect();
    assert_eq!(out, format!("old\n{expected}"));
    owner.stop("INT");
}

#[test]
fn a_client_whose_owner_goes_ends_with_69() {
    for signal in ["KILL", "TERM"] {
        let folder = Folder::new();
        let mut owner = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", "data"]);
        owner.wait_err("serving");
        folder.run_with(&["produce", "t", "--data-dir", "data"], "one\n").ok();
        let server = format!("http://{}", owner.err().split_once("http://").unwrap().1.trim());
        let mut clients = [
            folder.start(&["consume", "t", "--data-dir", "data"]),
            folder.start(&["consume", "t", "--server", &server]),
        ];
        clients.iter_mut().for_each(|client| client.wait_out("one\n"));
        owner.signal(signal);
        owner.end();
        for client in clients {
            client.end().fails(69, &["error: "]);
        }
        // What the owner left is no obstacle, and nothing is lost.
        assert_eq!(folder.run(&["consume", "t", "-e", "--data-dir", "data"]).ok(), "one\n");
    }
}

/// An owner of `data` that answers what a test wants and ends when it wants.
struct FakeOwner {
    _lock: File,
    listener: UnixListener,
    socket: PathBuf,
}

impl FakeOwner {
    fn of(folder: &Folder) -> Self {
        let lock = File::options().read(true).write(true).open(folder.path("data/LOCK")).unwrap();
        lock.try_lock().unwrap();
        let socket = folder.path("data/api.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { _lock: lock, listener, socket }
    }

    /// The next connection that sends something, and what it sent; one that only looks whether somebody is there is let go.
    fn request(&self) -> (UnixStream, String) {
        let request = poll(Duration::from_secs(60), || {
            let (mut stream, _) = self.listener.accept().ok()?;
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut sent = vec![0; 65536];
            let n = stream.read(&mut sent).unwrap_or(0);
            (n > 0).then(|| (stream, String::from_utf8_lossy(&sent[..n]).into_owned()))
        });
        request.expect("a request")
    }

    fn answer(&self, begins: &str, answer: &str) {
        let (mut stream, request) = self.request();
        assert!(request.starts_with(begins), "{request}");
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.write_all((head + answer).as_bytes()).unwrap();
    }

    fn end(self) {
        std::fs::remove_file(&self.socket).unwrap();
    }
}

#[test]
fn a_reader_whose_owner_ends_unanswered_asks_the_next_one() {
    let folder = Folder::new();
    folder.run_with(&["produce", "t", "--data-dir", "data"], "one\n").ok();
    let consume: &[&str] = &["consume", "t", "-e", "--data-dir", "data"];
    let query: &[&str] = &["sql", "-o", "csv", "select _value from t", "--data-dir", "data"];
    for (command, wanted) in [(consume, "one\n"), (query, "_value\none\n")] {
        let owner = FakeOwner::of(&folder);
        let client = folder.start(command);
        // It is gone with the connection: nothing was answered.
        drop(owner.request());
        owner.end();
        assert_eq!(client.end().ok(), wanted);
    }
    // In the midst of an answer: what was printed cannot be taken back.
    let owner = FakeOwner::of(&folder);
    let client = folder.start(consume);
    let (mut stream, _) = owner.request();
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{").unwrap();
    drop(stream);
    owner.end();
    client.end().fails(69, &["error: the connection to the log ended"]);
}

#[test]
fn a_write_is_asked_again_only_if_nothing_of_it_was_sent() {
    let folder = Folder::new();
    folder.run_with(&["produce", "t", "--data-dir", "data"], "one\n").ok();
    let produce: &[&str] = &["produce", "t", "--data-dir", "data"];
    let consume: &[&str] = &["consume", "t", "-e", "--data-dir", "data"];

    let owner = FakeOwner::of(&folder);
    let mut client = folder.start(produce);
    owner.answer("POST /v1/topics ", "{}");
    client.wait_err("made");
    owner.end();
    client.say("two\n");
    client.close_stdin();
    client.end().ok();
    assert_eq!(folder.run(consume).ok(), "one\ntwo\n");

    // It was sent: whether it happened, nobody knows. Twice would be worse.
    let owner = FakeOwner::of(&folder);
    let mut client = folder.start(produce);
    owner.answer("POST /v1/topics ", "{}");
    client.wait_err("made");
    client.say("three\n");
    client.close_stdin();
    let (stream, request) = owner.request();
    assert!(request.starts_with("POST /v1/topics/t/records "), "{request}");
    drop(stream);
    owner.end();
    client.end().fails(69, &["error: the connection to the log ended"]);
    assert_eq!(folder.run(consume).ok(), "one\ntwo\n");
}

#[test]
fn signals_end_owners_in_order_and_all_is_durable() {
    let folder = Folder::new();
    shop(&folder);
    let mut produced = String::new();
    for (round, signal) in ["INT", "TERM", "INT", "TERM"].into_iter().enumerate() {
        let owner = if round < 2 {
            follow(&folder, "data")
        } else {
            let mut start = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", "data"]);
            start.wait_err("serving");
            start
        };
        let line = format!("line {round}\n");
        folder.run_with(&["produce", "t", "--data-dir", "data"], &line).ok();
        produced += &line;
        let done = owner.stop(signal);
        assert!(done.err.contains("stopped"), "{done:?}");
        let faults = done.err.lines().filter(|line| line.contains("cut") || line.contains("damaged"));
        assert_eq!(faults.count(), 0, "{done:?}");
        let read = folder.run(&["consume", "t", "-e", "--data-dir", "data"]);
        assert_eq!((read.out.as_str(), read.code), (produced.as_str(), Some(0)));
        assert_eq!(read.err, "", "after SIG{signal}");
    }
    // A command that waits for standard input can be stopped as well, and what it sent is there.
    let mut produce = folder.start(&["produce", "t", "--data-dir", "data"]);
    // Only once it owns the log: as client of a command that ends it would end with it.
    let owns =
        || std::fs::read_to_string(folder.path("data/LOCK")).is_ok_and(|lock| lock.contains("produce")).then_some(());
    poll(Duration::from_secs(20), owns).expect("produce takes the lock");
    produce.say("typed\n");
    let there = || folder.run(&["consume", "t", "-e", "--data-dir", "data"]).out.contains("typed").then_some(());
    poll(Duration::from_secs(20), there).expect("a typed line is durable at once");
    produce.signal("INT");
    produce.end();
    assert_eq!(folder.run(&["consume", "t", "-e", "--data-dir", "data"]).ok(), format!("{produced}typed\n"));
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let folder = Folder::new();
    let lines: String = (0..100_000).map(|n| format!("line {n}\n")).collect();
    folder.run_with(&["produce", "big", "--data-dir", "data"], &lines).ok();
    let commands = [
        "tidemill consume big --data-dir data",
        "tidemill consume big --data-dir data -e --json",
        "tidemill sql --data-dir data -o csv 'select _value from big'",
        "tidemill sql --data-dir data 'select _value from big'",
    ];
    let check = || {
        for command in commands {
            let done = folder.bash(&format!("{command} | head -1 >first; echo ${{PIPESTATUS[0]}}; wc -l <first"));
            assert_eq!((done.out.as_str(), done.err.as_str()), ("0\n1\n", ""), "{command}");
        }
    };
    check();
    let mut owner = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", "data"]);
    owner.wait_err("serving");
    check();
    owner.stop("TERM");
}

#[test]
fn an_error_that_comes_midway_is_told() {
    let folder = Folder::new();
    let lines: String = (0..100_000).map(|n| format!("{n}\n")).collect();
    folder.run_with(&["produce", "big", "--data-dir", "data"], &lines).ok();
    let divide = ["sql", "-o", "csv", "select 1 / (90000 - _offset) as x from big", "--data-dir", "data"];
    let own = folder.run(&divide).fails(2, &["error: "]);
    let mut owner = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", "data"]);
    owner.wait_err("serving");
    let attached = folder.run(&divide).fails(2, &["error: "]);
    assert_eq!(own.err, attached.err);
    assert!(own.err.to_lowercase().contains("zero"), "{}", own.err);
    assert!(attached.out.lines().count() > 1000, "the answer had not begun: {} lines", attached.out.lines().count());

    let mut follower = folder.start(&["consume", "big", "--from", "99999", "--data-dir", "data"]);
    follower.wait_out("99999\n");
    folder.run(&["topic", "delete", "big", "--data-dir", "data"]).ok();
    follower.end().fails(3, &["big", "gone"]);
}

#[test]
fn the_shell_works_on_a_terminal() {
    let folder = Folder::new();
    shop(&folder);
    let mut owner = follow(&folder, "data");
    assert!(owner.is_running());
    let lines = serde_json::json!([
        ["\\d", "Track"],
        ["\\d \"Track\"", "TrackId"],
        ["select count(*)", null],
        ["  as n from \"Track\";", "3503"],
        ["select nonsense;", "error: "],
        ["\\?", "quit"],
        ["\\q", null],
    ]);
    let seen = folder.python(&["shell", &lines.to_string(), "tidemill", "sql", "--data-dir", "data"]);
    assert_eq!(seen["code"], 0, "{seen}");
    assert!(!seen["seen"].as_str().unwrap().contains("_tidemill"), "{seen}");
}

/// The lock of an owner that was killed may outlive what is seen of its process by a moment.
#[test]
fn the_lock_of_an_owner_that_is_gone_is_waited_for() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("data")).unwrap();
    let hold = "import fcntl, os, subprocess, sys, time\nf = open('data/LOCK', 'w')\n\
                fcntl.flock(f, fcntl.LOCK_EX)\ngone = subprocess.Popen(['true'])\n\
                if sys.argv[1] == 'dead': gone.wait()\n\
                pid = os.getpid() if sys.argv[1] == 'alive' else gone.pid\n\
                f.write(f'pid {pid}, start, socket api.sock')\nf.flush()\nprint('held', flush=True)\n\
                time.sleep(float(sys.argv[2]))\n";
    let start = ["start", "--listen", "127.0.0.1:0", "--data-dir", "data"];
    for how in ["dead", "zombie"] {
        let mut holder = folder.start_program("python3", &["-c", hold, how, "2"]);
        holder.wait_out("held");
        let begun = std::time::Instant::now();
        let mut server = folder.start(&start);
        server.wait_err("serving");
        assert!(begun.elapsed() > Duration::from_secs(1), "{how}: two own the folder");
        server.stop("TERM");
    }
    // One that is alive keeps it, and this is told at once.
    let mut holder = folder.start_program("python3", &["-c", hold, "alive", "60"]);
    holder.wait_out("held");
    let begun = std::time::Instant::now();
    folder.run(&start).fails(4, &["is owned by another process: pid "]);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}
