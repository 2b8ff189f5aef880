//! `tidemill consume`.

use std::process::ExitCode;

use axum::http::Method;
use serde_json::Value as Json;

use super::{
    pattern::{Pattern, bytes_of},
    print_bytes, reach_existing, stop_signal,
};
use crate::{
    cli::Consume,
    client::{Client, copy_body, escape},
};

pub async fn run(command: Consume) -> anyhow::Result<ExitCode> {
    let pattern = command.format.as_deref().map(Pattern::parse).transpose()?;
    let mut stop = stop_signal()?;
    let client = reach_existing(&command.log, "consume").await?;
    let result = tokio::select! {
        result = print_records(&client, &command, pattern.as_ref()) => result,
        _ = stop.wait_for(|stop| *stop) => Ok(()),
    };
    client.close().await?;
    result.map(|()| ExitCode::SUCCESS)
}

async fn print_records(client: &Client, command: &Consume, pattern: Option<&Pattern>) -> anyhow::Result<()> {
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
            } else if let Some(pattern) = pattern {
                pattern.print(&command.topic, &serde_json::from_slice(line)?, &mut out)?;
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
        // A null is printed as nothing.
        out.extend_from_slice(&bytes_of(&record, "key")?.unwrap_or_default());
        out.extend_from_slice(separator.as_bytes());
    }
    out.extend_from_slice(&bytes_of(&record, "value")?.unwrap_or_default());
    out.push(b'\n');
    Ok(())
}
