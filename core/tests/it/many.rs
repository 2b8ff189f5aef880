//! Ten thousand topics: how long they take to open, what they cost.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tidemill_core::{
    engine::{Config, Engine},
    storage::{Open, OsStorage, Storage, StorageFile},
    topic::{PartitionId, TopicSpec},
};

use crate::harness::{TempDir, batch, read_all};

const TOPICS: usize = 10_000;

/// The real files without their syncs, which would take minutes here; counts the files that are opened.
struct Unsynced {
    under: OsStorage,
    opened: Mutex<usize>,
}

struct UnsyncedFile(Arc<dyn StorageFile>);

impl StorageFile for UnsyncedFile {
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        self.0.read_at(buf, position)
    }
    fn write_at(&self, buf: &[u8], position: u64) -> io::Result<()> {
        self.0.write_at(buf, position)
    }
    fn start_writeback(&self, _: u64, _: u64) {}
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

impl Storage for Unsynced {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn StorageFile>> {
        *self.opened.lock().expect("whole") += usize::from(path.to_string_lossy().contains("/topics/"));
        Ok(Arc::new(UnsyncedFile(self.under.open(path, how)?)))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.under.create_dir(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.under.list(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.under.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.under.remove(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.under.remove_dir(path)
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn random(&self) -> io::Result<u128> {
        self.under.random()
    }
}

/// Memory of this process in bytes, as Linux tells it.
fn resident() -> i64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok()).unwrap_or(0) * 4096
}

fn open(folder: &Path, storage: &Arc<Unsynced>) -> (Engine, Duration) {
    let begun = Instant::now();
    let clock = Arc::new(tidemill_core::clock::SystemClock::default());
    let engine = Engine::open(folder, Config::default(), Arc::clone(storage) as Arc<dyn Storage>, clock);
    (engine.expect("opens"), begun.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_topics_open_in_two_seconds() {
    let folder = TempDir::new("many");
    let storage = Arc::new(Unsynced { under: OsStorage, opened: Mutex::new(0) });
    let (engine, _) = open(&folder.0, &storage);
    let engine = Arc::new(engine);
    let begun = Instant::now();
    let mut ids: Vec<PartitionId> = Vec::new();
    for batch_of in (0..TOPICS).collect::<Vec<_>>().chunks(100) {
        let made = batch_of.iter().map(|i| {
            let engine = Arc::clone(&engine);
            let name = format!("topic-{i}");
            tokio::spawn(async move { engine.create_topic(&name, &TopicSpec::partitions(1)).await })
        });
        for made in made.collect::<Vec<_>>() {
            ids.push(made.await.expect("no panic").expect("made").partitions[0]);
        }
    }
    let created = begun.elapsed();
    for ids in ids.chunks(500) {
        let batches = ids.iter().map(|id| (*id, batch(u64::from(id.0), 3, 300))).collect();
        engine.append(batches, None).await.expect("durable");
    }
    let begun = Instant::now();
    engine.close().expect("in order");
    let closed = begun.elapsed();
    drop(engine);
    *storage.opened.lock().expect("whole") = 0;
    let before = resident();
    let (engine, clean) = open(&folder.0, &storage);
    let opened = *storage.opened.lock().expect("whole");
    let each = (resident() - before) / TOPICS as i64;
    assert_eq!(read_all(&engine, ids[7]).expect("whole").len(), 1);
    let begun = Instant::now();
    engine.append(ids.iter().take(2000).map(|id| (*id, batch(1, 1, 10))).collect(), None).await.expect("durable");
    let appended = begun.elapsed();
    // A process that is killed: its files as they are.
    let killed = TempDir::new("many-killed");
    copy_files(&folder.0, &killed.0);
    copy_files(&folder.0.join("commitlog"), &killed.0.join("commitlog"));
    std::os::unix::fs::symlink(folder.0.join("topics"), killed.0.join("topics")).expect("linked");
    drop(engine);
    let manifest = std::fs::read_dir(&folder.0)
        .expect("listed")
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("manifest-"))
        .map(|entry| entry.metadata().expect("there").len())
        .max();
    let (engine, crashed) = open(&killed.0, &storage);
    println!(
        "{TOPICS} topics: made in {created:?} (without syncs), closed in {closed:?}, opened in {clean:?} after that and in \
         {crashed:?} after a crash, {opened} files of them opened; {each} bytes of memory each; manifest of {manifest:?} \
         bytes; an append to 2,000 of them took {appended:?}"
    );
    assert_eq!(engine.topics().len(), TOPICS + tidemill_core::engine::Table::ALL.len());
    assert_eq!(read_all(&engine, ids[TOPICS - 1]).expect("whole").len(), 1);
    assert_eq!(read_all(&engine, ids[0]).expect("whole").len(), 2);
    assert_eq!(opened, 0, "no topic's file is opened");
    assert!(clean < Duration::from_secs(2) && crashed < Duration::from_secs(2), "{clean:?}, {crashed:?}");
}

/// The files of a folder, as they are at this moment.
fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed").filter_map(|entry| entry.ok()) {
        if entry.file_type().expect("known").is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
        }
    }
}

/// How fast topics are made where each waits for the disk.
#[tokio::test(flavor = "multi_thread")]
async fn topics_are_made_at_the_disks_pace() {
    let folder = TempDir::new("making");
    let clock = Arc::new(tidemill_core::clock::SystemClock::default());
    let engine = Engine::open(&folder.0, crate::harness::small(), Arc::new(OsStorage), clock).expect("opens");
    let begun = Instant::now();
    for i in 0..200 {
        engine.create_topic(&format!("topic-{i}"), &TopicSpec::partitions(1)).await.expect("made");
    }
    println!("200 topics made one after the other in {:?}, syncs included", begun.elapsed());
    engine.close().expect("in order");
}

/// A real file system that is full; needs the right to mount one.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_file_system_is_weathered() {
    let folder = TempDir::new("full");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"])
        .arg(&folder.0)
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        println!("skipped: no file system can be mounted here");
        return;
    }
    let _unmount = Unmount(&folder.0);
    let config = Config { segment_bytes: 256 << 10, ..crate::harness::small() };
    let clock = Arc::new(tidemill_core::clock::SystemClock::default());
    let engine = Engine::open(&folder.0.join("log"), config, Arc::new(OsStorage), clock).expect("opens");
    let old = engine.create_topic("old", &TopicSpec::partitions(1)).await.expect("made").partitions[0];
    let new = engine.create_topic("new", &TopicSpec::partitions(1)).await.expect("made").partitions[0];
    let mut acked = [0, 0];
    let error = loop {
        // The first half goes to the topic that will be deleted.
        let i = usize::from(acked[0] >= 60);
        match engine.append(vec![([old, new][i], batch(acked[i], 1, 40_000))], None).await {
            Ok(_) => acked[i] += 1,
            Err(error) => break error,
        }
        assert!(acked[1] < 500, "6 MiB do not hold this");
    };
    assert!(error.to_string().contains("disk full"), "{error}");
    engine.delete_topic("old").await.expect("metadata has room");
    for tries in 0.. {
        if engine.append(vec![(new, batch(acked[1], 1, 40_000))], None).await.is_ok() {
            break;
        }
        assert!(tries < 400, "the delete made no room");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(read_all(&engine, new).expect("whole").len() as u64, acked[1] + 1);
    engine.close().expect("in order");
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}
