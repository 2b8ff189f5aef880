//! `tidemill demo`: a shop is written to, a second database is kept in step through the log, and a stream job adds up its
//! orders, all in this process. At its end each is checked against SQLite. No port is opened.
//!
//! | module | what it is |
//! |---|---|
//! | `shop` | the database and the program that writes to it, which know nothing of Tidemill |
//! | `revenue` | the job, and the check of its results |
//! | `scene`, `screen` | what is shown, and how |

mod revenue;
mod scene;
mod screen;
mod shop;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use tidemill_connect::sync::{
    away::Side,
    file::load,
    run::{Observer, RunOptions, TableStart, run as run_sync, shell_word},
    verify::{Patience, verify},
};
use tidemill_core::{Error, clock::Clock, log::Session};
use tidemill_streams::{Control, Options, Status, View};
use tokio::{sync::watch, task::JoinHandle};

use self::{
    revenue::{Findings, ORDERS, Revenue},
    scene::Scene,
    screen::Screen,
    shop::Written,
};
use super::stop_signal;
use crate::{
    cli::{Demo, Output},
    client::{Client, copy_body},
    node::Node,
};

const SYNC_FILE: &str =
    "[sync.shop]\nfrom   = \"sqlite:shop.sqlite\"\nto     = \"sqlite:replica.sqlite\"\ntables = [\"*\"]\n";
/// How long the replica and the job may take after the last write.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the shop's program must have committed at least: inserts, updates, deletes.
const LEAST: (u64, u64, u64) = (100, 20, 5);

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
    let stop = stop_signal()?;
    let result = play(&folder, command.seconds, stop.clone()).await;
    // Who stops it early may want to go on with it; who waits for its end has seen it.
    if command.keep.is_some() || *stop.borrow() {
        go_on(&folder, command.keep.is_none());
    } else {
        std::fs::remove_dir_all(&folder)?;
    }
    result
}

async fn play(folder: &Path, seconds: u64, mut stop: watch::Receiver<bool>) -> anyhow::Result<ExitCode> {
    let (shop_file, sync_file) = (folder.join("shop.sqlite"), folder.join("shop.toml"));
    shop::create(&shop_file)?;
    std::fs::write(&sync_file, SYNC_FILE)?;
    println!("This file keeps a second database in step with the shop's:\n\n{SYNC_FILE}");
    let node = Node::own(&folder.join("data"), "demo").await?;
    let session = node.session("demo").await?;
    let clock = Arc::clone(node.engine().clock());
    let mut stage = Stage::open(&session, &clock, &shop_file, &sync_file).await?;
    stage.show(seconds, &*clock, &mut stop).await?;
    let written = stage.pen_down().await?;
    println!(
        "\nThe shop wrote {} inserts, {} updates, {} deletes. Now everything is compared.\n",
        written.0, written.1, written.2
    );
    let mut unmet = differing_tables(&sync_file).await?;
    let findings = stage.drain(&*session, &shop_file).await?;
    unmet.extend(unmet_windows(&findings));
    if !*stop.borrow() {
        unmet.extend(unmet_writes(written));
    }
    let router = node.router();
    let client = Client::Own(Box::new(node), router);
    ask(&client).await?;
    client.close().await?;
    Ok(verdict(&unmet))
}

/// The three that act: the shop's program, the sync, the job.
struct Stage {
    written: Arc<Written>,
    pen_down: Arc<AtomicBool>,
    writing: JoinHandle<rusqlite::Result<()>>,
    sync_stop: watch::Sender<bool>,
    syncing: JoinHandle<Result<(), Error>>,
    control: watch::Sender<Control>,
    job: JoinHandle<Result<(), Error>>,
    status: Arc<Status>,
    view: View<String, Revenue>,
    meter: Arc<Meter>,
}

impl Stage {
    async fn open(
        session: &Arc<dyn Session>,
        clock: &Arc<dyn Clock>,
        shop_file: &Path,
        sync_file: &Path,
    ) -> anyhow::Result<Self> {
        let (sync_stop, ended) = watch::channel(false);
        let meter = Arc::new(Meter::default());
        let syncing = tokio::spawn(follow(
            Arc::clone(session),
            Arc::clone(clock),
            sync_file.to_owned(),
            Arc::clone(&meter),
            ended,
        ));
        await_topic(&**session, &syncing).await?;
        let (job, view) = revenue::job();
        let (status, (control, controlled)) = (job.status(), watch::channel(Control::Run));
        let job = tokio::spawn(job.run(Arc::clone(session), Arc::clone(clock), Options::default(), controlled));
        let (written, pen_down) = (Arc::new(Written::default()), Arc::new(AtomicBool::new(false)));
        let writing = {
            let (file, clock) = (shop_file.to_owned(), Arc::clone(clock));
            let (written, pen_down) = (Arc::clone(&written), Arc::clone(&pen_down));
            tokio::task::spawn_blocking(move || shop::write(&file, &*clock, &written, &pen_down))
        };
        let replica_file = shop_file.with_file_name("replica.sqlite");
        meter.start(shop_file, &replica_file, Arc::clone(clock), Arc::clone(&pen_down))?;
        Ok(Self { written, pen_down, writing, sync_stop, syncing, control, job, status, view, meter })
    }

