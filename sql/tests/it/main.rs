//! SQL over an in-memory log of real batches, with SQLite as the oracle where both can answer.

mod arrow_windows;
mod chinook;
mod log;
mod music;
mod names;
mod queries;
mod refusals;
mod rendering;
mod scans;
mod speed;
mod tumble;
mod tumble_texts;
mod values;

use std::sync::Arc;

use futures::TryStreamExt as _;
use tidemill_sql::{Error, Format, QueryResult, Session, Settings, Topics, render};

/// A session over a log, with a folder of its own for spilled data.
fn session(log: impl Topics + 'static) -> Session {
    session_with(Arc::new(log), None)
}

fn session_with(topics: Arc<dyn Topics>, memory_bytes: Option<u64>) -> Session {
    let temp_dir = std::env::temp_dir().join(format!("tidemill-sql-it-{}", std::process::id()));
    Session::new(topics, Settings { memory_bytes, temp_dir, threads: Some(3) }).expect("valid settings")
}

async fn text(result: QueryResult, format: Format) -> Result<String, Error> {
    let pieces: Vec<bytes::Bytes> = render(result, format).try_collect().await?;
    Ok(String::from_utf8(pieces.concat()).expect("rendered text is UTF-8"))
}

/// The answer as CSV.
async fn csv(session: &Session, sql: &str) -> String {
    let answer = match session.query(sql).await {
        Ok(result) => text(result, Format::Csv).await,
        Err(e) => Err(e),
    };
    answer.unwrap_or_else(|e| panic!("{sql}: {e:?}"))
}

/// The error that a statement ends with, at once or in the middle of its answer.
async fn error(session: &Session, sql: &str) -> Error {
    let answer = match session.query(sql).await {
        Ok(result) => text(result, Format::Csv).await,
        Err(e) => Err(e),
    };
    match answer {
        Ok(answer) => panic!("{sql}: answered {answer}"),
        Err(e) => e,
    }
}
