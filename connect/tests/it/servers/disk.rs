//! A small disk that can be full.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use super::process::hand_over;

/// A file system of its own, in memory; it goes with the value.
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts one on an empty folder, for a server to write in; `None` where none can be mounted.
    pub fn mount(folder: &Path, megabytes: u32) -> Option<Self> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"]).arg(folder);
        command.output().is_ok_and(|output| output.status.success()).then(|| {
            hand_over(folder);
            Self(folder.to_owned())
        })
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut ballast = std::fs::File::create(self.ballast()).unwrap();
        for size in [1 << 20, 4096, 1] {
            while ballast.write_all(&vec![1; size]).is_ok() {}
        }
    }

    /// Gives the room back.
    pub fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A server may still have files open in it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}
