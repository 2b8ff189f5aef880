//! `tidemill group`.

use std::process::ExitCode;

use axum::http::Method;
use serde_json::{Value as Json, json};

use super::{count, print_bytes, reach_existing};
use crate::{
    cli::{Group, StatusOutput},
    client::{Client, escape},
};

pub async fn run(command: Group) -> anyhow::Result<ExitCode> {
    let (target, name) = match &command {
        Group::List { log, .. } => (log, "group list"),
        Group::Describe { log, .. } => (log, "group describe"),
        Group::Reset { log, .. } => (log, "group reset"),
        Group::Delete { log, .. } => (log, "group delete"),
    };
    let client = reach_existing(target, name).await?;
    let result = act(&client, &command).await;
    client.close().await?;
    result.map(|()| ExitCode::SUCCESS)
}

async fn act(client: &Client, command: &Group) -> anyhow::Result<()> {
    let path = |group: &str| format!("/v1/groups/{}", escape(group));
    match command {
        Group::List { output, .. } => {
            let list = client.call(Method::GET, "/v1/groups", None).await?;
            print(&list, *output, |list| {
                let rows = rows_of(list).map(|g| vec![text(&g["name"]), text(&g["state"]), text(&g["members"])]);
                table(&["group", "state", "members"], rows)
            })
        }
        Group::Describe { name, output, .. } => {
            let group = client.call(Method::GET, &path(name), None).await?;
            print(&group, *output, described)
        }
        Group::Reset { name, topic, partitions, to, dry_run, output, .. } => {
            let partitions = (!partitions.is_empty()).then_some(partitions);
            let body = json!({ "topic": topic, "partitions": partitions, "to": to, "dry_run": dry_run });
            let done = client.call(Method::POST, &format!("{}/reset", path(name)), Some(body)).await?;
            print(&done["offsets"], *output, |offsets| {
                let row = |o: &Json| vec![text(&o["topic"]), text(&o["partition"]), text(&o["from"]), text(&o["to"])];
                table(&["topic", "partition", "from", "to"], rows_of(offsets).map(row))
            })?;
            if *dry_run {
                eprintln!("nothing was changed: --dry-run");
            }
            Ok(())
        }
        Group::Delete { name, .. } => {
            client.call(Method::DELETE, &path(name), None).await?;
            eprintln!("group {name} deleted");
            Ok(())
        }
    }
}

fn print(answer: &Json, output: StatusOutput, as_text: impl FnOnce(&Json) -> String) -> anyhow::Result<()> {
    let text = match output {
        StatusOutput::Json => format!("{answer:#}\n"),
        StatusOutput::Table => as_text(answer),
    };
    print_bytes(text.as_bytes()).map(drop)
}

fn rows_of(list: &Json) -> impl Iterator<Item = &Json> {
    list.as_array().into_iter().flatten()
}

/// A value as a cell; nothing is a dash.
fn text(value: &Json) -> String {
    match value {
        Json::Null => "-".to_owned(),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(head);
    for row in rows {
        table.add_row(row);
    }
    format!("{}\n", table.trim_fmt())
}

fn described(group: &Json) -> String {
    let members = rows_of(&group["members"]).count() as u64;
    let mut out = format!("{}: {}, {}\n", text(&group["name"]), text(&group["state"]), count(members, "member"));
    for member in rows_of(&group["members"]) {
        out.push_str(&format!("  {} {}\n", text(&member["id"]), text(&member["host"])));
    }
    let late = |o: &Json| o["lag_seconds"].as_f64().map_or("-".to_owned(), |seconds| format!("{seconds:.1} s"));
    let row = |o: &Json| {
        vec![
            text(&o["topic"]),
            text(&o["partition"]),
            text(&o["offset"]),
            text(&o["log_end_offset"]),
            text(&o["lag"]),
            late(o),
        ]
    };
    let head = ["topic", "partition", "offset", "log end offset", "lag", "waits for"];
    out.push_str(&table(&head, rows_of(&group["offsets"]).map(row)));
    out
}
