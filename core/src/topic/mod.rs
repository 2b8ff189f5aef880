//! Topics: their names, settings and partitions, and which partition a key belongs to.

mod config;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use config::{Cleanup, Durability, TimestampType, TopicConfig};

use crate::{Error, Result};

/// Longest topic name, as in Kafka: a folder's name is the topic's and the partition's number.
pub const MAX_NAME_LEN: usize = 249;

/// Topics of this prefix are the log's own. Outside protocols neither list nor write them.
pub const INTERNAL_PREFIX: &str = "_tidemill.";

/// Number of a partition within the whole log; never used again after a topic is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionId(pub u32);

/// A partition as users name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: String,
    /// The partition's number in the topic, from 0.
    pub partition: u32,
}

impl TopicPartition {
    /// Partition `partition` of `topic`.
    pub fn new(topic: impl Into<String>, partition: u32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// What a topic is created with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Number of partitions, 1 to 1,000.
    pub partitions: u32,
    /// What it does with its records.
    pub config: TopicConfig,
}

impl TopicSpec {
    /// So many partitions, all settings as usual.
    pub fn partitions(partitions: u32) -> Self {
        Self { partitions, ..Self::default() }
    }

    /// One partition that keeps the newest record of each key, for good.
    pub fn compacted() -> Self {
        Self { config: TopicConfig::compacted(), ..Self::default() }
    }
}

impl Default for TopicSpec {
    fn default() -> Self {
        Self { partitions: 1, config: TopicConfig::default() }
    }
}

/// A topic that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// Its identity, 32 hexadecimal digits: a topic deleted and made again has another.
    pub id: String,
    /// The partitions, by their number in the topic.
    pub partitions: Vec<PartitionId>,
    /// When it was created, milliseconds since 1970 UTC.
    pub created_ms: i64,
    /// What it does with its records.
    #[serde(default)]
    pub config: TopicConfig,
}

/// Checks a name that a user gave.
///
/// # Errors
/// `Invalid` names the rule that it breaks.
pub fn validate_name(name: &str) -> Result<()> {
    if name.is_empty() || name == "." || name == ".." {
        return Err(Error::invalid(format!("topic name {name:?} is not allowed")));
    }
    if name.len() > MAX_NAME_LEN {
        return Err(Error::invalid(format!("topic name of {} bytes exceeds {MAX_NAME_LEN}", name.len())));
    }
    if let Some(bad) = name.chars().find(|c| !is_name_char(*c)) {
        return Err(Error::invalid(format!("topic name {name:?} has {bad:?}; allowed are A-Z a-z 0-9 . _ -")));
    }
    Ok(())
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// Writes any text as a part of a topic name: what a topic name cannot hold becomes `_xHH` per UTF-8 byte.
///
/// ```
/// assert_eq!(tidemill_core::topic::escape("Order Details"), "Order_x20Details");
/// ```
pub fn escape(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for c in text.chars() {
        if is_name_char(c) {
            name.push(c);
        } else {
            let mut utf8 = [0; 4];
            c.encode_utf8(&mut utf8).bytes().for_each(|b| name.push_str(&format!("_x{b:02X}")));
        }
    }
    name
}

/// The partition of a key: murmur2 as Java's clients compute it, so that producers of all languages agree.
///
/// # Source
/// Kafka's `DefaultPartitioner`: the hash with the sign bit cleared, modulo the number of partitions.
pub fn partition_of(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions.max(1)
}

/// MurmurHash2, 32 bit, with the seed of Kafka's clients.
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes(word.try_into().expect("chunks of four")).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_equals_javas() {
        // Vectors of Kafka's own UtilsTest, as unsigned numbers.
        let vectors: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (text, hash) in vectors {
            assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
        }
    }

    #[test]
    fn names_are_checked_and_escaped() {
        assert!(validate_name("shop.orders-1_x").is_ok());
        for bad in ["", ".", "..", "a b", "ä", &"x".repeat(250)] {
            assert!(validate_name(bad).is_err(), "{bad}");
        }
        assert_eq!(escape("é a"), "_xC3_xA9_x20a");
    }
}
