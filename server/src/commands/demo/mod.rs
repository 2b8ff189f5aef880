//! `tidemill demo`: a shop is written to, a second database is kept in step through the log, and the log is asked about
//! it. No port is opened.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tidemill_connect::sync::{
    file::load,
    run::{Observer, RunOptions, run as run_sync, shell_word},
    verify::verify,
};
use tidemill_core::Error;
use tokio::sync::watch;

use super::{
    shop::{self, Written},
    stop_signal,
};
use crate::{
    cli::{Demo, Output},
    client::{Client, copy_body},
    node::Node,
};

const SYNC_FILE: &str =
    "[sync.shop]\nfrom   = \"sqlite:shop.sqlite\"\nto     = \"sqlite:replica.sqlite\"\ntables = [\"*\"]\n";
const QUERY: &str = "select p.title, count(*) as orders, sum(o.quantity) as pieces, \
     round(sum(o.quantity * p.price), 2) as worth \
     from orders o join products p on p.sku = o.sku group by p.title order by worth desc";
/// How long the replica may take after the last write.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn run(command: Demo) -> anyhow::Result<ExitCode> {
    let folder = match &command.keep {
        Some(folder) => folder.clone(),
        None => std::env::temp_dir().join(format!("tidemill-demo-{}", std::process::id())),
    };
    std::fs::create_dir_all(&folder)?;
    if folder.join("shop.sqlite").exists() {
        return Err(
            Error::conflict(format!("{} holds a shop already: choose an empty folder", folder.display())).into()
        );
    }
    let result = play(&folder, command.seconds).await;
    match &command.keep {
        Some(_) => go_on(&folder),
        None => std::fs::remove_dir_all(&folder)?,
    }
    result
}

async fn play(folder: &Path, seconds: u64) -> anyhow::Result<ExitCode> {
    let mut stop = stop_signal()?;
    let (shop_file, sync_file) = (folder.join("shop.sqlite"), folder.join("shop.toml"));
    shop::create(&shop_file)?;
    std::fs::write(&sync_file, SYNC_FILE)?;
    println!("A shop in SQLite, and the file that keeps a second database in step with it:\n\n{SYNC_FILE}");
    let node = Node::own(&folder.join("data"), "demo").await?;
    let (told, ended) = watch::channel(false);
    let syncing =
        tokio::spawn(follow(node.session("demo").await?, Arc::clone(node.engine().clock()), sync_file.clone(), ended));
    let written = Arc::new(Written::default());
    let pen_down = Arc::new(AtomicBool::new(false));
    let writer = {
        let (shop_file, written, pen_down) = (shop_file.clone(), Arc::clone(&written), Arc::clone(&pen_down));
        tokio::task::spawn_blocking(move || shop::write(&shop_file, &written, &pen_down))
    };
    let router = node.router();
    let client = Client::Own(Box::new(node), router);
    watch_for(seconds, &written, &mut stop).await;
    pen_down.store(true, Ordering::Relaxed);
    writer.await??;
    let equal = in_step(&sync_file).await?;
    println!("\nThe log, asked while it follows:\n\n  {QUERY}\n");
    let body = serde_json::json!({ "query": QUERY, "format": Output::Table.as_str() }).to_string();
    let answer = client.send_json(axum::http::Method::POST, "/v1/sql", body).await?;
    copy_body(answer, super::print_bytes).await?;
    let _ = told.send(true);
    syncing.await??;
    client.close().await?;
    Ok(verdict(&written, equal))
}

struct Quiet;

impl Observer for Quiet {
    fn started(&self, _: &str, _: &[(String, u64)]) {}
    fn copied(&self, _: usize, _: u64) {}
    fn finished(&self, _: usize) {}
    fn applied(&self, _: u64) {}
    fn caught_up(&self) {}
    fn waiting(&self, error: &Error) {
        eprintln!("waiting: {error}");
    }
}

async fn follow(
    session: Arc<dyn tidemill_core::log::Session>,
    clock: Arc<dyn tidemill_core::clock::Clock>,
    file: PathBuf,
    stop: watch::Receiver<bool>,
) -> Result<(), Error> {
    for spec in load(&file)? {
        let (session, clock) = (Arc::clone(&session), Arc::clone(&clock));
        run_sync(session, clock, &spec, &RunOptions::default(), Arc::new(Quiet), stop.clone()).await?;
    }
    Ok(())
}

/// Tells once a second what was written, until the time is over or somebody stops it.
async fn watch_for(seconds: u64, written: &Written, stop: &mut watch::Receiver<bool>) {
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until && !*stop.borrow() {
        let left = until.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
        let _ = tokio::time::timeout(left, stop.wait_for(|stop| *stop)).await;
        let (inserts, updates, deletes) = written.counts();
        println!("the shop wrote {inserts} inserts, {updates} updates, {deletes} deletes");
    }
}

/// Whether the replica equals the shop within the patience, row by row.
async fn in_step(file: &Path) -> anyhow::Result<bool> {
    let mut equal = true;
    for spec in load(file)? {
        for verdict in verify(spec, PATIENCE).await? {
            equal &= verdict.is_equal();
            let state = if verdict.is_equal() { "equal" } else { "NOT equal" };
            println!("{:<10} {:>6} rows, source and replica {state}", verdict.table, verdict.diff.rows);
        }
    }
    Ok(equal)
}

fn verdict(written: &Written, equal: bool) -> ExitCode {
    let (inserts, updates, deletes) = written.counts();
    if equal {
        println!("\nIn step: {inserts} inserts, {updates} updates, {deletes} deletes arrived.");
        return ExitCode::SUCCESS;
    }
    println!("\nNot in step after {} s.", PATIENCE.as_secs());
    ExitCode::FAILURE
}

fn go_on(folder: &Path) {
    let word = |file: &str| shell_word(&folder.join(file).to_string_lossy());
    println!("\nThe files are in {}. To go on by hand:\n", folder.display());
    println!("  tidemill sync run {} --data-dir {}", word("shop.toml"), word("data"));
    println!("  tidemill sql --data-dir {} 'select count(*) from orders'", word("data"));
}
