//! The epochs of a running job. While one is being committed the next one's records are read and processed; an epoch ends
//! after 20 ms or 8 MiB of input, and not before the last commit is done.

use std::{collections::BTreeMap, sync::Arc};

use tidemill_core::{
    log::{Topic, Writer},
    record::Record,
    topic::{TopicPartition, partition_of},
};
use tokio::sync::watch;

use super::{Control, Run, end_of, reader::Gathered};
use crate::{
    Error, Result,
    job::{
        Status,
        changelog::Part,
        graph::Publish,
        task::{Epoch, Task, made_again},
    },
};

impl Run {
    /// Reads, processes and commits until it is told to end. Gives the task back, unless it was lost to a panic.
    pub(super) async fn drive(
        mut self,
        control: &mut watch::Receiver<Control>,
        failures: &mut u32,
    ) -> (Option<Task>, Result<()>) {
        let result = self.epochs(control, failures).await;
        (self.reader.into_task(), result)
    }

    async fn epochs(&mut self, control: &mut watch::Receiver<Control>, failures: &mut u32) -> Result<()> {
        self.reader.blocking(Task::advance).await?;
        let status = Arc::clone(&self.reader.task()?.graph.status);
        let mut written = None;
        let mut ends = None;
        loop {
            let wanted = *control.borrow();
            match wanted {
                Control::Drain if ends.is_none() => ends = Some(self.reader.ends().await?),
                Control::Drain => {}
                Control::Run | Control::Stop => ends = None,
            }
            let Self { reader, writer, .. } = self;
            let (committed, gathered) = tokio::join!(
                commit(&mut **writer, written.take(), &status, failures),
                reader.gather(wanted, control, ends.as_ref())
            );
            committed?;
            self.check_inputs().await?;
            let is_last = gathered? == Gathered::All;
            if wanted == Control::Stop {
                return Ok(());
            }
            if is_last {
                self.reader.blocking(Task::end).await?;
            }
            if let Some(epoch) = self.reader.blocking(Task::barrier).await? {
                written = Some(self.write(epoch).await?);
            }
            if is_last {
                return commit(&mut *self.writer, written, &status, failures).await;
            }
        }
    }

    /// What was read since the last time came from the topics that were opened, if they are the same ones still.
    async fn check_inputs(&mut self) -> Result<()> {
        for Topic { name, id, .. } in &self.inputs {
            match self.reader.session().topic(name).await? {
                None => return Err(Error::not_found(format!("topic {name:?} was deleted"))),
                Some(now) if now.id != *id => return Err(made_again(name)),
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Puts an epoch into the writer's transaction, and returns what to show once it is committed.
    async fn write(&mut self, epoch: Epoch) -> Result<Vec<Publish>> {
        let names = &self.reader.task()?.graph.outputs;
        let mut records: BTreeMap<(usize, u32), Vec<Record>> = BTreeMap::new();
        for (output, record) in epoch.records {
            let partition = record.key.as_ref().map_or(0, |key| partition_of(key, self.outputs[output]));
            records.entry((output, partition)).or_default().push(record);
        }
        let named = |((output, partition), records)| (TopicPartition::new(&names[output], partition), records);
        let records: Vec<(TopicPartition, Vec<Record>)> = records.into_iter().map(named).collect();
        for (to, records) in records {
            append(&mut *self.writer, &to, records).await?;
        }
        for Part { topic, key_group, records, start } in epoch.state {
            let to = TopicPartition::new(topic, key_group);
            if let Some(position) = start {
                // Nobody else writes here: the partition's end is where this epoch's records will begin.
                let offset = end_of(&**self.reader.session(), &to).await?;
                self.writer.set_position(&position, Some(offset.to_string()));
            }
            append(&mut *self.writer, &to, records).await?;
        }
        for (name, value) in epoch.positions {
            self.writer.set_position(&name, Some(value));
        }
        Ok(epoch.publish)
    }
}

async fn append(writer: &mut dyn Writer, to: &TopicPartition, records: Vec<Record>) -> Result<()> {
    writer.append(to, records).await.map_err(|e| e.context(format!("write to {to}")))
}

/// Commits what is written, if anything is, and shows it. It is shown at once: whoever reads on meanwhile may have to
/// wait for records.
async fn commit(
    writer: &mut dyn Writer,
    written: Option<Vec<Publish>>,
    status: &Status,
    failures: &mut u32,
) -> Result<()> {
    let Some(publish) = written else { return Ok(()) };
    writer.commit().await?;
    *failures = 0;
    let epoch = status.add_epoch();
    publish.into_iter().for_each(|show| show(epoch));
    Ok(())
}
