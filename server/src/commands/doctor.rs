//! `tidemill doctor`: is this machine fit for a log?

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use tidemill_core::Error;

use super::disk::{Figures, disk};
use crate::cli;

/// File systems whose `fdatasync` means what it says, and whose names are durable after the folder's.
const GOOD_FILE_SYSTEMS: [&str; 5] = ["ext4", "xfs", "btrfs", "zfs", "f2fs"];
/// Those that keep nothing over a restart of the machine.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
/// A log needs its commit log, some segments, and room to breathe.
const LEAST_FREE_BYTES: u64 = 2 << 30;
/// Each partition that is written has a file open until its next checkpoint.
const LEAST_FILES: u64 = 4096;
/// Slower than this, a lone producer notices.
const SLOW_SYNC_MS: f64 = 10.0;
/// Quicker than this, nothing reaches a disk: not even the fastest of them.
const TOO_QUICK_SYNC_MS: f64 = 0.005;

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grade {
    Ok,
    Warn,
    Fail,
}

struct Finding(Grade, String);

pub fn run(command: &cli::Doctor) -> anyhow::Result<ExitCode> {
    let dir = existing(&command.data_dir)?;
    say!("tidemill {} on {}, folder {}", env!("CARGO_PKG_VERSION"), std::env::consts::OS, dir.display());
    let mut worst = false;
    for finding in [file_system(&dir), free_space(&dir), open_files(), memory()].into_iter().flatten().chain(sync(&dir))
    {
        let Finding(grade, text) = finding;
        worst |= grade == Grade::Fail;
        let name = match grade {
            Grade::Ok => "ok  ",
            Grade::Warn => "warn",
            Grade::Fail => "FAIL",
        };
        say!("{name}  {text}");
    }
    Ok(if worst { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The folder, or the nearest one above that is there: a log makes its own.
fn existing(dir: &Path) -> anyhow::Result<PathBuf> {
    let whole = std::path::absolute(dir)?;
    let found = whole.ancestors().find(|folder| folder.is_dir());
    let found = found.ok_or_else(|| Error::not_found(format!("no folder at or above {}", dir.display())))?;
    Ok(found.canonicalize()?)
}

/// What the folder lies on, as the kernel tells it.
fn file_system(dir: &Path) -> Option<Finding> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let kind = kind_of_mount(&mounts, dir)?;
    Some(match kind.as_str() {
        good if GOOD_FILE_SYSTEMS.contains(&good) => Finding(Grade::Ok, format!("file system {good}")),
        memory if IN_MEMORY.contains(&memory) => {
            let text = format!("file system {memory}: it is in memory, all is lost when the machine stops");
            Finding(Grade::Warn, text)
        }
        other if other.starts_with("nfs") || other.starts_with("fuse") || other == "cifs" || other == "9p" => {
            let text = format!(
                "file system {other}: another machine or program decides what is durable, and locks may not hold"
            );
            Finding(Grade::Warn, text)
        }
        other => {
            Finding(Grade::Ok, format!("file system {other}; those that this is tested on are ext4, xfs and tmpfs"))
        }
    })
}

/// The kind of file system that a folder lies on: the last of the mounts with the longest path to it.
fn kind_of_mount(mounts: &str, dir: &Path) -> Option<String> {
    let mut best: Option<(usize, String)> = None;
    for line in mounts.lines() {
        // 36 35 98:0 /root /mount/point options optional... - kind source options
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) = (before.split(' ').nth(4), after.split(' ').next()) else { continue };
        let point = point.replace("\\040", " ");
        if dir.starts_with(&point) && best.as_ref().is_none_or(|(length, _)| *length <= point.len()) {
            best = Some((point.len(), kind.to_owned()));
        }
    }
    best.map(|(_, kind)| kind)
}

fn free_space(dir: &Path) -> Option<Finding> {
    let found = rustix::fs::statvfs(dir).ok()?;
    let (free, all) = (found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize);
    let text = format!("{} free of {}", size(free), size(all));
    Some(match free {
        ..LEAST_FREE_BYTES => Finding(Grade::Warn, format!("{text}: less than {}", size(LEAST_FREE_BYTES))),
        _ => Finding(Grade::Ok, text),
    })
}

fn size(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

fn open_files() -> Option<Finding> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    let enough = soft.parse::<u64>().map_or(soft == "unlimited", |files| files >= LEAST_FILES);
    Some(match enough {
        true => Finding(Grade::Ok, format!("{soft} files may be open")),
        false => Finding(
            Grade::Warn,
            format!("{soft} files may be open: with more than some hundred busy partitions, ulimit -n {LEAST_FILES}"),
        ),
    })
}

fn memory() -> Option<Finding> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let bytes = line.split_whitespace().next()?.parse::<u64>().ok()? << 10;
    let grade = if bytes < 512 << 20 { Grade::Warn } else { Grade::Ok };
    Some(Finding(grade, format!("{} of memory available", size(bytes))))
}

/// How long the disk takes to make a small write durable, and how fast it takes large ones.
fn sync(dir: &Path) -> Vec<Finding> {
    let measured = disk(dir, 4096, 2).and_then(|small| Ok((small, disk(dir, 1 << 20, 2)?)));
    let (small, large) = match measured {
        Ok(measured) => measured,
        Err(error) => return vec![Finding(Grade::Fail, format!("cannot write and sync here: {error}"))],
    };
    let sorted = small.sorted();
    let at = |share| Figures::millis_at(&sorted, share);
    let text = format!(
        "fdatasync of 4 KiB: p50 {:.2} ms, p99 {:.2} ms, {:.0} a second: the least time that an append takes",
        at(0.5),
        at(0.99),
        sorted.len() as f64 / small.time.as_secs_f64(),
    );
    let first = match at(0.5) {
        SLOW_SYNC_MS.. => Finding(Grade::Warn, format!("{text}; this disk is slow")),
        ..TOO_QUICK_SYNC_MS => {
            Finding(Grade::Warn, format!("{text}; so quick that no disk can have it: is it made durable?"))
        }
        _ => Finding(Grade::Ok, text),
    };
    let rate = large.bytes as f64 / 1e6 / large.time.as_secs_f64();
    vec![first, Finding(Grade::Ok, format!("{rate:.0} MB/s in pieces of 1 MiB, each synced; the log writes all twice"))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_counts() {
        let mounts = "\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
22 21 0:20 / /srv rw - xfs /dev/vdb rw
23 22 0:21 / /srv/my\\040log rw shared:5 - tmpfs tmpfs rw
24 21 0:22 / /srv/lo rw - nfs4 host:/ rw
malformed
";
        let kind = |dir: &str| kind_of_mount(mounts, Path::new(dir)).unwrap();
        assert_eq!([kind("/home"), kind("/srv/log"), kind("/srv/my log/data")], ["ext4", "xfs", "tmpfs"]);
        assert_eq!(kind("/srv/lo/x"), "nfs4");
        assert_eq!(kind_of_mount("", Path::new("/")), None);
    }

    #[test]
    fn a_folder_that_is_to_be_made_is_judged_by_the_one_above() {
        let above = existing(Path::new("/no such folder/at all")).unwrap();
        assert_eq!(above, Path::new("/"));
    }
}
