//! A disk and a clock that a test decides over. Everything random follows from a seed.
//!
//! The disk keeps, for each file, what is live and what is durable. Between two syncs each 512-byte sector that was
//! written is, after a crash, either old or new, whatever was written before or after it; the length lies anywhere
//! between; names made, renamed or removed since the last `sync_dir` survive as a prefix per folder.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
    io,
    path::{Component, Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use tidemill_core::{
    clock::Clock,
    record::Timestamp,
    storage::{Open, Storage, StorageFile},
};

pub const SECTOR: usize = 512;

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

/// What of the unsynced a crash keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    Nothing,
    Everything,
    /// Only the sectors of the newest write; names all.
    LastWrite,
    Random(u64),
}

/// Which promise the disk breaks, silently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    None,
    /// Syncs of the commit log's files do nothing.
    CommitLogSync,
    SuperblockSync,
    SegmentSync,
    /// Syncs of segments that compaction has written do nothing.
    CompactedSync,
    ManifestSync,
    DirSync,
    /// A sync of a commit log file becomes true with the next one only.
    LateSync,
}

#[derive(Debug, Clone, Default)]
struct FileNode {
    live: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
    /// Sectors of a failed sync: readable, never written again by the system, on the disk or not.
    limbo: BTreeSet<usize>,
    /// Sectors whose sync was acknowledged early.
    promised: BTreeSet<usize>,
}

#[derive(Debug, Clone)]
enum DirOp {
    Set(String, u64),
    Unset(String),
    Move { from: String, to: String, node: u64 },
}

#[derive(Debug, Clone, Default)]
struct DirNode {
    live: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    pending: Vec<DirOp>,
}

impl DirOp {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Set(name, node) => {
                names.insert(name.clone(), *node);
            }
            Self::Unset(name) => {
                names.remove(name);
            }
            Self::Move { from, to, node } => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Node {
    Dir(DirNode),
    File(FileNode),
}

type Observer = Box<dyn FnMut(&SimDisk, u64) + Send>;

/// One injected fault: the operation (`write` or `sync`), a part of the path, how many matching calls go well first.
#[derive(Debug, Clone)]
pub struct Fault {
    pub operation: &'static str,
    pub path: &'static str,
    pub after: usize,
    pub error: i32,
    /// Whether it stays so, or happens once.
    pub forever: bool,
}

struct Inner {
    nodes: HashMap<u64, Node>,
    next_node: u64,
    rng: Rng,
    ops: u64,
    crash_at: Option<u64>,
    crashed: bool,
    faults: Vec<Fault>,
    /// Bytes that all files together may have.
    capacity: Option<usize>,
    lie: Lie,
    last_write: Option<(u64, std::ops::Range<usize>)>,
    observer: Option<Observer>,
}

#[derive(Default)]
struct Gate {
    closed: bool,
    waiting: usize,
}

/// The disk; clones share it.
#[derive(Clone)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn os_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;
const ENOENT: i32 = 2;

impl SimDisk {
    pub fn new(seed: u64) -> Self {
        let mut nodes = HashMap::new();
        nodes.insert(0, Node::Dir(DirNode::default()));
        Self::of(nodes, 1, Rng(seed))
    }

    fn of(nodes: HashMap<u64, Node>, next_node: u64, rng: Rng) -> Self {
        let inner = Inner {
            nodes,
            next_node,
            rng,
            ops: 0,
            crash_at: None,
            crashed: false,
            faults: Vec::new(),
            capacity: None,
            lie: Lie::None,
            last_write: None,
            observer: None,
        };
        Self { inner: Arc::new(Mutex::new(inner)), gate: Arc::default() }
    }

    /// Calls so far that change the disk.
    pub fn ops(&self) -> u64 {
        guard(&self.inner).ops
    }

    /// Call number `op` and all after it fail; a write at that moment is on its way, unsynced.
    pub fn crash_at(&self, op: u64) {
        guard(&self.inner).crash_at = Some(op);
    }

