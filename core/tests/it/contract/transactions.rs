//! Writers: transactions, fences, positions.

use std::{task::Poll, time::Duration};

use bytes::Bytes;
use tidemill_core::{ErrorKind, log::Session, record::Record, topic::TopicPartition};

use super::bed::{Bed, all, first, refused, soon, text, texts};

/// All of it is seen, in each partition, and nothing before the commit.
pub async fn a_transaction_is_seen_as_a_whole(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partitions("a", 2).await);
    let mut writer = bed.writer("w").await;
    for (value, partition) in [("1", 0), ("2", 1), ("3", 0)] {
        writer.append(&to[partition], texts([value])).await.expect("staged");
    }
    writer.set_position("p", Some("7".into()));
    tokio::time::sleep(Duration::from_millis(100)).await;
    for partition in &to {
        assert_eq!(all(&*session, partition).await, [""; 0], "seen before the commit");
    }
    assert!(session.positions(&bed.name("w")).await.expect("positions").is_empty());
    writer.commit().await.expect("committed");
    assert_eq!(writer.positions()["p"], "7");
    assert_eq!(all(&*session, &to[0]).await, ["1", "3"]);
    assert_eq!(all(&*session, &to[1]).await, ["2"]);
    position_is(&*session, &bed.name("w"), "7").await;
    writer.commit().await.expect("nothing to commit");
    writer.abort().await.expect("nothing to abort");
}

/// Waits until readers see the position.
async fn position_is(session: &dyn Session, owner: &str, value: &str) {
    let seen = async {
        while session.positions(owner).await.expect("positions").get("p").map(String::as_str) != Some(value) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("the position", seen).await;
}

pub async fn what_is_aborted_or_dropped_is_never_seen(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    let mut writer = bed.writer("w").await;
    writer.append(&to, texts(["aborted"])).await.expect("staged");
    writer.set_position("p", Some("aborted".into()));
    writer.abort().await.expect("aborted");
    writer.append(&to, texts(["kept"])).await.expect("staged");
    writer.commit().await.expect("committed");
    writer.append(&to, texts(["dropped"])).await.expect("staged");
    writer.set_position("p", Some("dropped".into()));
    drop(writer);
    let mut writer = bed.writer("w").await;
    writer.append(&to, texts(["closed"])).await.expect("staged");
    writer.close().await.expect("closed");
    let mut writer = bed.writer("w").await;
    assert!(writer.positions().is_empty(), "{:?}", writer.positions());
    writer.append(&to, texts(["last"])).await.expect("staged");
    writer.commit().await.expect("committed");
    assert_eq!(all(&*session, &to).await, ["kept", "last"]);
}

/// The older writer has a transaction open when the newer one is opened.
pub async fn an_older_writer_is_refused(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    let mut older = bed.writer("w").await;
    older.append(&to, texts(["before"])).await.expect("staged");
    older.set_position("p", Some("before".into()));
    older.commit().await.expect("committed");
    older.append(&to, texts(["never"])).await.expect("staged");
    older.set_position("p", Some("never".into()));
    let mut newer = bed.other_writer("w").await;
    assert_eq!(newer.positions()["p"], "before");
    refused(older.commit().await, ErrorKind::Conflict);
    for _ in 0..2 {
        refused(older.append(&to, texts(["nor this"])).await, ErrorKind::Conflict);
        refused(older.commit().await, ErrorKind::Conflict);
        refused(older.abort().await, ErrorKind::Conflict);
    }
    newer.append(&to, texts(["after"])).await.expect("staged");
    newer.set_position("p", Some("after".into()));
    newer.commit().await.expect("the newer one is not disturbed");
    assert_eq!(all(&*session, &to).await, ["before", "after"]);
    position_is(&*session, &bed.name("w"), "after").await;
}

/// The older writer goes on without a word from the log, and hears of it at its commit, at the latest.
pub async fn a_writer_fenced_before_its_commit_is_refused(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    let mut older = bed.writer("w").await;
    older.append(&to, texts(["never"])).await.expect("staged");
    let newer = bed.other_writer("w").await;
    // What is sent now is refused in its own time; nobody is told of it yet.
    let appended = older.append(&to, texts(["nor this"])).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    if appended.is_ok() {
        older.set_position("p", Some("never".into()));
    }
    refused(older.commit().await, ErrorKind::Conflict);
    refused(older.commit().await, ErrorKind::Conflict);
    newer.close().await.expect("closed");
    assert_eq!(all(&*session, &to).await, [""; 0]);
    assert!(bed.writer("w").await.positions().is_empty());
}

pub async fn an_idle_writer_that_was_fenced_is_refused(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    let mut older = bed.writer("w").await;
    let newer = bed.other_writer("w").await;
    let appended = older.append(&to, texts(["never"])).await;
    let refusal = match appended {
        Ok(()) => older.commit().await,
        early => early,
    };
    refused(refusal, ErrorKind::Conflict);
    newer.close().await.expect("closed");
    refused(older.commit().await, ErrorKind::Conflict);
    assert_eq!(all(&*session, &to).await, [""; 0]);
}

pub async fn positions_are_those_of_the_last_commit(bed: Bed) {
    let mut writer = bed.writer("w").await;
    let other = bed.name("w.other");
    for i in 0..5 {
        writer.set_position("p", Some(i.to_string()));
        writer.set_position("gone", (i < 4).then(|| i.to_string()));
        writer.set_position("ü\u{1f}\n", Some("odd".into()));
        writer.commit().await.expect("committed");
    }
    assert_eq!(writer.positions().len(), 2, "positions are lost: {:?}", writer.positions());
    // A name that begins as the other's.
    let mut neighbour = bed.session().await.writer(&other).await.expect("a writer");
    assert!(neighbour.positions().is_empty());
    neighbour.set_position("p", Some("neighbour".into()));
    neighbour.commit().await.expect("committed");
    let writer = bed.writer("w").await;
    let found: Vec<_> = writer.positions().iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(found, [("p", "4"), ("ü\u{1f}\n", "odd")]);
}

/// The newer writer's positions are exact though others have transactions open, where they are stored too.
pub async fn an_open_transaction_of_another_hides_no_position(bed: Bed) {
    let to = bed.partition("a").await;
    let mut others = Vec::new();
    let mut writer = bed.writer("w").await;
    for i in 0..4 {
        let mut other = bed.writer(&format!("other{i}")).await;
        other.append(&to, texts(["open"])).await.expect("staged");
        other.set_position("p", Some("open".into()));
        others.push(other);
    }
    writer.append(&to, texts(["mine"])).await.expect("staged");
    writer.set_position("p", Some("mine".into()));
    writer.commit().await.expect("committed");
    let newer = soon("the newer writer", bed.other_writer("w")).await;
    assert_eq!(newer.positions()["p"], "mine");
    for mut other in others {
        other.abort().await.expect("aborted");
    }
}

pub async fn a_failed_append_leaves_only_the_abort(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    let mut writer = bed.writer("w").await;
    writer.append(&to, texts(["half"])).await.expect("staged");
    let large = vec![Record::new(None, Bytes::from(vec![b'x'; 20 << 20]))];
    refused(writer.append(&to, large).await, ErrorKind::Invalid);
    refused(writer.append(&to, texts(["more"])).await, ErrorKind::Closed);
    refused(writer.commit().await, ErrorKind::Closed);
    writer.abort().await.expect("aborted");
    writer.append(&to, texts(["whole"])).await.expect("staged");
    writer.commit().await.expect("committed");
    assert_eq!(all(&*session, &to).await, ["whole"]);
}

/// Dropped at its first await, or later, or not at all: the next writer finds all or nothing, and the position tells.
pub async fn a_dropped_commit_ends_its_writer(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partition("a").await);
    let mut wanted = Vec::new();
    let mut dropped = 0;
    for round in 0..6_u64 {
        let mut writer = bed.writer("w").await;
        let value = round.to_string();
        writer.append(&to, vec![text(&value)]).await.expect("staged");
        writer.set_position("p", Some(value.clone()));
        // After its first await, its second, or some milliseconds.
        let committed = match round {
            0..3 => polled(writer.commit(), 1 + round / 2).await,
            _ => tokio::time::timeout(Duration::from_millis(round * 4), writer.commit()).await.ok(),
        };
        if committed.is_none() {
            dropped += 1;
            refused(writer.append(&to, texts(["after"])).await, ErrorKind::Closed);
            refused(writer.commit().await, ErrorKind::Closed);
        }
        drop(writer);
        let found = bed.writer("w").await.positions().get("p").cloned();
        if found.as_deref() == Some(&value) {
            wanted.push(value);
        }
    }
    assert!(dropped > 0, "no commit was dropped");
    let mut last = bed.writer("w").await;
    last.append(&to, texts(["last"])).await.expect("staged");
    last.commit().await.expect("committed");
    wanted.push("last".into());
    assert_eq!(first(&*session, &to, wanted.len()).await, wanted);
}

