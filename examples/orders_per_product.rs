//! Orders and their cents, per product and ten seconds: a log, the orders and the job that counts them, in one program.
//!
//! ```sh
//! cargo run -p tidemill-examples --example orders_per_product -- --data-dir /tmp/orders
//! ```
//!
//! Stop it whenever you like, with `kill -9` too, and start it again. Each order is written once and counted once, and each
//! window's result appears once: what the job has read, what it has counted and what it has written are always committed
//! together, in one transaction of the log.

mod data_dir;
mod orders;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use data_dir::Owned;
use orders::Order;
use serde::Serialize;
use tidemill_core::clock::SystemClock;
use tidemill_streams::{
    Control, Job, Options,
    agg::{Count, Sum},
    window::Tumbling,
};
use tokio::sync::watch;

/// Counts orders per product and ten seconds.
#[derive(Parser)]
struct Args {
    /// Folder of the log; made if it is not there
    #[arg(long)]
    data_dir: PathBuf,
    #[command(flatten)]
    orders: orders::Settings,
}

/// What is known of a product when its ten seconds are over.
#[derive(Clone, Serialize)]
struct PerProduct {
    window_start: i64,
    window_end: i64,
    sku: String,
    orders: i64,
    cents: i64,
}

/// The job. All of it is here; the rest of this program is what a job needs around it.
fn per_product() -> Job {
    // The name is the job's identity: a job of this name goes on where the last one stopped.
    let job = Job::new("per-product");

    // Time is what the orders say, not when they arrive. They may come in any order: a window is only closed when no order
    // can be missing that comes at most two seconds late.
    let orders = job.topic("orders").json::<Order>().event_time(|order| order.ts);
    let orders = orders.max_delay(Duration::from_secs(2)).stream();

    // "totals" names the state of this step: it outlives crashes, and versions of this program.
    let totals = orders
        .key_by_ref(|order| order.sku.as_str())
        .window(Tumbling::of(Duration::from_secs(10)))
        .aggregate("totals", (Count::default(), Sum::of(|order: &Order| order.cents)));

    // An order that comes too late for its window is not dropped without a word: a job has to say where such rows go.
    totals.late.to_topic_by("orders.late", |order| order.sku.clone());

    let rows = totals.results.map(|total| {
        let (orders, cents) = total.value;
        PerProduct { window_start: total.window_start, window_end: total.window_end, sku: total.key, orders, cents }
    });
    rows.to_topic_by("orders.per-product", |row| row.sku.clone());
    job
}

async fn run(args: Args) -> anyhow::Result<()> {
    let log = Owned::open(&args.data_dir, "orders_per_product").await?;
    let topic = orders::topic(&*log.session).await?;
    let job = per_product();
    let status = job.status();

    // Whoever holds the other end of this channel says how long the job runs.
    let (control, controlled) = watch::channel(Control::Run);
    let job = job.run(Arc::clone(&log.session), Arc::new(SystemClock::default()), Options::default(), controlled);

    // When the last order is written the job may drain: count what is there, close all windows, and stop.
    let written = async {
        let progress = |written: u64| {
            println!("{written} orders written, {} counted here in {} epochs", status.records(), status.epochs());
        };
        orders::write(&*log.session, &topic, &args.orders, progress).await?;
        control.send_replace(Control::Drain);
        Ok(())
    };
    tokio::try_join!(written, job)?;

    println!("the last results of topic orders.per-product, of {} late orders:", status.late());
    for result in log.last("orders.per-product", 8).await? {
        println!("{result}");
    }
    log.close().await
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => data_dir::report(&error),
    }
}
