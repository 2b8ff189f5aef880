//! Runs a task over a log: reads its inputs, hands records to it on a thread that may block, and commits its epochs.
//!
//! While one epoch is being committed the next one's records are read and processed; an epoch ends after 20 ms or 8 MiB of
//! input, and not before the last commit is done. Output, changelogs and positions of an epoch are one transaction of
//! the job's fenced writer: after any crash the job goes on from the last whole epoch, as if nothing had been.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{FutureExt, future::select_all};
use tidemill_core::{
    clock::Clock,
    log::{Bounds, Chunk, FetchOptions, Session, Writer},
    record::Record,
    topic::{TopicPartition, TopicSpec, partition_of},
};
use tokio::sync::watch;

use super::{
    Job, changelog,
    changelog::{Changelogs, Restore},
    graph::Publish,
    task::{Epoch, InputId, Task, step_position},
};
use crate::{Error, ErrorKind, Result, state::KEY_GROUPS};

const EPOCH_TIME: Duration = Duration::from_millis(20);
const EPOCH_BYTES: usize = 8 << 20;
const FETCH_BYTES: usize = 1 << 20;
/// How long a job waits for records before it looks at its clock again.
const QUIET_WAIT: Duration = Duration::from_millis(250);

/// What a running job shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Control {
    /// Go on.
    #[default]
    Run,
    /// Stop after the epoch under way. Windows stay open, and a job of this name goes on with them.
    Stop,
    /// Read all that is in the inputs now, close all windows, and stop.
    Drain,
}

/// How a job is run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    reset: Vec<String>,
}

impl Options {
    /// Forgets the stored state of a step.
    #[must_use]
    pub fn reset_state(mut self, step: impl Into<String>) -> Self {
        self.reset.push(step.into());
        self
    }
}

impl Job {
    /// Runs the job until `control` says otherwise. While the log is not there it is tried again.
    ///
    /// # Errors
    /// `Invalid` for a job that is put together wrongly, or a record that does not fit; `NotFound` for an input topic;
    /// `Conflict` for stored state of other steps, or once a newer job of this name runs; the log's own.
    ///
    /// # Cancel safety
    /// A dropped future is a crash: the next start goes on from the last committed epoch.
    pub async fn run(
        self,
        session: Arc<dyn Session>,
        clock: Arc<dyn Clock>,
        options: Options,
        mut control: watch::Receiver<Control>,
    ) -> Result<()> {
        let name = self.name.clone();
        let mut task = self.into_task().map_err(|e| e.context(format!("job {name}")))?;
        let mut failures = 0u32;
        loop {
            let run = Run::open(Arc::clone(&session), Arc::clone(&clock), &options, task).await;
            let (returned, result) = match run {
                Ok(run) => run.drive(&mut control, &mut failures).await,
                Err((task, error)) => (task, Err(error)),
            };
            match (returned, result) {
                (Some(returned), Err(error)) if error.kind() == ErrorKind::Unavailable => {
                    tracing::warn!(job = name, %error, "log is not there, job is tried again");
                    let pause = Duration::from_millis(100 << failures.min(6)).min(Duration::from_secs(5));
                    failures += 1;
                    let stopped = tokio::time::timeout(pause, control.wait_for(|c| *c != Control::Run)).await;
                    if stopped.is_ok() {
                        return Err(error.context(format!("job {name}")));
                    }
                    task = returned;
                    task.clear();
                }
                (_, result) => return result.map_err(|e| e.context(format!("job {name}"))),
            }
        }
    }
}

/// A task with its place in a log.
struct Run {
    reader: Reader,
    writer: Box<dyn Writer>,
    logs: Changelogs,
    /// Partitions of each output topic.
    outputs: Vec<u32>,
}

/// The half that reads and processes; the other half commits meanwhile.
struct Reader {
    session: Arc<dyn Session>,
    clock: Arc<dyn Clock>,
    /// Absent only while a blocking thread has it.
    task: Option<Task>,
}

/// How a gathering ended.
#[derive(PartialEq, Eq)]
enum Gathered {
    /// An epoch's worth of records, or a quiet time.
    Epoch,
    /// Everything up to the wanted ends.
    All,
}

