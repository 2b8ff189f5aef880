//! The Chinook database in its three dialects, if the data is on this machine.

use std::path::{Path, PathBuf};

use super::{MariaDb, Postgres};

/// The tables by their names in PostgreSQL, and in MariaDB and SQLite.
pub const TABLES: &[(&str, &str)] = &[
    ("album", "Album"),
    ("artist", "Artist"),
    ("customer", "Customer"),
    ("employee", "Employee"),
    ("genre", "Genre"),
    ("invoice", "Invoice"),
    ("invoice_line", "InvoiceLine"),
    ("media_type", "MediaType"),
    ("playlist", "Playlist"),
    ("playlist_track", "PlaylistTrack"),
    ("track", "Track"),
];

fn file(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/chinook").join(name);
    path.exists().then_some(path)
}

/// The script without the lines by which it makes and enters a database of its own.
fn script(name: &str) -> Option<String> {
    let own = ["DROP DATABASE ", "CREATE DATABASE ", "USE ", "\\c "];
    let text = std::fs::read_to_string(file(name)?).unwrap();
    let text =
        text.trim_start_matches('\u{feff}').lines().filter(|line| !own.iter().any(|start| line.starts_with(start)));
    Some(text.collect::<Vec<_>>().join("\n"))
}

/// Loads all tables into an empty database; `None` where the data is absent.
pub fn postgres(server: &Postgres, db: &str) -> Option<()> {
    script("Chinook_PostgreSql.sql").map(|sql| server.exec(db, &sql))
}

/// Loads all tables into an empty database; `None` where the data is absent.
pub fn mariadb(server: &MariaDb, db: &str) -> Option<()> {
    script("Chinook_MySql.sql").map(|sql| server.exec(db, &sql))
}

/// Copies the database to a new file; `None` where the data is absent.
pub fn sqlite(path: &Path) -> Option<()> {
    // Not by a copy of the file, which would take the original's rights with it: it may be read-only.
    file("Chinook_Sqlite.sqlite").map(|from| std::fs::write(path, std::fs::read(from).unwrap()).unwrap())
}
