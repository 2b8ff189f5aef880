//! What the disk itself can do, measured in this minute.

use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

/// How long each of many writes took.
pub struct Figures {
    pub latencies: Vec<Duration>,
    pub bytes: u64,
    pub time: Duration,
}

impl Figures {
    pub fn sorted(&self) -> Vec<Duration> {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        sorted
    }

    /// The time, in milliseconds, below which this share of the sorted ones lies.
    pub fn millis_at(sorted: &[Duration], share: f64) -> f64 {
        let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    }
}

/// Writes and syncs over a zero-filled file, as the commit log does.
pub fn disk(dir: &Path, size: usize, seconds: u64) -> std::io::Result<Figures> {
    const FILE_BYTES: usize = 16 << 20;
    let path = dir.join("tidemill-disk-probe");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
    // The name goes at once: whatever ends this, nothing is left.
    std::fs::remove_file(&path)?;
    file.write_all_at(&vec![0; FILE_BYTES], 0)?;
    file.sync_all()?;
    let data = vec![7; size];
    let (mut latencies, mut at) = (Vec::new(), 0);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(seconds) {
        let begun = Instant::now();
        file.write_all_at(&data, at as u64)?;
        file.sync_data()?;
        latencies.push(begun.elapsed());
        at = if at + 2 * size > FILE_BYTES { 0 } else { at + size };
    }
    let bytes = (latencies.len() * size) as u64;
    Ok(Figures { latencies, bytes, time: started.elapsed() })
}
