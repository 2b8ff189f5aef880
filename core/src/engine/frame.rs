//! The grammar of the commit log: frames, their descriptors, and the groups they are written in.
//!
//! docs/FORMAT.md has the byte tables. What matters here: a frame is found by position (its LSN equals its place),
//! tied to its predecessor by that one's header CRC, and tells how much of the log was durable when it was written.
//! A group is what one sync made durable; it begins at a multiple of [`GROUP_ALIGN`], so that no sector is shared by
//! two groups and a torn write harms only what was not acknowledged.

use bytes::Bytes;

use crate::{
    batch::{self, BatchHeader, crc32c},
    topic::PartitionId,
};

pub(super) const HEADER_LEN: usize = 64;
pub(super) const GROUP_ALIGN: usize = 512;
const MAGIC: u32 = u32::from_le_bytes(*b"TMF1");
pub(super) const FRAME_ALIGN: usize = 8;
const VERSION: u8 = 1;
const BATCH_ENTRY_LEN: usize = 24;
const STAGED_ENTRY_LEN: usize = 32;
const NOTE_LEN: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Batches with offsets.
    Append = 1,
    /// Batches of an open transaction, without offsets.
    Stage = 2,
    /// A transaction's end: its last batches, and offsets for the staged ones.
    Commit = 3,
    /// Reserved for the control batches of Kafka's transactions.
    Marker = 4,
    /// No records: the opening of a file, or proof that what precedes it is durable.
    Note = 5,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Append, Self::Stage, Self::Commit, Self::Marker, Self::Note].into_iter().find(|k| *k as u8 == byte)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) length: u32,
    pub(super) kind: Kind,
    pub(super) epoch: u64,
    pub(super) lsn: u64,
    /// Everything below this LSN was durable when the frame was written.
    pub(super) durable_lsn: u64,
    pub(super) previous_crc: u32,
    pub(super) descriptor_len: u32,
    pub(super) descriptor_crc: u32,
    pub(super) payload_len: u32,
    /// CRC of this header: what the next frame names as its predecessor.
    pub(super) crc: u32,
}

impl FrameHeader {
    /// Decodes the header at the beginning of `bytes`, or tells that there is none.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let head = bytes.get(..HEADER_LEN)?;
        if le_u32(head, 0) != MAGIC {
            return None;
        }
        let header = Self {
            crc: le_u32(head, 4),
            length: le_u32(head, 8),
            kind: Kind::from_byte(head[12])?,
            epoch: le_u64(head, 16),
            lsn: le_u64(head, 24),
            durable_lsn: le_u64(head, 32),
            previous_crc: le_u32(head, 40),
            descriptor_len: le_u32(head, 44),
            descriptor_crc: le_u32(head, 48),
            payload_len: le_u32(head, 52),
        };
        let content = HEADER_LEN as u64 + u64::from(header.descriptor_len) + u64::from(header.payload_len);
        let sound = crc32c(&head[8..]) == header.crc
            && head[13] == VERSION
            && u64::from(header.length) >= content
            && (header.length as usize).is_multiple_of(FRAME_ALIGN);
        sound.then_some(header)
    }

    fn encode(&mut self, out: &mut [u8]) {
        out[..HEADER_LEN].fill(0);
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[8..12].copy_from_slice(&self.length.to_le_bytes());
        out[12] = self.kind as u8;
        out[13] = VERSION;
        out[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        out[24..32].copy_from_slice(&self.lsn.to_le_bytes());
        out[32..40].copy_from_slice(&self.durable_lsn.to_le_bytes());
        out[40..44].copy_from_slice(&self.previous_crc.to_le_bytes());
        out[44..48].copy_from_slice(&self.descriptor_len.to_le_bytes());
        out[48..52].copy_from_slice(&self.descriptor_crc.to_le_bytes());
        out[52..56].copy_from_slice(&self.payload_len.to_le_bytes());
        self.crc = crc32c(&out[8..HEADER_LEN]);
        out[4..8].copy_from_slice(&self.crc.to_le_bytes());
    }

    pub(super) fn end_lsn(&self) -> u64 {
        self.lsn + u64::from(self.length)
    }
}

/// One batch of a frame, as its descriptor tells it. Staged batches have base offset 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchEntry {
    pub(super) partition: PartitionId,
    pub(super) length: u32,
    pub(super) base_offset: i64,
    /// Offsets the batch takes.
    pub(super) span: u32,
    pub(super) crc: u32,
}

/// A batch staged by an earlier frame that a commit frame gives its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StagedEntry {
    pub(super) stage_lsn: u64,
    pub(super) index: u32,
    pub(super) partition: PartitionId,
    pub(super) base_offset: i64,
    pub(super) span: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum NoteReason {
    /// First frame of the first file of an open epoch.
    Open = 1,
    /// First frame of a further file of the epoch.
    Roll = 2,
    /// Nothing came for a while.
    Idle = 3,
    /// The log was closed in order.
    Clean = 4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) reason: NoteReason,
    /// Where the log continues from: the LSN, and the CRC of the frame that ends there.
    pub(super) continues_lsn: u64,
    pub(super) continues_crc: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Descriptor {
    Batches { batches: Vec<BatchEntry>, staged: Vec<StagedEntry> },
    Note(Note),
}

