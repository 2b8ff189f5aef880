//! Logs that are named by URL: a folder, and a Kafka cluster.

use crate::support::Folder;

#[test]
fn a_folder_is_named_by_url_as_well() {
    let folder = Folder::new();
    folder.sql("source.db", &["CREATE TABLE t (id INTEGER PRIMARY KEY)", "INSERT INTO t VALUES (1)"]);
    folder.sync_file("s");
    folder.run(&["sync", "run", "s.toml", "--once", "--log", "file:./data"]).ok();
    folder.wait_equal();
    let topics = folder.run(&["topic", "list", "--data-dir", "data"]).ok();
    assert!(topics.contains("s.t"), "{topics}");
    assert_eq!(folder.run(&["topic", "list", "--log", "file:data"]).ok(), topics);
    folder.run(&["topic", "list", "--log", "data"]).fails(2, &["--log takes file:PATH or kafka://"]);
}

#[test]
fn what_does_not_work_over_kafka_says_so() {
    let folder = Folder::new();
    for command in [&["sql", "select 1"][..], &["topic", "list"], &["consume", "t"], &["start"], &["sync", "status"]] {
        let said = folder.run(&[command, &["--log", "kafka://me:secret@127.0.0.1:1"]].concat());
        let said = said.fails(1, &["does not work over kafka:// yet", "tidemill sync run"]);
        assert!(!said.err.contains("secret"), "{said:?}");
    }
}

#[cfg(not(feature = "kafka"))]
#[test]
fn without_the_feature_it_is_said_how_to_build_it() {
    let folder = Folder::new();
    folder.sync_file("s");
    let said = folder.run(&["sync", "run", "s.toml", "--log", "kafka://127.0.0.1:1"]);
    said.fails(1, &["built without the log over Kafka", "cargo build --features kafka"]);
}

#[cfg(feature = "kafka")]
mod with_a_broker {
    use std::time::{Duration, Instant};

    use crate::{
        servers::Broker,
        support::{Folder, PATIENCE, Running, poll, replica_faults},
    };

    /// Syncs of the file.
    const SYNCS: [&str; 2] = ["a", "b"];

    struct Bench {
        broker: Broker,
        folder: Folder,
        rows: u32,
    }

    impl Bench {
        fn start() -> Option<Self> {
            let (broker, folder) = (Broker::start()?, Folder::new());
            let mut file = String::new();
            for sync in SYNCS {
                let table = "CREATE TABLE t (id INTEGER PRIMARY KEY, v)";
                folder.sql(&format!("{sync}.db"), &[table, "INSERT INTO t VALUES (0, 'first')"]);
                file += &format!(
                    "[sync.{sync}]\nfrom = 'sqlite:{sync}.db'\nto = 'sqlite:{sync}-copy.db'\ntables = ['*']\n"
                );
            }
            std::fs::write(folder.path("two.toml"), file).unwrap();
            Some(Self { broker, folder, rows: 0 })
        }

        fn sync(&self, command: &[&str]) -> Vec<String> {
            let words = ["sync"].iter().chain(command).chain(&["--log"]);
            words.map(|word| (*word).to_owned()).chain([self.broker.url()]).collect()
        }

        fn start_worker(&self) -> Running {
            let args = self.sync(&["run", "two.toml"]);
            self.folder.start(&args.iter().map(String::as_str).collect::<Vec<_>>())
        }

        fn run(&self, command: &[&str]) -> crate::support::Done {
            let args = self.sync(command);
            self.folder.run(&args.iter().map(String::as_str).collect::<Vec<_>>())
        }

        /// A worker that stands by.
        fn standby(&self) -> Running {
            let mut worker = self.start_worker();
            SYNCS.iter().for_each(|sync| worker.wait_err(&format!("{sync}: another process runs it")));
            worker
        }

        /// Writes to the sources, and waits until all targets have it.
        #[track_caller]
        fn output(&mut self) {
            self.rows += 1;
            let row = format!("INSERT INTO t VALUES ({}, 'row')", self.rows);
            for sync in SYNCS {
                self.folder.sql(&format!("{sync}.db"), &[&row]);
            }
            let mut faults = Vec::new();
            let equal = poll(PATIENCE, || {
                let differ = |sync: &&str| {
                    let (from, to) = (format!("{sync}.db"), format!("{sync}-copy.db"));
                    replica_faults(&self.folder.dump(&from), &self.folder.dump(&to))
                };
                faults = SYNCS.iter().flat_map(differ).collect();
                faults.is_empty().then_some(())
            });
            assert!(equal.is_some(), "sources and targets differ: {faults:?}");
        }
    }

    #[test]
    fn two_workers_run_the_syncs_of_a_file() {
        let Some(mut bench) = Bench::start() else { return };
        let mut holder = bench.start_worker();
        SYNCS.iter().for_each(|sync| holder.wait_err(&format!("{sync}: 1 row copied; in step, following")));
        let standby = bench.standby();
        bench.output();
        bench.run(&["run", "two.toml", "--once"]).fails(4, &["sync a is run by another process"]);
        bench.run(&["rm", "two.toml"]).fails(4, &["sync b is run by another process"]);
        holder.kill();
        let killed = Instant::now();
        bench.output();
        println!("output of both syncs {:?} after kill -9", killed.elapsed());
        assert!(killed.elapsed() < Duration::from_secs(25), "only after {:?}: {}", killed.elapsed(), standby.err());
        let mut last = bench.standby();
        let told = Instant::now();
        let stopped = standby.stop("TERM");
        assert!(stopped.err.contains("stopped; start the same command again"), "{stopped:?}");
        bench.output();
        println!("output of both syncs {:?} after SIGTERM", told.elapsed());
        assert!(told.elapsed() < Duration::from_secs(10), "only after {:?}: {}", told.elapsed(), last.err());
        SYNCS.iter().for_each(|sync| last.wait_err(&format!("{sync}: in step, following")));
        last.stop("TERM");
        bench.folder.run(&["sync", "verify", "two.toml"]).ok();
        let removed = bench.run(&["rm", "two.toml"]).ok();
        assert!(removed.contains("topic a.t deleted") && removed.contains("topic b.t deleted"), "{removed}");
    }
}
