//! Histories made up by hand: each with exactly one anomaly, and sound ones with none.

use super::{Anomaly, History, Kind, Op, Outcome, Partition, Poll, Send, Value};

/// Sends that began at `begun` and were answered at the next moment.
fn send(process: u32, begun: u64, sends: &[(Partition, i64, Value)]) -> Op {
    let sends = sends.iter().map(|(partition, offset, value)| Send {
        partition: *partition,
        value: *value,
        offset: (*offset >= 0).then_some(*offset),
    });
    Op {
        process,
        kind: Kind::Plain,
        outcome: Outcome::Ok,
        begun,
        asked: Some(begun),
        ended: begun + 1,
        sends: sends.collect(),
        polls: Vec::new(),
    }
}

/// A poll to the end, up to `next`.
fn poll(process: u32, begun: u64, partition: Partition, next: i64, records: &[(i64, Value)]) -> Op {
    let from = records.first().map_or(next, |(offset, _)| *offset);
    let poll = Poll { partition, from, next, records: records.to_vec(), to_end: true, at: begun + 1 };
    Op { polls: vec![poll], ..send(process, begun, &[]) }
}

fn as_kind(kind: Kind, op: Op) -> Op {
    Op { kind, ..op }
}

fn ended_as(outcome: Outcome, op: Op) -> Op {
    Op { outcome, ..op }
}

fn found(ops: Vec<Op>) -> Vec<(Anomaly, Vec<usize>)> {
    let history = History { ops, is_read_to_the_end: true };
    history.findings().into_iter().map(|finding| (finding.anomaly, finding.ops)).collect()
}

/// Three records of one process, sent at 0, 2 and 4.
fn three() -> Vec<Op> {
    (0..3).map(|i| send(1, 2 * i, &[(0, i as i64, 100 + i)])).collect()
}

fn with_three(polls: impl IntoIterator<Item = Op>) -> Vec<Op> {
    three().into_iter().chain(polls).collect()
}

const ALL: &[(i64, Value)] = &[(0, 100), (1, 101), (2, 102)];

#[test]
fn sound_histories_have_no_findings() {
    assert_eq!(found(vec![]), []);
    assert_eq!(found(with_three([poll(9, 10, 0, 3, ALL)])), []);
    // In parts, and with the gap that a marker leaves.
    assert_eq!(
        found(with_three([poll(9, 3, 0, 1, &ALL[..1]), poll(9, 8, 0, 3, &ALL[1..]), poll(9, 10, 0, 9, &[])])),
        []
    );
    for (there, outcome) in [(true, Outcome::Unknown), (false, Outcome::Unknown), (false, Outcome::Failed)] {
        for kind in [Kind::Plain, Kind::AtOnce, Kind::AsTheyCome] {
            let doubtful = ended_as(outcome, as_kind(kind, send(2, 6, &[(0, -1, 103), (1, -1, 104)])));
            let mut ops = with_three([doubtful]);
            match there {
                true => ops.push(poll(9, 10, 0, 4, &[ALL, &[(3, 103)]].concat())),
                false => ops.push(poll(9, 10, 0, 4, ALL)),
            }
            if there {
                ops.push(poll(9, 12, 1, 1, &[(0, 104)]));
            }
            assert_eq!(found(ops), [], "{kind:?} {outcome:?} {there}");
        }
    }
    // Without transactions, each for itself: half of it may be there.
    let doubtful = ended_as(Outcome::Unknown, send(2, 6, &[(0, -1, 103), (1, -1, 104)]));
    assert_eq!(found(vec![doubtful, poll(9, 10, 0, 1, &[(0, 103)])]), []);
}

#[test]
fn what_nobody_sent() {
    assert_eq!(found(with_three([poll(9, 10, 0, 4, &[ALL, &[(3, 77)]].concat())])), [(Anomaly::MadeUp, vec![3])]);
}

#[test]
fn a_lost_write() {
    assert_eq!(found(with_three([poll(9, 10, 0, 3, &[ALL[0], ALL[2]])])), [(Anomaly::LostWrite, vec![1])]);
}

#[test]
fn a_write_unseen_at_the_end() {
    // What ends there has read all: it is stale, too, unless it does not know the end.
    let mut last = poll(9, 10, 0, 2, &ALL[..2]);
    last.polls[0].to_end = false;
    assert_eq!(found(with_three([last.clone()])), [(Anomaly::Unseen, vec![2])]);
    let history = History { ops: with_three([last]), is_read_to_the_end: false };
    assert_eq!(history.findings(), [], "it may come yet");
}

#[test]
fn a_duplicate() {
    let ops = with_three([poll(9, 10, 0, 4, &[ALL, &[(3, 101)]].concat())]);
    assert_eq!(found(ops), [(Anomaly::Duplicate, vec![1, 3])]);
}

#[test]
fn two_values_at_one_offset() {
    // Of the second one only the answer is known.
    let other = ended_as(Outcome::Unknown, send(2, 6, &[(0, 1, 103)]));
    let ops = with_three([other, poll(9, 10, 0, 3, ALL)]);
    assert_eq!(found(ops), [(Anomaly::InconsistentOffset, vec![1, 3, 4])]);
}

#[test]
fn an_aborted_read() {
    let aborted = ended_as(Outcome::Failed, as_kind(Kind::AtOnce, send(2, 6, &[(0, -1, 103)])));
    let ops = with_three([aborted, poll(9, 10, 0, 4, &[ALL, &[(3, 103)]].concat())]);
    assert_eq!(found(ops), [(Anomaly::AbortedRead, vec![3, 4])]);
}

