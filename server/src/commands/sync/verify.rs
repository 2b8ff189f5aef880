//! `tidemill sync verify`: each sync of a file has its own outcome.

use std::{collections::BTreeMap, path::Path, process::ExitCode, time::Duration};

use async_trait::async_trait;
use axum::http::Method;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use tidemill_connect::{
    command::shell_word,
    sync::{
        file::SyncSpec,
        known::{Ends, Known},
        status::Status,
        verify::{LogView, Patience, Verdict, Verified, verify},
    },
};
use tidemill_core::{Error, Result};

use super::{Told, read_and_find_passwords};
use crate::{
    cli::{SyncFile, Target},
    client::Client,
    commands::{count, reach_existing},
    exit,
    typed::Typed,
};

/// How long rows that differ may take to arrive, and how long nothing may arrive, unless the user says otherwise.
const PATIENCE: Patience = Patience { catch_up: None, at_most: Duration::from_secs(10), quiet: Duration::from_secs(3) };
/// So many keys of each table that differs are printed.
const PRINTED_KEYS: usize = 10;

pub async fn run(file: &SyncFile, wait: Option<f64>, data_dir: Option<&Path>) -> anyhow::Result<ExitCode> {
    let specs = read_and_find_passwords(file)?;
    let typed = Told::of(data_dir).await?.typed(file, data_dir);
    let patience = wait.map_or(PATIENCE, |seconds| {
        let wait = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Patience { catch_up: Some(wait), at_most: wait, quiet: wait }
    });
    let log = match data_dir {
        Some(data_dir) => Some(Asked::of(data_dir).await?),
        None => None,
    };
    let (mut equal, mut failed) = (true, None);
    for spec in &specs {
        say!("sync {}: {} -> {}", spec.name, spec.from, spec.to);
        let view = log.as_ref().map(|log| log as &dyn LogView);
        match verify(spec, view, patience).await {
            Ok(verified) => {
                equal &= verified.is_equal();
                print(spec, &verified, log.is_some(), &typed);
            }
            // The others are compared all the same.
            Err(error) => {
                let error = typed.error(anyhow::Error::from(error.context("not compared")));
                say!("failed  {}: {error:#}", spec.name);
                eprintln!("error: sync {}: {error:#}", spec.name);
                failed.get_or_insert(exit::code(&error));
            }
        }
    }
    if let Some(log) = log {
        log.close().await?;
    }
    let all = equal && failed.is_none();
    say!("{}", if all { "equal" } else { "not equal" });
    Ok(match failed {
        Some(code) => ExitCode::from(code),
        None if equal => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    })
}

fn print(spec: &SyncSpec, verified: &Verified, knows_log: bool, typed: &Typed) {
    say!("        {}", typed.text(&verified.caught.told));
    for verdict in &verified.tables {
        print_verdict(&spec.name, verdict);
        if verdict.is_equal() {
            continue;
        }
        if !verdict.parked.is_empty() {
            say!("        to try the parked rows again: {}", typed.text(&spec.named("tidemill sync retry FILE")));
        }
        // Rows that are on their way still need no other cure.
        let on_the_way = knows_log && verified.caught.at_work && !verified.caught.whole;
        if !on_the_way && (!verdict.exists || verdict.columns.is_some() || !verdict.diff.is_equal()) {
            let cure = format!("tidemill sync run FILE --recopy {}", shell_word(&verdict.table));
            say!("        to copy the table anew: {}", typed.text(&spec.named(&cure)));
        }
    }
}

fn print_verdict(sync: &str, verdict: &Verdict) {
    let (table, diff) = (&verdict.table, &verdict.diff);
    let mark = if verdict.is_equal() { "ok     " } else { "differs" };
    if verdict.keyless {
        say!("ok      {sync}.{table}: it has no primary key, and no sync follows it: left out");
    } else if !verdict.exists {
        say!("missing {sync}.{table}: the target has no such table; {} only in the source", count(diff.rows, "row"));
    } else if let Some(columns) = &verdict.columns {
        say!("{mark} {sync}.{table}: other columns, rows not compared: {columns}");
    } else {
        say!(
            "{mark} {sync}.{table}: {} compared: {} equal, {} different, {} only in the source, {} only in the target, {} parked",
            count(diff.rows, "row"),
            diff.equal_rows(),
            diff.differing_rows,
            diff.missing_rows,
            diff.extra_rows,
            verdict.parked.len()
        );
    }
    if verdict.exists && verdict.columns.is_none() && !verdict.normalised.is_empty() {
        say!("        compared {}", verdict.normalised.join("; "));
    }
    verdict.lines(PRINTED_KEYS).iter().for_each(|line| say!("        {line}"));
}

/// What the log says of the syncs: asked of its owner, or, where nobody owns it, read once and let go.
enum Asked {
    Owner(Client),
    Read(Vec<Status>, Known),
}

impl Asked {
    async fn of(data_dir: &Path) -> anyhow::Result<Self> {
        let target = Target { data_dir: data_dir.to_owned(), server: None, url: None };
        let client = reach_existing(&target, "sync verify").await?;
        if !matches!(client, Client::Own(..)) {
            return Ok(Self::Owner(client));
        }
        // A comparison may take long; meanwhile a sync can be started.
        let statuses = client.call(Method::GET, "/v1/syncs", None).await;
        let known = client.call(Method::GET, "/v1/known", None).await;
        client.close().await?;
        Ok(Self::Read(serde_json::from_value(statuses?)?, serde_json::from_value(known?)?))
    }

    async fn close(self) -> anyhow::Result<()> {
        match self {
            Self::Owner(client) => client.close().await,
            Self::Read(..) => Ok(()),
        }
    }

    async fn get(&self, path: &str) -> Result<Json> {
        let Self::Owner(client) = self else { return Ok(Json::Null) };
        client.call(Method::GET, path, None).await.map_err(|error| match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::unavailable(format!("the log does not answer: {error:#}")),
        })
    }
}

fn read<T: DeserializeOwned>(what: &str, json: Json) -> Result<T> {
    serde_json::from_value(json).map_err(|e| Error::internal(format!("read {what}")).with_source(e))
}

#[async_trait]
impl LogView for Asked {
    async fn status(&self, sync: &str) -> Result<Option<Status>> {
        let all: Vec<Status> = match self {
            Self::Read(all, _) => all.clone(),
            Self::Owner(_) => read("the status of syncs", self.get("/v1/syncs").await?)?,
        };
        Ok(all.into_iter().find(|status| status.sync == sync))
    }

    async fn between(&self, sync: &str) -> Result<Option<Ends>> {
        let mut known: Known = match self {
            Self::Read(_, known) => known.clone(),
            Self::Owner(_) => read("what the log knows", self.get("/v1/known").await?)?,
        };
        Ok(known.syncs.remove(sync).and_then(|known| known.ends))
    }

    async fn ends(&self, sync: &str) -> Result<BTreeMap<String, i64>> {
        let schemas = self.get("/v1/schemas").await?;
        let of_sync = |schema: &&Json| schema["sync"] == sync;
        let written: Vec<&Json> = schemas.as_array().into_iter().flatten().filter(of_sync).collect();
        let topics = self.get("/v1/topics").await?;
        let end = |topic: &Json| {
            let name = topic["name"].as_str().filter(|name| written.iter().any(|schema| schema["topic"] == *name))?;
            Some((name.to_owned(), topic["partitions"][0]["log_end_offset"].as_i64()?))
        };
        Ok(topics.as_array().into_iter().flatten().filter_map(end).collect())
    }

    fn waiting(&self, told: &str) {
        eprintln!("waiting: {told}");
    }
}
