//! The readers of a session. A fetch names its offset; it goes on with the reader that stands there, so that reading on
//! costs no seek. Where none does, one is opened, or moved.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    sync::OwnedMutexGuard,
    time::{Duration, Instant, timeout_at},
};

use super::{
    cluster::{Cluster, REQUEST_TIME},
    reader::{Consuming, Reader},
    topics,
};
use crate::{
    Error, Result,
    log::{Chunk, FetchOptions},
    topic::TopicPartition,
};

/// Readers of one partition at different places need a consumer each.
const CONSUMERS: usize = 3;
/// Partitions that a consumer reads ahead at most; who has not been asked for longest goes.
const PARTITIONS: usize = 256;
/// The queue tells when it has something; this is for what it does not tell, a place that moves over no records.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

type Place = Arc<tokio::sync::Mutex<Slot>>;

/// A partition in one consumer.
#[derive(Default)]
struct Slot {
    reader: Option<Reader>,
}

struct Lane {
    consuming: Consuming,
    places: Mutex<HashMap<TopicPartition, (Place, Instant)>>,
}

impl Lane {
    /// The partition's place if nobody reads there.
    fn free(&self, of: &TopicPartition) -> Option<OwnedMutexGuard<Slot>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let (place, used) = places.get_mut(of)?;
        *used = Instant::now();
        Arc::clone(place).try_lock_owned().ok()
    }

    /// A place for a partition that has none here, and the reader that leaves for it where there are too many. One that
    /// somebody reads with stays: two must never take from the queue of one partition.
    fn add(&self, of: &TopicPartition) -> Option<(OwnedMutexGuard<Slot>, Option<Reader>)> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.contains_key(of) {
            return None;
        }
        let mut left = None;
        if places.len() >= PARTITIONS {
            let mut oldest: Vec<_> = places.iter().map(|(of, (_, used))| (*used, of.clone())).collect();
            oldest.sort_unstable();
            for (_, old) in oldest {
                let guard = places.get(&old).and_then(|(place, _)| Arc::clone(place).try_lock_owned().ok());
                if let Some(mut guard) = guard {
                    left = guard.reader.take();
                    places.remove(&old);
                    break;
                }
            }
        }
        let place = Place::default();
        let guard = Arc::clone(&place).try_lock_owned().ok()?;
        places.insert(of.clone(), (place, Instant::now()));
        Some((guard, left))
    }
}

pub(super) struct Readers {
    cluster: Arc<Cluster>,
    lanes: tokio::sync::Mutex<Vec<Arc<Lane>>>,
}

