//! What is done every so often: files that nobody needs go, and what hinders that harms nothing.

use std::{path::Path, sync::Arc, time::Duration};

use tidemill_core::{
    engine::Engine,
    topic::{PartitionId, TopicSpec},
};

use crate::{
    harness::{DIR, Stepped, batch, small},
    sim::{EIO, Fault, SimClock, SimDisk},
};

fn files_of(disk: &SimDisk, id: PartitionId) -> usize {
    let folder = Path::new(DIR).join(format!("topics/{:08}", id.0));
    disk.files().iter().filter(|(path, _)| path.starts_with(&folder)).count()
}

#[test]
fn what_hinders_a_chore_is_told_and_tried_again() {
    let disk = SimDisk::new(1);
    let mut log = Stepped::open(&disk, small(), &SimClock::default()).expect("opens");
    let id = log.create("a", 1).expect("made")[0];
    log.append(vec![(id, batch(1, 1, 1000))]).expect("durable");
    log.stepper.checkpoint().expect("made");
    log.run(async |engine| engine.delete_topic("a").await).expect("deleted");
    log.stepper.housekeep();
    assert!(files_of(&disk, id) > 0, "the manifest lists them");
    log.stepper.checkpoint().expect("made");
    disk.inject(Fault { operation: "remove_dir", path: "/topics/", after: 0, error: EIO, forever: true });
    log.stepper.housekeep();
    log.stepper.housekeep();
    let told = log.engine.housekeeping()["removal"].clone();
    assert_eq!(told.count, 2);
    assert!(told.error.expect("told").contains("topics/00000016"));
    let other = log.create("b", 1).expect("goes on")[0];
    log.append(vec![(other, batch(2, 1, 10))]).expect("goes on");
    disk.heal();
    log.stepper.housekeep();
    let told = log.engine.housekeeping()["removal"].clone();
    assert_eq!((told.count, told.error), (2, None));
    assert_eq!(files_of(&disk, id), 0);
}

/// On an idle log no checkpoint is due for its own sake.
#[tokio::test(flavor = "multi_thread")]
async fn a_delete_frees_the_disk_soon() {
    let disk = SimDisk::new(1);
    let clock = Arc::new(SimClock::default());
    let engine = Engine::open(Path::new(DIR), small(), Arc::new(disk.clone()), clock).expect("opens");
    let id = engine.create_topic("a", &TopicSpec::partitions(1)).await.expect("made").partitions[0];
    for tag in 0..40 {
        engine.append(vec![(id, batch(tag, 1, 4000))], None).await.expect("durable");
    }
    let soon = async |done: &dyn Fn() -> bool| {
        for _ in 0..1000 {
            if done() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    };
    assert!(soon(&|| files_of(&disk, id) > 0).await, "segments are written");
    engine.delete_topic("a").await.expect("deleted");
    assert!(soon(&|| files_of(&disk, id) == 0).await, "its files are still there");
    engine.close().expect("in order");
}