/// Polls a future so often and drops it.
async fn polled<F: Future>(future: F, times: u64) -> Option<F::Output> {
    let (mut future, mut left) = (std::pin::pin!(future), times);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if left <= 1 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

pub async fn writers_of_several_owners_do_not_meet(bed: Bed) {
    let (session, to) = (bed.session().await, bed.partitions("a", 3).await);
    let work = |owner: usize| {
        let (bed, to) = (&bed, &to);
        async move {
            let mut writer = bed.writer(&format!("w{owner}")).await;
            for i in 0..10 {
                for partition in to {
                    writer.append(partition, vec![text(format!("{owner}-{i}"))]).await.expect("staged");
                }
                writer.set_position("p", Some(i.to_string()));
                writer.commit().await.expect("committed");
            }
        }
    };
    soon("three writers", async { tokio::join!(work(0), work(1), work(2)) }).await;
    for partition in &to {
        let mut values = first(&*session, partition, 30).await;
        for owner in 0..3 {
            let own: Vec<_> = values.iter().filter(|v| v.starts_with(&format!("{owner}-"))).cloned().collect();
            assert_eq!(own, (0..10).map(|i| format!("{owner}-{i}")).collect::<Vec<_>>(), "in its order");
        }
        values.sort_unstable();
        values.dedup();
        assert_eq!(values.len(), 30);
    }
}

pub async fn a_transaction_without_records_moves_positions(bed: Bed) {
    let to: TopicPartition = bed.partition("a").await;
    let mut writer = bed.writer("w").await;
    writer.set_position("p", Some("1".into()));
    writer.commit().await.expect("committed");
    writer.append(&to, texts(["x"])).await.expect("staged");
    writer.commit().await.expect("a commit without positions");
    writer.set_position("p", None);
    writer.abort().await.expect("aborted");
    assert_eq!(bed.writer("w").await.positions()["p"], "1");
}
