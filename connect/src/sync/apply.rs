//! The target's half of a sync: takes what the log has, applies it with the next offsets in the target's transaction.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidemill_core::{
    clock::Clock,
    log::{FetchOptions, Session},
    record::{FetchedRecord, Timestamp},
    topic::TopicPartition,
};
use tokio::sync::watch;

use super::{
    away::{Away, Side},
    control::{Ask, Control},
    feed::pause,
    lanes::Lanes,
    parked::Parked,
    reconcile::{gone, same_key},
    run::{Observer, retry_pause},
    schemas::Schemas,
};
use crate::{
    Error, ErrorKind, Result,
    change::{Change, Op},
    connector::{Sink, TopicChanges},
    converter::TopicSchema,
    target::lanes::Positions,
};

/// Bytes of records applied in one transaction of the target, unless one moment of the log has more; as much for each lane.
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
    pub(super) lanes: Lanes,
    /// Where the target was when its positions were read last.
    pub(super) positions: Positions,
    /// Lanes may have more than `positions` tells.
    pub(super) unsettled: bool,
    pub(super) schemas: Schemas,
    pub(super) routes: Vec<Route>,
    /// Tables of the target are never made anew: `on_existing` is `merge`.
    pub(super) keeps_tables: bool,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) clock: Arc<dyn Clock>,
    /// Told by the source's half when there is something to apply.
    pub(super) control: Arc<Control>,
    pub(super) parked: Parked,
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
            let topic = &route.schema.topic;
            route.next_offset = positions.next.get(topic).copied().unwrap_or(bounds.log_start_offset);
            let farthest = positions.farthest(topic).unwrap_or(route.next_offset);
            if farthest > bounds.durable_offset {
                return Err(Error::conflict(format!(
                    "the target has topic {} up to offset {}, the log ends at {}: the data directory is older than the target; \
                     restore the newer one, or name a new target, or drop its tables and copy them anew: \
                     tidemill sync run FILE --replace",
                    route.schema.topic, farthest, bounds.durable_offset
                )));
            }
        }
        self.positions = positions;
        self.forget_left_out();
        Ok(())
    }

    /// Runs until the source's half ended and all is applied, or `stop` turns true.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<()> {
        let mut failures = 0;
        let mut away = Away::new(&self.observer, Side::Target);
        let (mut tables_made, mut retried) = (false, self.parked.is_empty());
        while !*stop.borrow() {
            let ended = self.source_ended.load(Ordering::Acquire);
            let drained = self.drained.load(Ordering::Acquire);
            self.answer().await?;
            match self.step_or_park(&mut tables_made).await {
                Ok(0) if ended => return self.refuse_parked(),
                Ok(0) => {
                    if drained {
                        self.observer.caught_up();
                    }
                    tokio::select! {
                        () = self.control.fed.notified() => {}
                        () = pause(&mut stop, LOOK_INTERVAL) => {}
                    }
                }
                Ok(applied) => self.observer.applied(applied),
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    failures += 1;
                    away.fails(&error);
                    pause(&mut stop, retry_pause(failures)).await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            failures = 0;
            away.works();
            if tables_made && !retried {
                // Who starts a sync again may have mended what refused the rows.
                match self.retry(&Ask::Retry).await {
                    Err(error) if error.kind() == ErrorKind::Unavailable => away.fails(&error),
                    Err(error) => return Err(error),
                    Ok(_) => retried = true,
                }
                self.tell_parked();
            }
        }
        Ok(())
    }

    /// As [`Apply::step`]; where the target refuses rows, these are parked and all others applied.
    async fn step_or_park(&mut self, tables_made: &mut bool) -> Result<u64> {
        let refused = match self.step(tables_made).await {
            Err(error) if error.kind() == ErrorKind::Conflict => error,
            other => return other,
        };
        self.settle().await?;
        // Where the tables themselves are refused, it is not the rows.
        let newest = |route: &Route| self.schemas.newest(&route.schema.topic).unwrap_or(&route.schema).clone();
        let empty = |route: &Route| TopicChanges { schema: newest(route), changes: Vec::new() };
        if self.sink.put(self.routes.iter().map(empty).collect(), Vec::new()).await.is_err() {
            return Err(refused);
        }
        *tables_made = true;
        let (partitions, bounds) = self.bounds().await?;
        let mut applied = 0;
        for number in 0..self.routes.len() {
            let mut items = Vec::new();
            let next =
                self.read(number, &partitions[number], bounds[number], &mut Taken::default(), &mut items).await?;
            applied += items.len() as u64;
            items.retain(|item| !self.is_applied(item));
            self.put_or_park(&items).await?;
            let passed = vec![(self.routes[number].schema.topic.clone(), next)];
            // The rows are there already: applied again after a crash they come out the same.
            self.sink.put(Vec::new(), passed.clone()).await?;
            self.routes[number].next_offset = next;
            self.positions.pass(&passed);
            let freed = self.deleted_last(&items);
            self.parked.release(&freed).await?;
        }
        self.tell_parked();
        Ok(applied.max(1))
    }

    /// What the target lacks yet, and since when.
    fn tell_lag(&self, ends: &[i64], oldest: Option<Timestamp>) {
        let behind: Vec<_> = self.routes.iter().zip(ends).map(|(route, end)| (*end).max(route.next_offset)).collect();
        self.control.tell(|status| {
            for (route, end) in self.routes.iter().zip(behind) {
                let name = route.schema.table.full_name();
                if let Some(table) = status.tables.iter_mut().find(|table| table.table == name) {
                    table.pending = end.abs_diff(route.next_offset);
                }
            }
            status.behind_since_ms = oldest.map(|oldest| oldest.0);
        });
    }

    pub(super) fn tell_parked(&self) {
        self.observer.parked(&self.parked.all());
    }

    async fn bounds(&mut self) -> Result<(Vec<TopicPartition>, Vec<i64>)> {
        let partitions: Vec<_> = self.routes.iter().map(|r| TopicPartition::new(&r.schema.topic, 0)).collect();
        let bounds = self.session.bounds(&partitions).await?;
        Ok((partitions, bounds.iter().map(|bounds| bounds.durable_offset).collect()))
    }

    /// Applies one transaction's worth; tells how many records it passed.
    async fn step(&mut self, tables_made: &mut bool) -> Result<u64> {
        self.settle().await?;
        self.lanes.rest();
        let (partitions, ends) = self.bounds().await?;
        let (mut taken, mut items, mut next_offsets) = (Taken::default(), Vec::new(), Vec::new());
        for (number, end) in ends.iter().enumerate() {
            let next = self.read(number, &partitions[number], *end, &mut taken, &mut items).await?;
            if next != self.routes[number].next_offset {
                next_offsets.push((number, next));
            }
        }
        let freed = self.leave_out(&mut items);
        if next_offsets.is_empty() && *tables_made {
            return Ok(0);
        }
        self.tell_lag(&ends, taken.oldest);
        let passed: Vec<_> =
            next_offsets.iter().map(|(n, next)| (self.routes[*n].schema.topic.clone(), *next)).collect();
        // A batch that one transaction holds is applied in one: what a transaction of the source changed is seen at once.
        let may_deal = taken.bytes >= APPLY_BYTES && *tables_made && self.positions.are_even();
        if may_deal && self.lanes.ready(&mut *self.sink, &items).await {
            self.unsettled = true;
            self.lanes.put(items, &passed).await?;
            self.sink.put(Vec::new(), passed.clone()).await?;
            self.unsettled = false;
        } else {
            let mut changes = grouped_owned(items);
            if !*tables_made {
                let empty = |route: &Route| TopicChanges { schema: Arc::clone(&route.schema), changes: Vec::new() };
                changes.extend(self.routes.iter().map(empty));
            }
            self.sink.put(changes, passed.clone()).await?;
        }
        *tables_made = true;
        for (number, next) in next_offsets {
            self.routes[number].next_offset = next;
        }
        self.positions.pass(&passed);
        if !freed.is_empty() {
            self.parked.release(&freed).await?;
            self.tell_parked();
        }
        let all = self.routes.iter().zip(&ends).all(|(route, end)| route.next_offset >= *end);
        self.tell_lag(&ends, taken.oldest.filter(|_| !all));
        Ok(taken.records)
    }

    /// After lanes failed: finds out what they have done.
    pub(super) async fn settle(&mut self) -> Result<()> {
        if self.unsettled {
            self.positions = self.sink.positions().await?;
            for route in &mut self.routes {
                let topic = &route.schema.topic;
                let Some(next) = self.positions.next.get(topic) else {
                    return Err(Error::conflict(format!(
                        "the target does not know any more how far topic {topic} is: its positions were removed while the \
                         sync ran; drop its tables and copy them anew: tidemill sync run FILE --replace"
                    )));
                };
                route.next_offset = *next;
            }
            self.forget_left_out();
            self.unsettled = false;
        }
        Ok(())
    }

    fn forget_left_out(&mut self) {
        let routes = &self.routes;
        self.positions.keep(|topic| routes.iter().any(|route| route.schema.topic == topic));
    }

    /// Whether a lane has applied a change that the topic's position has not passed.
    pub(super) fn is_applied(&self, item: &Item) -> bool {
        let key = item.record.key.as_deref().unwrap_or_default();
        self.positions.hold(&item.schema.topic, key, item.record.offset)
    }

    /// Reads changes of one topic from where the target is up to `end`, while `taken` leaves room; where to go on.
    async fn read(
        &mut self,
        number: usize,
        from: &TopicPartition,
        end: i64,
        taken: &mut Taken,
        items: &mut Vec<Item>,
    ) -> Result<i64> {
        self.read_from(number, from, self.routes[number].next_offset, end, taken, items).await
    }

    pub(super) async fn read_from(
        &mut self,
        number: usize,
        from: &TopicPartition,
        mut next: i64,
        end: i64,
        taken: &mut Taken,
        items: &mut Vec<Item>,
    ) -> Result<i64> {
        let copy = self.routes[number].schema.copy_id();
        while next < end && taken.bytes < APPLY_BYTES * self.lanes.width() {
            let options = FetchOptions { max_bytes: 1 << 20, end: Some(end), ..FetchOptions::default() };
            let chunk = self.session.fetch(from, next, &options).await?;
            for record in chunk.records {
                taken.records += 1;
                taken.oldest = taken.oldest.min(Some(record.timestamp)).or(Some(record.timestamp));
                taken.bytes += record.value.as_ref().map_or(0, |v| v.len()) + 64;
                if record.value.is_none() {
                    continue;
                }
                if !self.schemas.know(&record) {
                    self.schemas = Schemas::load(&*self.session).await?;
                }
                let schema = self.schemas.of(&record)?;
                // Rows of an older copy come again: the table was copied anew. Those that were deleted do not, and are still
                // there where the table itself was kept.
                let older = schema.copy_id() < copy;
                let present = &self.routes[number].schema;
                if older && !(self.keeps_tables && same_key(schema, present)) {
                    continue;
                }
                let Some(change) = schema.decode_record(&record)? else { continue };
                match (older, change.op, &record.key) {
                    (false, ..) => items.push(Item { schema: Arc::clone(schema), change, record }),
                    (true, Op::Delete, Some(key)) => {
                        let Some(change) = gone(key.clone(), schema, change, present, true).change else { continue };
                        items.push(Item { schema: Arc::clone(present), change, record });
                    }
                    (true, ..) => {}
                }
            }
            next = chunk.next_offset;
        }
        Ok(next)
    }
}

/// A change with the record that holds it.
pub(super) struct Item {
    pub(super) schema: Arc<TopicSchema>,
    pub(super) change: Change,
    pub(super) record: FetchedRecord,
}

pub(super) fn grouped<'a>(items: impl Iterator<Item = &'a Item>) -> Vec<TopicChanges> {
    let mut batch = Vec::new();
    items.for_each(|item| push(&mut batch, &item.schema, item.change.clone()));
    batch
}

fn grouped_owned(items: Vec<Item>) -> Vec<TopicChanges> {
    let mut batch = Vec::new();
    items.into_iter().for_each(|item| push(&mut batch, &item.schema, item.change));
    batch
}

/// Adds a change; those of one schema stand together.
pub(super) fn push(batch: &mut Vec<TopicChanges>, schema: &Arc<TopicSchema>, change: Change) {
    match batch.last_mut().filter(|last| last.schema.id == schema.id) {
        Some(last) => last.changes.push(change),
        None => batch.push(TopicChanges { schema: Arc::clone(schema), changes: vec![change] }),
    }
}

/// How much was read of the log.
#[derive(Default)]
pub(super) struct Taken {
    bytes: usize,
    records: u64,
    /// The first record's time.
    oldest: Option<Timestamp>,
}
