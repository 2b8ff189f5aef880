//! Is every byte that counts still what was written?

use std::{collections::BTreeSet, path::Path, sync::Arc};

use super::walk::{Found, walk};
use crate::{
    Error, ErrorKind, Result,
    batch::Batch,
    clock::Clock,
    engine::{Config, Engine, RecoveryReport, partition::Partition, segment::Segment},
    storage::{DryStorage, Open, Storage},
};

/// Faults of one partition that are told; more are counted.
const MAX_FAULTS: usize = 20;

/// What is in a data directory, and what is wrong with it.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    /// What an opening would find in the commit log.
    pub recovery: RecoveryReport,
    /// Every partition, the log's own included, by name.
    pub partitions: Vec<PartitionReport>,
    /// Files that belong to nothing: what a crash left. The next opening or checkpoint may remove them.
    pub leftovers: Vec<String>,
}

/// One partition.
#[derive(Debug, Clone, Default)]
pub struct PartitionReport {
    /// `topic[number]`.
    pub name: String,
    /// First offset that is kept.
    pub log_start_offset: i64,
    /// Offset after the last record.
    pub end_offset: i64,
    /// Its segments.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Sound batches, in segments and in the commit log only.
    pub batches: u64,
    /// Records of these.
    pub records: u64,
    /// What is wrong, each with its place; the first of them.
    pub faults: Vec<String>,
    /// How many faults there are.
    pub fault_count: u64,
}

impl VerifyReport {
    /// Whether nothing is lost and nothing is damaged. An end that no proof covers is cut at each opening after a crash, and
    /// is no fault.
    pub fn is_sound(&self) -> bool {
        self.recovery.damage.is_empty() && self.partitions.iter().all(|partition| partition.fault_count == 0)
    }
}

/// Reads everything that the log in `data_dir` holds, and checks it. Changes nothing.
///
/// # Errors
/// `NotFound` where there is no log; `Corrupt`, `Unsupported` where it cannot be opened at all; `Unavailable` for a disk
/// that does not read.
pub fn verify(
    data_dir: &Path,
    config: Config,
    storage: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
) -> Result<VerifyReport> {
    if storage.open(&data_dir.join("superblock"), Open::Existing).is_err_and(is_absent) {
        return Err(Error::not_found(format!("no log in {}", data_dir.display())));
    }
    let dry: Arc<dyn Storage> = Arc::new(DryStorage::new(storage));
    let (engine, stepper) = Engine::open_stepped(data_dir, config, Arc::clone(&dry), clock)?;
    let mut report = VerifyReport { recovery: engine.report.clone(), ..VerifyReport::default() };
    let partitions = engine.shared.partitions.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    for partition in partitions.values() {
        report.partitions.push(check_partition(&*dry, partition)?);
    }
    drop(partitions);
    report.partitions.sort_by(|a, b| a.name.cmp(&b.name));
    report.leftovers = leftovers(&*dry, &engine, data_dir)?;
    drop((engine, stepper));
    Ok(report)
}

fn is_absent(error: std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
}

fn check_partition(storage: &dyn Storage, partition: &Partition) -> Result<PartitionReport> {
    let state = partition.state();
    let mut report = PartitionReport {
        name: partition.name.clone(),
        log_start_offset: state.log_start_offset,
        end_offset: state.durable_offset,
        segments: state.segments.len(),
        bytes: state.segments.iter().map(|segment| segment.length()).sum(),
        ..PartitionReport::default()
    };
    for damage in &state.damage {
        let to = damage.to.map_or("?".to_owned(), |to| to.to_string());
        report.fault(format!("offsets {}..{to} are lost: {}", damage.from, damage.cause));
    }
    for segment in &state.segments {
        check_segment(storage, segment, &mut report)?;
    }
    let only_in_commit_log = state.tail.iter().filter(|batch| batch.header().base_offset >= state.written_offset);
    for batch in only_in_commit_log {
        report.count(batch, "the commit log");
    }
    Ok(report)
}

fn check_segment(storage: &dyn Storage, segment: &Segment, report: &mut PartitionReport) -> Result<()> {
    let name = segment.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file = match segment.file(storage) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            report.fault(error.message().to_owned());
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    walk(&*file, segment.base_offset(), segment.length(), |position, found| {
        match found {
            Found::Sound(batch) => report.count(&batch, &name),
            Found::Damaged(header, why) => {
                let last = header.next_offset() - 1;
                report.fault(format!("{name} at byte {position}, offsets {}..={last}: {why}", header.base_offset));
            }
            Found::Unreadable(why) => report.fault(format!("{name} from byte {position} on: {why}")),
        }
        Ok(())
    })
}

impl PartitionReport {
    fn fault(&mut self, fault: String) {
        self.fault_count += 1;
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        }
    }

    fn count(&mut self, batch: &Batch, place: &str) {
        self.batches += 1;
        self.records += u64::from(batch.header().record_count);
        if batch.header().is_compressed() {
            return;
        }
        if let Some(error) = batch.records().find_map(Result::err) {
            self.fault(format!("{place}, batch of offset {}: {}", batch.header().base_offset, error.message()));
        }
    }
}

/// Files below the data directory that nothing names.
fn leftovers(storage: &dyn Storage, engine: &Engine, data_dir: &Path) -> Result<Vec<String>> {
    let partitions = engine.shared.partitions.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut known = BTreeSet::new();
    for partition in partitions.values() {
        for segment in &partition.state().segments {
            known.insert(segment.path().to_path_buf());
            known.insert(segment.path().with_extension("index"));
        }
    }
    let mut found = Vec::new();
    let topics = data_dir.join("topics");
    for id in storage.list(&topics)? {
        for topic in storage.list(&topics.join(&id)).unwrap_or_default() {
            let folder = topics.join(&id).join(topic);
            for name in storage.list(&folder).unwrap_or_default() {
                let path = folder.join(name);
                if !known.contains(&path) {
                    found.push(path);
                }
            }
        }
    }
    let shown = |path: &std::path::PathBuf| path.strip_prefix(data_dir).unwrap_or(path).display().to_string();
    let mut names: Vec<_> = found.iter().map(shown).collect();
    names.extend(storage.list(data_dir)?.into_iter().filter(|name| name.ends_with(".tmp")));
    names.sort_unstable();
    Ok(names)
}
