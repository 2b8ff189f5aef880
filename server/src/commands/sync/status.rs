//! `tidemill sync status`.

use std::{path::Path, process::ExitCode};

use axum::http::Method;
use tidemill_connect::{
    command::shell_word,
    sync::{
        file::{SyncSpec, load, select},
        parked::ParkedKey,
        status::{State, Status, TableStatus},
    },
};
use tidemill_core::Error;

use crate::{
    cli::{StatusOutput, Target},
    commands::{count, print_bytes, reach_existing},
    exit::{self, ConfigFault},
    typed::Typed,
};

pub async fn run(
    file: Option<&Path>,
    syncs: &[String],
    output: StatusOutput,
    log: &Target,
) -> anyhow::Result<ExitCode> {
    let specs = match file {
        Some(file) => Some(select(load(file).map_err(ConfigFault)?, syncs)?),
        None => None,
    };
    let client = reach_existing(log, "sync status").await?;
    let answer = client.call(Method::GET, "/v1/syncs", None).await;
    client.close().await?;
    let mut all: Vec<Status> = serde_json::from_value(answer?)?;
    let typed = Typed::by(log);
    for status in &mut all {
        status.last_error = status.last_error.as_deref().map(|error| typed.text(error));
    }
    let unknown = pick(&mut all, specs.as_deref(), syncs);
    let text = match output {
        StatusOutput::Json => serde_json::to_string_pretty(&all)? + "\n",
        StatusOutput::Table if all.is_empty() && unknown.is_none() => "no syncs\n".to_owned(),
        StatusOutput::Table => all.iter().map(status_text).collect(),
    };
    print_bytes(text.as_bytes())?;
    if let Some(unknown) = unknown {
        eprintln!("error: {unknown}");
        return Ok(ExitCode::from(exit::code(&unknown.into())));
    }
    let bad = all.iter().any(|status| matches!(status.state, State::Failed | State::Degraded));
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Leaves the syncs that are asked for; the error tells which of them the log does not know.
fn pick(all: &mut Vec<Status>, specs: Option<&[SyncSpec]>, syncs: &[String]) -> Option<Error> {
    let wanted: Vec<&str> = match specs {
        Some(specs) => specs.iter().map(|spec| spec.name.as_str()).collect(),
        None if syncs.is_empty() => return None,
        None => syncs.iter().map(String::as_str).collect(),
    };
    let known: Vec<String> = all.iter().map(|status| status.sync.clone()).collect();
    all.retain(|status| wanted.contains(&status.sync.as_str()));
    for spec in specs.into_iter().flatten() {
        // Of a sync that nobody runs the log knows no more than its name.
        for status in all.iter_mut().filter(|status| status.sync == spec.name && status.from.is_empty()) {
            (status.from, status.to) = (spec.from.to_string(), spec.to.to_string());
        }
    }
    let unknown: Vec<&str> = wanted.into_iter().filter(|name| !known.iter().any(|known| known == name)).collect();
    let known = match known.is_empty() {
        true => "it knows none".to_owned(),
        false => format!("it knows {}", known.join(", ")),
    };
    (!unknown.is_empty()).then(|| Error::not_found(format!("the log knows no sync {}; {known}", unknown.join(", "))))
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
        lines.push(format!("  {}: {}", table.table, table_text(table, status.state)));
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

fn table_text(table: &TableStatus, state: State) -> String {
    let pending = match table.pending {
        0 => String::new(),
        pending => format!(", {} to apply", count(pending, "record")),
    };
    match table.eta_seconds.filter(|_| !table.complete) {
        Some(eta) => format!("copied {} of about {}, {eta:.0} s left{pending}", table.copied, table.rows),
        None if !table.complete => format!("copied {} of about {}{pending}", table.copied, table.rows),
        None if matches!(state, State::Copying | State::Following | State::Degraded) => format!("in step{pending}"),
        // What came since is not known.
        None => format!("copied, not followed now{pending}"),
    }
}