    /// Shows how they get on until the time is over, somebody stops it, or one of them ends.
    async fn show(&self, seconds: u64, clock: &dyn Clock, stop: &mut watch::Receiver<bool>) -> anyhow::Result<()> {
        let (mut screen, mut scene) = (Screen::new(), Scene { seconds, ..Scene::default() });
        let began = clock.monotonic();
        let mut last = (began, 0);
        loop {
            scene.elapsed = clock.monotonic() - began;
            self.look(&mut scene, clock);
            let since = clock.monotonic() - last.0;
            if since >= Duration::from_millis(500) {
                let applied = self.meter.applied.load(Ordering::Relaxed);
                scene.push_rate((applied - last.1) * 1000 / since.as_millis() as u64);
                last = (clock.monotonic(), applied);
            }
            screen.show(&scene)?;
            let is_over = seconds > 0 && scene.elapsed >= Duration::from_secs(seconds);
            let one_ended = self.writing.is_finished() || self.syncing.is_finished() || self.job.is_finished();
            if is_over || one_ended || *stop.borrow() {
                return Ok(());
            }
            let _ = tokio::time::timeout(screen.interval(), stop.wait_for(|stop| *stop)).await;
        }
    }

    fn look(&self, scene: &mut Scene, clock: &dyn Clock) {
        scene.now_ms = clock.now().0;
        scene.written = self.written.counts();
        scene.replica_lag_ms = self.meter.lag_ms.load(Ordering::Relaxed);
        scene.job_lag_ms = self.status.lag_ms(scene.now_ms);
        (scene.orders_read, scene.late) = (self.status.records(), self.status.late());
        scene.windows = self.view.windows().1;
    }

    /// Ends the writing; what was written. A sync that ended by itself ended with an error.
    async fn pen_down(&mut self) -> anyhow::Result<(u64, u64, u64)> {
        self.pen_down.store(true, Ordering::Relaxed);
        (&mut self.writing).await??;
        if self.syncing.is_finished() {
            (&mut self.syncing).await??;
        }
        Ok(self.written.counts())
    }

    /// Lets the job read to the end and close its windows, checks them, and ends all three.
    async fn drain(self, session: &dyn Session, shop_file: &Path) -> anyhow::Result<Findings> {
        let _ = self.control.send(Control::Drain);
        tokio::time::timeout(PATIENCE, self.job)
            .await
            .map_err(|_| Error::unavailable(format!("the job did not end within {} s", PATIENCE.as_secs())))???;
        let findings = revenue::check(session, shop_file).await?;
        let _ = self.sync_stop.send(true);
        self.syncing.await??;
        Ok(findings)
    }
}

/// Measures how the replica gets on.
#[derive(Default)]
struct Meter {
    applied: AtomicU64,
    lag_ms: AtomicI64,
}

