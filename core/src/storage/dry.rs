//! A disk that is read and never written: what is written stays in memory, over what is there.
//!
//! So the log can be opened to see what an opening would find and do, and nothing of it happens.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Open, Storage, StorageFile};

const PAGE: usize = 4096;

/// Another storage's files; changes are kept in memory and end with the value.
pub struct DryStorage {
    under: Arc<dyn Storage>,
    changes: Mutex<Changes>,
}

#[derive(Default)]
struct Changes {
    /// Files that were opened, made or renamed here; `None` for those removed.
    files: HashMap<PathBuf, Option<Arc<DryFile>>>,
    folders: Vec<PathBuf>,
    removed_folders: Vec<PathBuf>,
}

impl DryStorage {
    /// A dry storage over `under`.
    pub fn new(under: Arc<dyn Storage>) -> Self {
        Self { under, changes: Mutex::default() }
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Changes {
    fn is_removed(&self, path: &Path) -> bool {
        self.removed_folders.iter().any(|folder| path.starts_with(folder))
    }
}

impl Storage for DryStorage {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn StorageFile>> {
        let mut changes = self.changes();
        if how == Open::Existing {
            match changes.files.get(path) {
                Some(Some(file)) => return Ok(Arc::clone(file) as Arc<dyn StorageFile>),
                Some(None) => return Err(io::ErrorKind::NotFound.into()),
                None if changes.is_removed(path) => return Err(io::ErrorKind::NotFound.into()),
                None => {}
            }
        }
        let file = match how {
            Open::Existing => DryFile::over(self.under.open(path, Open::Existing)?)?,
            Open::Fresh => DryFile::default(),
        };
        let file = Arc::new(file);
        changes.files.insert(path.to_path_buf(), Some(Arc::clone(&file)));
        Ok(file)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.changes().folders.push(path.to_path_buf());
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let changes = self.changes();
        let mut names = match self.under.list(path) {
            Ok(names) if !changes.is_removed(path) => names,
            Err(error) if !changes.folders.iter().any(|made| made.starts_with(path)) => return Err(error),
            _ => Vec::new(),
        };
        for (file, content) in changes.files.iter().filter(|(file, _)| file.parent() == Some(path)) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            names.retain(|other| *other != name);
            if content.is_some() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.open(from, Open::Existing)?;
        let mut changes = self.changes();
        let file = changes.files.insert(from.to_path_buf(), None).flatten();
        changes.files.insert(to.to_path_buf(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.open(path, Open::Existing)?;
        self.changes().files.insert(path.to_path_buf(), None);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut changes = self.changes();
        changes.files.retain(|file, _| !file.starts_with(path));
        changes.removed_folders.push(path.to_path_buf());
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn random(&self) -> io::Result<u128> {
        self.under.random()
    }
}

/// A file whose changed pages are in memory.
#[derive(Default)]
struct DryFile {
    under: Option<Arc<dyn StorageFile>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pages: BTreeMap<u64, Box<[u8]>>,
    len: u64,
    /// Bytes of the file below that still count; what was cut off and comes back is zeros.
    under_len: u64,
}

impl DryFile {
    fn over(under: Arc<dyn StorageFile>) -> io::Result<Self> {
        let len = under.len()?;
        Ok(Self { under: Some(under), state: Mutex::new(State { len, under_len: len, ..State::default() }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads from below; zeros where nothing is.
    fn read_under(&self, state: &State, buf: &mut [u8], position: u64) -> io::Result<()> {
        let there = state.under_len.saturating_sub(position).min(buf.len() as u64) as usize;
        let (have, rest) = buf.split_at_mut(there);
        if let Some(under) = &self.under {
            under.read_exact_at(have, position)?;
        }
        rest.fill(0);
        Ok(())
    }
}

/// The pieces of a range that lie in one page each: page, place in the page, place in the range, length.
fn pieces(position: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = position + done as u64;
        let within = (at % PAGE as u64) as usize;
        let piece = (PAGE - within).min(len - done);
        let found = (at / PAGE as u64, within, done, piece);
        done += piece;
        (piece > 0).then_some(found)
    })
}

impl StorageFile for DryFile {
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        let state = self.state();
        let there = state.len.saturating_sub(position).min(buf.len() as u64) as usize;
        self.read_under(&state, &mut buf[..there], position)?;
        if !state.pages.is_empty() {
            for (page, within, at, piece) in pieces(position, there) {
                if let Some(own) = state.pages.get(&page) {
                    buf[at..at + piece].copy_from_slice(&own[within..within + piece]);
                }
            }
        }
        Ok(there)
    }

    fn write_at(&self, buf: &[u8], position: u64) -> io::Result<()> {
        let mut state = self.state();
        for (page, within, at, piece) in pieces(position, buf.len()) {
            let start = page * PAGE as u64;
            let data = &buf[at..at + piece];
            if !state.pages.contains_key(&page) {
                // A file that is made is filled with zeros first: these need no memory.
                if start >= state.under_len && data.iter().all(|byte| *byte == 0) {
                    continue;
                }
                let mut fresh = vec![0; PAGE];
                self.read_under(&state, &mut fresh, start)?;
                state.pages.insert(page, fresh.into_boxed_slice());
            }
            if let Some(own) = state.pages.get_mut(&page) {
                own[within..within + piece].copy_from_slice(data);
            }
        }
        state.len = state.len.max(position + buf.len() as u64);
        Ok(())
    }

    fn start_writeback(&self, _: u64, _: u64) {}

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        let first_gone = len.div_ceil(PAGE as u64);
        state.pages.split_off(&first_gone);
        if let Some(last) = state.pages.get_mut(&(len / PAGE as u64)) {
            last[(len % PAGE as u64) as usize..].fill(0);
        }
        state.under_len = state.under_len.min(len);
        state.len = len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// A file in memory, to lie below.
    struct Fixed(Vec<u8>);

    impl StorageFile for Fixed {
        fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
            let from = (position as usize).min(self.0.len());
            let n = buf.len().min(self.0.len() - from);
            buf[..n].copy_from_slice(&self.0[from..from + n]);
            Ok(n)
        }
        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            panic!("written")
        }
        fn start_writeback(&self, _: u64, _: u64) {}
        fn sync(&self) -> io::Result<()> {
            panic!("synced")
        }
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64)
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            panic!("cut")
        }
    }

    #[test]
    fn it_reads_as_if_it_had_been_written() {
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..50 {
            let mut wanted: Vec<u8> = (0..rng.random_range(0..20_000)).map(|_| rng.random()).collect();
            let file = DryFile::over(Arc::new(Fixed(wanted.clone()))).unwrap();
            for _ in 0..20 {
                let at = rng.random_range(0..24_000);
                if rng.random_ratio(1, 6) {
                    file.set_len(at as u64).unwrap();
                    wanted.resize(at, 0);
                } else {
                    let fill = if rng.random() { 0 } else { rng.random() };
                    let data = vec![fill; rng.random_range(0..9_000)];
                    file.write_at(&data, at as u64).unwrap();
                    let end = at + data.len();
                    wanted.resize(wanted.len().max(end), 0);
                    wanted[at..end].copy_from_slice(&data);
                }
                let mut found = vec![1; wanted.len() + 100];
                let read = file.read_at(&mut found, 0).unwrap();
                assert!(found[..read] == wanted[..], "{} bytes", wanted.len());
                let from = rng.random_range(0..=wanted.len());
                let read = file.read_at(&mut found[..100], from as u64).unwrap();
                assert!(found[..read] == wanted[from..(from + 100).min(wanted.len())]);
            }
        }
    }
}
