//! A history as lines of a file, one file a round, that outlive the process which wrote them.
//!
//! | line | what happened |
//! |---|---|
//! | `b OP PROCESS KIND` | an operation began |
//! | `s OP PARTITION VALUE` | it is about to send |
//! | `c OP` | it is about to ask for what it sent: an append, or a commit |
//! | `o OP VALUE OFFSET` | it was told an offset |
//! | `r OP PARTITION FROM NEXT TO_END OFFSET:VALUE,...` | it was given records |
//! | `e OP ok` or `e OP failed` | it was answered |
//! | `i PROCESS ID EPOCH` | a producer was given its identity |
//!
//! Each write goes to the end of the file with one call, so that the lines of all threads have one order.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

use super::{History, Kind, Op, Outcome, Partition, Poll, Send, Value};

pub struct Ledger(File);

pub fn path(dir: &Path, round: u64) -> PathBuf {
    dir.join(format!("ledger.{round}"))
}

impl Ledger {
    pub fn open(dir: &Path, round: u64) -> Self {
        Self(OpenOptions::new().append(true).create_new(true).open(path(dir, round)).expect("a new ledger"))
    }

    pub fn write(&self, lines: &str) {
        let written = (&self.0).write(lines.as_bytes()).expect("written");
        assert_eq!(written, lines.len(), "one call");
    }
}

/// What earlier rounds have left.
#[derive(Debug, Default)]
pub struct Past {
    pub history: History,
    /// The name of each operation in the files.
    pub names: Vec<u64>,
    /// Identities of producers, by process.
    pub identities: HashMap<u32, (i64, i16)>,
    /// How many sends in doubt were sent again after a kill.
    pub sent_again: usize,
    /// Where each process goes on reading.
    pub cursors: HashMap<(u32, Partition), i64>,
}

impl Past {
    /// Reads the ledgers of the first `rounds` rounds. A line that was not finished is none.
    pub fn load(dir: &Path, rounds: u64) -> Self {
        let (mut past, mut places, mut now) = (Self::default(), HashMap::new(), 0);
        let mut answers = BTreeMap::new();
        for round in 0..rounds {
            // A process killed early has none.
            let text = std::fs::read_to_string(path(dir, round)).unwrap_or_default();
            let mut mentioned = Vec::new();
            for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
                now += 1;
                let parts: Vec<_> = line.split(' ').collect();
                let number = |i: usize| parts[i].parse::<i64>().unwrap_or_else(|_| panic!("line {line:?}"));
                if parts[0] == "i" {
                    past.identities.insert(number(1) as u32, (number(2), number(3) as i16));
                    continue;
                }
                let name = number(1) as u64;
                if parts[0] == "b" {
                    places.insert(name, past.history.ops.len());
                    past.names.push(name);
                    past.history.ops.push(begun(number(2) as u32, parts[3], now));
                }
                let place = places[&name];
                mentioned.push(place);
                let op = &mut past.history.ops[place];
                match parts[0] {
                    "b" => {}
                    "s" => op.sends.push(Send { partition: number(2) as u32, value: number(3) as u64, offset: None }),
                    "c" => {
                        past.sent_again += usize::from(op.asked.is_some());
                        op.asked = op.asked.or(Some(now));
                    }
                    "o" => {
                        let send = op.sends.iter_mut().find(|send| send.value == number(2) as u64);
                        send.expect("it was sent").offset = Some(number(3));
                    }
                    "r" => {
                        let poll = polled(&parts, now);
                        past.cursors.insert((op.process, poll.partition), poll.next);
                        op.polls.push(poll);
                    }
                    "e" => drop(answers.insert(place, (parts[2] == "ok", now))),
                    _ => panic!("line {line:?}"),
                }
            }
            // Whoever is not answered by now was killed.
            now += 1;
            mentioned.into_iter().for_each(|place| past.history.ops[place].ended = now);
        }
        for (place, op) in past.history.ops.iter_mut().enumerate() {
            op.outcome = match (answers.get(&place), op.asked) {
                (Some((true, _)), _) => Outcome::Ok,
                (None, Some(_)) => Outcome::Unknown,
                _ => Outcome::Failed,
            };
            if let Some((_, ended)) = answers.get(&place) {
                op.ended = *ended;
            }
        }
        past
    }
}

fn begun(process: u32, kind: &str, now: u64) -> Op {
    let kind = match kind {
        "plain" => Kind::Plain,
        "at-once" => Kind::AtOnce,
        _ => Kind::AsTheyCome,
    };
    let (sends, polls) = (Vec::new(), Vec::new());
    Op { process, kind, outcome: Outcome::Unknown, begun: now, asked: None, ended: now, sends, polls }
}

fn polled(parts: &[&str], at: u64) -> Poll {
    let record = |pair: &str| -> (i64, Value) {
        let (offset, value) = pair.split_once(':').expect("a pair");
        (offset.parse().expect("an offset"), value.parse().expect("a value"))
    };
    Poll {
        partition: parts[2].parse().expect("a partition"),
        from: parts[3].parse().expect("an offset"),
        next: parts[4].parse().expect("an offset"),
        to_end: parts[5] == "true",
        records: parts[6].split(',').filter(|pair| !pair.is_empty()).map(record).collect(),
        at,
    }
}
