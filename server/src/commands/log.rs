//! `tidemill log`: a data directory at rest.

use std::{path::Path, process::ExitCode, sync::Arc};

use axum::http::Method;
use serde_json::json;
use tidemill_connect::command::shell_word;
use tidemill_core::{
    clock::SystemClock,
    engine::{
        Config,
        inspect::{self, VerifyReport},
    },
    storage::OsStorage,
};

use super::{count, print_bytes, reach_existing};
use crate::{
    cli::{Log, StatusOutput, Target},
    node::{lock, require_log},
};

pub async fn run(command: Log) -> anyhow::Result<ExitCode> {
    match command {
        Log::Backup { to, log } => backup(&to, &log).await,
        Log::Verify { output, log } => verify(&log.data_dir, output),
        Log::Dump { file, records } => {
            let mut out = Vec::new();
            // What was said before a fault is worth reading.
            let dumped = inspect::dump(&OsStorage, &file, records, &mut out);
            print_bytes(&out)?;
            dumped?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn backup(to: &Path, log: &Target) -> anyhow::Result<ExitCode> {
    // A server's folders are not those of this machine.
    let to = if log.server.is_some() { to.to_path_buf() } else { std::path::absolute(to)? };
    let client = reach_existing(log, "log backup").await?;
    let made = client.call(Method::POST, "/v1/backup", Some(json!({ "to": to }))).await;
    client.close().await?;
    let made = made?;
    say!(
        "{} holds all up to LSN {}: {} segments, {} bytes",
        to.display(),
        made["lsn"],
        made["segments"],
        made["bytes"]
    );
    say!("it is a log: tidemill log verify --data-dir {}", shell_word(&to.display().to_string()));
    Ok(ExitCode::SUCCESS)
}

fn verify(data_dir: &Path, output: StatusOutput) -> anyhow::Result<ExitCode> {
    require_log(data_dir)?;
    let _lock = lock(data_dir, "log verify")?;
    let clock = Arc::new(SystemClock::default());
    let report = inspect::verify(data_dir, Config::default(), Arc::new(OsStorage), clock)?;
    let text = match output {
        StatusOutput::Json => format!("{:#}\n", as_json(&report)),
        StatusOutput::Table => as_text(&report),
    };
    print_bytes(text.as_bytes())?;
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn as_json(report: &VerifyReport) -> serde_json::Value {
    let partitions = report.partitions.iter().map(|p| {
        json!({
            "partition": p.name, "log_start_offset": p.log_start_offset, "log_end_offset": p.end_offset,
            "segments": p.segments, "segment_bytes": p.bytes, "batches": p.batches, "records": p.records,
            "faults": p.fault_count, "first_faults": p.faults,
        })
    });
    let recovery = &report.recovery;
    let lost = recovery.damage.iter().map(|(lsn, what)| json!({ "lsn": lsn, "what": what }));
    json!({
        "sound": report.is_sound(),
        "partitions": partitions.collect::<Vec<_>>(),
        "commit_log": {
            "checkpoint_lsn": recovery.checkpoint_lsn, "proven_lsn": recovery.proven_lsn, "end_lsn": recovery.end_lsn,
            "batches": recovery.batches, "damage": lost.collect::<Vec<_>>(),
            "cut": recovery.cut.map(|(lsn, bytes)| json!({ "lsn": lsn, "bytes": bytes })),
        },
        "leftovers": report.leftovers,
    })
}

fn as_text(report: &VerifyReport) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(["partition", "offsets", "records", "batches", "segments", "bytes", ""]);
    for p in &report.partitions {
        let state = if p.fault_count == 0 { "sound".to_owned() } else { count(p.fault_count, "fault") };
        let offsets = format!("{}..{}", p.log_start_offset, p.end_offset);
        let numbers = [p.records, p.batches, p.segments as u64, p.bytes].map(|n| n.to_string());
        table.add_row([vec![p.name.clone(), offsets], numbers.to_vec(), vec![state]].concat());
    }
    let mut text = format!("{}\n\n", table.trim_fmt());
    let recovery = &report.recovery;
    text.push_str(&format!(
        "commit log: {} in it, from LSN {} to {}, durable beyond doubt up to {}\n",
        count(recovery.batches, "batch").replace("batchs", "batches"),
        recovery.checkpoint_lsn,
        recovery.end_lsn,
        recovery.proven_lsn,
    ));
    if let Some((lsn, bytes)) = recovery.cut {
        text.push_str(&format!(
            "commit log: {bytes} bytes at LSN {lsn} were begun and never acknowledged; the next opening cuts them\n"
        ));
    }
    for (lsn, what) in &recovery.damage {
        text.push_str(&format!("DAMAGE in the commit log at LSN {lsn}: {what}\n"));
    }
    for p in report.partitions.iter().filter(|p| p.fault_count > 0) {
        p.faults.iter().for_each(|fault| text.push_str(&format!("DAMAGE in {}: {fault}\n", p.name)));
        let more = p.fault_count - p.faults.len() as u64;
        if more > 0 {
            text.push_str(&format!("DAMAGE in {}: {more} more\n", p.name));
        }
    }
    for name in &report.leftovers {
        text.push_str(&format!("left over: {name}; it is not part of the log\n"));
    }
    text.push_str(if report.is_sound() { "sound\n" } else { "NOT sound\n" });
    text
}
