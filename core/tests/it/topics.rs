//! Topics: their settings, and how they grow.

use std::path::Path;

use tidemill_core::{ErrorKind, topic::TopicConfig};

use crate::{
    harness::{DIR, Stepped, batch, read_all, small},
    sim::{SimClock, SimDisk},
};

fn reopened(disk: &SimDisk) -> Stepped {
    Stepped::open(disk, small(), &SimClock::default()).expect("opens")
}

fn set(name: &'static str, value: &'static str) -> impl FnOnce(&mut TopicConfig) -> tidemill_core::Result<()> + Send {
    move |config| config.set(name, value)
}

#[test]
fn settings_and_new_partitions_are_there_after_a_restart() {
    let disk = SimDisk::new(1);
    let mut log = reopened(&disk);
    let first = log.create("a", 1).expect("made");
    log.create("b", 2).expect("made");
    log.append(vec![(first[0], batch(1, 1, 10))]).expect("durable");
    let grown = log.run(async |engine| engine.add_partitions("a", 3).await).expect("grown");
    assert_eq!((grown.partitions.len(), grown.partitions[0]), (3, first[0]), "those that were there stay");
    log.append(vec![(grown.partitions[2], batch(2, 1, 10))]).expect("durable");
    log.run(async |engine| engine.alter_topic("a", set("retention.ms", "5000")).await).expect("altered");
    for checkpoint in [false, true] {
        if checkpoint {
            log.stepper.checkpoint().expect("made");
        }
        drop(log);
        log = reopened(&disk);
        let found = log.engine.topic("a").expect("there");
        assert_eq!((&found.partitions, &found.id), (&grown.partitions, &grown.id));
        assert_eq!(found.config.get("retention.ms").as_deref(), Some("5000"));
        assert_eq!(read_all(&log.engine, found.partitions[0]).expect("whole").len(), 1);
        assert_eq!(read_all(&log.engine, found.partitions[2]).expect("whole").len(), 1);
    }
}

#[test]
fn what_a_topic_cannot_become_is_refused() {
    let disk = SimDisk::new(1);
    let mut log = reopened(&disk);
    log.create("a", 2).expect("made");
    let mut kind_of_growth =
        |count| log.run(async |engine| engine.add_partitions("a", count).await).expect_err("refused").kind();
    assert_eq!([kind_of_growth(1), kind_of_growth(0), kind_of_growth(1001)], [ErrorKind::Invalid; 3]);
    let mut kind_of = |topic, name, value| {
        log.run(async |engine| engine.alter_topic(topic, set(name, value)).await).expect_err("refused").kind()
    };
    assert_eq!(kind_of("a", "retention", "1"), ErrorKind::Invalid);
    assert_eq!(kind_of("b", "retention.ms", "1"), ErrorKind::NotFound);
    assert_eq!(kind_of("_tidemill.topics", "retention.ms", "1"), ErrorKind::Denied);
    assert_eq!(log.engine.topic("a").expect("there").config, TopicConfig::default());
}

#[test]
fn a_topics_own_limits_hold() {
    let disk = SimDisk::new(1);
    let mut log = reopened(&disk);
    let id = log.create("a", 1).expect("made")[0];
    let limits = |config: &mut TopicConfig| {
        config.set("max.message.bytes", "2000")?;
        config.set("segment.bytes", "4096")
    };
    log.run(async |engine| engine.alter_topic("a", limits).await).expect("altered");
    let refused = log.append(vec![(id, batch(1, 1, 2000))]).expect_err("too large");
    assert!(refused.kind() == ErrorKind::Invalid && refused.to_string().contains("max.message.bytes"), "{refused}");
    for tag in 0..10 {
        log.append(vec![(id, batch(tag, 1, 1000))]).expect("fits");
    }
    log.stepper.checkpoint().expect("made");
    let folder = Path::new(DIR).join(format!("topics/{:08}/a-0", id.0));
    let own = |path: &Path| path.starts_with(&folder) && path.extension().is_some_and(|end| end == "log");
    let segments = disk.files().iter().filter(|(path, _)| own(path)).count();
    assert!((3..=5).contains(&segments), "{segments} segments of 4 KiB hold ten batches of 1 KiB");
}