impl Run {
    async fn open(
        session: Arc<dyn Session>,
        clock: Arc<dyn Clock>,
        options: &Options,
        mut task: Task,
    ) -> Result<Self, (Option<Task>, Error)> {
        match Self::prepare(&session, options, &mut task).await {
            Ok((writer, logs, outputs)) => {
                Ok(Self { reader: Reader { session, clock, task: Some(task) }, writer, logs, outputs })
            }
            Err(error) => Err((Some(task), error)),
        }
    }

    /// Fences older jobs of this name, then makes what is missing and restores what was.
    async fn prepare(
        session: &Arc<dyn Session>,
        options: &Options,
        task: &mut Task,
    ) -> Result<(Box<dyn Writer>, Changelogs, Vec<u32>)> {
        let mut topics = Vec::new();
        let names: Vec<String> = task.graph.sources.iter().map(|source| source.topic.clone()).collect();
        for name in names {
            let found = session.topic(&name).await?;
            topics.push(found.ok_or_else(|| Error::not_found(format!("topic {name:?} does not exist")))?);
        }
        let mut writer = session.writer(&format!("job.{}", task.name)).await?;
        let stored = writer.positions().clone();
        let (name, topology) = task.check_topology(&stored, &options.reset)?;
        if stored.get(&name) != Some(&topology) {
            writer.set_position(&name, Some(topology));
        }
        for (source, topic) in topics.iter().enumerate() {
            for partition in 0..topic.partitions {
                let id = InputId { source, partition };
                let bounds = session.bounds(&[TopicPartition::new(&topic.name, partition)]).await?;
                let start = bounds.first().map_or(0, |b| b.log_start_offset);
                task.add_input(id, &topic.id, stored.get(&task.input_position(id)), start)?;
            }
        }
        let mut outputs = Vec::new();
        for name in task.graph.outputs.clone() {
            outputs.push(ensure(&**session, &name, 1).await?);
        }
        let mut logs = Changelogs::default();
        for (node, step) in task.graph.stateful() {
            let reset = options.reset.contains(&step);
            restore(&**session, &mut *writer, task, (node, &step), reset, &mut logs).await?;
        }
        writer.commit().await?;
        Ok((writer, logs, outputs))
    }

    /// Reads, processes and commits until it is told to end. Gives the task back, unless it was lost to a panic.
    async fn drive(mut self, control: &mut watch::Receiver<Control>, failures: &mut u32) -> (Option<Task>, Result<()>) {
        let result = self.epochs(control, failures).await;
        (self.reader.task, result)
    }

    async fn epochs(&mut self, control: &mut watch::Receiver<Control>, failures: &mut u32) -> Result<()> {
        self.reader.blocking(Task::advance).await?;
        let mut pending: Option<Vec<Publish>> = None;
        let mut ends: Option<BTreeMap<InputId, i64>> = None;
        loop {
            let wanted = *control.borrow();
            if wanted == Control::Drain && ends.is_none() {
                ends = Some(self.reader.ends().await?);
            }
            let Self { reader, writer, .. } = self;
            let is_stopping = wanted == Control::Stop;
            let gather = async {
                match is_stopping {
                    true => Ok(Gathered::All),
                    false => reader.gather(wanted, control, ends.as_ref()).await,
                }
            };
            let is_pending = pending.is_some();
            let commit = async {
                match is_pending {
                    true => writer.commit().await,
                    false => Ok(()),
                }
            };
            let (committed, gathered) = tokio::join!(commit, gather);
            committed?;
            if let Some(publish) = pending.take() {
                *failures = 0;
                let epoch = self.reader.status()?.add_epoch();
                publish.into_iter().for_each(|show| show(epoch));
            }
            let is_last = gathered? == Gathered::All;
            if is_stopping {
                return Ok(());
            }
            if is_last {
                self.reader.blocking(Task::end).await?;
            }
            if let Some(epoch) = self.reader.blocking(Task::barrier).await? {
                pending = Some(self.write(epoch).await?);
            }
            if is_last {
                self.writer.commit().await?;
                let epoch = self.reader.status()?.add_epoch();
                pending.into_iter().flatten().for_each(|show| show(epoch));
                return Ok(());
            }
        }
    }