    pub fn lie(&self, lie: Lie) {
        guard(&self.inner).lie = lie;
    }

    pub fn inject(&self, fault: Fault) {
        guard(&self.inner).faults.push(fault);
    }

    /// All files together may not grow beyond so many bytes; `None` lifts the limit.
    pub fn set_capacity(&self, bytes: Option<usize>) {
        guard(&self.inner).capacity = bytes;
    }

    pub fn used(&self) -> usize {
        self.files().iter().map(|(_, length)| length).sum()
    }

    pub fn heal(&self) {
        guard(&self.inner).faults.clear();
    }

    /// Called before each counted call, outside all locks.
    pub fn observe(&self, observer: impl FnMut(&SimDisk, u64) + Send + 'static) {
        guard(&self.inner).observer = Some(Box::new(observer));
    }

    pub fn stop_observing(&self) {
        guard(&self.inner).observer = None;
    }

    /// From now on syncs of commit log files wait.
    pub fn block_syncs(&self) {
        guard(&self.gate.0).closed = true;
    }

    pub fn release_syncs(&self) {
        guard(&self.gate.0).closed = false;
        self.gate.1.notify_all();
    }

    /// Waits until a sync is waiting.
    pub fn await_blocked_sync(&self) {
        let gate = guard(&self.gate.0);
        let waited = self.gate.1.wait_timeout_while(gate, Duration::from_secs(10), |g| g.waiting == 0);
        assert!(!waited.expect("no panic inside").1.timed_out(), "no sync came");
    }

    /// The disk as found after a crash now: everything on it is durable.
    pub fn image(&self, keep: Keep) -> SimDisk {
        let inner = guard(&self.inner);
        let mut rng = Rng(match keep {
            Keep::Random(seed) => seed,
            _ => 1,
        });
        // The order of a hash map is not the seed's: go by number.
        let mut ids: Vec<u64> = inner.nodes.keys().copied().collect();
        ids.sort_unstable();
        let mut nodes = HashMap::new();
        for id in ids {
            let node = match &inner.nodes[&id] {
                Node::Dir(dir) => Node::Dir(dir.after_crash(keep, &mut rng)),
                Node::File(file) => {
                    let last = inner.last_write.as_ref().filter(|(f, _)| *f == id).map(|(_, range)| range.clone());
                    Node::File(file.after_crash(keep, last, &mut rng))
                }
            };
            nodes.insert(id, node);
        }
        let seed = inner.rng.clone();
        Self::of(nodes, inner.next_node, seed)
    }

    /// Every file, its path and length.
    pub fn files(&self) -> Vec<(PathBuf, usize)> {
        fn walk(inner: &Inner, id: u64, path: &Path, out: &mut Vec<(PathBuf, usize)>) {
            match &inner.nodes[&id] {
                Node::File(file) => out.push((path.to_path_buf(), file.live.len())),
                Node::Dir(dir) => {
                    for (name, child) in &dir.live {
                        walk(inner, *child, &path.join(name), out);
                    }
                }
            }
        }
        let mut out = Vec::new();
        walk(&guard(&self.inner), 0, Path::new("/"), &mut out);
        out
    }

    /// Changes a file at rest.
    pub fn edit(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = guard(&self.inner);
        let id = inner.find(path).expect("file to damage");
        let Some(Node::File(file)) = inner.nodes.get_mut(&id) else { panic!("{} is no file", path.display()) };
        change(&mut file.live);
        file.durable = file.live.clone();
    }

    /// Puts a file there, or takes it away, at rest.
    pub fn plant(&self, path: &Path, content: &[u8]) {
        let mut inner = guard(&self.inner);
        let (dir, name) = inner.parent(path).expect("folder");
        let id = inner.add(Node::File(FileNode {
            live: content.to_vec(),
            durable: content.to_vec(),
            ..FileNode::default()
        }));
        let dir = inner.dir(dir);
        dir.live.insert(name.clone(), id);
        dir.durable.insert(name, id);
    }

