//! Windowed aggregates of typed streams: [`WindowAggregate`] as a step of a job, its results, its late rows, its view.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    graph::{AnyChunk, Operator, Out, Publish, typed},
    status::Status,
    stream::{Stream, lock},
    view::{View, ViewUpdate},
};
use crate::{
    Result,
    agg::Agg,
    chunk::Chunk,
    key::{Key, Keyer},
    state::{Changes, KeyGroups, State},
    window::{Groups, Tumbling, Window, WindowAggregate},
};

/// The result of one group of a closed window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Windowed<K, V> {
    /// First instant of the window, milliseconds since 1970 UTC.
    pub window_start: i64,
    /// First instant after the window.
    pub window_end: i64,
    /// The group's key.
    pub key: K,
    /// The aggregate's result.
    pub value: V,
}

impl<K, V> Windowed<K, V> {
    /// The window.
    pub fn window(&self) -> Window {
        Window { start: self.window_start, end: self.window_end }
    }
}

/// A keyed stream whose rows belong to windows.
pub struct WindowedStream<T, K> {
    pub(super) stream: Stream<T>,
    pub(super) keyer: K,
    pub(super) windows: Tumbling,
}

/// What a windowed aggregate gives out.
pub struct Aggregated<T, K, V> {
    /// The groups of each window, once, when it closes.
    pub results: Stream<Windowed<K, V>>,
    /// Rows that came after their window had closed. A job must do something with them, if only
    /// [`discard`](Stream::discard) them.
    pub late: Stream<T>,
    /// Results of open and just closed windows, to look at while the job runs.
    pub view: View<K, V>,
}

const RESULTS: usize = 0;
const LATE: usize = 1;

impl<T, G, K> WindowedStream<T, G>
where
    T: Clone + Send + 'static,
    K: Key,
    G: Keyer<Vec<T>, Keys = Vec<K>>,
{
    /// Aggregates each group of each window. `step` names the state: a job that is started again goes on with it.
    pub fn aggregate<A, V>(self, step: &str, agg: A) -> Aggregated<T, K, V>
    where
        A: Agg<Vec<T>, Out = Vec<V>>,
        V: Clone + Send + Sync + 'static,
    {
        let Stream { graph, node, port, updating, .. } = self.stream;
        let view = View::default();
        let mut open = lock(&graph);
        if let Err(error) = self.windows.validate() {
            open.faults.push(format!("step {step:?}: {}", error.message()));
        }
        if updating && !agg.retracts() {
            open.faults
                .push(format!("step {step:?}: {} cannot take rows back, and its input may ask it to", agg.name()));
        }
        let aggregate = WindowAggregate::new(self.windows, self.keyer, agg, updating);
        let operator = Step {
            aggregate,
            late: Vec::new(),
            status: Arc::clone(&open.status),
            view: view.clone(),
            closed: Vec::new(),
            is_view_whole: false,
        };
        open.read(node, port);
        let made = open.add(Some(step.to_owned()), Box::new(operator), vec![(node, port)]);
        open.must_read(made, LATE, step);
        drop(open);
        Aggregated {
            results: Stream::new(Arc::clone(&graph), made, RESULTS, false),
            late: Stream::new(graph, made, LATE, updating),
            view,
        }
    }
}

struct Step<T, G, A, K, V> {
    aggregate: WindowAggregate<Vec<T>, G, A>,
    late: Vec<u32>,
    status: Arc<Status>,
    view: View<K, V>,
    /// Results of windows closed since the last barrier, for the view.
    closed: Vec<Groups<Vec<K>, Vec<V>>>,
    /// Whether the view has all that was before this epoch.
    is_view_whole: bool,
}

impl<T, G, A, K, V> Operator for Step<T, G, A, K, V>
where
    T: Clone + Send + 'static,
    K: Key,
    V: Clone + Send + Sync + 'static,
    G: Keyer<Vec<T>, Keys = Vec<K>>,
    A: Agg<Vec<T>, Out = Vec<V>>,
{
    fn chunk(&mut self, chunk: AnyChunk, out: &mut Out) -> Result<()> {
        let chunk: Chunk<Vec<T>> = typed(chunk)?;
        self.late.clear();
        self.aggregate.push(&chunk, &mut self.late)?;
        if !self.late.is_empty() {
            self.status.add_late(self.late.len());
            out.emit(LATE, chunk.take(&self.late));
        }
        Ok(())
    }

    fn watermark(&mut self, watermark: i64, out: &mut Out) -> Result<i64> {
        for groups in self.aggregate.advance(watermark)? {
            if self.view.is_wanted() {
                self.closed.push(groups.clone());
            }
            let Window { start, end } = groups.window;
            let results = groups.keys.into_iter().zip(groups.values);
            let data: Vec<Windowed<K, V>> =
                results.map(|(key, value)| Windowed { window_start: start, window_end: end, key, value }).collect();
            out.emit(RESULTS, Chunk::inserts(vec![end - 1; data.len()], data));
        }
        Ok(self.aggregate.output_watermark())
    }

    fn state(&mut self) -> Option<&mut dyn State> {
        Some(self)
    }

    fn publish(&mut self) -> Result<Option<Publish>> {
        if !self.view.is_wanted() {
            return Ok(None);
        }
        let closed = std::mem::take(&mut self.closed);
        let is_whole = std::mem::replace(&mut self.is_view_whole, true);
        let update = match is_whole {
            true => ViewUpdate { replace: false, changed: self.aggregate.changed()?, closed },
            false => ViewUpdate { replace: true, changed: self.aggregate.all_open()?, closed },
        };
        if is_whole && update.changed.is_empty() && update.closed.is_empty() {
            return Ok(None);
        }
        let view = self.view.clone();
        Ok(Some(Box::new(move |epoch| view.apply(epoch, update))))
    }
}

/// The state is the aggregate's; when it is replaced the view is whole no more.
impl<T, G, A, K, V> State for Step<T, G, A, K, V>
where
    T: Clone + Send + 'static,
    K: Key,
    V: Clone + Send + Sync + 'static,
    G: Keyer<Vec<T>, Keys = Vec<K>>,
    A: Agg<Vec<T>, Out = Vec<V>>,
{
    fn describe(&self) -> String {
        self.aggregate.describe()
    }

    fn barrier(&mut self, changes: &mut Changes) -> Result<()> {
        self.aggregate.barrier(changes)
    }

    fn snapshot(&self, key_groups: &KeyGroups, changes: &mut Changes) -> Result<()> {
        self.aggregate.snapshot(key_groups, changes)
    }

    fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.aggregate.restore(key, value)
    }

    fn watermark(&self) -> i64 {
        self.aggregate.watermark()
    }

    fn set_watermark(&mut self, watermark: i64) {
        self.aggregate.set_watermark(watermark);
    }

    fn clear(&mut self) {
        self.closed.clear();
        self.is_view_whole = false;
        self.aggregate.clear();
    }
}