    /// Puts an epoch into the writer's transaction, and returns what to show once it is committed.
    async fn write(&mut self, epoch: Epoch) -> Result<Vec<Publish>> {
        let Self { reader, writer, logs, outputs } = self;
        let Reader { session, task, .. } = reader;
        let task = task.as_mut().ok_or_else(lost)?;
        let mut records: BTreeMap<(usize, u32), Vec<Record>> = BTreeMap::new();
        for (output, record) in epoch.records {
            let partition = record.key.as_ref().map_or(0, |key| partition_of(key, outputs[output]));
            records.entry((output, partition)).or_default().push(record);
        }
        for ((output, partition), records) in records {
            writer.append(&TopicPartition::new(&task.graph.outputs[output], partition), records).await?;
        }
        for (node, changes) in epoch.state {
            let step = task.graph.nodes[node].step.clone().unwrap_or_default();
            for part in logs.parts(task, node, changes)? {
                let to = TopicPartition::new(changelog::topic(&task.name, &step), part.key_group);
                if part.is_snapshot {
                    // Nobody else writes here: the partition's end is where this epoch's records will begin.
                    let offset = end_of(&**session, &to).await?;
                    writer.set_position(&changelog::start_position(&step, part.key_group), Some(offset.to_string()));
                }
                writer.append(&to, part.records).await?;
            }
        }
        for (name, value) in epoch.positions {
            writer.set_position(&name, Some(value));
        }
        Ok(epoch.publish)
    }
}

impl Reader {
    fn status(&self) -> Result<&super::Status> {
        Ok(&self.task.as_ref().ok_or_else(lost)?.graph.status)
    }

    /// Runs steps of the job where they may take their time. Code of the job that panics ends the job.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Task) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut task = self.task.take().ok_or_else(lost)?;
        let worked = tokio::task::spawn_blocking(move || {
            let result = work(&mut task);
            (task, result)
        });
        let (task, result) = worked.await.map_err(|e| Error::internal("the job's code panicked").with_source(e))?;
        self.task = Some(task);
        result
    }

    fn inputs(&self) -> Result<Vec<(InputId, TopicPartition, i64)>> {
        let task = self.task.as_ref().ok_or_else(lost)?;
        let named = |(id, offset): (InputId, i64)| {
            (id, TopicPartition::new(&task.graph.sources[id.source].topic, id.partition), offset)
        };
        Ok(task.inputs().into_iter().map(named).collect())
    }

    async fn ends(&mut self) -> Result<BTreeMap<InputId, i64>> {
        let inputs = self.inputs()?;
        let bounds = self.bounds(&inputs).await?;
        Ok(inputs.iter().zip(bounds).map(|((id, ..), bounds)| (*id, bounds.durable_offset)).collect())
    }

    async fn bounds(&mut self, inputs: &[(InputId, TopicPartition, i64)]) -> Result<Vec<Bounds>> {
        let partitions: Vec<TopicPartition> = inputs.iter().map(|(_, partition, _)| partition.clone()).collect();
        self.session.bounds(&partitions).await
    }

    /// Reads and processes an epoch's records, or waits a while for some.
    async fn gather(
        &mut self,
        wanted: Control,
        control: &mut watch::Receiver<Control>,
        ends: Option<&BTreeMap<InputId, i64>>,
    ) -> Result<Gathered> {
        let (mut began, mut bytes) = (None, 0);
        loop {
            let inputs = self.inputs()?;
            if ends.is_some_and(|ends| inputs.iter().all(|(id, _, offset)| ends.get(id).is_none_or(|e| offset >= e))) {
                return Ok(Gathered::All);
            }
            let now = self.clock.monotonic();
            let left = began.map_or(QUIET_WAIT, |began| EPOCH_TIME.saturating_sub(now.saturating_sub(began)));
            if left.is_zero() || bytes >= EPOCH_BYTES {
                return Ok(Gathered::Epoch);
            }
            let ready = self.ready(&inputs, now).await?;
            let Some(ready) = ready else {
                if !self.wait(&inputs, left, control).await? && began.is_none() {
                    self.blocking(Task::advance).await?;
                    return Ok(Gathered::Epoch);
                }
                if *control.borrow() != wanted {
                    return Ok(Gathered::Epoch);
                }
                continue;
            };
            began.get_or_insert(now);
            bytes += self.read(&inputs[ready]).await?;
        }
    }

    /// The first of the inputs that has something to read.
    async fn ready(&mut self, inputs: &[(InputId, TopicPartition, i64)], now: Duration) -> Result<Option<usize>> {
        let bounds = self.bounds(inputs).await?;
        let task = self.task.as_mut().ok_or_else(lost)?;
        let mut first = None;
        for (number, ((id, _, offset), bounds)) in inputs.iter().zip(bounds).enumerate() {
            let is_at_end = *offset >= bounds.durable_offset;
            task.observe(*id, is_at_end, now);
            if !is_at_end && first.is_none() {
                first = Some(number);
            }
        }
        if first.is_none() {
            task.graph.status.set_behind(None);
        }
        Ok(first)
    }

    async fn read(&mut self, (id, partition, offset): &(InputId, TopicPartition, i64)) -> Result<usize> {
        let options = FetchOptions { max_bytes: FETCH_BYTES, ..FetchOptions::default() };
        let Chunk { records, next_offset } = self.session.fetch(partition, *offset, &options).await?;
        let size = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
        let bytes = records.iter().map(|record| size(&record.key) + size(&record.value) + 32).sum();
        self.status()?.set_behind(records.last().map(|record| record.timestamp.0));
        let id = *id;
        self.blocking(move |task| task.feed(id, &records, next_offset)).await?;
        Ok(bytes)
    }

    /// Waits until an input has something, the time is over, or the job shall do something else. Whether one has.
    async fn wait(
        &mut self,
        inputs: &[(InputId, TopicPartition, i64)],
        time: Duration,
        control: &mut watch::Receiver<Control>,
    ) -> Result<bool> {
        let options = FetchOptions { max_bytes: 1, max_wait: time, end: None };
        let fetches =
            inputs.iter().map(|(_, partition, offset)| self.session.fetch(partition, *offset, &options).boxed());
        let arrived = async {
            let mut open: Vec<_> = fetches.collect();
            while !open.is_empty() {
                let (chunk, _, others) = select_all(open).await;
                if !chunk?.records.is_empty() {
                    return Ok(true);
                }
                open = others;
            }
            Ok(false)
        };
        let told = async {
            if control.changed().await.is_err() {
                // Nobody is left who could tell.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            arrived = arrived => arrived,
            () = told => Ok(true),
        }
    }
}

