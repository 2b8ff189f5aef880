//! Waits until the target of a sync has what its source had when the waiting began.
//!
//! First the source's end is read from the source itself. Then the sync at work must say that it has read so far, which it
//! says of what is durable in the log, and that all copies are whole. The log's ends of that moment are what the target's
//! own positions must reach.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use async_trait::async_trait;

use super::{
    compare::Sides,
    file::SyncSpec,
    known::Ends,
    parked::ParkedKey,
    place::{end_of, is_reached},
    rounds::ends_of,
    status::{State, Status},
};
use crate::Result;

const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Nothing that moves for so long is waited for no more, unless the user says how long.
const STANDSTILL: Duration = Duration::from_secs(15);

/// What the log of a sync tells of it.
#[async_trait]
pub trait LogView: Send + Sync {
    /// How the sync is; `None` where the log knows none of the name.
    ///
    /// # Errors
    /// Of the way to the log.
    async fn status(&self, sync: &str) -> Result<Option<Status>>;

    /// The databases between which the sync runs, where it follows.
    ///
    /// # Errors
    /// As [`LogView::status`].
    async fn between(&self, sync: &str) -> Result<Option<Ends>>;

    /// The durable end of each of the sync's topics.
    ///
    /// # Errors
    /// As [`LogView::status`].
    async fn ends(&self, sync: &str) -> Result<BTreeMap<String, i64>>;

    /// What is waited for now; told when it changes, and every two seconds.
    fn waiting(&self, told: &str);
}

/// What the target has.
#[derive(Debug, Clone, Default)]
pub struct Caught {
    /// Whether it has all that the source had.
    pub whole: bool,
    /// Whether a sync is at work, so that rows which differ may still come.
    pub at_work: bool,
    /// That, in a line for people.
    pub told: String,
    /// Rows that the target refused.
    pub parked: Vec<ParkedKey>,
}

/// Reads where the source is and waits, at most for `at_most`.
pub(super) async fn catch_up(
    spec: &SyncSpec,
    sides: &mut Sides,
    log: Option<&dyn LogView>,
    at_most: Option<Duration>,
) -> Result<Caught> {
    let Some(log) = log else {
        let told = "no log of it is named: nothing is known of what is on its way; --data-dir DIR names one".to_owned();
        return Ok(Caught { at_work: true, told, ..Caught::default() });
    };
    // Paths in a status are those of the process that runs the sync.
    let ours = log.between(&spec.name).await?.is_none_or(|ends| ends == ends_of(spec));
    let Some(status) = log.status(&spec.name).await?.filter(|_| ours) else {
        return Ok(Caught {
            told: "the log knows no such sync between these two: compared as both sides are".into(),
            ..Caught::default()
        });
    };
    let parked = status.parked.clone();
    if !is_at_work(&status) {
        let why = status.last_error.map(|error| format!(", and stopped with: {error}")).unwrap_or_default();
        let told = format!("nobody runs it{why}; compared as both sides are");
        return Ok(Caught { told, parked, ..Caught::default() });
    }
    let place = end_of(&spec.from).await?;
    let shown = place.clone().unwrap_or_else(|| "its beginning".into());
    let now = Instant::now();
    let mut waiting = Waiting { log, spec, place, shown, begun: now, moved: now, last: String::new() };
    waiting.until_there(sides, at_most).await
}

fn is_at_work(status: &Status) -> bool {
    !matches!(status.state, State::Stopped | State::Failed)
}

struct Waiting<'a> {
    log: &'a dyn LogView,
    spec: &'a SyncSpec,
    place: Option<String>,
    /// That place, for people.
    shown: String,
    begun: Instant,
    /// When it last got on.
    moved: Instant,
    /// What was told last.
    last: String,
}

impl Waiting<'_> {
    async fn until_there(&mut self, sides: &mut Sides, at_most: Option<Duration>) -> Result<Caught> {
        let shown = self.shown.clone();
        let mut wanted: Option<BTreeMap<String, i64>> = None;
        let mut told_at: Option<Instant> = None;
        loop {
            let Some(status) = self.log.status(&self.spec.name).await? else {
                return Ok(Caught { told: "the sync was removed meanwhile".into(), ..Caught::default() });
            };
            let parked = status.parked.clone();
            if !is_at_work(&status) {
                let why = status.last_error.map(|error| format!(": {error}")).unwrap_or_default();
                let told = format!("the sync stopped before the target had what the source had at {shown}{why}");
                return Ok(Caught { told, parked, ..Caught::default() });
            }
            let mut lacks = None;
            if wanted.is_none() {
                lacks = self.lack_of_log(&status);
                if lacks.is_none() {
                    wanted = Some(self.log.ends(&self.spec.name).await?);
                }
            }
            if let Some(wanted) = &wanted {
                lacks = lack_of_target(wanted, &sides.applied().await?);
            }
            let Some(lacks) = lacks else {
                let told = format!("the target has what the source had at {shown}");
                return Ok(Caught { whole: true, at_work: true, told, parked });
            };
            if lacks != self.last {
                (self.moved, self.last) = (Instant::now(), lacks.clone());
            }
            let over = match at_most {
                Some(at_most) => self.begun.elapsed() >= at_most,
                None => self.moved.elapsed() >= STANDSTILL,
            };
            if over {
                let waited = self.begun.elapsed().as_secs();
                let wait = status.last_error.map(|error| format!("; {error}")).unwrap_or_default();
                let told =
                    format!("the target does not have what the source had at {shown} after {waited} s: {lacks}{wait}");
                return Ok(Caught { at_work: true, told, parked, ..Caught::default() });
            }
            if told_at.is_none_or(|at| at.elapsed() >= Duration::from_secs(2)) {
                told_at = Some(Instant::now());
                self.log.waiting(&lacks);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// What the log does not have yet.
    fn lack_of_log(&self, status: &Status) -> Option<String> {
        if status.tables.is_empty() {
            return Some("the sync starts".into());
        }
        if let Some(table) = status.tables.iter().find(|table| !table.complete) {
            return Some(format!(
                "table {} is being copied, {} of about {} rows",
                table.table, table.copied, table.rows
            ));
        }
        let place = self.place.as_ref()?;
        match &status.source.position {
            Some(position) if is_reached(&self.spec.from, position, place) => None,
            Some(position) => Some(format!("the sync has read the source to {position}, its end was {place}")),
            None => Some("the sync has not told yet how far it has read the source".into()),
        }
    }
}

fn lack_of_target(wanted: &BTreeMap<String, i64>, applied: &BTreeMap<String, i64>) -> Option<String> {
    let lacks = |(topic, end): (&String, &i64)| (end - applied.get(topic).copied().unwrap_or(0)).max(0);
    match wanted.iter().map(lacks).sum::<i64>() {
        0 => None,
        1 => Some("1 record of the log is to be applied to the target".into()),
        lacks => Some(format!("{lacks} records of the log are to be applied to the target")),
    }
}
