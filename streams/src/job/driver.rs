//! Runs a job in a test: a log in memory, a clock that is set by hand, and crashes on demand. No threads, no waiting.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tidemill_core::{
    record::{FetchedRecord, Record, Timestamp},
    topic::partition_of,
};

use super::{
    Job, changelog,
    changelog::{Part, Restore},
    input::InputId,
    task::{Epoch, Task, step_position},
};
use crate::{Error, Result, state::KEY_GROUPS};

/// A job and its world. Nothing happens but by its calls.
///
/// ```
/// use std::time::Duration;
/// use tidemill_streams::{Driver, Job, Windowed, agg::Count, window::Tumbling};
///
/// fn visits() -> Job {
///     let job = Job::new("visits");
///     let pages = job.topic("pages").json::<(i64, String)>().event_time(|(at, _)| *at).stream();
///     let counted = pages
///         .key_by_ref(|(_, page)| page.as_str())
///         .window(Tumbling::of(Duration::from_secs(10)))
///         .aggregate("by-page", Count::default());
///     counted.late.discard();
///     counted.results.to_topic("visits");
///     job
/// }
///
/// # fn main() -> tidemill_streams::Result<()> {
/// let mut driver = Driver::new(visits)?;
/// driver.push("pages", &(1_000, "/home"))?;
/// driver.push("pages", &(2_000, "/home"))?;
/// driver.run()?;
/// driver.kill()?;
/// driver.push("pages", &(11_000, "/help"))?;
/// driver.run()?;
/// let closed: Vec<Windowed<String, i64>> = driver.output("visits")?;
/// assert_eq!((closed.len(), closed[0].value), (1, 2));
/// # Ok(())
/// # }
/// ```
pub struct Driver {
    make: Box<dyn Fn() -> Job>,
    task: Task,
    topics: BTreeMap<String, Vec<Vec<FetchedRecord>>>,
    positions: BTreeMap<String, String>,
    now: Duration,
    fetch_records: usize,
}

impl Driver {
    /// A driver of the job that `make` makes. It is called again after each crash.
    ///
    /// # Errors
    /// As [`Job::run`].
    pub fn new(make: impl Fn() -> Job + 'static) -> Result<Self> {
        let task = make().into_task()?;
        let mut driver = Self {
            make: Box::new(make),
            task,
            topics: BTreeMap::new(),
            positions: BTreeMap::new(),
            now: Duration::ZERO,
            fetch_records: 1000,
        };
        driver.restore(&[])?;
        Ok(driver)
    }

    /// Gives a topic several partitions; before the first record of it.
    ///
    /// # Errors
    /// `Conflict` where it has records.
    pub fn partitions(&mut self, topic: &str, partitions: u32) -> Result<()> {
        let partitions = vec![Vec::new(); partitions as usize];
        if self.topics.insert(topic.to_owned(), partitions).is_some_and(|old| old.iter().any(|p| !p.is_empty())) {
            return Err(Error::conflict(format!("topic {topic:?} has records already")));
        }
        self.kill()
    }

    /// How many records the job reads at a time. Results must not depend on it.
    pub fn fetch_records(&mut self, records: usize) {
        self.fetch_records = records.max(1);
    }

    /// Appends a JSON value to partition 0 of a topic.
    ///
    /// # Errors
    /// `Invalid` where it cannot be written as JSON.
    pub fn push(&mut self, topic: &str, value: &impl Serialize) -> Result<()> {
        let value = serde_json::to_vec(value).map_err(|e| Error::invalid("encode a value").with_source(e))?;
        self.push_record(topic, 0, Record::new(None, Bytes::from(value)));
        Ok(())
    }

    /// Appends a record to a topic's partition.
    pub fn push_record(&mut self, topic: &str, partition: u32, record: Record) {
        let timestamp = record.timestamp.unwrap_or(Timestamp(self.now.as_millis() as i64));
        let partitions = self.topics.entry(topic.to_owned()).or_insert_with(|| vec![Vec::new()]);
        let records = &mut partitions[partition as usize];
        let Record { key, value, headers, .. } = record;
        records.push(FetchedRecord { offset: records.len() as i64, timestamp, key, value, headers });
    }

    /// Lets the job read all that its inputs have, and commits.
    ///
    /// # Errors
    /// Those of the job.
    pub fn run(&mut self) -> Result<()> {
        self.process()?;
        self.commit()
    }

    /// Lets the job read all that its inputs have, and commits nothing.
    ///
    /// # Errors
    /// Those of the job.
    pub fn process(&mut self) -> Result<()> {
        while self.step()? {}
        for (id, _) in self.task.inputs() {
            self.task.observe(id, true, self.now);
        }
        self.task.advance()
    }

