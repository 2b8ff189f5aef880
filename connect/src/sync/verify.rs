//! `sync verify`: compares source and target row by row, after the target has what the source had, and looks again at what
//! differs.

use std::time::{Duration, Instant};

pub use super::catch_up::{Caught, LogView};
use super::{catch_up::catch_up, compare::Sides, file::SyncSpec, parked::ParkedKey, topic_of};
use crate::{
    Result,
    change::{Row, TableSchema},
    diff::{TableDiff, key_text},
    target::existing::OnExisting,
};

const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long the target may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// To have what the source had; without it as long as it gets on.
    pub catch_up: Option<Duration>,
    /// Rows that differ may take this long to arrive.
    pub at_most: Duration,
    /// And no longer than nothing of what differs changes for this long.
    pub quiet: Duration,
}

/// How a sync came out.
#[derive(Debug, Clone)]
pub struct Verified {
    /// What the target had when it was compared.
    pub caught: Caught,
    /// Its tables.
    pub tables: Vec<Verdict>,
}

impl Verified {
    /// Whether all tables are equal.
    pub fn is_equal(&self) -> bool {
        self.tables.iter().all(Verdict::is_equal)
    }
}

/// How one table came out.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The table.
    pub table: String,
    /// Whether the target has it at all.
    pub exists: bool,
    /// What differs; after the time was over.
    pub diff: TableDiff,
    /// Rows of it that the target refused.
    pub parked: Vec<ParkedKey>,
    /// Which columns only one side has; the rows were not compared then.
    pub columns: Option<String>,
    /// It has no key: no sync follows it, and there is nothing to compare.
    pub keyless: bool,
    /// What was passed over for comparing: columns and a sentence each.
    pub normalised: Vec<String>,
    schema: TableSchema,
}

impl Verdict {
    /// Whether both sides are the same, at the latest when they were looked at again.
    pub fn is_equal(&self) -> bool {
        self.keyless || self.exists && self.columns.is_none() && self.parked.is_empty() && self.diff.is_equal()
    }

    fn keyless(schema: TableSchema) -> Self {
        let (table, diff) = (schema.full_name(), TableDiff::default());
        let (parked, normalised) = (Vec::new(), Vec::new());
        Self { table, exists: false, diff, parked, columns: None, keyless: true, normalised, schema }
    }

    /// The keys of rows that differ, a line each: at most `most`, then how many more there are.
    pub fn lines(&self, most: usize) -> Vec<String> {
        let diff = &self.diff;
        let named = |what: &'static str, keys: &[Row]| -> Vec<String> {
            keys.iter().map(|key| format!("{what}: {}", key_text(&self.schema, key))).collect()
        };
        let parked = self.parked.iter().map(|parked| format!("parked: {}: {}", parked.key, parked.cause)).collect();
        let source = if self.exists { named("only in the source", &diff.missing) } else { Vec::new() };
        let extra = named("only in the target", &diff.extra);
        let mut lines: Vec<String> = [source, extra, named("different", &diff.differing), parked].concat();
        lines.truncate(most);
        let all = if self.exists { diff.total() } else { 0 } + self.parked.len() as u64;
        let more = all - lines.len() as u64;
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        lines
    }
}

/// Compares all tables of a sync, when the target has what the source had. `log` tells of the sync, where one is known.
///
/// # Errors
/// `Unavailable` where a side cannot be read.
pub async fn verify(spec: &SyncSpec, log: Option<&dyn LogView>, patience: Patience) -> Result<Verified> {
    let mut sides = Sides::open(spec).await?;
    let tables = spec.from.source()?.tables(&spec.tables).await?;
    let caught = catch_up(spec, &mut sides, log, patience.catch_up).await?;
    let mut verdicts = Vec::new();
    for schema in tables {
        let topic = topic_of(&spec.name, &schema);
        let parked: Vec<_> = caught.parked.iter().filter(|parked| parked.topic == topic).cloned().collect();
        let kept = spec.on_existing == OnExisting::Merge;
        verdicts.push(match schema.key_columns().is_empty() {
            true => Verdict::keyless(schema),
            false => compare(&mut sides, schema, kept, parked, caught.at_work, patience).await?,
        });
    }
    Ok(Verified { caught, tables: verdicts })
}

async fn compare(
    sides: &mut Sides,
    schema: TableSchema,
    kept: bool,
    parked: Vec<ParkedKey>,
    at_work: bool,
    patience: Patience,
) -> Result<Verdict> {
    // A table that was merged into may have columns of its own.
    let own = |[source, target]: [Vec<String>; 2]| [source, if kept { Vec::new() } else { target }];
    let columns = sides.only_columns(&schema).await?.and_then(|only| other_columns(&own(only)));
    let mut diff = TableDiff::default();
    if columns.is_none() {
        diff = sides.compare(&schema, &parked).await?;
        let (until, mut quiet_until) = (Instant::now() + patience.at_most, Instant::now() + patience.quiet);
        let mut again = true;
        while !diff.is_equal() && again {
            // Nobody brings rows where no sync is at work; that the source had changed meanwhile is seen at once.
            again = at_work && Instant::now() < until.min(quiet_until);
            if again {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            // Where more rows differ than are listed, the whole table is compared again.
            let now = match diff.is_listed() {
                true => sides.recheck(&schema, &diff, &parked).await?,
                false => sides.compare(&schema, &parked).await?,
            };
            if now != diff {
                quiet_until = Instant::now() + patience.quiet;
            }
            diff = now;
        }
    }
    let (exists, normalised) = (sides.exists(&schema).await?, sides.normalised(&schema));
    Ok(Verdict { table: schema.full_name(), exists, diff, parked, columns, keyless: false, normalised, schema })
}

fn other_columns([source, target]: &[Vec<String>; 2]) -> Option<String> {
    let told = [("only in the source", source), ("only in the target", target)];
    let told = told.into_iter().filter(|(_, names)| !names.is_empty());
    let told: Vec<_> = told.map(|(side, names)| format!("{side}: {}", names.join(", "))).collect();
    (!told.is_empty()).then(|| told.join("; "))
}
