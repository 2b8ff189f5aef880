//! `tidemill produce`: lines from standard input become records.

use std::{io::BufRead, process::ExitCode};

use axum::http::Method;
use serde_json::json;
use tidemill_core::{Error, ErrorKind};
use tokio::sync::mpsc;

use crate::{
    cli::Produce,
    client::{Client, escape},
};

/// Lines that wait to be sent; the reader of standard input waits beyond.
const WAITING_LINES: usize = 10_000;
/// One request's lines are durable together; more go into the next.
const REQUEST_BYTES: usize = 512 << 10;

pub async fn run(command: Produce) -> anyhow::Result<ExitCode> {
    let client = Client::connect(&command.log, "produce").await?;
    let result = send_lines(&client, &command).await;
    client.close().await?;
    let count = result?;
    eprintln!("{count} records are durable in {}", command.topic);
    Ok(ExitCode::SUCCESS)
}

async fn send_lines(client: &Client, command: &Produce) -> anyhow::Result<u64> {
    let body = json!({ "name": command.topic, "partitions": 1 });
    match client.call(Method::POST, "/v1/topics", Some(body)).await {
        Ok(_) => eprintln!("topic {} made", command.topic),
        Err(error) if error.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::Conflict) => {}
        Err(error) => return Err(error),
    }
    let path = format!("/v1/topics/{}/records", escape(&command.topic));
    let mut lines = read_lines();
    let mut count = 0;
    let mut number = 0;
    while let Some(first) = lines.recv().await {
        let (mut body, mut records) = (String::new(), 0);
        let mut line = Some(first);
        while let Some(text) = line {
            number += 1;
            push(&mut body, &text?, number, command.key_separator.as_deref())?;
            records += 1;
            line = if body.len() < REQUEST_BYTES { lines.try_recv().ok() } else { None };
        }
        client.call_raw(Method::POST, &path, body).await?;
        count += records;
    }
    Ok(count)
}

fn push(body: &mut String, line: &str, number: u64, separator: Option<&str>) -> anyhow::Result<()> {
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

/// Standard input by lines; reading it blocks, so it has a thread of its own.
fn read_lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (lines, receiver) = mpsc::channel(WAITING_LINES);
    tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lock().lines() {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
