//! A file of a data directory in words, a line for each thing in it.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::walk::{Found, walk};
use crate::{
    Error, Result,
    batch::{Batch, BatchHeader},
    engine::{
        frame::{self, Descriptor, FrameHeader, Kind},
        index::{Interval, SparseIndex},
        manifest::Manifest,
        superblock::Superblock,
    },
    storage::{Open, Storage, StorageFile},
};

/// A file of a commit log is not larger.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Writes what the file says: a superblock, a manifest, a file of the commit log, a segment, or an index, told by its name.
/// With `records`, the records of batches too, as text where they are UTF-8.
///
/// What is damaged gets a line that says so; what can be found behind it follows.
///
/// # Errors
/// `Invalid` for a file of another name, `NotFound`, `Corrupt` where nothing can be made of it.
pub fn dump(storage: &dyn Storage, path: &Path, records: bool, out: &mut dyn Write) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let open = || storage.open(path, Open::Existing).map_err(|e| Error::from(e).context(path.display().to_string()));
    let parent = path.parent().and_then(Path::file_name).unwrap_or_default();
    match name.split_once('.') {
        None if name == "superblock" => dump_superblock(&*open()?, out),
        None if name.starts_with("manifest-") => dump_manifest(storage, path, out),
        Some((_, "log")) if parent == "commitlog" => dump_commit_log(&open()?, records, out),
        Some((_, rest)) if rest.ends_with("index") => dump_index(storage, path, &name, out),
        Some((base, rest)) if rest.ends_with("log") && base.len() == 20 => {
            let base = base.parse().map_err(|_| Error::invalid(format!("{name} does not begin with an offset")))?;
            dump_segment(&*open()?, base, records, out)
        }
        _ => Err(Error::invalid(format!(
            "{name} is none of superblock, manifest-N, commitlog/N.log, OFFSET.log, OFFSET.index"
        ))),
    }
}

fn dump_superblock(file: &dyn StorageFile, out: &mut dyn Write) -> Result<()> {
    for (i, copy) in Superblock::copies(file)?.into_iter().enumerate() {
        match copy {
            None => writeln!(out, "copy {i}: damaged, or never written")?,
            Some(Superblock { generation, log_id, epoch, durable_lsn, checkpoint_lsn, manifest }) => writeln!(
                out,
                "copy {i}: generation {generation} log_id {log_id:032x} epoch {epoch} durable_lsn {durable_lsn} \
                 checkpoint_lsn {checkpoint_lsn} manifest {manifest}"
            )?,
        }
    }
    Ok(())
}

fn dump_manifest(storage: &dyn Storage, path: &Path, out: &mut dyn Write) -> Result<()> {
    let manifest = Manifest::read(storage, path)?;
    let text = serde_json::to_string_pretty(&manifest).map_err(|e| Error::internal("a manifest").with_source(e))?;
    Ok(writeln!(out, "{text}")?)
}

fn dump_index(storage: &dyn Storage, path: &Path, name: &str, out: &mut dyn Write) -> Result<()> {
    let segment: PathBuf = path.with_extension("log");
    let length = storage.open(&segment, Open::Existing)?.len()?;
    let index = SparseIndex::read(storage, path, length);
    let index =
        index.ok_or_else(|| Error::corrupt(format!("{name} is damaged, or of another length of its segment")))?;
    for Interval { base_offset: offset, position, .. } in index.entries() {
        writeln!(out, "offset {offset} position {position}")?;
    }
    Ok(())
}

fn dump_segment(file: &dyn StorageFile, base: i64, records: bool, out: &mut dyn Write) -> Result<()> {
    let length = file.len()?;
    walk(file, base, length, |position, found| {
        match found {
            Found::Sound(batch) => {
                writeln!(out, "byte {position}: {}", batch_line(batch.header()))?;
                if records {
                    dump_records(&batch, out)?;
                }
            }
            Found::Damaged(header, why) => writeln!(out, "byte {position}: DAMAGED {} ({why})", batch_line(&header))?,
            Found::Unreadable(why) => writeln!(out, "byte {position}: UNREADABLE from here on ({why})")?,
        }
        Ok(())
    })
}

