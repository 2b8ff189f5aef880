//! Syncs that another process runs: given to it, looked at, asked for parked rows.

use std::{path::Path, process::ExitCode};

use axum::http::Method;
use serde_json::json;
use tidemill_connect::{
    command::shell_word,
    sync::{
        file::SyncSpec,
        parked::ParkedKey,
        status::{State, Status, TableStatus},
    },
};

use super::read;
use crate::{
    cli::{Owned, StatusOutput, Target},
    client::Client,
    commands::{count, reach_existing},
    syncs::Applied,
};

pub async fn apply(file: &Path, log: &Target) -> anyhow::Result<ExitCode> {
    read(file)?;
    let applied = Applied { file: std::path::absolute(file)?, text: std::fs::read_to_string(file)? };
    let specs = applied.specs()?;
    let client = reach_existing(log, "sync apply").await?;
    let answer = client.call(Method::POST, "/v1/syncs", Some(serde_json::to_value(applied)?)).await;
    client.close().await?;
    answer?;
    specs.iter().for_each(|spec| println!("sync {}: {} -> {}, applied", spec.name, spec.from, spec.to));
    println!("the server runs them from now on, and when it starts again; to look: tidemill sync status");
    Ok(ExitCode::SUCCESS)
}

pub async fn remove(specs: &[SyncSpec], force: bool, log: &Owned) -> anyhow::Result<ExitCode> {
    let target = Target { data_dir: log.data_dir.clone(), server: None };
    let client = reach_existing(&target, "sync rm").await?;
    for spec in specs {
        let path = format!("/v1/syncs/{}?force={force}", spec.name);
        let answer = client.call(Method::DELETE, &path, None).await?;
        let done: Vec<String> = serde_json::from_value(answer["done"].clone())?;
        done.iter().for_each(|line| println!("{line}"));
    }
    client.close().await?;
    Ok(ExitCode::SUCCESS)
}

pub async fn status(file: Option<&Path>, output: StatusOutput, log: &Target) -> anyhow::Result<ExitCode> {
    let specs = file.map(read).transpose()?;
    let client = reach_existing(log, "sync status").await?;
    let answer = client.call(Method::GET, "/v1/syncs", None).await;
    client.close().await?;
    let mut all: Vec<Status> = serde_json::from_value(answer?)?;
    if let Some(specs) = specs {
        all.retain(|status| specs.iter().any(|spec| spec.name == status.sync));
        for spec in specs {
            if !all.iter().any(|status| status.sync == spec.name) {
                all.push(Status { sync: spec.name, ..Status::default() });
            }
        }
    }
    match output {
        StatusOutput::Json => println!("{}", serde_json::to_string_pretty(&all)?),
        StatusOutput::Table if all.is_empty() => println!("no syncs"),
        StatusOutput::Table => all.iter().for_each(print_status),
    }
    let bad = all.iter().any(|status| matches!(status.state, State::Failed | State::Degraded));
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_status(status: &Status) {
    let state = serde_json::to_value(status.state).ok().and_then(|state| state.as_str().map(str::to_uppercase));
    println!("sync {}: {}", status.sync, state.unwrap_or_default());
    if !status.from.is_empty() {
        println!("  {} -> {}", status.from, status.to);
        println!("  lag: {:.1} s{}", status.lag_seconds, source_lag(status));
    }
    for table in &status.tables {
        println!("  {}: {}", table.table, table_text(table));
    }
    if let Some(error) = &status.last_error {
        println!("  last error: {error}");
    }
    for ParkedKey { topic, key, offset, cause, .. } in &status.parked {
        println!("  parked: {} of {topic}, from offset {offset}: {cause}", shell_word(key));
    }
}

fn source_lag(status: &Status) -> String {
    let source = &status.source;
    let behind = source.behind_bytes.map(|bytes| format!("; {bytes} bytes of the source's log to read"));
    let kept = source.retained_bytes.map(|bytes| format!("; the source keeps {bytes} bytes for this sync"));
    let position = source.position.as_ref().map(|position| format!("; at {position}"));
    [behind, kept, position].into_iter().flatten().collect()
}

fn table_text(table: &TableStatus) -> String {
    let pending = match table.pending {
        0 => String::new(),
        pending => format!(", {} to apply", count(pending, "record")),
    };
    match table.eta_seconds.filter(|_| !table.complete) {
        Some(eta) => format!("copied {} of about {}, {eta:.0} s left{pending}", table.copied, table.rows),
        None if !table.complete => format!("copied {} of about {}{pending}", table.copied, table.rows),
        None => format!("in step{pending}"),
    }
}

pub async fn retry(file: &Path, skipped: Option<&str>, log: &Target) -> anyhow::Result<ExitCode> {
    let specs = read(file)?;
    let client = reach_existing(log, "sync retry").await?;
    let result = ask(&client, &specs, skipped).await;
    client.close().await?;
    result
}

async fn ask(client: &Client, specs: &[SyncSpec], skipped: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut waiting = 0;
    for spec in specs {
        let (verb, body) = match skipped {
            Some(key) => ("skip", Some(json!({ "key": key }))),
            None => ("retry", None),
        };
        let answer = client.call(Method::POST, &format!("/v1/syncs/{}/{verb}", spec.name), body).await?;
        let keys = |name: &str| serde_json::from_value::<Vec<ParkedKey>>(answer[name].clone());
        for key in keys("released")? {
            println!("released {} of {}", key.key, key.topic);
        }
        for key in keys("parked")? {
            waiting += 1;
            println!("parked   {} of {}: {}", key.key, key.topic, key.cause);
        }
    }
    println!("{} parked", count(waiting, "row"));
    Ok(if waiting > 0 && skipped.is_none() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