    pub fn unlink(&self, path: &Path) {
        let mut inner = guard(&self.inner);
        let (dir, name) = inner.parent(path).expect("folder");
        let dir = inner.dir(dir);
        dir.live.remove(&name);
        dir.durable.remove(&name);
    }

    /// Counts a call; fails where the disk has crashed or a fault waits. The lock is held when this returns.
    fn begin(&self, operation: &str, path: &Path) -> io::Result<MutexGuard<'_, Inner>> {
        let (observer, op) = {
            let mut inner = guard(&self.inner);
            (inner.observer.take(), inner.ops)
        };
        if let Some(mut observer) = observer {
            observer(self, op);
            guard(&self.inner).observer.get_or_insert(observer);
        }
        let mut inner = guard(&self.inner);
        let op = inner.ops;
        inner.ops += 1;
        if inner.crashed {
            return Err(os_error(EIO));
        }
        if inner.crash_at.is_some_and(|at| op >= at) {
            inner.crashed = true;
            if operation != "write" || op > inner.crash_at.unwrap_or(0) {
                return Err(os_error(EIO));
            }
            return Ok(inner);
        }
        let text = path.to_string_lossy().into_owned();
        let mut failure = None;
        inner.faults.retain_mut(|fault| {
            if failure.is_some() || fault.operation != operation || !text.contains(fault.path) {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            failure = Some(fault.error);
            fault.forever
        });
        match failure {
            Some(code) => Err(os_error(code)),
            None => Ok(inner),
        }
    }
}

impl Inner {
    fn add(&mut self, node: Node) -> u64 {
        let id = self.next_node;
        self.next_node += 1;
        self.nodes.insert(id, node);
        id
    }

    fn dir(&mut self, id: u64) -> &mut DirNode {
        match self.nodes.get_mut(&id) {
            Some(Node::Dir(dir)) => dir,
            _ => panic!("node {id} is no folder"),
        }
    }

    fn file(&mut self, id: u64) -> &mut FileNode {
        match self.nodes.get_mut(&id) {
            Some(Node::File(file)) => file,
            _ => panic!("node {id} is no file"),
        }
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        let mut at = 0;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            let Node::Dir(dir) = &self.nodes[&at] else { return Err(os_error(ENOENT)) };
            at = *dir.live.get(&text(name)).ok_or_else(|| os_error(ENOENT))?;
        }
        Ok(at)
    }

    fn parent(&self, path: &Path) -> io::Result<(u64, String)> {
        let dir = self.find(path.parent().unwrap_or(Path::new("/")))?;
        Ok((dir, text(path.file_name().ok_or_else(|| os_error(ENOENT))?)))
    }

    fn write(&mut self, id: u64, buf: &[u8], position: usize) {
        let file = self.file(id);
        let end = position + buf.len();
        if file.live.len() < end {
            file.live.resize(end, 0);
        }
        file.live[position..end].copy_from_slice(buf);
        let sectors = position / SECTOR..end.div_ceil(SECTOR);
        file.dirty.extend(sectors.clone());
        self.last_write = Some((id, sectors));
    }
}

