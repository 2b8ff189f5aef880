//! Syncs that another process runs: given to it, taken from it, asked for parked rows.

use std::process::ExitCode;

use axum::http::Method;
use serde_json::json;
use tidemill_connect::sync::{file::SyncSpec, parked::ParkedKey};

use super::{read, told};
use tidemill_core::{Error, ErrorKind};

use crate::{
    cli::{SyncFile, Target},
    client::Client,
    commands::{count, reach_existing},
    exit::ConfigFault,
    syncs::Applied,
    typed::Typed,
};

pub async fn apply(file: &SyncFile, recopy: Vec<String>, replace: bool, log: &Target) -> anyhow::Result<ExitCode> {
    let specs = read(file)?;
    let (path, text) = (std::path::absolute(&file.path)?, std::fs::read_to_string(&file.path)?);
    let applied = Applied { file: path, text, syncs: file.syncs.clone(), recopy, replace };
    applied.specs().map_err(ConfigFault)?;
    let client = reach_existing(log, "sync apply").await?;
    let answer = client.call(Method::POST, "/v1/syncs", Some(serde_json::to_value(applied)?)).await;
    client.close().await?;
    // What is invalid is the file, or what it says of where the passwords are: the server looks for them.
    let answer = answer.map_err(|error| match error.downcast::<Error>() {
        Ok(error) if error.kind() == ErrorKind::Invalid => ConfigFault(error).into(),
        Ok(error) => error.into(),
        Err(error) => error,
    })?;
    for spec in &specs {
        let waits = answer["waiting"][&spec.name].as_str();
        let waits = waits.map(|why| format!("; it is not examined yet and waits: {why}")).unwrap_or_default();
        say!("sync {}: {} -> {}, applied{waits}", spec.name, spec.from, spec.to);
    }
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

pub async fn retry(file: &SyncFile, skipped: Option<&str>, log: &Target) -> anyhow::Result<ExitCode> {
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
