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

use super::{read, told};
use tidemill_core::{Error, ErrorKind};

use crate::{
    cli::{StatusOutput, Target},
    client::Client,
    commands::{count, print_bytes, reach_existing},
    exit::ConfigFault,
    syncs::Applied,
    typed::Typed,
};

pub async fn apply(file: &Path, recopy: Vec<String>, replace: bool, log: &Target) -> anyhow::Result<ExitCode> {
    read(file)?;
    let applied = Applied { file: std::path::absolute(file)?, text: std::fs::read_to_string(file)?, recopy, replace };
    let specs = applied.specs().map_err(ConfigFault)?;
    let client = reach_existing(log, "sync apply").await?;
    let answer = client.call(Method::POST, "/v1/syncs", Some(serde_json::to_value(applied)?)).await;
    client.close().await?;
    // What is invalid is the file, or what it says of where the passwords are: the server looks for them.
    answer.map_err(|error| match error.downcast::<Error>() {
        Ok(error) if error.kind() == ErrorKind::Invalid => ConfigFault(error).into(),
        Ok(error) => error.into(),
        Err(error) => error,
    })?;
    specs.iter().for_each(|spec| say!("sync {}: {} -> {}, applied", spec.name, spec.from, spec.to));
    let look = Typed::by(log).text("tidemill sync status");
    say!("the server runs them from now on, and when it starts again; to look: {look}");
    Ok(ExitCode::SUCCESS)
}

pub async fn remove(specs: &[SyncSpec], force: bool, log: &Target) -> anyhow::Result<ExitCode> {
    let client = reach_existing(log, "sync rm").await?;
    let mut failed = None;
    for spec in specs {
        let path = format!("/v1/syncs/{}?force={force}", spec.name);
        let removed = async {
            let answer = client.call(Method::DELETE, &path, None).await?;
            Ok(serde_json::from_value(answer["done"].clone())?)
        };
        told(spec, removed.await, log, &mut failed);
    }
    client.close().await?;
    Ok(failed.unwrap_or(ExitCode::SUCCESS))
}

pub async fn status(file: Option<&Path>, output: StatusOutput, log: &Target) -> anyhow::Result<ExitCode> {
    let specs = file.map(read).transpose()?;
    let client = reach_existing(log, "sync status").await?;
    let answer = client.call(Method::GET, "/v1/syncs", None).await;
    client.close().await?;
    let mut all: Vec<Status> = serde_json::from_value(answer?)?;
    let typed = Typed::by(log);
    for status in &mut all {
        status.last_error = status.last_error.as_deref().map(|error| typed.text(error));
    }
    if let Some(specs) = specs {
        all.retain(|status| specs.iter().any(|spec| spec.name == status.sync));
        for spec in specs {
            if !all.iter().any(|status| status.sync == spec.name) {
                all.push(Status { sync: spec.name.clone(), ..Status::default() });
            }
            // Of a sync that nobody runs the log knows no more than its name.
            for status in all.iter_mut().filter(|status| status.sync == spec.name && status.from.is_empty()) {
                (status.from, status.to) = (spec.from.to_string(), spec.to.to_string());
            }
        }
    }
    let text = match output {
        StatusOutput::Json => serde_json::to_string_pretty(&all)? + "\n",
        StatusOutput::Table if all.is_empty() => "no syncs\n".to_owned(),
        StatusOutput::Table => all.iter().map(status_text).collect(),
    };
    print_bytes(text.as_bytes())?;
    let bad = all.iter().any(|status| matches!(status.state, State::Failed | State::Degraded));
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn status_text(status: &Status) -> String {
    let state = serde_json::to_value(status.state).ok().and_then(|state| state.as_str().map(str::to_uppercase));
    let mut lines = vec![format!("sync {}: {}", status.sync, state.unwrap_or_default())];
    if !status.from.is_empty() {
        lines.push(format!("  {} -> {}", status.from, status.to));
    }
    let lag = status.lag_seconds.map_or("-".to_owned(), |lag| format!("{lag:.1} s"));
    lines.push(format!("  lag: {lag}{}", source_lag(status)));
    for table in &status.tables {
        lines.push(format!("  {}: {}", table.table, table_text(table)));
    }
    if let Some(error) = &status.last_error {
        lines.push(format!("  last error: {error}"));
    }
    for ParkedKey { topic, key, offset, cause, .. } in &status.parked {
        lines.push(format!("  parked: {} of {topic}, from offset {offset}: {cause}", shell_word(key)));
    }
    lines.join("\n") + "\n"
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
    let (mut waiting, mut told, mut unknown) = (0, false, None);
    for spec in specs {
        let (verb, body) = match skipped {
            Some(key) => ("skip", Some(json!({ "key": key }))),
            None => ("retry", None),
        };
        let answer = client.call(Method::POST, &format!("/v1/syncs/{}/{verb}", spec.name), body).await;
        let answer = match answer {
            Ok(answer) => answer,
            // A key is parked in one of a file's syncs.
            Err(error) if skipped.is_some() && is_not_found(&error) => {
                unknown = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        told = true;
        let keys = |name: &str| serde_json::from_value::<Vec<ParkedKey>>(answer[name].clone());
        for key in keys("released")? {
            say!("released {} of {}", key.key, key.topic);
        }
        for key in keys("parked")? {
            waiting += 1;
            say!("parked   {} of {}: {}", key.key, key.topic, key.cause);
        }
    }
    if let Some(error) = unknown.filter(|_| !told) {
        return Err(error);
    }
    say!("{} parked", count(waiting, "row"));
    Ok(if waiting > 0 && skipped.is_none() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::NotFound)
}
