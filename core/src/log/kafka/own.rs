//! The log's own topics on a cluster: what they must be set to, made and checked.

use std::sync::Arc;

use rdkafka::admin::{AdminOptions, ResourceSpecifier};

use super::{
    cluster::{BATCH_LIMIT, Cluster, REQUEST_TIME},
    error::{coded, from_kafka},
    topics,
};
use crate::{Error, ErrorKind, Result};

/// How they keep the newest record of each key. Small segments: what is replaced goes soon, and a reader of the whole
/// table has little to read. A tombstone stays for longer than anybody keeps what it read without reading on.
const SETTINGS: [(&str, &str); 6] = [
    ("cleanup.policy", "compact"),
    ("segment.bytes", "16777216"),
    ("min.cleanable.dirty.ratio", "0.1"),
    ("max.compaction.lag.ms", "600000"),
    ("delete.retention.ms", "604800000"),
    ("compression.type", "producer"),
];

/// Makes one of the log's own topics unless it is there, and refuses one that is not as it must be: with other
/// partitions an owner's positions are sought where they are not, and where records expire they are lost.
pub(super) async fn ensure(cluster: &Arc<Cluster>, name: &str, partitions: u32) -> Result<()> {
    if cluster.is_checked(name) {
        return Ok(());
    }
    let limit = BATCH_LIMIT.to_string();
    let found = match topics::partitions_of(cluster, name).await? {
        Some(found) => found,
        None => {
            let settings: Vec<_> = SETTINGS.into_iter().chain([("max.message.bytes", limit.as_str())]).collect();
            topics::make(cluster, name, partitions, &settings).await?;
            topics::seen(cluster, name).await?.partitions
        }
    };
    if found != partitions {
        return Err(Error::invalid(format!(
            "topic {name:?} has {found} partitions; Tidemill keeps it in {partitions}"
        )));
    }
    let cleanup = match cleanup_of(cluster, name).await {
        // Who may not look cannot be warned.
        Err(error) if error.kind() == ErrorKind::Denied => "compact".to_owned(),
        found => found?,
    };
    if cleanup != "compact" {
        return Err(Error::invalid(format!(
            "topic {name:?} has cleanup.policy={cleanup}, by which it loses what Tidemill keeps there; set it to compact"
        )));
    }
    cluster.set_checked(name);
    Ok(())
}

async fn cleanup_of(cluster: &Cluster, name: &str) -> Result<String> {
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIME));
    let described = cluster.admin.describe_configs([&ResourceSpecifier::Topic(name)], &options).await;
    match described.map_err(|e| from_kafka(&e, format!("look at topic {name:?}")))?.pop() {
        Some(Ok(resource)) => {
            Ok(resource.get("cleanup.policy").and_then(|entry| entry.value.clone()).unwrap_or_default())
        }
        Some(Err(code)) => Err(coded(code, format!("look at the settings of topic {name:?}"))),
        None => Err(Error::internal("a description without a topic")),
    }
}