impl Descriptor {
    /// Decodes and checks the descriptor of a frame. `frame` begins with the frame's header.
    pub(super) fn decode(header: &FrameHeader, frame: &[u8]) -> Option<Self> {
        let bytes = frame.get(HEADER_LEN..HEADER_LEN + header.descriptor_len as usize)?;
        if crc32c(bytes) != header.descriptor_crc {
            return None;
        }
        if header.kind == Kind::Note {
            return Self::decode_note(bytes);
        }
        let (counts, rest) = bytes.split_at_checked(8)?;
        let (batches, staged) = (le_u32(counts, 0) as usize, le_u32(counts, 4) as usize);
        let split = batches.checked_mul(BATCH_ENTRY_LEN)?;
        if rest.len() != split.checked_add(staged.checked_mul(STAGED_ENTRY_LEN)?)? {
            return None;
        }
        let batches: Vec<_> = rest[..split].chunks_exact(BATCH_ENTRY_LEN).map(decode_batch_entry).collect();
        let staged = rest[split..].chunks_exact(STAGED_ENTRY_LEN).map(decode_staged_entry).collect();
        let payload: u64 = batches.iter().map(|b| u64::from(b.length)).sum();
        (payload == u64::from(header.payload_len)).then_some(Self::Batches { batches, staged })
    }

    fn decode_note(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != NOTE_LEN {
            return None;
        }
        let reasons = [NoteReason::Open, NoteReason::Roll, NoteReason::Idle, NoteReason::Clean];
        let reason = reasons.into_iter().find(|r| *r as u8 == bytes[0])?;
        Some(Self::Note(Note { reason, continues_lsn: le_u64(bytes, 8), continues_crc: le_u32(bytes, 16) }))
    }
}

fn decode_batch_entry(e: &[u8]) -> BatchEntry {
    BatchEntry {
        partition: PartitionId(le_u32(e, 0)),
        length: le_u32(e, 4),
        base_offset: le_u64(e, 8) as i64,
        span: le_u32(e, 16),
        crc: le_u32(e, 20),
    }
}

fn decode_staged_entry(e: &[u8]) -> StagedEntry {
    StagedEntry {
        stage_lsn: le_u64(e, 0),
        index: le_u32(e, 8),
        partition: PartitionId(le_u32(e, 12)),
        base_offset: le_u64(e, 16) as i64,
        span: le_u32(e, 24),
    }
}

/// The batches of a frame whose descriptor was decoded, each checked against its entry; `None` at the first that
/// differs in any byte.
pub(super) fn payload(header: &FrameHeader, entries: &[BatchEntry], frame: &Bytes) -> Option<Vec<Bytes>> {
    let mut at = HEADER_LEN + header.descriptor_len as usize;
    let mut batches = Vec::with_capacity(entries.len());
    for entry in entries {
        let bytes = frame.get(at..at + entry.length as usize)?;
        let found = BatchHeader::decode(bytes).ok()?;
        let same = found.size_bytes == bytes.len()
            && found.base_offset == entry.base_offset
            && found.crc == entry.crc
            && found.last_offset_delta + 1 == entry.span
            && bytes[12..16] == [0; 4]
            && crc32c(&bytes[batch::CRC_START..]) == entry.crc;
        if !same {
            return None;
        }
        batches.push(frame.slice(at..at + entry.length as usize));
        at += entry.length as usize;
    }
    Some(batches)
}

/// A batch on its way into a group: its place, its producer's bytes.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) partition: PartitionId,
    pub(super) base_offset: i64,
    pub(super) bytes: Bytes,
}

/// Where a group put one frame, and its batches within the group's buffer.
#[derive(Debug)]
pub(super) struct FramePlace {
    pub(super) lsn: u64,
    pub(super) batches: Vec<std::ops::Range<usize>>,
}

/// Collects the frames of one group into one buffer, which is written with one call and then shared by readers.
#[derive(Debug)]
pub(super) struct GroupBuffer {
    buf: Vec<u8>,
    base_lsn: u64,
    epoch: u64,
    durable_lsn: u64,
    previous_crc: u32,
    last: Option<(usize, FrameHeader)>,
}

impl GroupBuffer {
    /// A group that begins at `base_lsn`, everything below `durable_lsn` being durable.
    pub(super) fn new(base_lsn: u64, epoch: u64, durable_lsn: u64, previous_crc: u32) -> Self {
        Self { buf: Vec::new(), base_lsn, epoch, durable_lsn, previous_crc, last: None }
    }

    /// Upper bound of what a frame of these sizes takes in a group.
    pub(super) fn frame_bound(batches: usize, staged: usize, payload: usize) -> usize {
        HEADER_LEN + 8 + batches * BATCH_ENTRY_LEN + staged * STAGED_ENTRY_LEN + payload + GROUP_ALIGN
    }