    /// Lets the job read once. Whether there was something to read.
    ///
    /// # Errors
    /// Those of the job.
    pub fn step(&mut self) -> Result<bool> {
        for (id, offset) in self.task.inputs() {
            let topic = &self.task.graph.sources[id.source].topic;
            let records = self.topics.get(topic).map_or(&[][..], |partitions| &partitions[id.partition as usize]);
            let records: Vec<_> = records.iter().skip(offset as usize).take(self.fetch_records).cloned().collect();
            if let Some(last) = records.last() {
                let next_offset = last.offset + 1;
                self.task.feed(id, &records, next_offset)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Commits an epoch.
    ///
    /// # Errors
    /// Those of the job.
    pub fn commit(&mut self) -> Result<()> {
        let Some(epoch) = self.task.barrier()? else { return Ok(()) };
        let Epoch { records, state, positions, publish } = epoch;
        for (output, record) in records {
            let topic = self.task.graph.outputs[output].clone();
            let count = self.topics.get(&topic).map_or(1, Vec::len) as u32;
            let partition = record.key.as_ref().map_or(0, |key| partition_of(key, count));
            self.push_record(&topic, partition, record);
        }
        for Part { topic, key_group, records, start } in state {
            let partitions = self.topics.entry(topic.clone()).or_insert_with(|| vec![Vec::new(); KEY_GROUPS as usize]);
            if let Some(position) = start {
                self.positions.insert(position, partitions[key_group as usize].len().to_string());
            }
            records.into_iter().for_each(|record| self.push_record(&topic, key_group, record));
        }
        self.positions.extend(positions);
        let number = self.task.graph.status.add_epoch();
        publish.into_iter().for_each(|show| show(number));
        Ok(())
    }

    /// A crash: what was not committed is gone, and the job starts anew from what was.
    ///
    /// # Errors
    /// As [`Job::run`].
    pub fn kill(&mut self) -> Result<()> {
        self.task = (self.make)().into_task()?;
        self.restore(&[])
    }

    /// Exchanges the job for another, as a new version of the program would; the stored state of the steps in `reset` is
    /// forgotten.
    ///
    /// # Errors
    /// As [`Job::run`].
    pub fn replace(&mut self, make: impl Fn() -> Job + 'static, reset: &[&str]) -> Result<()> {
        self.make = Box::new(make);
        self.task = (self.make)().into_task()?;
        self.restore(&reset.iter().map(|step| (*step).to_owned()).collect::<Vec<_>>())
    }

    fn restore(&mut self, reset: &[String]) -> Result<()> {
        let (name, topology) = self.task.check_topology(&self.positions, reset)?;
        self.positions.insert(name, topology);
        let topics: Vec<String> = self.task.graph.sources.iter().map(|source| source.topic.clone()).collect();
        for (source, topic) in topics.iter().enumerate() {
            for partition in 0..self.topics.get(topic).map_or(1, Vec::len) as u32 {
                self.task.add_input(InputId { source, partition }, "memory", &self.positions, 0)?;
            }
        }
        for (node, step) in self.task.graph.stateful() {
            let changelog = self.topics.get(&changelog::topic(&self.task.name, &step));
            for (key_group, partition) in (0..).zip(changelog.into_iter().flatten()) {
                if reset.contains(&step) {
                    let position = changelog::start_position(&step, key_group);
                    self.positions.insert(position, partition.len().to_string());
                    self.positions.remove(&step_position(&step));
                    continue;
                }
                let mut entries = Restore::default();
                for record in partition.iter().skip(self.start_of(&step, key_group)) {
                    entries.add(record.key.clone().unwrap_or_default(), record.value.clone());
                }
                self.task.restore(node, key_group, entries)?;
            }
            self.task.restore_watermark(node, &step, &self.positions)?;
        }
        self.task.advance()
    }

    /// Moves the clock, which decides when a partition is idle.
    ///
    /// # Errors
    /// Those of the job.
    pub fn advance(&mut self, by: Duration) -> Result<()> {
        self.process()?;
        self.now += by;
        self.process()
    }

    /// Ends all inputs, so that every window closes, and commits.
    ///
    /// # Errors
    /// Those of the job.
    pub fn end(&mut self) -> Result<()> {
        self.process()?;
        self.task.end()?;
        self.commit()
    }

    /// How the job gets on.
    pub fn status(&self) -> &super::Status {
        &self.task.graph.status
    }

    /// All records of a topic, in the order of its partitions.
    pub fn records(&self, topic: &str) -> Vec<FetchedRecord> {
        self.topics.get(topic).map(|partitions| partitions.concat()).unwrap_or_default()
    }

    /// Keys and values that a restore of a step reads from its changelog, by key group.
    pub fn stored(&self, step: &str) -> Vec<(Bytes, Option<Bytes>)> {
        let changelog = self.topics.get(&changelog::topic(&self.task.name, step));
        let partitions = (0..).zip(changelog.into_iter().flatten());
        let kept = partitions.flat_map(|(key_group, records)| records.iter().skip(self.start_of(step, key_group)));
        kept.map(|record| (record.key.clone().unwrap_or_default(), record.value.clone())).collect()
    }

    fn start_of(&self, step: &str, key_group: u32) -> usize {
        let start = self.positions.get(&changelog::start_position(step, key_group));
        start.and_then(|start| start.parse().ok()).unwrap_or(0)
    }

    /// All values of a topic, from JSON.
    ///
    /// # Errors
    /// `Invalid` for one that is no `T`.
    pub fn output<T: DeserializeOwned>(&self, topic: &str) -> Result<Vec<T>> {
        let values = self.records(topic).into_iter().filter_map(|record| record.value);
        values
            .map(|value| serde_json::from_slice(&value).map_err(|e| Error::invalid("decode a value").with_source(e)))
            .collect()
    }

    /// The newest value of each key of a topic, from JSON.
    ///
    /// # Errors
    /// `Invalid` for one that is no `T`.
    pub fn table<T: DeserializeOwned>(&self, topic: &str) -> Result<HashMap<Bytes, T>> {
        let mut newest = HashMap::new();
        for record in self.records(topic) {
            let key = record.key.unwrap_or_default();
            match record.value {
                None => drop(newest.remove(&key)),
                Some(value) => {
                    let value = serde_json::from_slice(&value);
                    newest.insert(key, value.map_err(|e| Error::invalid("decode a value").with_source(e))?);
                }
            }
        }
        Ok(newest)
    }
}