impl Readers {
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, lanes: tokio::sync::Mutex::default() }
    }

    /// Ends reading a topic that goes.
    pub(super) async fn forget(&self, topic: &str) {
        let mut of_it = Vec::new();
        for lane in self.lanes.lock().await.iter() {
            let places = lane.places.lock().unwrap_or_else(PoisonError::into_inner);
            of_it.extend(places.iter().filter(|(of, _)| of.topic == topic).map(|(_, (place, _))| Arc::clone(place)));
        }
        for place in of_it {
            // Whoever reads it is told by the cluster that it is gone.
            if let Ok(mut slot) = place.try_lock()
                && let Some(reader) = slot.reader.take()
            {
                let _ = reader.close().await;
            }
        }
    }

    /// The best place to read a partition from `offset`, for this fetch alone.
    async fn place(&self, of: &TopicPartition, offset: i64) -> Result<(Arc<Lane>, OwnedMutexGuard<Slot>)> {
        let mut lanes = self.lanes.lock().await;
        let free: Vec<_> = lanes.iter().filter_map(|lane| Some((lane, lane.free(of)?))).collect();
        let mut other = None;
        for (lane, guard) in free {
            if guard.reader.as_ref().is_some_and(|reader| reader.is_at(offset)) {
                return Ok((Arc::clone(lane), guard));
            }
            other = Some((Arc::clone(lane), guard));
        }
        for lane in lanes.iter() {
            if let Some((guard, left)) = lane.add(of) {
                if let Some(left) = left {
                    left.close().await?;
                }
                return Ok((Arc::clone(lane), guard));
            }
        }
        if let Some(other) = other {
            return Ok(other);
        }
        if lanes.len() < CONSUMERS {
            let lane = Lane { consuming: Consuming::start(&self.cluster)?, places: Mutex::default() };
            let lane = Arc::new(lane);
            lanes.push(Arc::clone(&lane));
            let (guard, _) = lane.add(of).ok_or_else(|| Error::internal("a new consumer reads already"))?;
            return Ok((lane, guard));
        }
        let lane = Arc::clone(&lanes[0]);
        drop(lanes);
        let place = {
            let places = lane.places.lock().unwrap_or_else(PoisonError::into_inner);
            places.get(of).map(|(place, _)| Arc::clone(place))
        };
        let place = place.ok_or_else(|| Error::unavailable(format!("too many readers of {of}")))?;
        Ok((lane, place.lock_owned().await))
    }

    pub(super) async fn fetch(&self, from: &TopicPartition, offset: i64, options: &FetchOptions) -> Result<Chunk> {
        let deadline = Instant::now() + options.max_wait;
        let (lane, mut slot) = self.place(from, offset).await?;
        if slot.reader.as_ref().is_none_or(|reader| !reader.is_at(offset)) {
            if let Some(reader) = slot.reader.take() {
                reader.close().await?;
            }
            self.check_range(from, offset).await?;
            slot.reader = Some(lane.consuming.open(from, offset).await?);
        }
        let Some(reader) = &mut slot.reader else { return Err(Error::internal("a reader went")) };
        reader.skip_to(offset);
        match self.read(reader, from, options, deadline).await {
            Ok(chunk) => Ok(chunk),
            Err(error) => {
                // The next fetch looks anew.
                if let Some(reader) = slot.reader.take() {
                    let _ = reader.close().await;
                }
                Err(error)
            }
        }
    }

    async fn check_range(&self, from: &TopicPartition, offset: i64) -> Result<()> {
        topics::check_partition(&self.cluster, from).await?;
        let bounds = self.cluster.bounds(vec![from.clone()]).await?;
        let Some(bounds) = bounds.first() else { return Ok(()) };
        if (bounds.log_start_offset..=bounds.durable_offset).contains(&offset) {
            return Ok(());
        }
        let (first, end) = (bounds.log_start_offset, bounds.durable_offset);
        Err(Error::invalid(format!("offset {offset} of {from} is out of range {first}..={end}")))
    }

    async fn read(
        &self,
        reader: &mut Reader,
        from: &TopicPartition,
        options: &FetchOptions,
        deadline: Instant,
    ) -> Result<Chunk> {
        let end = options.end.unwrap_or(i64::MAX);
        let begun = Instant::now();
        // What is there when the fetch begins must be seen, however short it waits.
        let mut goal = None;
        loop {
            reader.take(options.max_bytes)?;
            let found = reader.give(options.max_bytes, end);
            if let Some((records, next_offset)) = found
                && (!records.is_empty() || next_offset >= end)
            {
                return Ok(Chunk { records, next_offset });
            }
            let next_offset = reader.next;
            let goal = match goal {
                Some(goal) => goal,
                None => {
                    let bounds = self.cluster.bounds(vec![from.clone()]).await?;
                    let there = bounds.first().map_or(0, |bounds| bounds.durable_offset);
                    *goal.insert(there.min(end))
                }
            };
            let now = Instant::now();
            if next_offset >= goal && now >= deadline {
                return Ok(Chunk { records: Vec::new(), next_offset });
            }
            if now > deadline.max(begun + REQUEST_TIME) {
                return Err(Error::unavailable(format!("{from} does not come beyond offset {next_offset}")));
            }
            let until = (now + LOOK_AGAIN).min(if next_offset >= goal { deadline } else { now + LOOK_AGAIN });
            let _ = timeout_at(until, reader.come.notified()).await;
        }
    }
}
