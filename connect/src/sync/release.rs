//! `sync release`: takes the capture off one table of a source, so that it can be altered.

use super::file::SyncSpec;
use crate::{Error, ErrorKind, Result, command::shell_word, endpoint::Endpoint, sqlite};

/// Releases a table in each source of a file that captures it; tells what was done and what to do next, a line each.
/// A sync that runs meanwhile stops at the table.
///
/// # Errors
/// `NotFound` with the nearest table where no source captures it; `Unavailable` where a source is not there or locked.
pub async fn release(specs: &[SyncSpec], table: &str) -> Result<Vec<String>> {
    let (mut done, mut absent) = (Vec::new(), None);
    for spec in specs {
        let Endpoint::Sqlite(from) = &spec.from else {
            // Only a SQLite source has something of ours at its tables.
            let free = format!("source {} needs no release: its tables can be altered as they are", spec.from);
            absent = absent.or(Some(Error::not_found(free)));
            continue;
        };
        let (path, table) = (from.clone(), table.to_owned());
        let released = tokio::task::spawn_blocking(move || sqlite::release(&path, &table)).await;
        match released.map_err(|e| Error::internal("release a table").with_source(e))? {
            Ok(name) => {
                let next = spec.typed(&format!("tidemill sync run FILE --recopy {}", shell_word(&name)));
                done.push(format!("source {}: triggers and journal of table {name} removed", from.display()));
                done.push(format!("alter it, then copy it anew: {next}"));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => absent = absent.or(Some(error)),
            Err(error) => return Err(spec.typed_error(&error)),
        }
    }
    match absent {
        Some(error) if done.is_empty() => Err(error),
        _ => Ok(done),
    }
}
