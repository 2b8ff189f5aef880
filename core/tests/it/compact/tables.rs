//! The log's own topics do not grow for ever.

use bytes::Bytes;
use tidemill_core::{
    batch::BatchBuilder,
    engine::{Engine, Table},
    record::{Record, Timestamp},
};

use super::keyed::{compact, config};
use crate::{
    harness::{DIR, Stepped},
    sim::{SimClock, SimDisk},
};

#[test]
fn positions_take_room_for_their_newest_only() {
    let (disk, clock) = (SimDisk::new(9), SimClock::default());
    let mut log = Stepped::open(&disk, config(), &clock).expect("new");
    let mut written = 0;
    for update in 0..500u64 {
        let mut builder = BatchBuilder::default();
        for record in 0..200 {
            let key = Engine::position_key(&format!("owner-{}", record % 4), &format!("input-{}", record % 10));
            let value = Bytes::from(format!("{{\"offset\":{}}}", update * 200 + record));
            builder.push(&Record::new(key, value), Timestamp(5)).expect("small");
        }
        let batch = builder.finish();
        written += batch.len();
        log.append(vec![(Table::Positions.partition(), batch)]).expect("appended");
        if update % 50 == 49 {
            compact(&mut log);
        }
    }
    compact(&mut log);
    let folder = std::path::Path::new(DIR).join("topics/00000001");
    let taken: usize = disk.files().iter().filter(|(path, _)| path.starts_with(&folder)).map(|(_, size)| size).sum();
    println!("100,000 updates of 40 positions: {written} bytes written, {taken} on the disk");
    assert!(taken < 64 << 10, "{taken} bytes of {written}");
    let before = log.engine.table(Table::Positions);
    assert_eq!(before.len(), 20);
    drop(log);
    let log = Stepped::open(&disk, config(), &clock).expect("again");
    assert_eq!(log.engine.table(Table::Positions), before);
}
