//! A batch with fewer records, as compaction writes it: base offset, last offset delta, producer, epoch, sequence and the
//! times of its records stay; its CRC, its count and, where it held them, its largest time are new.
//!
//! A batch that keeps tombstones learns until when they must stay (its *delete horizon*). As Kafka does, it stands in the
//! batch itself: attribute bit 6 is set, the base timestamp is the horizon, and the records' times count from there.

use bytes::Bytes;

use super::{
    Batch, BatchHeader, COMPRESSION, CRC_START, HEADER_LEN, RecordRef, builder::put_varint, crc32c, scan::Cursor,
};
use crate::{Error, Result};

const DELETE_HORIZON: i16 = 1 << 6;
/// What a batch without records has as its times, as in Kafka.
const NO_TIMESTAMP: i64 = -1;

impl BatchHeader {
    /// From when on its tombstones may go; `None` where compaction has not decided it yet.
    pub fn delete_horizon(&self) -> Option<i64> {
        (self.attributes & DELETE_HORIZON != 0).then_some(self.base_timestamp)
    }
}

/// What is left of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Left {
    /// All of it, byte for byte.
    All,
    /// These bytes in its place.
    Some(Bytes),
    /// No record.
    Nothing,
}

/// A batch after compaction looked at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rewritten {
    pub(crate) left: Left,
    /// Records that went.
    pub(crate) removed: u64,
    /// The delete horizon of the tombstones that stay.
    pub(crate) horizon: Option<i64>,
}

