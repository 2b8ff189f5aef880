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
    cluster::{Cluster, REQUEST_TIME, blocking},
    reader::{Consuming, Reader},
    topics,
};
use crate::{
    Error, ErrorKind, Result,
    log::{Chunk, FetchOptions},
    topic::TopicPartition,
};

/// Readers of one partition at different places need a consumer each: partitions that each reads ahead at most; who has
/// not been asked for longest goes. Each holds up to `reader::AHEAD` of memory.
const LANES: [usize; 3] = [192, 32, 32];
/// The queue tells when it has something; this is for what it does not tell, a place that moves over no records.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long a read is tried again that a broker refuses for a partition which, by the cluster's controller, is there.
const LAG_TIME: Duration = Duration::from_secs(5);

type Place = Arc<tokio::sync::Mutex<Slot>>;
type Taken = OwnedMutexGuard<Slot>;

/// A partition in one consumer.
#[derive(Default)]
struct Slot {
    reader: Option<Reader>,
}

struct Lane {
    consuming: Consuming,
    most: usize,
    places: Mutex<HashMap<TopicPartition, (Place, Instant)>>,
}

impl Lane {
    fn start(cluster: &Cluster, most: usize) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { consuming: Consuming::start(cluster)?, most, places: Mutex::default() }))
    }

    fn places(&self) -> std::sync::MutexGuard<'_, HashMap<TopicPartition, (Place, Instant)>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The partition's place if nobody reads there.
    fn free(&self, of: &TopicPartition) -> Option<Taken> {
        let mut places = self.places();
        let (place, used) = places.get_mut(of)?;
        *used = Instant::now();
        Arc::clone(place).try_lock_owned().ok()
    }

    /// A place for a partition that has none here.
    fn add(&self, of: &TopicPartition) -> Option<Taken> {
        let mut places = self.places();
        if places.contains_key(of) {
            return None;
        }
        let place = Place::default();
        let guard = Arc::clone(&place).try_lock_owned().ok()?;
        places.insert(of.clone(), (place, Instant::now()));
        Some(guard)
    }

    /// Those that are to leave, since there are too many: not used for longest, and by nobody now.
    fn surplus(&self) -> Vec<(TopicPartition, Taken)> {
        let places = self.places();
        let Some(more) = places.len().checked_sub(self.most).filter(|more| *more > 0) else { return Vec::new() };
        let mut oldest: Vec<_> = places.iter().map(|(of, (place, used))| (*used, of, place)).collect();
        oldest.sort_unstable_by_key(|(used, of, _)| (*used, *of));
        let free = |(_, of, place): &(Instant, &TopicPartition, &Place)| {
            Some(((*of).clone(), Arc::clone(place).try_lock_owned().ok()?))
        };
        oldest.iter().filter_map(free).take(more).collect()
    }

    /// Ends reading what was taken; its places are gone before anybody else can take them. Blocks.
    fn leave(&self, surplus: Vec<(TopicPartition, Taken)>) {
        for (of, mut guard) in surplus {
            if let Some(reader) = guard.reader.take() {
                reader.close_now();
            }
            self.places().remove(&of);
        }
    }

    /// Whether this is the partition's place: one that left must not be read in any more.
    fn holds(&self, of: &TopicPartition, taken: &Taken) -> bool {
        self.places().get(of).is_some_and(|(place, _)| Arc::ptr_eq(place, OwnedMutexGuard::mutex(taken)))
    }

    /// Reads from `offset` on in a place, and lets others leave. It is done to its end, though nobody waits any more: the
    /// place is nobody else's until then.
    async fn open(self: Arc<Self>, mut taken: Taken, from: &TopicPartition, offset: i64) -> Result<Taken> {
        let from = from.clone();
        blocking(move || {
            self.leave(self.surplus());
            if let Some(reader) = taken.reader.take() {
                reader.close_now();
            }
            taken.reader = Some(self.consuming.open_now(&from, offset)?);
            Ok(taken)
        })
        .await
    }
}

/// Ends reading in a place.
async fn close(mut taken: Taken) {
    let close = move || {
        if let Some(reader) = taken.reader.take() {
            reader.close_now();
        }
        Ok(())
    };
    let _ = blocking(close).await;
}

