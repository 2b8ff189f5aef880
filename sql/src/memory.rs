//! One pool of memory for all statements, of which each gets at most a quarter.
//!
//! Inside a statement DataFusion's fair pool divides the quarter among the operators that can spill. What a statement
//! reserves is counted in the shared pool as well, so that many statements together stay below it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use datafusion::{
    common::Result,
    error::DataFusionError,
    execution::memory_pool::{FairSpillPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation},
};

/// What all statements share.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    limit: usize,
    used: AtomicUsize,
}

impl SharedMemory {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }

    fn try_add(&self, bytes: usize) -> bool {
        let within = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_ok()
    }
}

/// The memory of one statement.
#[derive(Debug)]
pub(crate) struct StatementMemory {
    shared: Arc<SharedMemory>,
    limit: usize,
    inner: FairSpillPool,
}

impl StatementMemory {
    pub(crate) fn new(shared: &Arc<SharedMemory>) -> Self {
        let limit = shared.limit / 4;
        Self { shared: Arc::clone(shared), limit, inner: FairSpillPool::new(limit) }
    }

    fn exhausted(&self, limit: usize, whose: &str, consumer: &MemoryConsumer) -> DataFusionError {
        DataFusionError::ResourcesExhausted(format!(
            "memory limit {} {whose}reached in {}; read fewer columns or rows, or raise the limit",
            bytes_text(limit),
            operator_name(consumer.name()),
        ))
    }
}

impl fmt::Display for StatementMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "statement memory of {}", bytes_text(self.limit))
    }
}

impl MemoryPool for StatementMemory {
    fn name(&self) -> &str {
        "statement"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.inner.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.inner.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.shared.used.fetch_add(additional, Ordering::Relaxed);
        self.inner.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.inner.shrink(reservation, shrink);
        self.shared.used.fetch_sub(shrink, Ordering::Relaxed);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        // The statement's own limit first: a request beyond both is the statement's fault, not its neighbours'.
        let own = self.inner.try_grow(reservation, additional);
        own.map_err(|_| self.exhausted(self.limit, "", reservation.consumer()))?;
        if !self.shared.try_add(additional) {
            self.inner.shrink(reservation, additional);
            return Err(self.exhausted(self.shared.limit, "of all statements ", reservation.consumer()));
        }
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.inner.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.limit)
    }
}

/// DataFusion names consumers after its structs; users know the operations.
fn operator_name(consumer: &str) -> &str {
    let has = |part: &str| consumer.contains(part);
    if has("Sort") || has("TopK") {
        "sort"
    } else if has("Group") || has("Aggregate") {
        "aggregate"
    } else if has("Join") {
        "join"
    } else if has("Window") {
        "window"
    } else if has("Repartition") {
        "repartition"
    } else {
        consumer
    }
}

fn bytes_text(bytes: usize) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 30) => format!("{} GiB", bytes >> 30),
        _ => format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
    }
}

/// The memory of this machine or container in bytes; 4 GiB where it cannot be told.
pub(crate) fn machine_bytes() -> u64 {
    let file = |path| std::fs::read_to_string(path).unwrap_or_default();
    let total_kib = file("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let total = total_kib.map_or(4 << 30, |kib| kib << 10);
    let limit = file("/sys/fs/cgroup/memory.max").trim().parse::<u64>().unwrap_or(u64::MAX);
    total.min(limit)
}