fn lost() -> Error {
    Error::internal("the job was lost to a panic")
}

async fn end_of(session: &dyn Session, partition: &TopicPartition) -> Result<i64> {
    let bounds = session.bounds(std::slice::from_ref(partition)).await?;
    Ok(bounds.first().map_or(0, |bounds| bounds.durable_offset))
}

/// Makes a topic where there is none, and returns its number of partitions.
async fn ensure(session: &dyn Session, name: &str, partitions: u32) -> Result<u32> {
    if let Some(topic) = session.topic(name).await? {
        return Ok(topic.partitions);
    }
    match session.create_topic(name, &TopicSpec { partitions }).await {
        Err(error) if error.kind() == ErrorKind::Conflict => {
            let topic = session.topic(name).await?;
            topic.map(|topic| topic.partitions).ok_or(error)
        }
        made => made.map(|topic| topic.partitions),
    }
}

/// Reads a step's changelog into its state, or makes it forget all of it.
async fn restore(
    session: &dyn Session,
    writer: &mut dyn Writer,
    task: &mut Task,
    (node, step): (usize, &str),
    reset: bool,
    logs: &mut Changelogs,
) -> Result<()> {
    let name = changelog::topic(&task.name, step);
    let found = ensure(session, &name, KEY_GROUPS).await?;
    if found != KEY_GROUPS {
        return Err(Error::conflict(format!("topic {name} has {found} partitions, a changelog has {KEY_GROUPS}")));
    }
    let stored = writer.positions().clone();
    for key_group in 0..KEY_GROUPS {
        let from = TopicPartition::new(&name, key_group);
        let (position, end) = (changelog::start_position(step, key_group), end_of(session, &from).await?);
        if reset {
            writer.set_position(&position, Some(end.to_string()));
            writer.set_position(&step_position(step), None);
            continue;
        }
        let mut offset = stored.get(&position).and_then(|offset| offset.parse().ok()).unwrap_or(0);
        let mut entries = Restore::default();
        while offset < end {
            let options = FetchOptions { max_bytes: FETCH_BYTES, end: Some(end), ..FetchOptions::default() };
            let chunk = session.fetch(&from, offset, &options).await?;
            for record in chunk.records {
                entries.add(record.key.unwrap_or_default(), record.value);
            }
            offset = chunk.next_offset;
        }
        let state = task.graph.state(node)?;
        entries.finish(logs, node, key_group, state).map_err(|e| e.context(format!("restore {from}")))?;
    }
    if !reset {
        task.restore_watermark(node, step, &stored)?;
    }
    Ok(())
}
