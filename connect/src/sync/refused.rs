//! What becomes of rows that the target refuses: they are parked, and taken up again when somebody asks or deletes them.

use std::{collections::HashMap, sync::Arc};

use tidemill_core::topic::TopicPartition;

use super::{
    apply::{Apply, Item, Taken, grouped},
    control::{Answer, Ask},
    parked::ParkedKey,
};
use crate::{
    Error, ErrorKind, Result,
    change::{Change, Op, Value},
    connector::TopicChanges,
    converter::TopicSchema,
};

impl Apply {
    /// Leaves out what waits for a parked key, and what lanes have. A delete ends the wait: it is later than all that the
    /// target refused of the key. Those keys are given back.
    pub(super) fn leave_out(&self, items: &mut Vec<Item>) -> Vec<ParkedKey> {
        let mut freed: Vec<ParkedKey> = Vec::new();
        items.retain(|item| {
            if self.is_applied(item) {
                return false;
            }
            let Some(key) = self.parked.find(&item.schema.topic, &item.record) else { return true };
            let known = freed.contains(key);
            if !known && item.change.op == Op::Delete {
                freed.push(key.clone());
                return true;
            }
            known
        });
        freed
    }

    /// Applies changes in order, in halves until those that the target refuses stand alone; these are parked.
    pub(super) async fn put_or_park(&mut self, items: &[Item]) -> Result<()> {
        let mut ranges = vec![(0, items.len())];
        while let Some((start, end)) = ranges.pop() {
            // A key that was parked meanwhile holds back its later changes.
            let parked = &self.parked;
            let goes =
                |item: &&Item| item.change.op == Op::Delete || parked.find(&item.schema.topic, &item.record).is_none();
            let batch = grouped(items[start..end].iter().filter(goes));
            if batch.is_empty() {
                continue;
            }
            let error = match self.sink.put(batch, Vec::new()).await {
                Ok(()) => continue,
                Err(error) if error.kind() == ErrorKind::Conflict => error,
                Err(error) => return Err(error),
            };
            if end - start == 1 {
                let (item, now) = (&items[start], self.clock.now());
                self.parked.park(&*self.session, &item.schema.topic, &item.record, &error, now).await?;
                continue;
            }
            let middle = start + (end - start) / 2;
            ranges.extend([(middle, end), (start, middle)]);
        }
        Ok(())
    }

    /// Parked keys whose last change is a delete: nothing of them waits any more.
    pub(super) fn deleted_last(&self, items: &[Item]) -> Vec<ParkedKey> {
        let mut last = HashMap::new();
        for item in items {
            if let Some(key) = self.parked.find(&item.schema.topic, &item.record) {
                last.insert((&key.topic, &key.key), (key, item.change.op));
            }
        }
        last.into_values().filter(|(_, op)| *op == Op::Delete).map(|(key, _)| key.clone()).collect()
    }

    /// A run that ends has not done what it should while rows are parked.
    pub(super) fn refuse_parked(&self) -> Result<()> {
        let parked = self.parked.all();
        let Some(first) = parked.first() else { return Ok(()) };
        Err(Error::conflict(format!(
            "the target refused {} of the source, the first being {} of {}: {}; all else was applied; mend the target and \
             try again: tidemill sync retry FILE",
            if parked.len() == 1 { "one row".to_owned() } else { format!("{} rows", parked.len()) },
            first.key,
            first.topic,
            first.cause
        )))
    }

    /// Does what people asked for.
    pub(super) async fn answer(&mut self) -> Result<()> {
        for (ask, answer) in self.control.take() {
            let result = self.retry(&ask).await;
            self.tell_parked();
            let failed = result.as_ref().err().map(Error::duplicate);
            let _ = answer.send(result);
            if let Some(error) = failed.filter(|error| error.kind() == ErrorKind::Closed) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Applies the newest of what waits for parked keys; of a key that is skipped, without the change that failed.
    pub(super) async fn retry(&mut self, ask: &Ask) -> Result<Answer> {
        // What waits for a key may be beyond the topic's position, where lanes are ahead.
        self.settle().await?;
        let mut answer = Answer::default();
        for parked in self.parked.all() {
            let skips = match ask {
                Ask::Retry => false,
                Ask::Skip(key) if *key == parked.key => true,
                Ask::Skip(_) => {
                    answer.parked.push(parked);
                    continue;
                }
            };
            let waiting = self.waiting(&parked, skips).await?;
            if !self.routes.iter().any(|route| route.schema.topic == parked.topic) {
                // Its table is not in the sync now; when it comes back, the row is still owed.
                answer.parked.push(parked);
                continue;
            }
            let Some((schema, change)) = newest(waiting) else {
                answer.released.push(parked);
                continue;
            };
            match self.sink.put(vec![TopicChanges { schema, changes: vec![change] }], Vec::new()).await {
                Ok(()) => answer.released.push(parked),
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    answer.parked.push(ParkedKey { cause: error.to_string(), ..parked });
                }
                Err(error) => return Err(error),
            }
        }
        if let Ask::Skip(key) = ask
            && !answer.released.iter().chain(&answer.parked).any(|parked| parked.key == *key)
        {
            return Err(Error::not_found(format!("no key {key} is parked")));
        }
        self.parked.release(&answer.released).await?;
        Ok(answer)
    }

    /// The changes of a parked key that the target has not taken.
    async fn waiting(&mut self, parked: &ParkedKey, skips: bool) -> Result<Vec<Item>> {
        let Some(number) = self.routes.iter().position(|route| route.schema.topic == parked.topic) else {
            return Ok(Vec::new());
        };
        let partition = TopicPartition::new(&parked.topic, 0);
        let held = self.positions.held_to(&parked.topic, parked.key.as_bytes()).unwrap_or_default();
        let end = self.routes[number].next_offset.max(held);
        let (mut next, mut items) = (parked.offset + i64::from(skips), Vec::new());
        while next < end {
            let mut found = Vec::new();
            let mut taken = Taken::default();
            next = self.read_from(number, &partition, next, end, &mut taken, &mut found).await?;
            items.extend(found.into_iter().filter(|item| item.record.key.as_deref() == Some(parked.key.as_bytes())));
        }
        Ok(items)
    }
}

/// The last change of one key, with what it leaves untold taken from those before it.
fn newest(items: Vec<Item>) -> Option<(Arc<TopicSchema>, Change)> {
    let mut items = items.into_iter().rev();
    let Item { schema, mut change, .. } = items.next()?;
    for earlier in items.filter(|item| item.schema.id == schema.id) {
        let (Some(row), Some(known)) = (&mut change.after, earlier.change.after) else { break };
        let untold = row.iter_mut().zip(known).filter(|(value, _)| **value == Value::Unchanged);
        untold.for_each(|(value, known)| *value = known);
    }
    Some((schema, change))
}
