//! The real disk and real threads.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tidemill_core::{
    Error, ErrorKind, Result,
    clock::SystemClock,
    engine::{Config, Engine, Table},
    log::{Action, Caller, Embedded, Gate, Log},
    record::Record,
    storage::OsStorage,
    topic::{PartitionId, TopicPartition, TopicSpec},
};

use crate::{
    harness::{TempDir, batch, position_batch, read_all, small, stored_at},
    sim::Rng,
};

fn open(dir: &Path, config: Config) -> Arc<Engine> {
    Arc::new(Engine::open(dir, config, Arc::new(OsStorage), Arc::new(SystemClock::default())).expect("opens"))
}

async fn topic(engine: &Engine, name: &str, partitions: u32) -> Vec<PartitionId> {
    engine.create_topic(name, &TopicSpec::partitions(partitions)).await.expect("topic").partitions
}

const LATE: Duration = Duration::from_secs(60);

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(LATE, future).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

/// What was acknowledged, by partition: base offset and tag.
type Acked = BTreeMap<PartitionId, Vec<(i64, u64, usize)>>;

async fn produce(engine: Arc<Engine>, ids: Vec<PartitionId>, who: u64, count: u64, sizes: &'static [usize]) -> Acked {
    let mut rng = Rng(who);
    let mut acked = Acked::new();
    for i in 0..count {
        let (id, size, tag) = (ids[rng.below(ids.len())], sizes[rng.below(sizes.len())], who << 32 | i);
        let outcome = soon("append", engine.append(vec![(id, batch(tag, 2, size))], None)).await.expect("acknowledged");
        acked.entry(id).or_default().push((outcome.base_offsets[0], tag, size));
    }
    acked
}

