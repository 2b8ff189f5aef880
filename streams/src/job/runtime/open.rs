//! The start of a job: older jobs of its name are fenced first, so that what is read after that is the last word. Then
//! missing topics are made, and the state is restored from its changelogs.

use std::{collections::BTreeMap, sync::Arc};

use tidemill_core::{
    clock::Clock,
    log::{FetchOptions, Session, Topic, Writer},
    topic::{TopicPartition, TopicSpec},
};

use super::{
    Options, Run, end_of,
    reader::{FETCH_BYTES, Reader},
};
use crate::{
    Error, ErrorKind, Result,
    job::{
        changelog,
        changelog::Restore,
        input::InputId,
        task::{Task, from_position, step_position},
    },
    state::KEY_GROUPS,
};

/// What there is of a job in the log.
struct Opened {
    writer: Box<dyn Writer>,
    inputs: Vec<Topic>,
    outputs: Vec<u32>,
}

impl Run {
    /// Opens a job's place in the log. Gives the task back where that fails.
    pub(super) async fn open(
        session: Arc<dyn Session>,
        clock: Arc<dyn Clock>,
        options: &Options,
        task: Task,
    ) -> Result<Self, (Option<Task>, Error)> {
        let mut reader = Reader::new(session, clock, task);
        match prepare(&mut reader, options).await {
            Ok(Opened { writer, inputs, outputs }) => Ok(Self { reader, writer, inputs, outputs }),
            Err(error) => Err((reader.into_task(), error)),
        }
    }
}

async fn prepare(reader: &mut Reader, options: &Options) -> Result<Opened> {
    let session = Arc::clone(reader.session());
    let mut inputs = Vec::new();
    let names: Vec<String> = reader.task()?.graph.sources.iter().map(|source| source.topic.clone()).collect();
    for name in names {
        let found = session.topic(&name).await?;
        inputs.push(found.ok_or_else(|| Error::not_found(format!("topic {name:?} does not exist")))?);
    }
    let mut writer = session.writer(&format!("job.{}", reader.task()?.name)).await?;
    let stored = writer.positions().clone();
    let (name, topology) = reader.task()?.check_topology(&stored, &options.reset)?;
    if stored.get(&name) != Some(&topology) {
        writer.set_position(&name, Some(topology));
    }
    add_inputs(reader, &inputs, &stored).await?;
    let mut outputs = Vec::new();
    for name in reader.task()?.graph.outputs.clone() {
        outputs.push(ensure(&*session, &name, 1).await?);
    }
    for (node, step) in reader.task()?.graph.stateful() {
        let name = changelog::topic(&reader.task()?.name, &step);
        let found = ensure(&*session, &name, KEY_GROUPS).await?;
        if found != KEY_GROUPS {
            return Err(Error::conflict(format!("topic {name} has {found} partitions, a changelog has {KEY_GROUPS}")));
        }
        if options.reset.contains(&step) {
            forget(&*session, &mut *writer, &name, &step).await?;
        } else {
            restore(reader, &stored, &name, (node, &step)).await?;
        }
    }
    writer.commit().await?;
    Ok(Opened { writer, inputs, outputs })
}

async fn add_inputs(reader: &mut Reader, topics: &[Topic], stored: &BTreeMap<String, String>) -> Result<()> {
    let session = Arc::clone(reader.session());
    for (source, topic) in topics.iter().enumerate() {
        let partitions: Vec<_> = (0..topic.partitions).map(|p| TopicPartition::new(&topic.name, p)).collect();
        for (partition, bounds) in (0..).zip(session.bounds(&partitions).await?) {
            let id = InputId { source, partition };
            reader.task()?.add_input(id, &topic.id, stored, bounds.log_start_offset)?;
        }
    }
    Ok(())
}

/// Makes a topic where there is none, and returns its number of partitions.
async fn ensure(session: &dyn Session, name: &str, partitions: u32) -> Result<u32> {
    if let Some(topic) = session.topic(name).await? {
        return Ok(topic.partitions);
    }
    match session.create_topic(name, &TopicSpec::partitions(partitions)).await {
        Err(error) if error.kind() == ErrorKind::Conflict => {
            let topic = session.topic(name).await?;
            topic.map(|topic| topic.partitions).ok_or(error)
        }
        made => made.map(|topic| topic.partitions),
    }
}

/// Lets a step's state begin where its changelog ends now.
async fn forget(session: &dyn Session, writer: &mut dyn Writer, topic: &str, step: &str) -> Result<()> {
    for key_group in 0..KEY_GROUPS {
        let end = end_of(session, &TopicPartition::new(topic, key_group)).await?;
        writer.set_position(&changelog::start_position(step, key_group), Some(end.to_string()));
    }
    writer.set_position(&step_position(step), None);
    Ok(())
}

/// Reads a step's changelog into its state.
async fn restore(
    reader: &mut Reader,
    stored: &BTreeMap<String, String>,
    topic: &str,
    (node, step): (usize, &str),
) -> Result<()> {
    let session = Arc::clone(reader.session());
    for key_group in 0..KEY_GROUPS {
        let from = TopicPartition::new(topic, key_group);
        let end = end_of(&*session, &from).await?;
        let start = stored.get(&changelog::start_position(step, key_group));
        let mut offset: i64 = start.map(|start| from_position(start)).transpose()?.unwrap_or(0);
        if offset == end {
            continue;
        }
        let mut entries = Restore::default();
        while offset < end {
            let options = FetchOptions { max_bytes: FETCH_BYTES, end: Some(end), ..FetchOptions::default() };
            let chunk = session.fetch(&from, offset, &options).await?;
            for record in chunk.records {
                entries.add(record.key.unwrap_or_default(), record.value);
            }
            offset = chunk.next_offset;
        }
        let restored = reader.blocking(move |task| task.restore(node, key_group, entries)).await;
        restored.map_err(|e| e.context(format!("restore {from}")))?;
    }
    reader.task()?.restore_watermark(node, step, stored)
}
