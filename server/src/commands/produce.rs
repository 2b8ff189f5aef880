//! `tidemill produce`: lines from standard input become records.

use std::{io::BufRead, process::ExitCode};

use axum::http::Method;
use serde_json::json;
use tidemill_core::{Error, ErrorKind};
use tokio::sync::{mpsc, watch};

use super::{count, reach, stop_signal};
use crate::{
    cli::Produce,
    client::{Client, escape},
};

/// Lines that wait to be sent; the reader of standard input waits beyond.
const WAITING_LINES: usize = 10_000;
/// The exit code of a command that a signal ended, as shells have it.
const INTERRUPTED: u8 = 130;
/// One request's lines are durable together; more go into the next.
const REQUEST_BYTES: usize = 512 << 10;

pub async fn run(command: Produce) -> anyhow::Result<ExitCode> {
    let mut stop = stop_signal()?;
    let client = reach(&command.log, "produce").await?;
    let result = send_lines(&client, &command, &mut stop).await;
    client.close().await?;
    let written = result?;
    let are = if written == 1 { "is" } else { "are" };
    eprintln!("{} {are} durable in {}", count(written, "record"), command.topic);
    Ok(if *stop.borrow() { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// Sends lines to the end of standard input, or until it is stopped: what was begun is finished first.
async fn send_lines(client: &Client, command: &Produce, stop: &mut watch::Receiver<bool>) -> anyhow::Result<u64> {
    let body = json!({ "name": command.topic, "partitions": 1 });
    match client.call(Method::POST, "/v1/topics", Some(body)).await {
        Ok(_) => eprintln!("topic {} made", command.topic),
        Err(error) if error.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::Conflict) => {}
        Err(error) => return Err(error),
    }
    let path = format!("/v1/topics/{}/records", escape(&command.topic));
    let mut lines = read_lines();
    let mut written = 0;
    loop {
        let first = tokio::select! {
            line = lines.recv() => line,
            _ = stop.wait_for(|stop| *stop) => None,
        };
        let Some(first) = first else { return Ok(written) };
        let (mut body, mut records, mut fault) = (String::new(), 0, None);
        let mut line = Some(first);
        while let Some(bytes) = line {
            let pushed = bytes
                .map_err(|e| Error::from(e).context("read standard input"))
                .and_then(|bytes| push(&mut body, bytes, written + records + 1, command.key_separator.as_deref()));
            if let Err(error) = pushed {
                fault = Some(error);
                break;
            }
            records += 1;
            line = if body.len() < REQUEST_BYTES { lines.try_recv().ok() } else { None };
        }
        if records > 0 {
            client.call_raw(Method::POST, &path, body).await?;
        }
        written += records;
        if let Some(fault) = fault {
            return Err(Error::new(fault.kind(), format!("{fault}; {}", durable_before(written))).into());
        }
    }
}

fn durable_before(written: u64) -> String {
    match written {
        0 => "nothing was written".to_owned(),
        1 => "the record before it is durable".to_owned(),
        more => format!("the {more} records before it are durable"),
    }
}

/// Adds a line as a record. Every line is one, so its number is that of the record.
fn push(body: &mut String, line: Vec<u8>, number: u64, separator: Option<&str>) -> Result<(), Error> {
    let line = String::from_utf8(line).map_err(|e| {
        let place = e.utf8_error().valid_up_to() + 1;
        Error::invalid(format!("line {number} is not valid UTF-8 at byte {place}"))
    })?;
    let record = match separator {
        None => json!({ "value": line }),
        Some(separator) => {
            let (key, value) = line
                .split_once(separator)
                .ok_or_else(|| Error::invalid(format!("line {number} has no {separator:?} between key and value")))?;
            json!({ "key": key, "value": value })
        }
    };
    body.push_str(&record.to_string());
    body.push('\n');
    Ok(())
}

/// Standard input by lines, without their ends; reading it blocks, so it has a thread of its own.
fn read_lines() -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (lines, receiver) = mpsc::channel(WAITING_LINES);
    tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lock().split(b'\n') {
            let line = line.map(|mut line| {
                line.pop_if(|last| *last == b'\r');
                line
            });
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
