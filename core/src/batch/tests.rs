use proptest::prelude::*;

use super::*;
use crate::{
    Reason,
    record::{Header, Record, Timestamp},
};

fn bytes() -> impl Strategy<Value = Option<Bytes>> {
    proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from))
}

fn record() -> impl Strategy<Value = Record> {
    let header = (proptest::collection::vec(any::<u8>(), 0..9), bytes())
        .prop_map(|(name, value)| Header { name: Bytes::from(name), value });
    (bytes(), bytes(), proptest::collection::vec(header, 0..4), any::<i64>())
        .prop_map(|(key, value, headers, ts)| Record { key, value, headers, timestamp: Some(Timestamp(ts)) })
}

fn build(records: &[Record], base_offset: i64) -> Bytes {
    let mut builder = BatchBuilder::default();
    records.iter().for_each(|r| builder.push(r, Timestamp(0)).expect("small"));
    let mut batch = builder.finish().to_vec();
    patch_base_offset(&mut batch, base_offset);
    Bytes::from(batch)
}

proptest! {
    #[test]
    fn what_is_built_is_scanned(records in proptest::collection::vec(record(), 1..20), base in 0i64..1 << 40) {
        let bytes = build(&records, base);
        let batch = Batch::parse(&bytes).expect("own batch");
        prop_assert_eq!(batch.header().next_offset(), base + records.len() as i64);
        let scanned: Vec<_> =
            batch.records().map(|r| r.and_then(|r| r.to_owned_in(batch.bytes()))).collect::<Result<_>>().expect("valid");
        prop_assert_eq!(scanned.len(), records.len());
        for (i, (found, record)) in scanned.iter().zip(&records).enumerate() {
            prop_assert_eq!(found.offset, base + i as i64);
            prop_assert_eq!(&found.key, &record.key);
            prop_assert_eq!(&found.value, &record.value);
            prop_assert_eq!(&found.headers, &record.headers);
            prop_assert_eq!(Some(found.timestamp), record.timestamp);
        }
    }

    #[test]
    fn a_flipped_bit_never_passes(records in proptest::collection::vec(record(), 1..5), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let good = build(&records, 7);
        let mut bad = good.to_vec();
        let at = at.index(bad.len());
        bad[at] ^= 1 << bit;
        // The offset and the epoch lie outside the CRC: the frame's descriptor guards them.
        if !(0..8).contains(&at) && !(12..16).contains(&at) {
            prop_assert!(Batch::parse(&Bytes::from(bad)).is_err());
        }
    }

    #[test]
    fn what_is_taken_is_readable(
        records in proptest::collection::vec(record(), 1..6),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = build(&records, 0).to_vec();
        for (at, value) in changes {
            let at = CRC_START + at.index(bytes.len() - CRC_START);
            bytes[at] = value;
        }
        if let Ok(taken) = check_produced(&with_crc(bytes)) {
            let batch = Batch::parse(&taken).expect("sound");
            prop_assert!(!batch.header().is_control());
            if !batch.header().is_compressed() {
                let read: Vec<_> = batch.records().map(|r| r.and_then(|r| r.to_owned_in(batch.bytes()))).collect::<Result<_>>().expect("readable");
                prop_assert_eq!(read.len(), batch.header().next_offset() as usize);
                prop_assert_eq!(read.iter().map(|r| r.timestamp.0).max(), Some(batch.header().max_timestamp));
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(mut noise in proptest::collection::vec(any::<u8>(), 0..400), fix in any::<bool>()) {
        if fix && noise.len() > HEADER_LEN {
            noise[16] = 2;
            let length = (noise.len() - 12) as i32;
            noise[8..12].copy_from_slice(&length.to_be_bytes());
            noise[0] = 0;
            noise[21] = 0;
            noise[22] = 0;
            let crc = crc32c(&noise[CRC_START..]);
            noise[17..21].copy_from_slice(&crc.to_be_bytes());
        }
        if let Ok(batch) = Batch::parse(&Bytes::from(noise)) {
            for record in batch.records().flatten() {
                let _ = record.to_owned_in(batch.bytes());
            }
        }
    }
}

#[test]
fn the_crc_is_castagnoli() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

fn with_crc(mut batch: Vec<u8>) -> Bytes {
    let crc = crc32c(&batch[CRC_START..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    Bytes::from(batch)
}

fn produced(records: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    for i in 0..records {
        let header = Header::text("h", "v");
        let record = Record { headers: vec![header], ..Record::new(None, Bytes::from(format!("value {i}"))) };
        builder.push(&record, Timestamp(100 + i as i64)).expect("small");
    }
    builder.finish_as(7, 1, 40, false).to_vec()
}

#[test]
fn the_header_tells_the_producer() {
    let header = BatchHeader::decode(&produced(3)).expect("sound");
    assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (7, 1, 40));
    assert!(header.has_producer() && !header.is_transactional() && !header.is_control() && !header.has_append_time());
    let marker = control_batch(7, 2, Marker::Abort, Timestamp(9)).expect("small");
    let batch = Batch::parse(&marker).expect("sound");
    let header = batch.header();
    assert!(header.is_control() && header.is_transactional());
    assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (7, 2, -1));
    assert_eq!(Marker::of(&batch), Some(Marker::Abort));
    let commit = Batch::parse(&control_batch(7, 2, Marker::Commit, Timestamp(9)).expect("small")).expect("sound");
    assert_eq!(Marker::of(&commit), Some(Marker::Commit));
    let record = commit.records().next().expect("one").expect("sound");
    assert_eq!((record.key, record.value), (Some(&[0, 0, 0, 1][..]), Some(&[0; 6][..])));
}

#[test]
fn what_a_producer_may_not_write_is_refused() {
    assert_eq!(check_produced(&Bytes::from(produced(3))).expect("as it should be"), produced(3));
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut batch = produced(3);
        change(&mut batch);
        let length = (batch.len() - 12) as i32;
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        check_produced(&with_crc(batch)).map_err(|e| e.reason().expect("a reason"))
    };
    let record = Err(Reason::InvalidRecord);
    assert_eq!(changed(&|b| b[22] = 0x20), record, "a control batch");
    assert_eq!(changed(&|b| b[22] = 0x08), Err(Reason::InvalidTimestamp));
    assert_eq!(changed(&|b| b[22] = 0x40), record, "an attribute of nobody's");
    assert_eq!(changed(&|b| b[22] = 5), Err(Reason::UnsupportedCompression));
    assert_eq!(changed(&|b| b[60] = 2), record, "fewer records than offsets");
    assert_eq!(changed(&|b| b[57..61].copy_from_slice(&[0; 4])), record, "no records");
    assert_eq!(changed(&|b| b[53] = 0x80), record, "a negative sequence");
    assert_eq!(changed(&|b| b[51] = 0x80), record, "a negative epoch");
    assert_eq!(changed(&|b| b.push(0)), record, "a byte too many");
    // Length, attributes, timestamp, then the first record's offset delta.
    assert_eq!(changed(&|b| b[64] = 2), record, "offsets begin at 1");
    assert_eq!(changed(&|b| b[61] += 2), record, "a record longer than what it holds");
    assert!(changed(&|b| b[22] = 4).is_ok(), "zstd, whatever is in it");
    assert_eq!(check_produced(&Bytes::from(vec![0; 80])).expect_err("noise").reason(), Some(Reason::CorruptBatch));
    let mut flipped = produced(3);
    flipped[80] ^= 1;
    assert_eq!(check_produced(&Bytes::from(flipped)).expect_err("crc").reason(), Some(Reason::CorruptBatch));
}

#[test]
fn the_greatest_time_is_mended() {
    let mut batch = produced(3);
    batch[35..43].copy_from_slice(&5i64.to_be_bytes());
    let mended = check_produced(&with_crc(batch)).expect("taken");
    assert_eq!(mended, produced(3));
}

#[test]
fn the_logs_own_time_is_that_of_all_records() {
    let stamped = Batch::parse(&stamp_append_time(&produced(3), Timestamp(77))).expect("the crc is anew");
    assert!(stamped.header().has_append_time());
    let times: Vec<_> = stamped.records().map(|record| record.expect("sound").timestamp).collect();
    assert_eq!(times, [77; 3]);
    let plain = Batch::parse(&Bytes::from(produced(3))).expect("sound");
    assert_eq!(plain.records().map(|record| record.expect("sound").timestamp).collect::<Vec<_>>(), [100, 101, 102]);
}