impl Meter {
    /// Looks at both databases, ten times a second, until `stop`.
    fn start(
        self: &Arc<Self>,
        shop: &Path,
        replica: &Path,
        clock: Arc<dyn Clock>,
        stop: Arc<AtomicBool>,
    ) -> anyhow::Result<()> {
        let shop = Connection::open_with_flags(shop, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let (meter, replica) = (Arc::clone(self), replica.to_owned());
        let look = move || {
            let mut conn = None;
            while !stop.load(Ordering::Relaxed) {
                // The sync makes the replica in its own time.
                conn = conn.or_else(|| Connection::open_with_flags(&replica, OpenFlags::SQLITE_OPEN_READ_ONLY).ok());
                let (wanted, there) = (shop::newest_order(&shop), conn.as_ref().and_then(shop::newest_order));
                let lag = if there == wanted { 0 } else { there.map_or(0, |there| (clock.now().0 - there).max(1)) };
                meter.lag_ms.store(lag, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        };
        std::thread::Builder::new().name("demo-meter".into()).spawn(look)?;
        Ok(())
    }
}

impl Observer for Meter {
    fn started(&self, _: &str, _: &[TableStart]) {}
    fn copied(&self, _: usize, _: u64) {}
    fn finished(&self, _: usize) {}
    fn applied(&self, records: u64) {
        self.applied.fetch_add(records, Ordering::Relaxed);
    }
    fn caught_up(&self) {}
    fn waiting(&self, _: Side, error: &Error) {
        eprintln!("waiting: {error}");
    }
}

async fn follow(
    session: Arc<dyn Session>,
    clock: Arc<dyn Clock>,
    file: PathBuf,
    meter: Arc<Meter>,
    stop: watch::Receiver<bool>,
) -> Result<(), Error> {
    for spec in load(&file)? {
        let (session, clock, meter) = (Arc::clone(&session), Arc::clone(&clock), Arc::clone(&meter));
        run_sync(session, clock, &spec, &RunOptions::default(), meter, Arc::default(), stop.clone()).await?;
    }
    Ok(())
}

/// Waits for the topic that the sync makes and the job reads. If the sync ends first, its own error is told later.
async fn await_topic(session: &dyn Session, syncing: &JoinHandle<Result<(), Error>>) -> anyhow::Result<()> {
    while session.topic(ORDERS).await?.is_none() && !syncing.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Compares both databases row by row; tables that still differ when the patience is over.
async fn differing_tables(file: &Path) -> anyhow::Result<Vec<String>> {
    let mut unmet = Vec::new();
    for spec in load(file)? {
        let patience = Patience { catch_up: None, at_most: PATIENCE, quiet: PATIENCE };
        for verdict in verify(&spec, None, patience).await?.tables {
            let state = if verdict.is_equal() { "equal" } else { "NOT equal" };
            println!("  {:<10} {:>6} rows, source and replica {state}", verdict.table, verdict.diff.rows);
            if !verdict.is_equal() {
                unmet.push(format!("table {} differs after {} s", verdict.table, PATIENCE.as_secs()));
            }
        }
    }
    Ok(unmet)
}

fn unmet_windows(findings: &Findings) -> Vec<String> {
    if findings.windows > 0 && findings.faults.is_empty() {
        let windows = super::count(findings.windows as u64, "window");
        println!("  {windows} of the job, each equal to what SQLite answers to\n");
        println!("    {}\n", revenue::sqlite_query());
    }
    let none = (findings.windows == 0).then(|| "the job closed no window".to_owned());
    none.into_iter().chain(findings.faults.iter().take(10).cloned()).collect()
}

fn unmet_writes((inserts, updates, deletes): (u64, u64, u64)) -> Vec<String> {
    let counts = [("inserts", inserts, LEAST.0), ("updates", updates, LEAST.1), ("deletes", deletes, LEAST.2)];
    let few = counts.into_iter().filter(|(_, count, least)| count < least);
    few.map(|(what, count, least)| format!("the shop wrote {count} {what}, and {least} are wanted")).collect()
}

/// The same question in Tidemill's SQL, over the log.
fn sql_query() -> String {
    format!(
        "select p.title, o.window_start, count(*) as orders, sum(o.cents) as cents\n  \
         from TUMBLE(TABLE orders, DESCRIPTOR(ordered_at), INTERVAL '{} seconds') o\n  \
         join products p on p.sku = o.sku\n  \
         group by p.title, o.window_start order by o.window_start desc, cents desc limit 10",
        revenue::WINDOW.as_secs()
    )
}

async fn ask(client: &Client) -> anyhow::Result<()> {
    let query = sql_query();
    println!("The log, asked in SQL:\n\n  {query}\n");
    let body = serde_json::json!({ "query": query, "format": Output::Table.as_str() }).to_string();
    let answer = client.send_json(axum::http::Method::POST, "/v1/sql", body).await?;
    copy_body(answer, super::print_bytes).await
}

fn verdict(unmet: &[String]) -> ExitCode {
    if unmet.is_empty() {
        println!("\nIn step: both databases are equal, and so are the job's windows.");
        return ExitCode::SUCCESS;
    }
    println!("\nUnmet:");
    unmet.iter().for_each(|what| println!("  {what}"));
    ExitCode::FAILURE
}

/// The folder of this binary, where a shell would not find it by its name.
fn bin_out_of_path() -> Option<PathBuf> {
    let binary = std::env::current_exe().ok()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_found = std::env::split_paths(&path).any(|folder| folder.join("tidemill").exists());
    if is_found { None } else { binary.parent().map(Path::to_owned) }
}

fn go_on(folder: &Path, is_temporary: bool) {
    let word = |file: &str| shell_word(&folder.join(file).to_string_lossy());
    println!("\nThe files are in {}. To go on by hand:\n", folder.display());
    if let Some(bin) = bin_out_of_path() {
        println!("  export PATH={}:$PATH", shell_word(&bin.to_string_lossy()));
    }
    println!("  tidemill sync run {} --data-dir {}", word("shop.toml"), word("data"));
    println!("  tidemill sql --data-dir {} 'select count(*) from orders'", word("data"));
    if is_temporary {
        println!("\nTo remove them: rm -r {}", shell_word(&folder.to_string_lossy()));
    }
}
