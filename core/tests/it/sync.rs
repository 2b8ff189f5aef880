//! Real threads on a disk whose syncs wait or fail, and which runs full.

use std::{path::Path, sync::Arc, time::Duration};

use tidemill_core::{
    ErrorKind,
    clock::SystemClock,
    engine::{Config, Engine},
    topic::{PartitionId, TopicSpec},
};

use crate::{
    harness::{DIR, batch, read_all, small, stored_at},
    sim::{EIO, ENOSPC, Fault, Keep, SimDisk},
};

fn open(disk: &SimDisk, config: Config) -> Arc<Engine> {
    let engine = Engine::open(Path::new(DIR), config, Arc::new(disk.clone()), Arc::new(SystemClock::default()));
    Arc::new(engine.expect("opens"))
}

async fn topic(engine: &Engine) -> PartitionId {
    engine.create_topic("a", &TopicSpec::partitions(1)).await.expect("topic").partitions[0]
}

const SOON: Duration = Duration::from_millis(30);
const LATE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_shows_before_its_sync_returns() {
    let disk = SimDisk::new(1);
    let engine = open(&disk, small());
    let id = topic(&engine).await;
    disk.block_syncs();
    let appends: Vec<_> = (0..5)
        .map(|tag| {
            let engine = Arc::clone(&engine);
            tokio::spawn(async move { engine.append(vec![(id, batch(tag, 1, 100))], None).await })
        })
        .collect();
    let waiter = {
        let engine = Arc::clone(&engine);
        tokio::spawn(async move { engine.wait_for(id, 0, LATE).await })
    };
    let gate = disk.clone();
    tokio::task::spawn_blocking(move || gate.await_blocked_sync()).await.expect("a sync waits");
    assert!(tokio::time::timeout(SOON, engine.wait_for(id, 0, LATE)).await.is_err(), "a reader woke");
    assert_eq!(engine.cut(&[id]).expect("there")[0].durable_offset, 0);
    assert!(engine.read(id, 0, 1000, i64::MAX).expect("nothing").0.is_empty());
    assert!(appends.iter().all(|append| !append.is_finished()), "acknowledged before its sync");
    assert!(!waiter.is_finished());
    disk.release_syncs();
    for append in appends {
        append.await.expect("no panic").expect("acknowledged");
    }
    waiter.await.expect("no panic").expect("woken");
    assert_eq!(read_all(&engine, id).expect("whole").len(), 5);
    engine.close().expect("in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_ends_it_for_good() {
    for seed in 0..8 {
        let disk = SimDisk::new(seed);
        let engine = open(&disk, small());
        let id = topic(&engine).await;
        for tag in 0..10 {
            engine.append(vec![(id, batch(tag, 1, 500))], None).await.expect("acknowledged");
        }
        disk.inject(Fault { operation: "sync", path: "/commitlog/", after: 0, error: EIO, forever: false });
        let failing = (0..5).map(|tag| engine.append(vec![(id, batch(100 + tag, 1, 500))], None));
        for answer in futures_all(failing).await {
            assert_eq!(answer.expect_err("not durable").kind(), ErrorKind::Closed);
        }
        let error = engine.append(vec![(id, batch(200, 1, 100))], None).await.expect_err("stopped");
        assert_eq!(error.kind(), ErrorKind::Closed);
        let failure = tokio::time::timeout(LATE, engine.failure()).await.expect("told at once");
        assert!(failure.to_string().contains("fdatasync"), "{failure}");
        assert_eq!(engine.wait_for(id, 100, LATE).await.expect_err("stopped").kind(), ErrorKind::Closed);
        assert_eq!(engine.cut(&[id]).expect("there")[0].durable_offset, 10, "readers keep what is durable");
        engine.close().expect_err("not in order");
        drop(engine);
        for keep in [Keep::Nothing, Keep::Everything, Keep::Random(seed)] {
            let engine = open(&disk.image(keep), small());
            let found = read_all(&engine, id).expect("whole");
            assert!((10..=15).contains(&found.len()));
            for (tag, (base, bytes)) in found.iter().take(10).enumerate() {
                assert_eq!((*base, bytes), (tag as i64, &stored_at(&batch(tag as u64, 1, 500), tag as i64)));
            }
            assert_eq!(engine.damage(), []);
        }
    }
}

async fn futures_all<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut all: Vec<_> = all.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|cx| {
        let mut ready = true;
        for (future, output) in &mut all {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => ready = false,
                }
            }
        }
        if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    all.into_iter().filter_map(|(_, output)| output).collect()
}

