//! `tidemill topic`.

use std::{collections::BTreeMap, process::ExitCode};

use axum::http::Method;
use serde_json::{Value as Json, json};
use tidemill_core::topic::TopicConfig;

use super::{count, print_bytes, reach, reach_existing};
use crate::{
    cli::{Output, Topic},
    client::{Client, escape},
};

pub async fn run(command: Topic) -> anyhow::Result<ExitCode> {
    let (target, name) = match &command {
        Topic::List { log, .. } => (log, "topic list"),
        Topic::Create { log, .. } => (log, "topic create"),
        Topic::Config { log, .. } => (log, "topic config"),
        Topic::Grow { log, .. } => (log, "topic grow"),
        Topic::Delete { log, .. } => (log, "topic delete"),
    };
    let client = match &command {
        Topic::Create { .. } => reach(target, name).await?,
        _ => reach_existing(target, name).await?,
    };
    let result = act(&client, &command).await;
    client.close().await?;
    result.map(|()| ExitCode::SUCCESS)
}

async fn act(client: &Client, command: &Topic) -> anyhow::Result<()> {
    match command {
        Topic::List { output, .. } => {
            let list = client.call(Method::GET, "/v1/topics", None).await?;
            print_list(&list, *output)
        }
        Topic::Create { name, partitions, settings, .. } => {
            let settings: BTreeMap<_, _> = settings.iter().cloned().collect();
            let body = json!({ "name": name, "partitions": partitions, "config": settings });
            client.call(Method::POST, "/v1/topics", Some(body)).await?;
            eprintln!("topic {name} made, {}", count(u64::from(*partitions), "partition"));
            Ok(())
        }
        Topic::Config { name, settings, unset, output, .. } => {
            let path = format!("/v1/topics/{}", escape(name));
            let set = settings.iter().map(|(name, value)| (name.as_str(), Some(value.as_str())));
            let changes: BTreeMap<_, _> = set.chain(unset.iter().map(|name| (name.as_str(), None))).collect();
            let topic = if changes.is_empty() {
                client.call(Method::GET, &path, None).await?
            } else {
                client.call(Method::PATCH, &path, Some(json!({ "config": changes }))).await?
            };
            print_settings(&topic["config"], *output)
        }
        Topic::Grow { name, partitions, .. } => {
            let path = format!("/v1/topics/{}", escape(name));
            client.call(Method::PATCH, &path, Some(json!({ "partitions": partitions }))).await?;
            eprintln!("topic {name} has {} now", count(u64::from(*partitions), "partition"));
            Ok(())
        }
        Topic::Delete { name, .. } => {
            client.call(Method::DELETE, &format!("/v1/topics/{}", escape(name)), None).await?;
            eprintln!("topic {name} deleted");
            Ok(())
        }
    }
}

/// One line a setting; what is not the default is marked.
fn print_settings(config: &Json, output: Output) -> anyhow::Result<()> {
    let empty = serde_json::Map::new();
    let settings = config.as_object().unwrap_or(&empty);
    let default = TopicConfig::default();
    let usual = |name: &str| default.get(name).unwrap_or_default();
    let rows = settings.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap_or_default()));
    let mut text = String::new();
    match output {
        Output::Json => text = format!("{config:#}\n"),
        Output::Jsonl => rows.for_each(|(name, value)| {
            text.push_str(&format!("{}\n", json!({ "name": name, "value": value, "default": usual(name) })));
        }),
        Output::Csv => {
            text.push_str("name,value,default\n");
            let quoted = |value: &str| if value.contains(',') { format!("\"{value}\"") } else { value.to_owned() };
            rows.for_each(|(name, value)| {
                text.push_str(&format!("{name},{},{}\n", quoted(value), quoted(&usual(name))));
            });
        }
        Output::Table => {
            let mut table = comfy_table::Table::new();
            table.load_preset(comfy_table::presets::NOTHING);
            table.set_header(["setting", "value", "default"]);
            for (name, value) in rows {
                let usual = usual(name);
                table.add_row([name.to_owned(), value.to_owned(), if usual == value { String::new() } else { usual }]);
            }
            text = format!("{}\n", table.trim_fmt());
        }
    }
    print_bytes(text.as_bytes()).map(drop)
}

/// One line a partition: offsets are not dense, so there is no count to be had from them.
fn print_list(list: &Json, output: Output) -> anyhow::Result<()> {
    let empty = Vec::new();
    let mut rows = Vec::new();
    for topic in list.as_array().unwrap_or(&empty) {
        for (number, bounds) in topic["partitions"].as_array().unwrap_or(&empty).iter().enumerate() {
            let name = topic["name"].as_str().unwrap_or_default().to_owned();
            rows.push((name, number, bounds["log_start_offset"].to_string(), bounds["log_end_offset"].to_string()));
        }
    }
    let mut text = String::new();
    match output {
        Output::Json => text = format!("{list:#}\n"),
        Output::Jsonl => list.as_array().unwrap_or(&empty).iter().for_each(|t| text.push_str(&format!("{t}\n"))),
        Output::Csv => {
            text.push_str("topic,partition,log_start_offset,log_end_offset\n");
            rows.iter().for_each(|(name, n, start, end)| text.push_str(&format!("{name},{n},{start},{end}\n")));
        }
        Output::Table => {
            let mut table = comfy_table::Table::new();
            table.load_preset(comfy_table::presets::NOTHING);
            table.set_header(["topic", "partition", "log start offset", "log end offset"]);
            for (name, n, start, end) in rows {
                table.add_row([name, n.to_string(), start, end]);
            }
            text = format!("{}\n", table.trim_fmt());
        }
    }
    print_bytes(text.as_bytes()).map(drop)
}
