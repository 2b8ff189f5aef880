//! `tidemill bench log`: durable appends beside what the disk itself can do, in the same minute.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidemill_core::{
    batch::BatchBuilder,
    clock::{Clock, SystemClock},
    engine::{Config, Engine},
    record::{Record, Timestamp},
    storage::OsStorage,
    topic::{PartitionId, TopicSpec},
};

use super::disk::{Figures, disk};

/// Record by which the commit log is filled before a measurement.
const WARM_UP_BYTES: usize = 1 << 20;

pub struct Plan {
    pub dir: Option<PathBuf>,
    pub partitions: Vec<u32>,
    pub seconds: u64,
    pub record_bytes: usize,
    pub batch_records: usize,
}

pub async fn run(plan: Plan) -> anyhow::Result<ExitCode> {
    let dir = plan.dir.clone().unwrap_or_else(|| std::env::current_dir().unwrap_or_default());
    let dir = dir.join(format!("tidemill-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let result = measure(&dir, &plan).await;
    std::fs::remove_dir_all(&dir)?;
    result.map(|()| ExitCode::SUCCESS)
}

async fn measure(dir: &Path, plan: &Plan) -> anyhow::Result<()> {
    let config = Config::default();
    println!("tidemill {} bench log, {} build", env!("CARGO_PKG_VERSION"), profile());
    println!(
        "records of {} bytes; {} s each; commit log {} MiB in files of {} MiB",
        plan.record_bytes,
        plan.seconds,
        config.commit_log_bytes >> 20,
        config.commit_file_bytes >> 20
    );
    println!("{} cores; folder {}", std::thread::available_parallelism()?, dir.display());
    println!();
    println!("{:<34} {:>10} {:>9} {:>9} {:>9} {:>9}", "", "per s", "MB/s", "p50 ms", "p99 ms", "p99.9 ms");
    for &count in &plan.partitions {
        // The disk's figure is taken anew each time: machines are shared, and only the same minute compares.
        print(&format!("disk: fdatasync of {} bytes", plan.record_bytes), &disk(dir, plan.record_bytes, 2)?);
        let single = producers(dir, plan, count, 1).await?;
        print(&format!("{count} partitions, 1 record a batch"), &single);
        let many = producers(dir, plan, count, plan.batch_records).await?;
        print(&format!("{count} partitions, {} records a batch", plan.batch_records), &many);
    }
    print("disk: fdatasync of 1 MiB", &disk(dir, 1 << 20, 2)?);
    Ok(())
}

fn profile() -> &'static str {
    if cfg!(debug_assertions) { "dev" } else { "release" }
}

fn print(name: &str, figures: &Figures) {
    let sorted = figures.sorted();
    let at = |share: f64| Figures::millis_at(&sorted, share);
    let seconds = figures.time.as_secs_f64();
    println!(
        "{name:<34} {:>10.0} {:>9.1} {:>9.2} {:>9.2} {:>9.2}",
        sorted.len() as f64 / seconds,
        figures.bytes as f64 / 1e6 / seconds,
        at(0.5),
        at(0.99),
        at(0.999)
    );
}

/// One producer a partition, each waiting for its append to be durable before the next.
async fn producers(dir: &Path, plan: &Plan, count: u32, batch_records: usize) -> anyhow::Result<Figures> {
    let folder = dir.join("log");
    let open = || Engine::open(&folder, Config::default(), Arc::new(OsStorage), Arc::new(SystemClock::default()));
    let engine = Arc::new(open()?);
    let topic = engine.create_topic("bench", &TopicSpec::partitions(count)).await?;
    wrap(&engine, &topic.partitions).await?;
    let until = Instant::now() + Duration::from_secs(plan.seconds);
    let started = Instant::now();
    let tasks: Vec<_> = topic
        .partitions
        .iter()
        .map(|id| tokio::spawn(produce(Arc::clone(&engine), *id, plan.record_bytes, batch_records, until)))
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let time = started.elapsed();
    let bytes = (latencies.len() * batch_records * plan.record_bytes) as u64;
    tokio::task::spawn_blocking(move || engine.close()).await??;
    std::fs::remove_dir_all(&folder)?;
    Ok(Figures { latencies, bytes, time })
}

/// Fills the commit log once: from then on its files are used again and none is made, and the folders of all partitions
/// are there and durable.
async fn wrap(engine: &Arc<Engine>, partitions: &[PartitionId]) -> anyhow::Result<()> {
    let mut batch = BatchBuilder::default();
    batch.push(&Record::new(None, Bytes::from(vec![b'w'; WARM_UP_BYTES])), SystemClock::default().now())?;
    let batch = batch.finish();
    let times = engine.config().commit_log_bytes / WARM_UP_BYTES + 1;
    for partition in partitions.iter().cycle().take(times.max(partitions.len())) {
        engine.append(vec![(*partition, batch.clone())], None).await?;
    }
    Ok(())
}

async fn produce(
    engine: Arc<Engine>,
    partition: PartitionId,
    record_bytes: usize,
    batch_records: usize,
    until: Instant,
) -> anyhow::Result<Vec<Duration>> {
    let value = Bytes::from(vec![b'x'; record_bytes]);
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let begun = Instant::now();
        let now: Timestamp = SystemClock::default().now();
        let mut batch = BatchBuilder::default();
        for _ in 0..batch_records {
            batch.push(&Record::new(None, value.clone()), now)?;
        }
        engine.append(vec![(partition, batch.finish())], None).await?;
        latencies.push(begun.elapsed());
    }
    Ok(latencies)
}