/// Keeps of a batch the records that `keep` says. Tombstones that stay get `horizon`, unless the batch has one.
///
/// # Errors
/// `Corrupt` for a malformed record, `Unsupported` for a compressed batch.
pub(crate) fn rewrite(
    batch: &Batch,
    horizon: Option<i64>,
    mut keep: impl FnMut(&RecordRef<'_>) -> bool,
) -> Result<Rewritten> {
    let header = batch.header();
    // The kept records as runs of bytes: one run where all stay.
    let mut runs: Vec<&[u8]> = Vec::new();
    let (mut kept, mut tombstones, mut max_timestamp) = (0u32, false, i64::MIN);
    let mut records = batch.records();
    let mut run = records.rest();
    loop {
        let before = records.rest();
        let Some(record) = records.next() else { break };
        let record = record?;
        if keep(&record) {
            kept += 1;
            tombstones |= record.value.is_none();
            max_timestamp = max_timestamp.max(record.timestamp);
            continue;
        }
        runs.extend(Some(&run[..run.len() - before.len()]).filter(|run| !run.is_empty()));
        run = records.rest();
    }
    runs.extend(Some(&run[..run.len() - records.rest().len()]).filter(|run| !run.is_empty()));
    let removed = u64::from(header.record_count - kept);
    let set = horizon.filter(|_| tombstones && header.delete_horizon().is_none());
    let left = match (kept, removed, set) {
        (0, ..) => Left::Nothing,
        (_, 0, None) => Left::All,
        _ => {
            if header.has_append_time() {
                max_timestamp = header.max_timestamp;
            }
            Left::Some(assemble(batch, &runs, kept, max_timestamp, set)?)
        }
    };
    let horizon = set.or(header.delete_horizon()).filter(|_| tombstones);
    Ok(Rewritten { left, removed, horizon })
}

fn assemble(batch: &Batch, runs: &[&[u8]], kept: u32, max_timestamp: i64, horizon: Option<i64>) -> Result<Bytes> {
    let size: usize = runs.iter().map(|run| run.len()).sum();
    let mut bytes = Vec::with_capacity(HEADER_LEN + size + if horizon.is_some() { size / 4 } else { 0 });
    bytes.extend_from_slice(&batch.bytes()[..HEADER_LEN]);
    match horizon {
        None => runs.iter().for_each(|run| bytes.extend_from_slice(run)),
        Some(horizon) => {
            let header = batch.header();
            bytes[21..23].copy_from_slice(&(header.attributes | DELETE_HORIZON).to_be_bytes());
            bytes[27..35].copy_from_slice(&horizon.to_be_bytes());
            let shift = header.base_timestamp.wrapping_sub(horizon);
            runs.iter().try_for_each(|run| shift_times(run, shift, &mut bytes))?;
        }
    }
    bytes[35..43].copy_from_slice(&max_timestamp.to_be_bytes());
    bytes[57..61].copy_from_slice(&kept.to_be_bytes());
    Ok(seal(bytes))
}

/// Copies records whose times count from another base.
fn shift_times(run: &[u8], shift: i64, out: &mut Vec<u8>) -> Result<()> {
    let malformed = || Error::corrupt("batch holds a malformed record");
    let mut cursor = Cursor { rest: run };
    let mut body = Vec::new();
    while !cursor.rest.is_empty() {
        let length = cursor.varint().and_then(|length| usize::try_from(length).ok()).ok_or_else(malformed)?;
        let mut record = Cursor { rest: cursor.take(length).ok_or_else(malformed)? };
        body.clear();
        body.extend_from_slice(record.take(1).ok_or_else(malformed)?);
        put_varint(&mut body, record.varint().ok_or_else(malformed)?.wrapping_add(shift));
        body.extend_from_slice(record.rest);
        put_varint(out, body.len() as i64);
        out.extend_from_slice(&body);
    }
    Ok(())
}

/// A batch without records over `[base_offset, next_offset)`, which are at most 2^31 offsets.
pub(crate) fn gap(base_offset: i64, next_offset: i64) -> Bytes {
    let mut bytes = vec![0; HEADER_LEN];
    bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
    bytes[16] = 2;
    let delta = i32::try_from(next_offset - base_offset - 1).expect("a gap is bounded by who makes it");
    bytes[23..27].copy_from_slice(&delta.to_be_bytes());
    bytes[43..57].copy_from_slice(&[0xff; 14]);
    without_times(bytes)
}

/// The batch without its records: of a producer's last one, number, epoch and sequence must stay.
pub(crate) fn emptied(batch: &Batch) -> Bytes {
    let mut bytes = batch.bytes()[..HEADER_LEN].to_vec();
    let attributes = batch.header().attributes & !(COMPRESSION | DELETE_HORIZON);
    bytes[21..23].copy_from_slice(&attributes.to_be_bytes());
    without_times(bytes)
}

fn without_times(mut header: Vec<u8>) -> Bytes {
    header[27..35].copy_from_slice(&NO_TIMESTAMP.to_be_bytes());
    header[35..43].copy_from_slice(&NO_TIMESTAMP.to_be_bytes());
    header[57..61].fill(0);
    seal(header)
}

fn seal(mut bytes: Vec<u8>) -> Bytes {
    let length = (bytes.len() - 12) as i32;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c(&bytes[CRC_START..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    Bytes::from(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        batch::{BatchBuilder, patch_base_offset},
        record::{FetchedRecord, Header, Record, Timestamp},
    };

    fn batch_of(records: &[Record]) -> Batch {
        let mut builder = BatchBuilder::default();
        records.iter().for_each(|r| builder.push(r, Timestamp(0)).unwrap());
        let mut bytes = builder.finish().to_vec();
        patch_base_offset(&mut bytes, 1000);
        bytes[43..51].copy_from_slice(&77i64.to_be_bytes());
        Batch::parse(&seal(bytes)).unwrap()
    }

    fn scanned(batch: &Batch) -> Vec<FetchedRecord> {
        batch.records().map(|r| r.and_then(|r| r.to_owned_in(batch.bytes())).unwrap()).collect()
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let bytes = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from));
        let header = (proptest::collection::vec(any::<u8>(), 0..5), bytes())
            .prop_map(|(name, value)| Header { name: Bytes::from(name), value });
        (bytes(), bytes(), proptest::collection::vec(header, 0..3), any::<i64>())
            .prop_map(|(key, value, headers, ts)| Record { key, value, headers, timestamp: Some(Timestamp(ts)) })
    }

    proptest! {
        #[test]
        fn what_is_kept_is_as_it_was(records in proptest::collection::vec(any_record(), 1..12), mask in any::<u16>(),
                                     horizon in proptest::option::of(any::<i64>())) {
            let batch = batch_of(&records);
            let keep = |offset: i64| mask >> (offset - 1000) & 1 == 1;
            let done = rewrite(&batch, horizon, |record| keep(record.offset)).unwrap();
            let wanted: Vec<_> = scanned(&batch).into_iter().filter(|r| keep(r.offset)).collect();
            prop_assert_eq!(done.removed as usize, records.len() - wanted.len());
            let tombstones = wanted.iter().any(|record| record.value.is_none());
            prop_assert_eq!(done.horizon, horizon.filter(|_| tombstones));
            let after = match done.left {
                Left::Nothing => { prop_assert!(wanted.is_empty()); return Ok(()) }
                Left::All => batch.clone(),
                Left::Some(bytes) => Batch::parse(&bytes).unwrap(),
            };
            let (old, new) = (batch.header(), after.header());
            prop_assert_eq!(scanned(&after), wanted.clone());
            prop_assert_eq!((new.base_offset, new.last_offset_delta), (old.base_offset, old.last_offset_delta));
            prop_assert_eq!(new.producer_id, 77);
            prop_assert_eq!(Some(new.max_timestamp), wanted.iter().map(|r| r.timestamp.0).max());
            prop_assert_eq!(new.delete_horizon(), horizon.filter(|_| tombstones));
            // The horizon was decided once.
            let again = rewrite(&after, Some(5), |_| true).unwrap();
            prop_assert_eq!(again.left == Left::All, horizon.is_some() || !tombstones);
        }
    }

    #[test]
    fn batches_without_records_are_sound() {
        let gap = Batch::parse(&gap(70, 70 + (1 << 31))).unwrap();
        assert_eq!((gap.header().base_offset, gap.header().next_offset()), (70, 70 + (1 << 31)));
        assert_eq!((gap.records().count(), gap.header().producer_id, gap.bytes().len()), (0, -1, HEADER_LEN));
        let batch = batch_of(&[Record::new(Bytes::from_static(b"k"), None), Record::default()]);
        let emptied = Batch::parse(&emptied(&batch)).unwrap();
        assert_eq!((emptied.header().next_offset(), emptied.header().producer_id), (1002, 77));
        assert_eq!((emptied.records().count(), emptied.header().max_timestamp), (0, -1));
    }

    /// What a batch says in the time of its append is not its records' own.
    #[test]
    fn the_time_of_an_append_stays() {
        let mut bytes = batch_of(&[Record::new(Bytes::from_static(b"a"), None), Record::default()]).bytes().to_vec();
        bytes[21..23].copy_from_slice(&crate::batch::APPEND_TIME.to_be_bytes());
        bytes[35..43].copy_from_slice(&999i64.to_be_bytes());
        let batch = Batch::parse(&seal(bytes)).unwrap();
        let done = rewrite(&batch, Some(4000), |record| record.offset == 1000).unwrap();
        let Left::Some(after) = done.left else { panic!("{done:?}") };
        assert_eq!(Batch::parse(&after).unwrap().header().max_timestamp, 999);
    }
}
