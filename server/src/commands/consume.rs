//! `tidemill consume`.

use std::process::ExitCode;

use axum::http::Method;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value as Json;

use super::{print_bytes, reach_existing, stop_signal};
use crate::{
    cli::Consume,
    client::{Client, copy_body, escape},
};

pub async fn run(command: Consume) -> anyhow::Result<ExitCode> {
    let mut stop = stop_signal()?;
    let client = reach_existing(&command.log, "consume").await?;
    let result = tokio::select! {
        result = print_records(&client, &command) => result,
        _ = stop.wait_for(|stop| *stop) => Ok(()),
    };
    client.close().await?;
    result.map(|()| ExitCode::SUCCESS)
}

async fn print_records(client: &Client, command: &Consume) -> anyhow::Result<()> {
    let limit = command.count.map(|count| format!("&limit={count}")).unwrap_or_default();
    let (topic, from) = (escape(&command.topic), escape(&command.from));
    let path = format!("/v1/topics/{topic}/records?from={from}&follow={}{limit}", !command.exit);
    let answer = client.send(Method::GET, &path, "").await?;
    let mut rest = Vec::new();
    copy_body(answer, |piece| {
        rest.extend_from_slice(piece);
        let whole = rest.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let mut out = Vec::new();
        for line in rest[..whole].split_inclusive(|b| *b == b'\n') {
            if command.json {
                out.extend_from_slice(line);
            } else {
                plain(line, command.key_separator.as_deref(), &mut out)?;
            }
        }
        rest.drain(..whole);
        if out.is_empty() { Ok(true) } else { print_bytes(&out) }
    })
    .await
}

/// A record as its value, with its key before it if asked for.
fn plain(line: &[u8], separator: Option<&str>, out: &mut Vec<u8>) -> anyhow::Result<()> {
    let record: Json = serde_json::from_slice(line)?;
    if let Some(separator) = separator {
        field(&record, "key", out)?;
        out.extend_from_slice(separator.as_bytes());
    }
    field(&record, "value", out)?;
    out.push(b'\n');
    Ok(())
}

/// A null is printed as nothing.
fn field(record: &Json, name: &str, out: &mut Vec<u8>) -> anyhow::Result<()> {
    if let Some(text) = record[name].as_str() {
        out.extend_from_slice(text.as_bytes());
    } else if let Some(text) = record[format!("{name}_base64")].as_str() {
        out.extend_from_slice(&BASE64_STANDARD.decode(text)?);
    }
    Ok(())
}