/// Wherever the disk is full: no acknowledgement of what is not durable, a clear error, nothing lost; and when there is
/// room again, the log goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing() {
    for (path, operation) in [
        ("/commitlog/", "open"),
        ("/topics/", "write"),
        ("/topics/", "open"),
        ("/manifest", "write"),
        ("/manifest", "sync"),
        ("/manifest", "open"),
    ] {
        for after in [0, 1, 3] {
            let disk = SimDisk::new(9);
            let engine = open(&disk, small());
            let id = topic(&engine).await;
            disk.inject(Fault { operation, path, after, error: ENOSPC, forever: true });
            let mut acked = 0;
            let error = loop {
                let append = engine.append(vec![(id, batch(acked, 1, 4000))], None);
                match tokio::time::timeout(LATE, append).await.expect("an append that nobody answers") {
                    Ok(outcome) => assert_eq!(outcome.base_offsets, [acked as i64]),
                    Err(error) => break Some(error),
                }
                acked += 1;
                if acked == 300 {
                    break None;
                }
            };
            match &error {
                Some(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{path} {operation}: {error}");
                    assert!(error.to_string().contains("disk full"), "{path} {operation}: {error}");
                    assert!(error.is_disk_full(), "{path} {operation}: {error}");
                    // Files of the commit log come back with a checkpoint: then there is room again.
                    assert!(engine.is_disk_full() || path == "/commitlog/", "{path} {operation}");
                }
                // The files of the commit log that there are do for the rest.
                None => assert_eq!(path, "/commitlog/", "a full disk went unnoticed"),
            }
            // What cannot grow can still be deleted.
            let other = engine.create_topic("b", &TopicSpec::partitions(1)).await.expect("metadata has room");
            engine.delete_topic("b").await.expect("metadata has room");
            for keep in [Keep::Nothing, Keep::Random(after as u64)] {
                let image = disk.image(keep);
                let engine = open(&image, small());
                let found = read_all(&engine, id).expect("whole");
                assert!(found.len() as u64 >= acked, "{path} {operation}: {} of {acked}", found.len());
                assert_eq!(engine.damage(), []);
                assert!(engine.cut(&other.partitions).is_err());
                engine.append(vec![(id, batch(1, 1, 10))], None).await.expect("goes on");
            }
            disk.heal();
            let mut again = None;
            for _ in 0..400 {
                match engine.append(vec![(id, batch(acked, 1, 4000))], None).await {
                    Ok(outcome) => again = Some(outcome.base_offsets[0]),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
                }
                if again.is_some() && !engine.is_disk_full() {
                    break;
                }
                tokio::time::sleep(SOON).await;
            }
            assert!(again.expect("goes on by itself") >= acked as i64);
            assert!(!engine.is_disk_full());
            assert_eq!(read_all(&engine, id).expect("whole").len() as i64, 1 + again.expect("above"));
            engine.close().expect("in order");
        }
    }
}

/// Nothing but deletions makes room: they work while the disk is full to the last byte.
#[tokio::test(flavor = "multi_thread")]
async fn deletes_make_room_on_a_full_disk() {
    let disk = SimDisk::new(2);
    let engine = open(&disk, small());
    let old = topic(&engine).await;
    for tag in 0..60 {
        engine.append(vec![(old, batch(tag, 1, 4000))], None).await.expect("room");
    }
    let new = engine.create_topic("new", &TopicSpec::partitions(1)).await.expect("room").partitions[0];
    let mut lengths = (0, disk.used());
    while lengths.0 != lengths.1 {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        lengths = (lengths.1, disk.used());
    }
    disk.set_capacity(Some(disk.used()));
    let mut acked = 0;
    let error = loop {
        let append = engine.append(vec![(new, batch(acked, 1, 4000))], None);
        match tokio::time::timeout(LATE, append).await.expect("an append that nobody answers") {
            Ok(_) => acked += 1,
            Err(error) => break error,
        }
        assert!(acked < 300, "the disk does not get full");
    };
    assert!(error.to_string().contains("disk full"), "{error}");
    // So does a log that is opened on the full disk.
    let image = disk.image(Keep::Everything);
    image.set_capacity(Some(image.used()));
    deletes_make_room(&open(&image, small()), old, new, acked).await;
    deletes_make_room(&engine, old, new, acked).await;
    engine.close().expect("in order");
    drop(engine);
    let engine = open(&disk, small());
    assert_eq!(read_all(&engine, new).expect("whole").len() as u64, acked + 1);
}

async fn deletes_make_room(engine: &Engine, old: PartitionId, new: PartitionId, acked: u64) {
    assert_eq!(read_all(engine, old).expect("readers go on").len(), 60);
    engine.delete_topic("a").await.expect("metadata has room");
    for tries in 0.. {
        if engine.append(vec![(new, batch(acked, 1, 4000))], None).await.is_ok() {
            break;
        }
        assert!(tries < 400, "the delete made no room");
        tokio::time::sleep(SOON).await;
    }
    assert_eq!(read_all(engine, new).expect("whole").len() as u64, acked + 1);
}

/// An ended transaction holds no file of the commit log, however it ended.
#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_transaction_gives_its_room_back() {
    let disk = SimDisk::new(4);
    let engine = open(&disk, small());
    let id = topic(&engine).await;
    let transaction = engine.begin_transaction();
    engine.stage(transaction, vec![(id, batch(1, 1, 1000))]).await.expect("staged");
    engine.abort(transaction);
    for tag in 0..300 {
        let append = engine.append(vec![(id, batch(tag, 1, 4000))], None);
        tokio::time::timeout(LATE, append).await.expect("the log stands still").expect("acknowledged");
    }
    engine.close().expect("in order");
}