fn batch_line(header: &BatchHeader) -> String {
    let mut line = format!(
        "batch offsets {}..={} records {} bytes {} crc {:08x} time {}..={}",
        header.base_offset,
        header.next_offset() - 1,
        header.record_count,
        header.size_bytes,
        header.crc,
        header.base_timestamp,
        header.max_timestamp,
    );
    if header.has_producer() {
        let BatchHeader { producer_id, producer_epoch, base_sequence, .. } = header;
        line.push_str(&format!(" producer {producer_id} epoch {producer_epoch} sequence {base_sequence}"));
    }
    let marks = [
        (header.is_compressed(), " compressed"),
        (header.has_append_time(), " append-time"),
        (header.is_transactional(), " transactional"),
        (header.is_control(), " control"),
    ];
    marks.into_iter().filter(|(is, _)| *is).for_each(|(_, mark)| line.push_str(mark));
    line
}

fn dump_records(batch: &Batch, out: &mut dyn Write) -> Result<()> {
    if batch.header().is_compressed() {
        return Ok(writeln!(out, "    its records are compressed")?);
    }
    for record in batch.records() {
        match record {
            Ok(record) => {
                let [key, value] = [record.key, record.value].map(shown);
                writeln!(out, "    offset {} time {} key {key} value {value}", record.offset, record.timestamp)?;
            }
            Err(error) => writeln!(out, "    DAMAGED ({})", error.message())?,
        }
    }
    Ok(())
}

/// Bytes as text in quotation marks; as hexadecimal digits where they are none.
fn shown(bytes: Option<&[u8]>) -> String {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => "null".to_owned(),
        Some((Ok(text), _)) => format!("{text:?}"),
        Some((Err(_), bytes)) => bytes.iter().fold("0x".to_owned(), |hex, byte| format!("{hex}{byte:02x}")),
    }
}

fn dump_commit_log(file: &Arc<dyn StorageFile>, records: bool, out: &mut dyn Write) -> Result<()> {
    let length = file.len()?;
    if length > MAX_FILE_BYTES {
        return Err(Error::corrupt(format!("a file of {length} bytes is no file of a commit log")));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)?;
    let bytes = Bytes::from(bytes);
    // What stands here may be of several uses of the file: a frame belongs to the use that its LSN and epoch tell.
    let mut at = 0;
    let mut last: Option<FrameHeader> = None;
    while at < bytes.len() {
        let Some(header) = FrameHeader::decode(&bytes[at..]).filter(|h| at + h.length as usize <= bytes.len()) else {
            at += frame::FRAME_ALIGN;
            continue;
        };
        let broken = last.is_some_and(|last| last.end_lsn() != header.lsn || last.crc != header.previous_crc);
        if broken {
            writeln!(out, "-- what follows does not continue what stands before --")?;
        }
        dump_frame(at, &header, &bytes.slice(at..at + header.length as usize), records, out)?;
        at += header.length as usize;
        last = Some(header);
    }
    Ok(())
}

fn dump_frame(at: usize, header: &FrameHeader, frame: &Bytes, records: bool, out: &mut dyn Write) -> Result<()> {
    let FrameHeader { kind, epoch, lsn, durable_lsn, length, .. } = header;
    let kind_name = format!("{kind:?}").to_lowercase();
    write!(out, "byte {at}: {kind_name} lsn {lsn} epoch {epoch} bytes {length} durable_lsn {durable_lsn}")?;
    match Descriptor::decode(header, frame) {
        None => writeln!(out, " DAMAGED descriptor")?,
        Some(Descriptor::Note(note)) => {
            writeln!(out, " {} continues_lsn {}", format!("{:?}", note.reason).to_lowercase(), note.continues_lsn)?;
        }
        Some(Descriptor::Batches { batches, staged }) => {
            writeln!(out)?;
            let payload = frame::payload(header, &batches, frame);
            let damaged = if payload.is_none() { " DAMAGED" } else { "" };
            for (i, entry) in batches.iter().enumerate() {
                let (partition, first) = (entry.partition.0, entry.base_offset);
                let offsets = match kind {
                    Kind::Stage => format!("{} offsets", entry.span),
                    _ => format!("offsets {first}..={}", first + i64::from(entry.span) - 1),
                };
                writeln!(out, "  partition {partition} {offsets} bytes {}{damaged}", entry.length)?;
                if let Some(bytes) = payload.as_ref().filter(|_| records).map(|batches| &batches[i]) {
                    dump_records(&Batch::parse(bytes)?, out)?;
                }
            }
            for entry in staged {
                let (partition, first) = (entry.partition.0, entry.base_offset);
                let last = first + i64::from(entry.span) - 1;
                let (lsn, index) = (entry.stage_lsn, entry.index);
                writeln!(out, "  partition {partition} offsets {first}..={last} staged at lsn {lsn}, batch {index}")?;
            }
        }
    }
    Ok(())
}
