//! Copies of MariaDB's tables, where the stream is ahead of what a snapshot sees.

use std::{collections::BTreeMap, process::Child};

use tidemill_connect::{change::Op, mysql::Knobs};

use super::mysql_source::{Bench, apply, int, ops, sorted};
use crate::servers::ADMIN;

#[tokio::test]
async fn truncating_in_the_middle_of_a_copy_is_exact() {
    let mut bench = Bench::new("create table a (id int primary key); insert into a select seq from seq_1_to_9000");
    let mut source = bench.open().await.unwrap();
    let mut state = BTreeMap::new();
    let first = bench.polled(&mut source, |polled| !polled.changes.is_empty()).await.unwrap();
    first.iter().for_each(|polled| apply(&mut state, &polled.changes));
    assert!(!state.is_empty() && state.len() < 9_000, "{}", state.len());
    bench.exec("truncate table a; insert into a values (3), (8500), (99999)");
    let (mut finished, mut last, mut truncated) = (false, false, 0);
    let polled = bench.polled(&mut source, |polled| {
        finished |= !polled.finished_tables.is_empty();
        last |= polled.changes.iter().any(|change| change.key == [int(99_999)]);
        finished && last
    });
    for polled in polled.await.unwrap() {
        if !polled.truncated.is_empty() {
            truncated += 1;
            state.clear();
        }
        apply(&mut state, &polled.changes);
    }
    assert_eq!(truncated, 1);
    assert_eq!(sorted(state.into_values()), bench.rows(0).await);
}

/// Runs a statement whose transaction is in the binlog, and so delivered, and stays invisible for some seconds: the
/// server waits for a replica's acknowledgement, in between the binlog and the engine, and there is no replica.
fn held_back(bench: &Bench, sql: &str) -> Child {
    bench.exec(
        "set global rpl_semi_sync_master_wait_point = 'AFTER_SYNC'; set global rpl_semi_sync_master_timeout = 4000;
         set global rpl_semi_sync_master_wait_no_slave = 1; set global rpl_semi_sync_master_enabled = 1",
    );
    let mut client = bench.server.client(ADMIN, "shop");
    client.args(["-e", sql]).stdin(std::process::Stdio::null()).spawn().unwrap()
}

/// Copies a table anew after a delivery that snapshots do not see yet; the copied keys. `restarts` says whether the
/// follower is another one by then.
async fn copied_in_the_window(knobs: Knobs, restarts: bool) -> Vec<i64> {
    let mut bench = Bench::new("create table a (id int primary key); insert into a values (1), (2), (3)");
    bench.knobs = knobs;
    bench.exec("grant lock tables on shop.* to cdc");
    let (mut source, _) = bench.copied().await;
    let mut writing = held_back(&bench, "delete from a where id = 2");
    assert_eq!(ops(&bench.changes(&mut source, 1).await), [(Op::Delete, 2)]);
    let unseen = bench.server.value("shop", "select count(*) from a").unwrap();
    assert_eq!(unseen, "3", "the window was missed");
    if restarts {
        bench.recopy.push("shop.a".into());
        source = bench.open().await.unwrap();
    } else {
        source.restart_copies(&["shop.a".into()]).await.unwrap();
    }
    let polled = bench.polled(&mut source, |polled| !polled.finished_tables.is_empty()).await.unwrap();
    assert!(writing.wait().unwrap().success());
    polled.iter().flat_map(|polled| ops(&polled.changes)).map(|(_, key)| key).collect()
}

#[tokio::test]
async fn a_snapshot_behind_what_was_delivered_is_not_taken() {
    assert_eq!(copied_in_the_window(Knobs::default(), false).await, [1, 3]);
    assert_eq!(copied_in_the_window(Knobs::default(), true).await, [1, 3]);
}

#[tokio::test]
async fn nor_is_it_where_a_lock_tells_its_place() {
    assert_eq!(copied_in_the_window(Knobs { lock_tables: true, ..Knobs::default() }, false).await, [1, 3]);
}

/// The twin: a row that is gone comes back.
#[tokio::test]
async fn taken_it_brings_back_what_is_gone() {
    let knobs = Knobs { stale_snapshots: true, ..Knobs::default() };
    assert_eq!(copied_in_the_window(knobs, false).await, [1, 2, 3]);
    assert_eq!(copied_in_the_window(knobs, true).await, [1, 2, 3]);
}

#[tokio::test]
async fn a_new_binlog_without_transactions_keeps_no_copy_waiting() {
    let mut bench = Bench::new("create table a (id int primary key); insert into a values (1)");
    let (mut source, _) = bench.copied().await;
    bench.exec("flush logs; flush logs");
    for _ in 0..10 {
        let polled = source.poll().await.unwrap();
        assert!(polled.changes.is_empty());
        bench.stored.extend(polled.position);
    }
    source.restart_copies(&["shop.a".into()]).await.unwrap();
    let again = bench.polled(&mut source, |polled| !polled.finished_tables.is_empty()).await.unwrap();
    assert_eq!(again.iter().flat_map(|polled| ops(&polled.changes)).collect::<Vec<_>>(), [(Op::Read, 1)]);
}