#[derive(Default)]
pub(super) struct Readers {
    lanes: tokio::sync::Mutex<Vec<Arc<Lane>>>,
}

impl Readers {
    /// Ends reading a topic that goes.
    pub(super) async fn forget(&self, topic: &str) {
        let mut of_it = Vec::new();
        for lane in self.lanes.lock().await.iter() {
            let places = lane.places();
            // Whoever reads it is told by the cluster that it is gone.
            let free = |place: &Place| Arc::clone(place).try_lock_owned().ok();
            of_it.extend(places.iter().filter(|(of, _)| of.topic == topic).filter_map(|(_, (place, _))| free(place)));
        }
        for taken in of_it {
            close(taken).await;
        }
    }

    /// The best place to read a partition from `offset`, for this fetch alone.
    async fn place(&self, cluster: &Cluster, of: &TopicPartition, offset: i64) -> Result<(Arc<Lane>, Taken)> {
        loop {
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
                if let Some(guard) = lane.add(of) {
                    return Ok((Arc::clone(lane), guard));
                }
            }
            if let Some(other) = other {
                return Ok(other);
            }
            if let Some(most) = LANES.get(lanes.len()) {
                let lane = Lane::start(cluster, *most)?;
                lanes.push(Arc::clone(&lane));
                let guard = lane.add(of).ok_or_else(|| Error::internal("a new consumer reads already"))?;
                return Ok((lane, guard));
            }
            let lane = Arc::clone(&lanes[0]);
            drop(lanes);
            let place = lane.places().get(of).map(|(place, _)| Arc::clone(place));
            if let Some(place) = place {
                let guard = place.lock_owned().await;
                if lane.holds(of, &guard) {
                    return Ok((lane, guard));
                }
            }
        }
    }

    pub(super) async fn fetch(
        &self,
        cluster: &Cluster,
        from: &TopicPartition,
        offset: i64,
        options: &FetchOptions,
    ) -> Result<Chunk> {
        let begun = Instant::now();
        loop {
            let fetched = self.fetch_once(cluster, from, offset, options, begun).await;
            match &fetched {
                // A broker that does not know the partition may only lag behind the others.
                Err(error) if error.kind() == ErrorKind::NotFound && begun.elapsed() < LAG_TIME => {
                    topics::check_partition(cluster, from).await?;
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                _ => return fetched,
            }
        }
    }

    async fn fetch_once(
        &self,
        cluster: &Cluster,
        from: &TopicPartition,
        offset: i64,
        options: &FetchOptions,
        begun: Instant,
    ) -> Result<Chunk> {
        let (lane, mut taken) = self.place(cluster, from, offset).await?;
        if taken.reader.as_ref().is_none_or(|reader| !reader.is_at(offset)) {
            check_range(cluster, from, offset).await?;
            taken = lane.open(taken, from, offset).await?;
        }
        let Some(reader) = &mut taken.reader else { return Err(Error::internal("a reader went")) };
        reader.skip_to(offset);
        match read(cluster, reader, from, options, begun + options.max_wait).await {
            Ok(chunk) => Ok(chunk),
            Err(error) => {
                // The next fetch looks anew.
                close(taken).await;
                Err(error)
            }
        }
    }
}

async fn check_range(cluster: &Cluster, from: &TopicPartition, offset: i64) -> Result<()> {
    topics::check_partition(cluster, from).await?;
    let bounds = cluster.bounds(vec![from.clone()]).await?;
    let Some(bounds) = bounds.first() else { return Ok(()) };
    let (first, end) = (bounds.log_start_offset, bounds.durable_offset);
    // Behind an open transaction there is more than can be read yet.
    if (first..=end).contains(&offset) || (offset > end && offset <= cluster.high_watermark(from).await?) {
        return Ok(());
    }
    Err(Error::invalid(format!("offset {offset} of {from} is out of range {first}..={end}")))
}

async fn read(
    cluster: &Cluster,
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
                let bounds = cluster.bounds(vec![from.clone()]).await?;
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
