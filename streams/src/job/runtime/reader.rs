//! The half of a running job that reads and processes, while the other half commits.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{FutureExt, future::select_all};
use tidemill_core::{
    clock::Clock,
    log::{Bounds, Chunk, FetchOptions, Session},
    topic::TopicPartition,
};
use tokio::sync::watch;

use super::Control;
use crate::{
    Error, Result,
    job::{input::InputId, task::Task},
};

const EPOCH_TIME: Duration = Duration::from_millis(20);
const EPOCH_BYTES: usize = 8 << 20;
pub(super) const FETCH_BYTES: usize = 1 << 20;
/// How long a job waits for records before it looks at its clock again.
const QUIET_WAIT: Duration = Duration::from_millis(250);

pub(super) struct Reader {
    session: Arc<dyn Session>,
    clock: Arc<dyn Clock>,
    /// Absent only while a blocking thread has it.
    task: Option<Task>,
}

/// How a gathering ended.
#[derive(PartialEq, Eq)]
pub(super) enum Gathered {
    /// An epoch's worth of records, or a quiet time.
    Epoch,
    /// Everything that shall be read.
    All,
}

/// A partition, and the offset to read on from.
type Input = (InputId, TopicPartition, i64);
/// Where a job that shall read no further than that finds the ends of its inputs.
pub(super) type Ends = BTreeMap<InputId, i64>;

impl Reader {
    pub(super) fn new(session: Arc<dyn Session>, clock: Arc<dyn Clock>, task: Task) -> Self {
        Self { session, clock, task: Some(task) }
    }

    pub(super) fn session(&self) -> &Arc<dyn Session> {
        &self.session
    }

    /// The task, unless code of the job panicked.
    pub(super) fn task(&mut self) -> Result<&mut Task> {
        self.task.as_mut().ok_or_else(lost)
    }

    pub(super) fn into_task(self) -> Option<Task> {
        self.task
    }

    /// Runs steps of the job where they may take their time. Code of the job that panics ends the job.
    pub(super) async fn blocking<T: Send + 'static>(
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

    fn inputs(&mut self) -> Result<Vec<Input>> {
        let task = self.task()?;
        let named = |(id, offset): (InputId, i64)| {
            (id, TopicPartition::new(&task.graph.sources[id.source].topic, id.partition), offset)
        };
        Ok(task.inputs().into_iter().map(named).collect())
    }

    /// Where the inputs end now.
    pub(super) async fn ends(&mut self) -> Result<Ends> {
        let inputs = self.inputs()?;
        let bounds = self.bounds(&inputs).await?;
        Ok(inputs.iter().zip(bounds).map(|((id, ..), bounds)| (*id, bounds.durable_offset)).collect())
    }

    async fn bounds(&mut self, inputs: &[Input]) -> Result<Vec<Bounds>> {
        let partitions: Vec<TopicPartition> = inputs.iter().map(|(_, partition, _)| partition.clone()).collect();
        self.session.bounds(&partitions).await
    }

    /// Reads and processes an epoch's records, or waits a while for some. With `ends`, no further than them.
    pub(super) async fn gather(
        &mut self,
        wanted: Control,
        control: &mut watch::Receiver<Control>,
        ends: Option<&Ends>,
    ) -> Result<Gathered> {
        let (mut began, mut bytes) = (None, 0);
        loop {
            let mut inputs = self.inputs()?;
            if let Some(ends) = ends {
                inputs.retain(|(id, _, offset)| ends.get(id).is_some_and(|end| offset < end));
            }
            if wanted == Control::Stop || inputs.is_empty() {
                return Ok(Gathered::All);
            }
            let now = self.clock.monotonic();
            let left = began.map_or(QUIET_WAIT, |began| EPOCH_TIME.saturating_sub(now.saturating_sub(began)));
            if left.is_zero() || bytes >= EPOCH_BYTES {
                return Ok(Gathered::Epoch);
            }
            match self.ready(&inputs, now).await? {
                Some(ready) => {
                    began.get_or_insert(now);
                    let input = &inputs[ready];
                    bytes += self.read(input, ends.and_then(|ends| ends.get(&input.0)).copied()).await?;
                }
                None => {
                    let is_quiet = !self.wait(&inputs, left, control).await?;
                    if is_quiet && began.is_none() {
                        self.blocking(Task::advance).await?;
                        return Ok(Gathered::Epoch);
                    }
                    if *control.borrow() != wanted {
                        return Ok(Gathered::Epoch);
                    }
                }
            }
        }
    }

    /// The first of the inputs that has something to read.
    async fn ready(&mut self, inputs: &[Input], now: Duration) -> Result<Option<usize>> {
        let bounds = self.bounds(inputs).await?;
        let task = self.task()?;
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

    async fn read(&mut self, (id, partition, offset): &Input, end: Option<i64>) -> Result<usize> {
        let options = FetchOptions { max_bytes: FETCH_BYTES, end, ..FetchOptions::default() };
        let Chunk { records, next_offset } = self.session.fetch(partition, *offset, &options).await?;
        let size = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
        let bytes = records.iter().map(|record| size(&record.key) + size(&record.value) + 32).sum();
        self.task()?.graph.status.set_behind(records.last().map(|record| record.timestamp.0));
        let id = *id;
        self.blocking(move |task| task.feed(id, &records, next_offset)).await?;
        Ok(bytes)
    }

    /// Waits until an input has something, the time is over, or the job shall do something else. Whether one has.
    async fn wait(&mut self, inputs: &[Input], time: Duration, control: &mut watch::Receiver<Control>) -> Result<bool> {
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
