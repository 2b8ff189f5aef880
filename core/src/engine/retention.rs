//! Retention: whole segments go by the age of their records, by the size of their partition, and when they lie below the
//! log's start; and segments end at a certain age, so that they can go.
//!
//! A segment is as old as the latest time that a record of it bears. Where none bears a time, or one bears a time that had
//! not come when it was appended, the segment is as old as its last append: a record from the future keeps nobody's records.
//!
//! Only what the segment writer has ended is taken away, so that it never appends to what is gone.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{
    Engine,
    catalog::Table,
    housekeeping::{Chore, Progress},
    partition::{Partition, State},
    segment::Times,
    shared::{Doomed, Shared, lock},
};
use crate::{
    Error, Result,
    topic::{Cleanup, PartitionId, TopicConfig},
};

/// Partitions that are looked at in one step.
const PARTITIONS_AT_ONCE: usize = 256;
/// A manifest is asked for at most this often: writing one costs some syncs, and all topics take part in it.
const MANIFEST_EVERY: Duration = Duration::from_secs(10);

impl Engine {
    /// Deletes the records of a partition below `before`, or all that are visible where it is `None`; durable when it
    /// returns. Returns the partition's new log start. Whole segments below it go soon after.
    ///
    /// # Errors
    /// `NotFound`; `Denied` for an internal topic; `Invalid` for an offset beyond the visible end, and for a topic that is
    /// only compacted.
    pub async fn delete_records(&self, id: PartitionId, before: Option<i64>) -> Result<i64> {
        let partition = self.shared.partition(id)?;
        if Table::ALL.iter().any(|table| table.partition() == id) {
            return Err(Error::new(crate::ErrorKind::Denied, format!("{} is the log's own", partition.name)));
        }
        if partition.config().cleanup == Cleanup::Compact {
            return Err(Error::invalid(format!(
                "records of {} are not deleted: its cleanup.policy is compact",
                partition.name
            )));
        }
        let compute = move |_: &_| {
            let state = partition.state();
            if let Some(gone) = state.deleted.then(|| Error::not_found(format!("{} was deleted", partition.name))) {
                return Err(gone);
            }
            match before.unwrap_or(state.durable_offset) {
                to if to < 0 || to > state.durable_offset => Err(partition.out_of_range(&state, to)),
                to => Ok(Some(to.max(state.log_start_offset).to_string())),
            }
        };
        let outcome = self.submit_keyed(Table::LogStarts, &id.0.to_string(), 32, compute).await?;
        self.shared.bell.ring();
        let start = outcome.value.and_then(|value| value.parse().ok());
        start.ok_or_else(|| Error::internal("log start was not written"))
    }
}

impl Partition {
    /// Moves the log's start up; records below are no longer read. Lost records below it are forgotten with them.
    pub(super) fn move_log_start(&self, to: i64) {
        self.state_mut().raise_log_start(to);
    }
}

impl State {
    fn raise_log_start(&mut self, to: i64) {
        let start = self.log_start_offset.max(to);
        self.log_start_offset = start;
        self.damage.retain(|damage| damage.to.is_none_or(|to| to > start));
    }
}

/// The chore.
#[derive(Default)]
pub(super) struct Retention {
    /// Partitions that are left in this pass.
    left: Option<Vec<PartitionId>>,
    asked: Option<Duration>,
}

impl Chore for Retention {
    fn name(&self) -> &'static str {
        "retention"
    }

    fn step(&mut self, shared: &Arc<Shared>) -> Result<Progress> {
        let left = self.left.get_or_insert_with(|| {
            let partitions = shared.partitions.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            partitions.keys().copied().collect()
        });
        for _ in 0..PARTITIONS_AT_ONCE {
            let Some(id) = left.pop() else {
                self.left = None;
                self.ask_for_manifest(shared);
                return Ok(Progress::Done);
            };
            let Ok(partition) = shared.partition(id) else { continue };
            let looked = look_after(shared, &partition);
            if !looked.map_err(|error| error.context(format!("retention of {}", partition.name)))? {
                // What it read from the disk is enough for a step.
                left.push(id);
                break;
            }
        }
        Ok(Progress::More)
    }
}

