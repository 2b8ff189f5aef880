//! The rows of the tests, the job over them, and the plain computation that its results must equal.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tidemill_streams::{
    Aggregated, Driver, Job, Windowed,
    agg::{Count, Fold, Max, Min, Sum},
    window::Tumbling,
};

#[derive(Debug, Clone, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Row {
    pub id: u32,
    pub at: i64,
    pub key: String,
    pub n: i64,
    pub x: f64,
}

/// Units of `x`: each is a whole number of them, so that its sums can be had exactly from whole numbers.
const UNIT: f64 = 1.0 / (1 << 20) as f64;

impl Row {
    /// A row whose `x` has 52 bits at one of three magnitudes: a float sum of a few of them in another order differs.
    pub fn new(id: u32, at: i64, key: u8, n: i64) -> Self {
        let scale = [UNIT, 1.0, 1.0 / UNIT][(id % 3) as usize];
        let mantissa = (i64::from(id) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64) >> 12;
        Self { id, at, key: format!("k{key}"), n, x: mantissa as f64 * scale }
    }
}

/// Windows and delay of a job.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    pub size: u64,
    pub offset: u64,
    pub grace: u64,
    pub delay: u64,
}

impl Spec {
    pub fn windows(self) -> Tumbling {
        let ms = Duration::from_millis;
        Tumbling::of(ms(self.size)).offset(ms(self.offset)).grace(ms(self.grace))
    }

    fn start_of(self, at: i64) -> i64 {
        let (size, offset) = (self.size as i64, self.offset as i64);
        (at - offset).div_euclid(size) * size + offset
    }
}

pub type Folded = BTreeMap<String, i64>;
/// Count, both sums, smallest and largest, fold.
pub type Value = (i64, (i64, f64), (Option<i64>, Option<i64>), Folded);
/// Count, both sums, smallest and largest: what can take rows back.
pub type Retractable = (i64, (i64, f64), (Option<i64>, Option<i64>));

pub const IN: &str = "in";
pub const OUT: &str = "out";
pub const LATE: &str = "late";
pub const CHANGELOG: &str = "test.step.changelog";

pub fn aggregated(job: &Job, spec: Spec) -> Aggregated<Row, String, Value> {
    let rows = job.topic(IN).json::<Row>().event_time(|row| row.at).max_delay(Duration::from_millis(spec.delay));
    let fold = |state: &mut Folded, row: &Row| *state.entry(format!("{}", row.id % 3)).or_default() += row.n;
    rows.stream().key_by_ref(|row| row.key.as_str()).window(spec.windows()).aggregate(
        "step",
        (
            Count::default(),
            (Sum::of(|row: &Row| row.n), Sum::of(|row: &Row| row.x)),
            (Min::of(|row: &Row| row.n), Max::of(|row: &Row| row.n)),
            Fold::new(fold),
        ),
    )
}

/// Every result and every late row goes to a topic.
pub fn job(spec: Spec) -> Job {
    let job = Job::new("test");
    let step = aggregated(&job, spec);
    step.late.to_topic(LATE);
    step.results.to_topic_by(OUT, |result| result.key.clone());
    job
}

/// What one plain pass over all rows gives, by window and key.
pub fn batch<'a>(spec: Spec, rows: impl IntoIterator<Item = &'a Row>) -> BTreeMap<(i64, String), Value> {
    let mut groups: BTreeMap<(i64, String), Vec<&Row>> = BTreeMap::new();
    rows.into_iter().for_each(|row| groups.entry((spec.start_of(row.at), row.key.clone())).or_default().push(row));
    groups.into_iter().map(|(group, rows)| (group, value_of(&rows))).collect()
}

fn value_of(rows: &[&Row]) -> Value {
    let units: i128 = rows.iter().map(|row| (row.x / UNIT) as i128).sum();
    let mut folded = Folded::new();
    rows.iter().for_each(|row| *folded.entry(format!("{}", row.id % 3)).or_default() += row.n);
    let (min, max) = (rows.iter().map(|row| row.n).min(), rows.iter().map(|row| row.n).max());
    (rows.len() as i64, (rows.iter().map(|row| row.n).sum(), units as f64 * UNIT), (min, max), folded)
}

pub fn retractable<'a>(spec: Spec, rows: impl IntoIterator<Item = &'a Row>) -> BTreeMap<(i64, String), Retractable> {
    batch(spec, rows).into_iter().map(|(group, (count, sums, ends, _))| (group, (count, sums, ends))).collect()
}

/// The results in a topic by window and key; fails where one came twice or has another end.
pub fn results<V: serde::de::DeserializeOwned>(driver: &Driver, spec: Spec) -> BTreeMap<(i64, String), V> {
    by_group(driver.output(OUT).unwrap(), spec)
}

pub fn by_group<V>(results: Vec<Windowed<String, V>>, spec: Spec) -> BTreeMap<(i64, String), V> {
    let mut found = BTreeMap::new();
    for result in results {
        assert_eq!(result.window_end, result.window_start + spec.size as i64);
        let group = (result.window_start, result.key);
        assert!(found.insert(group.clone(), result.value).is_none(), "{group:?} was emitted twice");
    }
    found
}

/// Late rows by id; fails where one came twice.
pub fn late_ids(driver: &Driver) -> BTreeSet<u32> {
    let late: Vec<Row> = driver.output(LATE).unwrap();
    let ids: BTreeSet<u32> = late.iter().map(|row| row.id).collect();
    assert_eq!(ids.len(), late.len(), "a late row came twice");
    ids
}
