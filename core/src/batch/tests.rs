use proptest::prelude::*;

use super::*;
use crate::record::{Header, Record, Timestamp};

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