impl Retention {
    fn ask_for_manifest(&mut self, shared: &Shared) {
        let now = shared.clock.monotonic();
        let rests = self.asked.is_some_and(|asked| now.saturating_sub(asked) < MANIFEST_EVERY);
        if !rests && !lock(&shared.doomed).is_empty() {
            self.asked = Some(now);
            shared.want_checkpoint();
        }
    }
}

/// What is to be done with a partition.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Segments that go, from the first on.
    segments: usize,
    /// Whether the last segment is to be ended.
    roll: bool,
    /// The segment whose latest time has to be asked first.
    unknown: Option<usize>,
}

/// Takes away what is due; false where it had to read the disk for one segment and there is more to do.
fn look_after(shared: &Shared, partition: &Partition) -> Result<bool> {
    let config = partition.config();
    let (verdict, unknown) = {
        let state = partition.state();
        let verdict = judge(&state, &config, shared.clock.now().0);
        let unknown = verdict.unknown.map(|i| Arc::clone(&state.segments[i]));
        (verdict, unknown)
    };
    if let Some(segment) = unknown {
        let asked = segment.max_timestamp(&*shared.storage);
        // Nobody waits for it where it went meanwhile.
        return asked.map(|_| false).or_else(|error| if partition.state().deleted { Ok(true) } else { Err(error) });
    }
    if verdict.segments > 0 {
        shared.doom(partition.take_segments(verdict.segments).into_iter().map(Doomed::File));
    }
    if verdict.roll {
        shared.want_roll(partition.id);
    }
    Ok(true)
}

impl Partition {
    /// Takes the first segments away and moves the log's start behind them; returns their files.
    fn take_segments(&self, count: usize) -> Vec<PathBuf> {
        let mut state = self.state_mut();
        // Meanwhile the topic may have been deleted; nobody else takes segments away.
        if state.deleted || state.segments.len() < count {
            return Vec::new();
        }
        let start = end_of(&state, count - 1);
        // Both at once: who reads below the first segment is told so, not given what comes later.
        state.raise_log_start(start);
        state.segments.drain(..count).flat_map(|segment| segment.paths()).collect()
    }
}

/// The offset after a segment's last one, holes behind it included.
fn end_of(state: &State, i: usize) -> i64 {
    state.segments.get(i + 1).map_or(state.written_offset, |next| next.base_offset())
}

fn judge(state: &State, config: &TopicConfig, now_ms: i64) -> Verdict {
    let mut verdict = Verdict::default();
    if state.deleted {
        return verdict;
    }
    let last = state.segments.len().saturating_sub(1);
    let mut total: u64 = state.segments.iter().map(|segment| segment.length()).sum();
    let (retention, limit) = match config.cleanup.deletes() {
        true => (config.retention, config.retention_bytes),
        false => (None, None),
    };
    for (i, segment) in state.segments.iter().enumerate() {
        let below_start = end_of(state, i) <= state.log_start_offset;
        let too_much = limit.is_some_and(|limit| total - segment.length() >= limit);
        let mut expired = false;
        if let Some(retention) = retention.filter(|_| !below_start && !too_much) {
            let times = segment.times();
            if times.max_timestamp.is_none() {
                verdict.unknown = Some(i);
                return verdict;
            }
            expired = older_than(newest_ms(times), retention, now_ms);
        }
        if segment.length() == 0 || !(below_start || too_much || expired) {
            break;
        }
        if i == last && !segment.ended() {
            verdict.roll = true;
            break;
        }
        verdict.segments = i + 1;
        total -= segment.length();
    }
    if let Some(segment) = state.segments.last().filter(|segment| segment.length() > 0 && !segment.ended()) {
        verdict.roll |= older_than(segment.times().created_ms, oldest_age(config), now_ms);
    }
    verdict
}

/// A segment ends at this age. Of a compacted topic, also when its records have to be compacted.
fn oldest_age(config: &TopicConfig) -> Duration {
    let lag = config.max_compaction_lag.filter(|_| config.cleanup.compacts());
    lag.map_or(config.segment_age, |lag| lag.min(config.segment_age))
}

/// The time of a segment's newest record, as far as it can be believed.
fn newest_ms(times: Times) -> i64 {
    match times.max_timestamp {
        Some(latest) if (0..=times.appended_ms).contains(&latest) => latest,
        _ => times.appended_ms,
    }
}

fn older_than(time_ms: i64, age: Duration, now_ms: i64) -> bool {
    i128::from(now_ms) - i128::from(time_ms) > age.as_millis() as i128
}