fn holds(engine: &Engine, all: &[Acked]) {
    let mut wanted = BTreeMap::new();
    for (id, list) in all.iter().flatten() {
        for (base, tag, size) in list {
            let before = wanted.insert((*id, *base), (*tag, *size));
            assert!(before.is_none(), "offset {base} of {} was given twice", id.0);
        }
    }
    let ids: std::collections::BTreeSet<_> = wanted.keys().map(|(id, _)| *id).collect();
    let mut found = 0;
    for id in ids {
        for (base, bytes) in read_all(engine, id).expect("whole") {
            let (tag, size) = wanted[&(id, base)];
            assert_eq!(bytes, stored_at(&batch(tag, 2, size), base));
            found += 1;
        }
    }
    assert_eq!(found, wanted.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn producers_and_a_consumer_through_recycled_files() {
    const SIZES: &[usize] = &[64, 64, 500, 3000, 20_000];
    let dir = TempDir::new("producers");
    let engine = open(&dir.0, small());
    let ids = topic(&engine, "a", 12).await;
    let producers: Vec<_> =
        (0..8).map(|who| tokio::spawn(produce(Arc::clone(&engine), ids.clone(), who, 250, SIZES))).collect();
    let done = Arc::new(AtomicU64::new(0));
    let consumers: Vec<_> = ids[..3]
        .iter()
        .map(|id| {
            let (engine, id, done) = (Arc::clone(&engine), *id, Arc::clone(&done));
            tokio::spawn(async move {
                let (mut offset, mut got) = (0, Vec::new());
                loop {
                    let finished = done.load(Ordering::Acquire) == 1;
                    engine.wait_for(id, offset, Duration::from_millis(20)).await.expect("alive");
                    let (batches, next) = engine.read(id, offset, 10_000, i64::MAX).expect("readable");
                    for batch in &batches {
                        assert_eq!(batch.header().base_offset, offset, "in order, without a gap");
                        offset = batch.header().next_offset();
                        got.push((batch.header().base_offset, batch.bytes().clone()));
                    }
                    assert_eq!(offset, next);
                    if finished && batches.is_empty() {
                        return got;
                    }
                }
            })
        })
        .collect();
    let mut acked = Vec::new();
    for producer in producers {
        acked.push(producer.await.expect("no panic"));
    }
    done.store(1, Ordering::Release);
    for (consumer, id) in consumers.into_iter().zip(&ids) {
        let got = soon("consumer", consumer).await.expect("no panic");
        assert_eq!(got, read_all(&engine, *id).expect("whole"), "the consumer saw what is there");
    }
    holds(&engine, &acked);
    engine.close().expect("in order");
    drop(engine);
    let engine = open(&dir.0, small());
    assert_eq!(engine.recovery().damage, []);
    assert_eq!(engine.recovery().batches, 0, "a clean stop leaves nothing to replay");
    holds(&engine, &acked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn large_batches_and_a_small_queue() {
    // The largest is more than a group.
    const SIZES: &[usize] = &[64, 5_000, 100_000, 900 << 10, 1_900 << 10];
    let dir = TempDir::new("large");
    let config = Config {
        commit_file_bytes: 2 << 20,
        commit_log_bytes: 8 << 20,
        ring_bytes: 4 << 20,
        queue_bytes: 64 << 10,
        group_bytes: 1 << 20,
        transaction_bytes: 2 << 20,
        segment_bytes: 3 << 20,
        ..Config::default()
    };
    let engine = open(&dir.0, config.clone());
    let ids = topic(&engine, "a", 4).await;
    let producers: Vec<_> =
        (0..6).map(|who| tokio::spawn(produce(Arc::clone(&engine), ids.clone(), who, 40, SIZES))).collect();
    let mut acked = Vec::new();
    for producer in producers {
        acked.push(producer.await.expect("no panic"));
    }
    holds(&engine, &acked);
    engine.close().expect("in order");
    drop(engine);
    holds(&open(&dir.0, config), &acked);
}

/// Many partitions with little each, a ring much smaller than the commit log: the ring is what is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_ring_of_small_partitions_gets_on() {
    let dir = TempDir::new("ring");
    let config = Config { commit_log_bytes: 8 << 20, ring_bytes: 32 << 10, ..small() };
    let engine = open(&dir.0, config);
    let ids = topic(&engine, "a", 50).await;
    let acked = produce(Arc::clone(&engine), ids, 1, 300, &[700]).await;
    holds(&engine, &[acked]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fenced_writers_and_positions() {
    let dir = TempDir::new("fences");
    let engine = open(&dir.0, small());
    let id = topic(&engine, "a", 1).await[0];
    let old = engine.open_writer("w").await.expect("first");
    let commit = async |fence, value: &str| {
        let batches = vec![(id, batch(1, 1, 50)), (Table::Positions.partition(), position_batch("w", "p", value))];
        engine.commit(engine.begin_transaction(), 0, batches, Some(fence)).await
    };
    commit(old.clone(), "1").await.expect("current");
    let new = engine.open_writer("w").await.expect("second");
    assert_eq!(commit(old, "2").await.expect_err("fenced").kind(), ErrorKind::Conflict);
    assert_eq!(engine.positions("w")["p"], "1");
    commit(new, "3").await.expect("current");
    drop(engine);
    let engine = open(&dir.0, small());
    assert_eq!(engine.positions("w")["p"], "3");
    assert_eq!(engine.open_writer("w").await.expect("third").epoch, 3);
}

#[tokio::test]
async fn internal_topics_are_nobodys() {
    let dir = TempDir::new("internal");
    let engine = open(&dir.0, small());
    for name in ["_tidemill.mine", "_tidemill.topics"] {
        let made = engine.create_topic(name, &TopicSpec::partitions(1)).await;
        assert_eq!(made.expect_err("internal").kind(), ErrorKind::Denied, "{name}");
        let deleted = engine.delete_topic(name).await;
        assert_eq!(deleted.expect_err("internal").kind(), ErrorKind::Denied, "{name}");
    }
    topic(&engine, "_tidemil", 1).await;
}

/// Lets everything pass until it is told that the quota is used up.
#[derive(Default)]
struct Quota(AtomicBool);

impl Gate for Quota {
    fn authorize(&self, _: &Caller, _: Action, _: &str) -> Result<()> {
        Ok(())
    }

    fn charge(&self, _: &Caller, _: Action, _: usize) -> Result<()> {
        match self.0.load(Ordering::Acquire) {
            true => Err(Error::unavailable("quota used up")),
            false => Ok(()),
        }
    }
}

/// A commit that the gate refuses is an abort: nothing of it is seen, and it holds no file of the commit log.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_beyond_the_quota_leaves_nothing_open() {
    let dir = TempDir::new("quota");
    let engine = open(&dir.0, small());
    let quota = Arc::new(Quota::default());
    let log = Embedded::with_gate(Arc::clone(&engine), Arc::clone(&quota) as Arc<dyn Gate>);
    let session = log.session(Caller::internal("test")).await.expect("session");
    let id = topic(&engine, "a", 1).await[0];
    let to = TopicPartition { topic: "a".into(), partition: 0 };
    let mut writer = session.writer("w").await.expect("writer");
    let record = || vec![Record::new(None, Bytes::from(vec![1; 9000]))];
    for _ in 0..3 {
        writer.append(&to, record()).await.expect("staged");
    }
    quota.0.store(true, Ordering::Release);
    assert_eq!(writer.commit().await.expect_err("quota").kind(), ErrorKind::Unavailable);
    quota.0.store(false, Ordering::Release);
    writer.append(&to, record()).await.expect("a new transaction");
    writer.commit().await.expect("within the quota");
    assert_eq!(engine.cut(&[id]).expect("there")[0].durable_offset, 1, "of the refused one nothing is seen");
    drop((writer, session, log));
    engine.close().expect("in order");
    drop(engine);
    let report = open(&dir.0, small()).recovery().clone();
    assert_eq!(report.checkpoint_lsn, report.end_lsn, "a transaction is still open");
}

/// Transactions that together stage more than the commit log holds: limited or aborted, never a standstill.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn transactions_larger_than_the_commit_log_do_not_stop_it() {
    let dir = TempDir::new("transactions");
    let engine = open(&dir.0, small());
    let ids = topic(&engine, "a", 2).await;
    let mut alive = Vec::new();
    let mut limited = 0;
    for t in 0..8u64 {
        let transaction = engine.begin_transaction();
        let mut staged = 0;
        loop {
            let batches = vec![(ids[0], batch(t << 32 | staged, 1, 10_000))];
            match soon("stage", engine.stage(transaction, batches)).await {
                Ok(()) => staged += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
                    limited += 1;
                    break;
                }
            }
        }
        assert!(staged >= 6, "{staged}");
        alive.push((transaction, staged));
    }
    assert_eq!(limited, 8);
    let mut committed = 0;
    for (transaction, staged) in alive {
        let tail = vec![(ids[1], batch(transaction, 1, 10))];
        match soon("commit", engine.commit(transaction, staged as usize, tail, None)).await {
            Ok(_) => committed += staged,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
        }
    }
    assert!(committed > 0, "the newest transactions survive");
    assert_eq!(read_all(&engine, ids[0]).expect("whole").len() as u64, committed);
    soon("append", engine.append(vec![(ids[0], batch(1, 1, 20_000))], None)).await.expect("goes on");
    engine.close().expect("in order");
    drop(engine);
    assert_eq!(read_all(&open(&dir.0, small()), ids[0]).expect("whole").len() as u64, committed + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_long_run_stays_within_its_budgets() {
    let dir = TempDir::new("long");
    let engine = open(&dir.0, Config { segment_bytes: 1 << 20, ..small() });
    let ids = topic(&engine, "a", 6).await;
    let producers: Vec<_> =
        (0..6).map(|who| tokio::spawn(produce(Arc::clone(&engine), ids.clone(), who, 420, &[20_000]))).collect();
    let mut acked = Vec::new();
    for producer in producers {
        acked.push(producer.await.expect("no panic"));
    }
    let files = std::fs::read_dir(dir.0.join("commitlog")).expect("folder").count();
    assert!(files <= 4, "{files} files of 64 KiB in a budget of 256");
    let manifests = std::fs::read_dir(&dir.0)
        .expect("folder")
        .filter(|e| e.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().starts_with("manifest")));
    assert!(manifests.count() <= 2);
    let mut rng = Rng(3);
    for _ in 0..300 {
        let (id, list) =
            acked[rng.below(6)].iter().nth(rng.below(6)).map(|(id, l)| (*id, l.clone())).expect("all used");
        let (base, tag, size) = list[rng.below(list.len())];
        let (batches, _) = engine.read(id, base + rng.below(2) as i64, 1, i64::MAX).expect("readable");
        assert_eq!(batches[0].bytes(), &stored_at(&batch(tag, 2, size), base));
    }
    holds(&engine, &acked);
    engine.close().expect("in order");
}

/// Topics come and go while others are written: no deadlock, and a topic's successor keeps its records.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn topics_come_and_go_under_load() {
    let dir = TempDir::new("topics");
    let engine = open(&dir.0, small());
    let ids = topic(&engine, "a", 4).await;
    let producer = tokio::spawn(produce(Arc::clone(&engine), ids, 1, 600, &[5000]));
    let churn: Vec<_> = (0..3)
        .map(|n| {
            let engine = Arc::clone(&engine);
            tokio::spawn(async move {
                let name = format!("t{n}");
                for round in 0..40u64 {
                    let ids = soon("create", topic(&engine, &name, 2)).await;
                    for (i, id) in ids.iter().enumerate() {
                        let tag = round << 8 | i as u64;
                        soon("append", engine.append(vec![(*id, batch(tag, 2, 6000))], None))
                            .await
                            .expect("acknowledged");
                    }
                    if round == 39 {
                        return ids;
                    }
                    soon("delete", engine.delete_topic(&name)).await.expect("deleted");
                    assert_eq!(engine.cut(&ids).expect_err("gone").kind(), ErrorKind::NotFound);
                }
                unreachable!("the last round returns")
            })
        })
        .collect();
    let mut last = Vec::new();
    for task in churn {
        last.push(soon("churn", task).await.expect("no panic"));
    }
    let acked = soon("producer", producer).await.expect("no panic");
    let check = |engine: &Engine| {
        holds(engine, std::slice::from_ref(&acked));
        for ids in &last {
            for (i, id) in ids.iter().enumerate() {
                let wanted = stored_at(&batch(39 << 8 | i as u64, 2, 6000), 0);
                assert_eq!(read_all(engine, *id).expect("whole"), [(0, wanted)] as [(i64, Bytes); 1]);
            }
        }
    };
    check(&engine);
    engine.close().expect("in order");
    drop(engine);
    let engine = open(&dir.0, small());
    check(&engine);
    engine.close().expect("in order");
    let folders = std::fs::read_dir(dir.0.join("topics")).expect("folder").count();
    assert!(folders <= 4 + 6 + 4, "{folders} folders of partitions: those of deleted topics stay");
}

const CHILD: &str = "TIDEMILL_STRACE_CHILD";

/// Every acknowledgement of a lone producer has its own fdatasync: counted from outside.
#[test]
fn a_sync_for_each_append() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let engine = open(Path::new(&dir), small());
            let id = topic(&engine, "a", 1).await[0];
            for tag in 0..100 {
                engine.append(vec![(id, batch(tag, 1, 100))], None).await.expect("acknowledged");
            }
            println!("child appended");
        });
        return;
    }
    if Command::new("strace").arg("-V").output().is_err() {
        println!("skipped: strace is not installed");
        return;
    }
    let dir = TempDir::new("strace");
    let out = dir.0.join("counts");
    let status = Command::new("strace")
        .args(["-f", "-c", "-e", "trace=fdatasync", "-o"])
        .arg(&out)
        .arg(std::env::current_exe().expect("own path"))
        .args(["--exact", "real::a_sync_for_each_append", "--nocapture"])
        .env(CHILD, dir.0.join("data"))
        .output()
        .expect("strace runs");
    if !status.status.success() {
        let text = String::from_utf8_lossy(&status.stderr).into_owned();
        assert!(!String::from_utf8_lossy(&status.stdout).contains("child appended"), "{text}");
        println!("skipped: strace may not trace here: {text}");
        return;
    }
    let table = std::fs::read_to_string(&out).expect("counts");
    let line =
        table.lines().find(|line| line.ends_with("fdatasync")).unwrap_or_else(|| panic!("no fdatasync: {table}"));
    let calls: u64 = line.split_whitespace().nth(3).and_then(|n| n.parse().ok()).expect("a number of calls");
    println!("{calls} fdatasync calls for 100 appends");
    assert!(calls >= 100, "{table}");
}
