//! The newer PostgreSQL: fetched once by `scripts/fetch-server`, kept in cargo's target folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::process::{self, Folder, skipped};
use super::template;

/// Its folder of `bin`, `lib` and `share`; `None`, after saying so, where it cannot be had.
pub fn postgres() -> Option<PathBuf> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match FOUND.get_or_init(find) {
        Ok(home) => Some(home.clone()),
        Err(why) => {
            skipped(std::thread::current().name().unwrap_or("a test"), &format!("no newer PostgreSQL: {why}"));
            None
        }
    }
}

fn find() -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/fetch-server");
    let output = Command::new(&script).arg("postgresql-newer").arg(template::cache()).stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("{}: {e}", script.display()))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "));
    }
    let home = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if process::command(Path::new("test"), "KILL")
        .arg("-x")
        .arg(home.join("bin/postgres"))
        .status()
        .is_ok_and(|s| s.success())
    {
        return Ok(home);
    }
    // The servers' user cannot come to the target folder; a copy in memory lives as long as the tests.
    static COPY: OnceLock<Folder> = OnceLock::new();
    let copy = COPY.get_or_init(Folder::new).path("postgresql");
    template::copy_all(&home, &copy);
    process::hand_over_all(&copy);
    Ok(copy)
}
