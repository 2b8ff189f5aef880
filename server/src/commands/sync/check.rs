//! `tidemill sync check`: what stands in the way of each sync of a file.

use std::{path::Path, process::ExitCode};

use tidemill_connect::{
    connector::{Finding, Level},
    sync::{check::check, run::RunOptions},
};

use super::{Told, read_and_find_passwords};
use crate::{cli::SyncFile, exit, typed::Typed};

pub async fn run(file: &SyncFile, data_dir: Option<&Path>) -> anyhow::Result<ExitCode> {
    let specs = read_and_find_passwords(file)?;
    let told = Told::of(data_dir).await?;
    let typed = told.typed(file, data_dir);
    let (mut refused, mut failed) = (false, None);
    for spec in &specs {
        say!("sync {}: {} -> {}", spec.name, spec.from, spec.to);
        let checked = check(spec, &specs, &told.known, &RunOptions::default()).await;
        checked.findings.iter().for_each(|finding| print(finding, &typed));
        refused |= checked.refusals().next().is_some();
        // The others are examined all the same.
        if let Some(error) = checked.fault {
            let error = typed.error(anyhow::Error::from(error.context(format!("sync {}", spec.name))));
            eprintln!("error: {error:#}");
            failed.get_or_insert(exit::code(&error));
        }
    }
    Ok(match failed {
        Some(code) => ExitCode::from(code),
        None if refused => ExitCode::from(4),
        None => ExitCode::SUCCESS,
    })
}

fn print(finding: &Finding, typed: &Typed) {
    let mark = match finding.level {
        Level::Ok => "ok    ",
        Level::Warn => "warn  ",
        Level::Refuse => "refuse",
    };
    say!("  {mark} {}: {}", finding.subject, finding.message);
    if let Some(cure) = &finding.cure {
        say!("         {}", typed.text(cure));
    }
}