#[test]
fn a_read_before_the_commit() {
    let early = Op { asked: Some(12), ended: 13, ..as_kind(Kind::AsTheyCome, send(2, 6, &[(0, 3, 103)])) };
    let ops = with_three([early, poll(9, 10, 0, 4, &[ALL, &[(3, 103)]].concat())]);
    assert_eq!(found(ops), [(Anomaly::PrecommittedRead, vec![3, 4])]);
}

#[test]
fn a_torn_transaction() {
    for kind in [Kind::AtOnce, Kind::AsTheyCome] {
        let half = ended_as(Outcome::Unknown, as_kind(kind, send(2, 6, &[(0, -1, 103), (1, -1, 104)])));
        let ops = with_three([half, poll(9, 10, 0, 4, &[ALL, &[(3, 103)]].concat())]);
        assert_eq!(found(ops), [(Anomaly::Torn, vec![3])]);
    }
}

#[test]
fn sends_in_another_order() {
    let ops = vec![send(1, 0, &[(0, 1, 101)]), send(1, 2, &[(0, 0, 100)]), poll(9, 10, 0, 2, &ALL[..2])];
    assert_eq!(found(ops), [(Anomaly::NonmonotonicSend, vec![0, 1])]);
    let ops = vec![send(1, 0, &[(0, 1, 101)]), send(2, 2, &[(0, 0, 100)]), poll(9, 10, 0, 2, &ALL[..2])];
    assert_eq!(found(ops), [], "of two processes");
}

#[test]
fn a_poll_that_goes_back() {
    let again = poll(9, 12, 0, 3, &ALL[2..]);
    assert_eq!(found(with_three([poll(9, 10, 0, 3, ALL), again])), [(Anomaly::NonmonotonicPoll, vec![3, 4])]);
}

#[test]
fn a_poll_that_skips() {
    let skips = [poll(8, 8, 0, 1, &ALL[..1]), poll(8, 10, 0, 3, &ALL[2..])];
    // It ends before what was acknowledged: it has not read all.
    let [mut first, second] = skips;
    first.polls[0].to_end = false;
    let ops = with_three([poll(9, 6, 0, 3, ALL), first.clone(), second]);
    assert_eq!(found(ops), [(Anomaly::SkippedPoll, vec![3, 5])]);
    // Also if it was given nothing behind.
    let ops = with_three([poll(9, 6, 0, 3, ALL), first, poll(8, 10, 0, 3, &[])]);
    assert_eq!(found(ops), [(Anomaly::SkippedPoll, vec![3, 5])]);
}

#[test]
fn a_stale_poll() {
    let stale = || poll(8, 10, 0, 2, &ALL[..2]);
    assert_eq!(found(with_three([stale(), poll(9, 20, 0, 3, ALL)])), [(Anomaly::Stale, vec![2, 3])]);
    // Where an open transaction may hold it back, it is not.
    let open = Op { ended: 15, ..as_kind(Kind::AsTheyCome, send(2, 6, &[(0, -1, 103)])) };
    let last = poll(9, 20, 0, 4, &[ALL, &[(3, 103)]].concat());
    assert_eq!(found(with_three([open, stale(), last])), []);
}

/// Two transactions, each before the other in one of two partitions.
fn crossed(kind: Kind) -> Vec<Op> {
    vec![
        as_kind(kind, Op { ended: 5, ..send(1, 0, &[(0, 0, 100), (1, 1, 101)]) }),
        as_kind(kind, Op { ended: 5, ..send(2, 0, &[(0, 1, 102), (1, 0, 103)]) }),
        poll(9, 10, 0, 2, &[(0, 100), (1, 102)]),
        poll(9, 12, 1, 2, &[(0, 103), (1, 101)]),
    ]
}

#[test]
fn a_cycle_of_writes() {
    assert_eq!(found(crossed(Kind::AtOnce)), [(Anomaly::G0, vec![0, 1])]);
    assert_eq!(found(crossed(Kind::AsTheyCome)), [], "writes of these may mix");
    let mut ops = crossed(Kind::AtOnce);
    ops[0].sends[1].offset = None;
    assert_eq!(found(ops), [(Anomaly::G0, vec![0, 1])], "a poll tells where it is, too");
}

#[test]
fn a_cycle_of_writes_and_reads() {
    // Each has read what the other wrote; the second one by the order of writes.
    let reads = |partition, record: (i64, Value)| poll(0, 6, partition, record.0 + 1, &[record]).polls;
    let first = Op { ended: 9, polls: reads(1, (0, 101)), ..send(1, 0, &[(0, 0, 100)]) };
    let second = Op { ended: 9, polls: reads(0, (0, 100)), ..send(2, 0, &[(1, 0, 101)]) };
    let ops = vec![as_kind(Kind::AsTheyCome, first.clone()), as_kind(Kind::AsTheyCome, second)];
    assert_eq!(found(ops), [(Anomaly::G1c, vec![0, 1])]);
    let second = send(2, 0, &[(0, 1, 102), (1, 0, 101)]);
    let ops = vec![as_kind(Kind::AtOnce, first), as_kind(Kind::AtOnce, Op { ended: 9, ..second })];
    let ops = ops.into_iter().chain([poll(9, 10, 0, 2, &[(0, 100), (1, 102)])]).collect();
    assert_eq!(found(ops), [(Anomaly::G1c, vec![0, 1])]);
}
