//! Transactions of Kafka's protocol in a compacted topic.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use tidemill_core::{
    batch::{BatchBuilder, Marker},
    engine::ProducerIdentity,
    record::{Record, Timestamp},
    topic::PartitionId,
};

use super::keyed::{compact, config, create, spec};
use crate::{
    harness::Stepped,
    sim::{Rng, SimClock, SimDisk},
};

const TIMEOUT: Duration = Duration::from_secs(60);

struct Producer {
    id: &'static str,
    identity: ProducerIdentity,
    sequence: i32,
    /// What it has written in the open transaction: key, offset, value.
    open: Option<Vec<(String, i64, Option<String>)>>,
}

impl Producer {
    fn new(log: &mut Stepped, id: &'static str) -> Self {
        let identity = log.run(async |engine| engine.init_producer(Some(id), TIMEOUT, None).await).expect("identity");
        Self { id, identity, sequence: 0, open: None }
    }

    fn write(&mut self, log: &mut Stepped, to: PartitionId, records: &[(String, Option<String>)]) {
        let (id, identity) = (self.id, self.identity);
        if self.open.is_none() {
            log.run(async |engine| engine.add_partitions_to_transaction(id, identity, &[to]).await).expect("added");
        }
        let mut builder = BatchBuilder::default();
        for (key, value) in records {
            let record = Record::new(Bytes::from(key.clone()), value.clone().map(Bytes::from));
            builder.push(&record, Timestamp(1)).expect("small");
        }
        let batch = builder.finish_as(identity.id, identity.epoch, self.sequence, true);
        self.sequence += records.len() as i32;
        let produced = log.run(async |engine| engine.produce(vec![(to, batch)]).await.remove(0)).expect("produced");
        let offsets = produced.base_offset..;
        let written = records.iter().zip(offsets).map(|((key, value), offset)| (key.clone(), offset, value.clone()));
        self.open.get_or_insert_default().extend(written);
    }

    fn end(&mut self, log: &mut Stepped, marker: Marker) -> Vec<(String, i64, Option<String>)> {
        let (id, identity) = (self.id, self.identity);
        log.run(async |engine| engine.end_transaction(id, identity, marker).await).expect("ended");
        self.open.take().unwrap_or_default()
    }
}

/// What a reader of committed records makes of a partition: the newest value of each key, and all record offsets.
fn shown(log: &Stepped, id: PartitionId) -> (BTreeMap<String, Option<String>>, usize) {
    let (mut at, mut newest, mut count) = (0, BTreeMap::new(), 0);
    let end = log.engine.cut(&[id]).expect("there")[0].last_stable_offset;
    while at < end {
        let (batches, next) = log.engine.read_shown(id, at, 3000, end).expect("readable");
        assert!(next > at);
        at = next;
        for batch in &batches {
            for record in batch.records().map(|record| record.expect("whole")) {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                newest.insert(record.key.map(text).expect("keyed"), record.value.map(text));
                count += 1;
            }
        }
    }
    (newest, count)
}

#[test]
fn an_aborted_record_supersedes_nothing_and_an_open_one_stays() {
    let mut removed = 0;
    for seed in 0..12 {
        let (disk, clock, mut rng) = (SimDisk::new(seed), SimClock::default(), Rng(seed));
        let mut log = Stepped::open(&disk, config(), &clock).expect("new");
        let to = create(&mut log, "a", &spec(|_| ()));
        let mut producers = [Producer::new(&mut log, "first"), Producer::new(&mut log, "second")];
        // The newest by offset, not by the end of its transaction.
        let mut wanted: BTreeMap<String, (i64, Option<String>)> = BTreeMap::new();
        let mut commit = |written: Vec<(String, i64, Option<String>)>| {
            for (key, offset, value) in written {
                let known = wanted.entry(key).or_default();
                if offset >= known.0 {
                    *known = (offset, value);
                }
            }
        };
        for step in 0..260u64 {
            let producer = &mut producers[rng.below(2)];
            match rng.below(12) {
                0..8 => {
                    let records: Vec<_> = (0..1 + rng.below(3))
                        .map(|_| {
                            let value =
                                (rng.below(5) > 0).then(|| format!("{seed}-{step}-{}", "x".repeat(rng.below(50))));
                            (format!("key-{}", rng.below(20)), value)
                        })
                        .collect();
                    producer.write(&mut log, to, &records);
                }
                8 if producer.open.is_some() => drop(producer.end(&mut log, Marker::Abort)),
                9 | 10 if producer.open.is_some() => commit(producer.end(&mut log, Marker::Commit)),
                _ => compact(&mut log),
            }
        }
        for producer in producers.iter_mut().filter(|producer| producer.open.is_some()) {
            commit(producer.end(&mut log, Marker::Commit));
        }
        let wanted: BTreeMap<_, _> = wanted.into_iter().map(|(key, (_, value))| (key, value)).collect();
        let (_, before) = shown(&log, to);
        compact(&mut log);
        removed += log.engine.compaction().removed_records;
        assert_eq!(log.engine.compaction().given_up, 0);
        drop(log);
        let mut log = Stepped::open(&disk, config(), &clock).expect("again");
        let (newest, after) = shown(&log, to);
        assert_eq!(newest, wanted, "seed {seed}");
        assert!(after < before, "seed {seed}: {after} of {before}");
        // A producer goes on where it was.
        producers[0].write(&mut log, to, &[("more".to_owned(), Some("1".to_owned()))]);
        producers[0].end(&mut log, Marker::Commit);
        assert_eq!(shown(&log, to).0["more"].as_deref(), Some("1"));
    }
    assert!(removed > 1000, "{removed}");
}