    pub(super) fn push_note(&mut self, note: Note) {
        let mut descriptor = [0u8; NOTE_LEN];
        descriptor[0] = note.reason as u8;
        descriptor[8..16].copy_from_slice(&note.continues_lsn.to_le_bytes());
        descriptor[16..20].copy_from_slice(&note.continues_crc.to_le_bytes());
        self.push(Kind::Note, &descriptor, &[]);
    }

    /// Adds a frame of batches, copying each into the group and writing its offset into its first bytes.
    pub(super) fn push_batches(&mut self, kind: Kind, batches: &[Placed], staged: &[StagedEntry]) -> FramePlace {
        let mut descriptor = Vec::with_capacity(8 + batches.len() * BATCH_ENTRY_LEN + staged.len() * STAGED_ENTRY_LEN);
        descriptor.extend_from_slice(&(batches.len() as u32).to_le_bytes());
        descriptor.extend_from_slice(&(staged.len() as u32).to_le_bytes());
        for Placed { partition, base_offset, bytes } in batches {
            let header = BatchHeader::decode(bytes).expect("checked when it was accepted");
            descriptor.extend_from_slice(&partition.0.to_le_bytes());
            descriptor.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            descriptor.extend_from_slice(&base_offset.to_le_bytes());
            descriptor.extend_from_slice(&(header.last_offset_delta + 1).to_le_bytes());
            descriptor.extend_from_slice(&header.crc.to_le_bytes());
        }
        for entry in staged {
            descriptor.extend_from_slice(&entry.stage_lsn.to_le_bytes());
            descriptor.extend_from_slice(&entry.index.to_le_bytes());
            descriptor.extend_from_slice(&entry.partition.0.to_le_bytes());
            descriptor.extend_from_slice(&entry.base_offset.to_le_bytes());
            descriptor.extend_from_slice(&entry.span.to_le_bytes());
            descriptor.extend_from_slice(&[0; 4]);
        }
        self.push(kind, &descriptor, batches)
    }

    fn push(&mut self, kind: Kind, descriptor: &[u8], batches: &[Placed]) -> FramePlace {
        self.seal(FRAME_ALIGN);
        let at = self.buf.len();
        let payload_len: usize = batches.iter().map(|b| b.bytes.len()).sum();
        self.buf.reserve(HEADER_LEN + descriptor.len() + payload_len + GROUP_ALIGN);
        self.buf.resize(at + HEADER_LEN, 0);
        self.buf.extend_from_slice(descriptor);
        let mut ranges = Vec::with_capacity(batches.len());
        for batch in batches {
            let start = self.buf.len();
            self.buf.extend_from_slice(&batch.bytes);
            batch::patch_base_offset(&mut self.buf[start..], batch.base_offset);
            self.buf[start + 12..start + 16].fill(0);
            ranges.push(start..self.buf.len());
        }
        let header = FrameHeader {
            length: 0,
            kind,
            epoch: self.epoch,
            lsn: self.base_lsn + at as u64,
            durable_lsn: self.durable_lsn,
            previous_crc: self.previous_crc,
            descriptor_len: descriptor.len() as u32,
            descriptor_crc: crc32c(descriptor),
            payload_len: payload_len as u32,
            crc: 0,
        };
        self.last = Some((at, header));
        FramePlace { lsn: header.lsn, batches: ranges }
    }

    /// Pads the last frame and writes its header.
    fn seal(&mut self, align: usize) {
        if let Some((at, mut header)) = self.last.take() {
            self.buf.resize(self.buf.len().next_multiple_of(align), 0);
            header.length = (self.buf.len() - at) as u32;
            header.encode(&mut self.buf[at..]);
            self.previous_crc = header.crc;
        }
    }

    /// Ends the group: its bytes, padded to [`GROUP_ALIGN`], and the CRC the next group continues from.
    pub(super) fn finish(mut self) -> (Bytes, u32) {
        self.seal(GROUP_ALIGN);
        (Bytes::from(self.buf), self.previous_crc)
    }
}

fn le_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn le_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// All frames in a file's bytes that belong to (`base_lsn`, `epoch`), by trying every aligned place where the last
/// frame does not tell the next. Stale frames of a recycled file never match: their LSN names another place.
pub(super) fn find_frames(bytes: &[u8], base_lsn: u64, epoch: u64, from: usize) -> Vec<FrameHeader> {
    let mut found = Vec::new();
    let mut at = from;
    while at + HEADER_LEN <= bytes.len() {
        match FrameHeader::decode(&bytes[at..]) {
            Some(header)
                if header.lsn == base_lsn + at as u64
                    && header.epoch == epoch
                    && at + header.length as usize <= bytes.len() =>
            {
                at += header.length as usize;
                found.push(header);
            }
            _ => at += FRAME_ALIGN,
        }
    }
    found
}
