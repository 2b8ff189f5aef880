//! The target's half of a sync: takes what the log has, applies it with the next offsets in the target's transaction.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidemill_core::{
    log::{FetchOptions, Session},
    topic::TopicPartition,
};
use tokio::sync::{Notify, watch};

use super::{
    feed::pause,
    reconcile::Schemas,
    run::{Observer, retry_pause},
};
use crate::{
    Error, ErrorKind, Result,
    connector::{Sink, TopicChanges},
    converter::TopicSchema,
};

/// Bytes of records applied in one transaction of the target, unless one moment of the log has more.
const APPLY_BYTES: usize = 4 << 20;
/// How long to wait for word from the source's half before looking anyway.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// One topic and how far the target is in it.
pub(super) struct Route {
    pub(super) schema: Arc<TopicSchema>,
    pub(super) next_offset: i64,
}

pub(super) struct Apply {
    pub(super) session: Arc<dyn Session>,
    pub(super) sink: Box<dyn Sink>,
    pub(super) schemas: Schemas,
    pub(super) routes: Vec<Route>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) fed: Arc<Notify>,
    /// The source had no more to give; before that, having all of the log is not being in step.
    pub(super) drained: Arc<AtomicBool>,
    /// The source's half is done: what the log has now is all.
    pub(super) source_ended: Arc<AtomicBool>,
}

impl Apply {
    /// Takes up the target's positions, and refuses a target that is ahead of the log.
    pub(super) async fn prepare(&mut self) -> Result<()> {
        let positions = self.sink.positions().await?;
        for route in &mut self.routes {
            let partition = TopicPartition::new(&route.schema.topic, 0);
            let bounds = self.session.bounds(&[partition]).await?;
            let Some(bounds) = bounds.first() else { continue };
            route.next_offset = positions.get(&route.schema.topic).copied().unwrap_or(bounds.log_start_offset);
            if route.next_offset > bounds.durable_offset {
                return Err(Error::conflict(format!(
                    "the target has topic {} up to offset {}, the log ends at {}: the data directory is older than the target; \
                     restore the newer one, or name a new target, or drop its tables and copy them anew: \
                     tidemill sync run FILE --replace",
                    route.schema.topic, route.next_offset, bounds.durable_offset
                )));
            }
        }
        Ok(())
    }

    /// Runs until the source's half ended and all is applied, or `stop` turns true.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<()> {
        let mut failures = 0;
        let mut tables_made = false;
        while !*stop.borrow() {
            let ended = self.source_ended.load(Ordering::Acquire);
            let drained = self.drained.load(Ordering::Acquire);
            match self.step(&mut tables_made).await {
                Ok(0) if ended => return Ok(()),
                Ok(0) => {
                    if drained {
                        self.observer.caught_up();
                    }
                    tokio::select! {
                        () = self.fed.notified() => {}
                        () = pause(&mut stop, LOOK_INTERVAL) => {}
                    }
                }
                Ok(applied) => self.observer.applied(applied),
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    failures += 1;
                    self.observer.waiting(&error);
                    pause(&mut stop, retry_pause(failures)).await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            failures = 0;
        }
        Ok(())
    }

    /// Applies one transaction's worth; tells how many records it passed.
    async fn step(&mut self, tables_made: &mut bool) -> Result<u64> {
        let partitions: Vec<_> = self.routes.iter().map(|r| TopicPartition::new(&r.schema.topic, 0)).collect();
        let bounds = self.session.bounds(&partitions).await?;
        let mut batch = Batch::default();
        for (number, bounds) in bounds.iter().enumerate() {
            self.take(number, &partitions[number], bounds.durable_offset, &mut batch).await?;
        }
        if !*tables_made {
            let empty = |route: &Route| TopicChanges { schema: Arc::clone(&route.schema), changes: Vec::new() };
            batch.changes.extend(self.routes.iter().map(empty));
        }
        if batch.next_offsets.is_empty() && batch.changes.is_empty() {
            return Ok(0);
        }
        let offsets =
            batch.next_offsets.iter().map(|(n, next)| (self.routes[*n].schema.topic.clone(), *next)).collect();
        self.sink.put(batch.changes, offsets).await?;
        *tables_made = true;
        for (number, next) in batch.next_offsets {
            self.routes[number].next_offset = next;
        }
        Ok(batch.records)
    }

    /// Takes records of one topic up to `end` into the batch, while it has room.
    async fn take(&mut self, number: usize, from: &TopicPartition, end: i64, batch: &mut Batch) -> Result<()> {
        let route = &self.routes[number];
        let mut next = route.next_offset;
        while next < end && batch.bytes < APPLY_BYTES {
            let options = FetchOptions { max_bytes: 1 << 20, end: Some(end), ..FetchOptions::default() };
            let chunk = self.session.fetch(from, next, &options).await?;
            for record in &chunk.records {
                batch.records += 1;
                batch.bytes += record.value.as_ref().map_or(0, |v| v.len()) + 64;
                if record.value.is_none() {
                    continue;
                }
                let schema = self.schemas.of(record)?;
                // Rows of an older copy come again: the table was copied anew.
                if schema.copy_id() < route.schema.copy_id() {
                    continue;
                }
                if let Some(change) = schema.decode_record(record)? {
                    batch.push(schema, change);
                }
            }
            next = chunk.next_offset;
        }
        if next != route.next_offset {
            batch.next_offsets.push((number, next));
        }
        Ok(())
    }
}

#[derive(Default)]
struct Batch {
    changes: Vec<TopicChanges>,
    next_offsets: Vec<(usize, i64)>,
    bytes: usize,
    records: u64,
}

impl Batch {
    fn push(&mut self, schema: &Arc<TopicSchema>, change: crate::change::Change) {
        match self.changes.last_mut().filter(|last| last.schema.id == schema.id) {
            Some(last) => last.changes.push(change),
            None => self.changes.push(TopicChanges { schema: Arc::clone(schema), changes: vec![change] }),
        }
    }
}
