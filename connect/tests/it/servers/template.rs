//! Data folders made once and copied: the making of one takes most of a server's start.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use super::process::{self, Folder};

/// Where things that outlive a test run are kept: in cargo's target folder.
pub fn cache() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers");
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Copies the data folder `name` to `to`, which is made by `make` if it was never made before.
///
/// `make` works in memory and as the server's user, which may not be able to reach the cache.
pub fn copy(name: &str, to: &Path, make: impl FnOnce(&Path)) {
    static MAKING: Mutex<()> = Mutex::new(());
    let owner = process::run_as().map_or("own".to_owned(), |(user, _)| user.to_string());
    let template = cache().join(format!("{name}-{owner}"));
    let guard = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !template.is_dir() {
        let folder = Folder::new();
        let work = folder.path("work");
        std::fs::create_dir(&work).unwrap();
        process::hand_over(&work);
        make(&work.join("data"));
        let unfinished = cache().join(format!("{name}-{owner}-{}", std::process::id()));
        copy_all(&work.join("data"), &unfinished);
        // Another process may have been faster; one is as good as the other.
        if std::fs::rename(&unfinished, &template).is_err() {
            std::fs::remove_dir_all(&unfinished).unwrap();
        }
    }
    drop(guard);
    copy_all(&template, to);
}

/// Copies a tree with owners and rights.
pub fn copy_all(from: &Path, to: &Path) {
    process::succeed(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// A program's version as part of a file name.
pub fn version(program: &Path) -> String {
    let said = process::succeed(Command::new(program).arg("--version"));
    let said = String::from_utf8_lossy(&said);
    said.split(|c: char| c.is_whitespace() || c == '-')
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap()
        .to_owned()
}
