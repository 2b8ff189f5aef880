//! What a sync would make, printed.

use std::process::ExitCode;

use comfy_table::{Table, presets::NOTHING};
use tidemill_connect::sync::{
    file::SyncSpec,
    plan::{TablePlan, plan},
};

use crate::commands::count;

pub async fn show(specs: &[SyncSpec]) -> anyhow::Result<ExitCode> {
    for spec in specs {
        let plan = plan(spec).await?;
        say!("sync {}: {} -> {}", spec.name, spec.from, spec.to);
        say!("makes in the source, unless it runs with --once:");
        plan.source.iter().for_each(|line| say!("  {line}"));
        say!("makes in the target: table _tidemill_sync for its positions, and");
        plan.tables.iter().for_each(print_table);
        let lossy: usize = plan.tables.iter().map(|t| t.columns.iter().filter(|c| c.loss.is_some()).count()).sum();
        say!("no indexes but the keys', no foreign keys, no defaults");
        match lossy {
            0 => say!("nothing is lost on the way"),
            lossy => say!("{} not held as in the source, marked above", count(lossy as u64, "column")),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_table(plan: &TablePlan) {
    say!("  {} from {} through topic {}", plan.target, plan.table, plan.topic);
    if let Some(existing) = &plan.existing {
        say!("   {existing}");
    }
    let mut table = Table::new();
    table.load_preset(NOTHING);
    for column in &plan.columns {
        let loss = column.loss.as_ref().map(|loss| format!("! {loss}")).unwrap_or_default();
        let name = if column.key { format!("{} (key)", column.name) } else { column.name.clone() };
        let from = if column.from.is_empty() { "no type" } else { &column.from };
        let to = if column.to.is_empty() { "no type" } else { &column.to };
        table.add_row(vec![format!("   {name}"), from.to_owned(), format!("-> {to}"), loss]);
    }
    say!("{table}");
}
