//! Data folders made once and copied: the making of one takes most of a server's start.

use std::hash::{DefaultHasher, Hash, Hasher};
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

/// What decides how a template comes out, besides the server's version.
const MAKERS: &[&str] =
    &[include_str!("mod.rs"), include_str!("postgres.rs"), include_str!("mariadb.rs"), include_str!("kafka.rs")];

/// Copies the data folder `name` to `to`, which is made by `make` if it was never made before.
///
/// `make` works in memory and as the server's user, which may not be able to reach the cache.
pub fn copy(name: &str, to: &Path, make: impl FnOnce(&Path)) {
    static MAKING: Mutex<()> = Mutex::new(());
    let owner = process::run_as().map_or("own".to_owned(), |(user, _)| user.to_string());
    let family = format!("{name}-{owner}-");
    let current = format!("{family}{:016x}", hash(MAKERS));
    let template = cache().join(&current);
    let guard = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !template.is_dir() {
        remove_older(&family, &current);
        let folder = Folder::new();
        let work = folder.path("work");
        std::fs::create_dir(&work).unwrap();
        process::hand_over(&work);
        make(&work.join("data"));
        let unfinished = cache().join(format!("unfinished-{}", std::process::id()));
        copy_all(&work.join("data"), &unfinished);
        // Another process may have been faster; one is as good as the other.
        if std::fs::rename(&unfinished, &template).is_err() {
            std::fs::remove_dir_all(&unfinished).unwrap();
        }
    }
    drop(guard);
    copy_all(&template, to);
}

/// Removes what an older state of these files made.
fn remove_older(family: &str, current: &str) {
    for entry in std::fs::read_dir(cache()).unwrap().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(family) && name != current {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn hash(texts: &[&str]) -> u64 {
    let mut hasher = DefaultHasher::new();
    texts.hash(&mut hasher);
    hasher.finish()
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
