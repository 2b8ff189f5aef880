//! The settings of a cluster's topics, and their growth.

use std::{collections::BTreeMap, sync::Arc};

use rdkafka::{
    admin::{AdminOptions, AlterConfig, ConfigSource, NewPartitions, ResourceSpecifier},
    types::RDKafkaErrorCode as Code,
};

use super::{
    cluster::{Cluster, REQUEST_TIME},
    error::{coded, from_kafka},
    topics::{self, deny_internal},
};
use crate::{
    Error, Result,
    log::TopicChange,
    topic::{TopicConfig, TopicSpec},
};

/// What the embedded log alone does.
const OURS: &str = "tidemill.durability";

/// The settings that a topic is made with. What nobody set is said all the same: on a cluster records would expire.
pub(super) fn of_new(spec: &TopicSpec) -> Result<BTreeMap<String, String>> {
    spec.config.validate()?;
    let mut settings = spec.config.overrides();
    settings.keys().try_for_each(|name| known(name))?;
    for name in ["retention.ms", "retention.bytes"] {
        settings.entry(name.to_owned()).or_insert_with(|| "-1".to_owned());
    }
    Ok(settings)
}

/// Whether a topic of a cluster has this setting.
fn known(name: &str) -> Result<()> {
    if name == OURS {
        return Err(Error::invalid(format!("{name} is a setting of the embedded log: a cluster has its own acks")));
    }
    TopicConfig::default().unset(name)
}

pub(super) async fn config(cluster: &Arc<Cluster>, name: &str) -> Result<TopicConfig> {
    let mut config = TopicConfig::default();
    for (setting, (value, _)) in described(cluster, name).await? {
        // A cluster has settings that we do not know, and knows values beyond ours, which are no limit.
        if TopicConfig::names().any(|known| known == setting) && config.set(&setting, &value).is_err() {
            config.set(&setting, "-1").or_else(|_| config.unset(&setting))?;
        }
    }
    Ok(config)
}

/// All settings of a topic, and whether they are its own.
async fn described(cluster: &Arc<Cluster>, name: &str) -> Result<BTreeMap<String, (String, bool)>> {
    let missing = || topics::missing(name);
    topics::find(cluster, name).await?.ok_or_else(missing)?;
    let options = options();
    let asked = cluster.admin.describe_configs([&ResourceSpecifier::Topic(name)], &options).await;
    let what = || format!("settings of topic {name:?}");
    let resource = match asked.map_err(|e| from_kafka(&e, what()))?.pop() {
        Some(Ok(resource)) => resource,
        Some(Err(code)) => return Err(coded(code, what())),
        None => return Err(missing()),
    };
    let entries = resource.entries.into_iter();
    let told = entries.filter_map(|e| Some((e.name, (e.value?, e.source == ConfigSource::DynamicTopic))));
    Ok(told.collect())
}

/// Older brokers and librdkafka's binding replace all settings of a topic at once, so what is not changed is said again: of
/// two who change different settings at the same moment, one is overwritten.
pub(super) async fn alter(cluster: &Arc<Cluster>, name: &str, change: &TopicChange) -> Result<()> {
    deny_internal(name)?;
    let mut wanted = config(cluster, name).await?;
    for (setting, value) in &change.settings {
        known(setting)?;
        match value {
            Some(value) => wanted.set(setting, value)?,
            None => wanted.unset(setting)?,
        }
    }
    wanted.validate()?;
    if !change.settings.is_empty() {
        replace(cluster, name, change).await?;
    }
    match change.partitions {
        Some(count) => grow(cluster, name, count).await,
        None => Ok(()),
    }
}

async fn replace(cluster: &Arc<Cluster>, name: &str, change: &TopicChange) -> Result<()> {
    let own = described(cluster, name).await?.into_iter().filter(|(_, (_, own))| *own);
    let mut settings: BTreeMap<String, String> = own.map(|(setting, (value, _))| (setting, value)).collect();
    let usual = of_new(&TopicSpec::default())?;
    for (setting, value) in &change.settings {
        match value.as_ref().or_else(|| usual.get(setting)) {
            Some(value) => settings.insert(setting.clone(), value.trim().to_owned()),
            None => settings.remove(setting),
        };
    }
    let all = AlterConfig::new(ResourceSpecifier::Topic(name));
    let all = settings.iter().fold(all, |all, (setting, value)| all.set(setting, value));
    let altered = cluster.admin.alter_configs([&all], &options()).await;
    match altered.map_err(|e| from_kafka(&e, format!("alter topic {name:?}")))?.pop() {
        Some(Err((_, code))) => Err(coded(code, format!("alter topic {name:?}"))),
        _ => Ok(()),
    }
}

pub(super) async fn grow(cluster: &Arc<Cluster>, name: &str, count: u32) -> Result<()> {
    let present = topics::partitions_of(cluster, name).await?.unwrap_or(0);
    if count == present {
        return Ok(());
    }
    if count < present {
        return Err(Error::invalid(format!("{name:?} has {present} partitions, which cannot become fewer")));
    }
    let more = NewPartitions::new(name, count as usize);
    let grown = cluster.admin.create_partitions([&more], &options()).await;
    match grown.map_err(|e| from_kafka(&e, format!("add partitions to {name:?}")))?.pop() {
        // Another was faster.
        Some(Err((_, Code::InvalidPartitions))) if topics::partitions_of(cluster, name).await? == Some(count) => {}
        Some(Err((_, code))) => return Err(coded(code, format!("add partitions to {name:?}"))),
        _ => {}
    }
    topics::await_partitions(cluster, name, count).await
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_TIME)).operation_timeout(Some(REQUEST_TIME))
}