fn text(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

impl FileNode {
    fn settle(&mut self, sectors: impl IntoIterator<Item = usize>) {
        self.durable.resize(self.live.len(), 0);
        for sector in sectors {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(self.live.len());
            if !range.is_empty() {
                self.durable[range.clone()].copy_from_slice(&self.live[range]);
            }
        }
    }

    fn after_crash(&self, keep: Keep, last: Option<std::ops::Range<usize>>, rng: &mut Rng) -> Self {
        let mut after = self.clone();
        let unsure: Vec<usize> = self
            .dirty
            .iter()
            .chain(&self.limbo)
            .chain(&self.promised)
            .copied()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let length = match keep {
            _ if self.live.len() == self.durable.len() => self.live.len(),
            Keep::Nothing => self.durable.len(),
            Keep::Everything | Keep::LastWrite => self.live.len(),
            Keep::Random(_) => {
                let (low, high) = (self.live.len().min(self.durable.len()), self.live.len().max(self.durable.len()));
                [low, high, low + rng.below(high - low + 1)][rng.below(3)]
            }
        };
        let kept: Vec<usize> = unsure
            .into_iter()
            .filter(|sector| match keep {
                Keep::Nothing => false,
                Keep::Everything => true,
                Keep::LastWrite => last.as_ref().is_some_and(|range| range.contains(sector)),
                Keep::Random(_) => rng.coin(),
            })
            .collect();
        after.settle(kept);
        after.durable.resize(length, 0);
        Self { live: after.durable.clone(), durable: after.durable, ..Self::default() }
    }
}

impl DirNode {
    fn after_crash(&self, keep: Keep, rng: &mut Rng) -> Self {
        let mut names = self.durable.clone();
        let survive = match keep {
            Keep::Nothing => 0,
            Keep::Everything | Keep::LastWrite => self.pending.len(),
            Keep::Random(_) => rng.below(self.pending.len() + 1),
        };
        self.pending[..survive].iter().for_each(|op| op.apply(&mut names));
        Self { live: names.clone(), durable: names, pending: Vec::new() }
    }

    fn change(&mut self, op: DirOp) {
        op.apply(&mut self.live);
        self.pending.push(op);
    }
}

struct SimFile {
    disk: SimDisk,
    node: u64,
    path: PathBuf,
}

impl SimFile {
    fn is(&self, part: &str) -> bool {
        self.path.to_string_lossy().contains(part)
    }

    fn lied_to(&self, lie: Lie) -> bool {
        match lie {
            Lie::CommitLogSync => self.is("/commitlog/"),
            Lie::SuperblockSync => self.is("/superblock"),
            Lie::SegmentSync => self.is("/topics/"),
            Lie::CompactedSync => {
                let name = self.path.file_name().and_then(OsStr::to_str).unwrap_or_default();
                self.is("/topics/") && name.ends_with(".log") && name.matches('.').count() == 2
            }
            Lie::ManifestSync => self.is("/manifest"),
            Lie::None | Lie::DirSync | Lie::LateSync => false,
        }
    }
}

impl StorageFile for SimFile {
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        let mut inner = guard(&self.disk.inner);
        let file = inner.file(self.node);
        let from = (position as usize).min(file.live.len());
        let n = buf.len().min(file.live.len() - from);
        buf[..n].copy_from_slice(&file.live[from..from + n]);
        Ok(n)
    }

    fn write_at(&self, buf: &[u8], position: u64) -> io::Result<()> {
        let full = {
            let capacity = guard(&self.disk.inner).capacity;
            let length = guard(&self.disk.inner).file(self.node).live.len();
            let growth = (position as usize + buf.len()).saturating_sub(length);
            growth > 0 && capacity.is_some_and(|most| self.disk.used() + growth > most)
        };
        let mut inner = self.disk.begin("write", &self.path)?;
        if full {
            return Err(os_error(ENOSPC));
        }
        inner.write(self.node, buf, position as usize);
        if inner.crashed { Err(os_error(EIO)) } else { Ok(()) }
    }

    /// Makes nothing durable: what a crash keeps of it is as open as before.
    fn start_writeback(&self, _position: u64, _len: u64) {}

    fn sync(&self) -> io::Result<()> {
        if self.is("/commitlog/") {
            let mut gate = guard(&self.disk.gate.0);
            gate.waiting += 1;
            self.disk.gate.1.notify_all();
            while gate.closed {
                gate = self.disk.gate.1.wait(gate).expect("no panic inside");
            }
            gate.waiting -= 1;
        }
        let mut inner = match self.disk.begin("sync", &self.path) {
            Ok(inner) => inner,
            Err(error) => {
                // As Linux does: the pages are clean from now on, whether they reached the disk or not.
                let mut inner = guard(&self.disk.inner);
                let file = inner.file(self.node);
                let dirty = std::mem::take(&mut file.dirty);
                file.limbo.extend(dirty);
                return Err(error);
            }
        };
        let lie = inner.lie;
        if self.lied_to(lie) {
            return Ok(());
        }
        let file = inner.file(self.node);
        let dirty = std::mem::take(&mut file.dirty);
        if lie == Lie::LateSync && self.is("/commitlog/") {
            let earlier = std::mem::replace(&mut file.promised, dirty);
            file.settle(earlier);
            return Ok(());
        }
        for sector in &dirty {
            file.limbo.remove(sector);
        }
        file.settle(dirty);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(guard(&self.disk.inner).file(self.node).live.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.begin("set_len", &self.path)?;
        inner.file(self.node).live.resize(len as usize, 0);
        Ok(())
    }
}

impl Storage for SimDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn StorageFile>> {
        let node = if how == Open::Fresh {
            let mut inner = self.begin("open", path)?;
            match inner.find(path) {
                Ok(node) => {
                    inner.file(node).live.clear();
                    node
                }
                Err(_) => {
                    let (dir, name) = inner.parent(path)?;
                    let node = inner.add(Node::File(FileNode::default()));
                    inner.dir(dir).change(DirOp::Set(name, node));
                    node
                }
            }
        } else {
            guard(&self.inner).find(path)?
        };
        match guard(&self.inner).nodes[&node] {
            Node::File(_) => {}
            Node::Dir(_) => return Err(io::ErrorKind::IsADirectory.into()),
        }
        Ok(Arc::new(SimFile { disk: self.clone(), node, path: path.to_path_buf() }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let ancestors: Vec<_> = path.ancestors().collect();
        for folder in ancestors.into_iter().rev() {
            if guard(&self.inner).find(folder).is_ok() {
                continue;
            }
            let mut inner = self.begin("create_dir", folder)?;
            let (dir, name) = inner.parent(folder)?;
            let node = inner.add(Node::Dir(DirNode::default()));
            inner.dir(dir).change(DirOp::Set(name, node));
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut inner = guard(&self.inner);
        let id = inner.find(path)?;
        Ok(inner.dir(id).live.keys().cloned().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.begin("rename", from)?;
        let node = inner.find(from)?;
        let ((dir, from), (other, to)) = (inner.parent(from)?, inner.parent(to)?);
        assert_eq!(dir, other, "renames stay in their folder");
        inner.dir(dir).change(DirOp::Move { from, to, node });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.begin("remove", path)?;
        inner.find(path)?;
        let (dir, name) = inner.parent(path)?;
        inner.dir(dir).change(DirOp::Unset(name));
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.begin("remove_dir", path)?;
        inner.find(path)?;
        let (dir, name) = inner.parent(path)?;
        inner.dir(dir).change(DirOp::Unset(name));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.begin("sync_dir", path)?;
        let id = inner.find(path)?;
        if inner.lie == Lie::DirSync {
            return Ok(());
        }
        let dir = inner.dir(id);
        dir.pending.clear();
        dir.durable = dir.live.clone();
        Ok(())
    }

    fn random(&self) -> io::Result<u128> {
        let mut inner = guard(&self.inner);
        Ok(u128::from(inner.rng.next()) << 64 | u128::from(inner.rng.next()))
    }
}

/// A clock that stands still until it is told.
#[derive(Debug, Clone, Default)]
pub struct SimClock(Arc<Mutex<Duration>>);

impl SimClock {
    pub fn advance(&self, time: Duration) {
        *guard(&self.0) += time;
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_700_000_000_000 + guard(&self.0).as_millis() as i64)
    }

    fn monotonic(&self) -> Duration {
        *guard(&self.0)
    }
}
