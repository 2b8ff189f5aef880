//! What a topic does with its records: its settings, by the names that Kafka gives them.
//!
//! Each is enforced. A name that is not here is refused: a setting that is only stored would be a lie.

use std::{collections::BTreeMap, fmt, ops::RangeBounds, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, suggest};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What becomes of old records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cleanup {
    /// Whole segments go by age and size.
    Delete,
    /// Of each key, the newest record stays.
    Compact,
    /// Both.
    CompactDelete,
}

impl Cleanup {
    /// Whether segments go by age and size.
    pub fn deletes(self) -> bool {
        self != Self::Compact
    }

    /// Whether only the newest record of each key is kept.
    pub fn compacts(self) -> bool {
        self != Self::Delete
    }
}

/// Whose time a record bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The log's own, when it took the record.
    LogAppendTime,
}

/// When an append is answered. All levels pass the same commit log in the same order, and nothing is seen by a reader
/// before it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Durability {
    /// When the disk has it: after `fdatasync`.
    Commit,
    /// When the operating system has it. Today the sync follows at once, as with [`Durability::Os`]; the promise is that it
    /// follows soon.
    Interval,
    /// When the operating system has it.
    Os,
}

/// A topic's settings. Only what differs from the defaults is stored, as name and value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct TopicConfig {
    /// `cleanup.policy`: what becomes of old records.
    pub cleanup: Cleanup,
    /// `retention.ms`: how long a segment is kept after its newest record's time; `None`: for ever.
    pub retention: Option<Duration>,
    /// `retention.bytes`: bytes of segments that a partition keeps; `None`: no limit.
    pub retention_bytes: Option<u64>,
    /// `segment.bytes`: a segment is sealed at this size; `None`: the log's own setting.
    pub segment_bytes: Option<u64>,
    /// `segment.ms`: a segment is sealed at this age.
    pub segment_age: Duration,
    /// `max.message.bytes`: the largest batch; `None`: what the commit log takes.
    pub max_batch_bytes: Option<u64>,
    /// `message.timestamp.type`: whose time a record bears.
    pub timestamp_type: TimestampType,
    /// `delete.retention.ms`: how long compaction keeps a tombstone that is the newest record of its key.
    pub tombstone_delay: Duration,
    /// `min.compaction.lag.ms`: younger records are not compacted.
    pub min_compaction_lag: Duration,
    /// `max.compaction.lag.ms`: older records are compacted though little is gained; `None`: they wait.
    pub max_compaction_lag: Option<Duration>,
    /// `min.cleanable.dirty.ratio`, in percent: the part of a partition not yet compacted from which it is worth a pass.
    pub dirty_percent: u8,
    /// `tidemill.durability`: when an append is answered.
    pub durability: Durability,
}

impl Default for TopicConfig {
    /// Nothing expires: what is kept for good is lost to nobody.
    fn default() -> Self {
        Self {
            cleanup: Cleanup::Delete,
            retention: None,
            retention_bytes: None,
            segment_bytes: None,
            segment_age: 7 * DAY,
            max_batch_bytes: None,
            timestamp_type: TimestampType::CreateTime,
            tombstone_delay: DAY,
            min_compaction_lag: Duration::ZERO,
            max_compaction_lag: None,
            dirty_percent: 50,
            durability: Durability::Commit,
        }
    }
}

/// A setting's name, and how it is read from a config and written into one.
struct Setting {
    name: &'static str,
    get: fn(&TopicConfig) -> String,
    set: fn(&mut TopicConfig, &str) -> std::result::Result<(), String>,
}

/// All of them, in the order in which they are shown.
const SETTINGS: [Setting; 12] = [
    Setting {
        name: "cleanup.policy",
        get: |c| name_of(&CLEANUPS, c.cleanup).to_owned(),
        set: |c, v| {
            // Kafka's tools write the two in either order.
            let text =
                if v.replace(' ', "") == "delete,compact" { "compact,delete".into() } else { v.replace(' ', "") };
            named(&CLEANUPS, &text).map(|value| c.cleanup = value)
        },
    },
    Setting {
        name: "retention.ms",
        get: |c| or_unlimited(c.retention.map(millis)),
        set: |c, v| unlimited(v, TIMES, 0..).map(|ms| c.retention = ms.map(Duration::from_millis)),
    },
    Setting {
        name: "retention.bytes",
        get: |c| or_unlimited(c.retention_bytes),
        set: |c, v| unlimited(v, SIZES, 0..).map(|bytes| c.retention_bytes = bytes),
    },
    Setting {
        name: "segment.bytes",
        get: |c| or_unlimited(c.segment_bytes),
        set: |c, v| unlimited(v, SIZES, 4096..=1 << 30).map(|bytes| c.segment_bytes = bytes),
    },
    Setting {
        name: "segment.ms",
        get: |c| millis(c.segment_age).to_string(),
        set: |c, v| number(v, TIMES, 1..).map(|ms| c.segment_age = Duration::from_millis(ms)),
    },
    Setting {
        name: "max.message.bytes",
        get: |c| or_unlimited(c.max_batch_bytes),
        set: |c, v| unlimited(v, SIZES, 1024..=1 << 30).map(|bytes| c.max_batch_bytes = bytes),
    },
    Setting {
        name: "message.timestamp.type",
        get: |c| name_of(&TIMESTAMP_TYPES, c.timestamp_type).to_owned(),
        set: |c, v| named(&TIMESTAMP_TYPES, v).map(|value| c.timestamp_type = value),
    },
    Setting {
        name: "delete.retention.ms",
        get: |c| millis(c.tombstone_delay).to_string(),
        set: |c, v| number(v, TIMES, 0..).map(|ms| c.tombstone_delay = Duration::from_millis(ms)),
    },
    Setting {
        name: "min.compaction.lag.ms",
        get: |c| millis(c.min_compaction_lag).to_string(),
        set: |c, v| number(v, TIMES, 0..).map(|ms| c.min_compaction_lag = Duration::from_millis(ms)),
    },
    Setting {
        name: "max.compaction.lag.ms",
        get: |c| or_unlimited(c.max_compaction_lag.map(millis)),
        set: |c, v| unlimited(v, TIMES, 1..).map(|ms| c.max_compaction_lag = ms.map(Duration::from_millis)),
    },
    Setting {
        name: "min.cleanable.dirty.ratio",
        get: |c| format!("{}", f64::from(c.dirty_percent) / 100.0),
        set: |c, v| match v.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => {
                c.dirty_percent = (ratio * 100.0).round() as u8;
                Ok(())
            }
            _ => Err("a number from 0 to 1".to_owned()),
        },
    },
    Setting {
        name: "tidemill.durability",
        get: |c| name_of(&DURABILITIES, c.durability).to_owned(),
        set: |c, v| named(&DURABILITIES, v).map(|value| c.durability = value),
    },
];

const CLEANUPS: [(&str, Cleanup); 3] =
    [("delete", Cleanup::Delete), ("compact", Cleanup::Compact), ("compact,delete", Cleanup::CompactDelete)];
const TIMESTAMP_TYPES: [(&str, TimestampType); 2] =
    [("CreateTime", TimestampType::CreateTime), ("LogAppendTime", TimestampType::LogAppendTime)];
const DURABILITIES: [(&str, Durability); 3] =
    [("commit", Durability::Commit), ("interval", Durability::Interval), ("os", Durability::Os)];

impl TopicConfig {
    /// A topic that keeps the newest record of each key, for good.
    pub fn compacted() -> Self {
        Self { cleanup: Cleanup::Compact, ..Self::default() }
    }

    /// The names of all settings.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SETTINGS.iter().map(|setting| setting.name)
    }

    /// A setting's value as text; `None` where there is no such setting. What has no limit is `-1`.
    pub fn get(&self, name: &str) -> Option<String> {
        SETTINGS.iter().find(|setting| setting.name == name).map(|setting| (setting.get)(self))
    }

    /// Changes a setting. Times are milliseconds or like `7d`, sizes bytes or like `64MiB`; `-1` lifts a limit.
    ///
    /// # Errors
    /// `Invalid` for a name that does not exist, with the nearest one, and for a value that the setting does not take.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
            let hint = suggest::nearest(name, Self::names());
            let hint = hint.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            return Err(Error::invalid(format!("a topic has no setting {name:?}{hint}")));
        };
        (setting.set)(self, value.trim())
            .map_err(|wanted| Error::invalid(format!("{name} is {value:?}, but takes {wanted}")))
    }

    /// Sets a setting back to its default.
    ///
    /// # Errors
    /// `Invalid` for a name that does not exist.
    pub fn unset(&mut self, name: &str) -> Result<()> {
        let value = Self::default().get(name).unwrap_or_default();
        self.set(name, &value)
    }

    /// What differs from the defaults, by name.
    pub fn overrides(&self) -> BTreeMap<String, String> {
        let default = Self::default();
        let pairs = SETTINGS.iter().map(|setting| (setting.name, (setting.get)(self), (setting.get)(&default)));
        pairs.filter(|(_, own, usual)| own != usual).map(|(name, own, _)| (name.to_owned(), own)).collect()
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// `Invalid` names those that contradict.
    pub fn validate(&self) -> Result<()> {
        match self.max_compaction_lag {
            Some(max) if max < self.min_compaction_lag => {
                Err(Error::invalid("max.compaction.lag.ms is below min.compaction.lag.ms"))
            }
            _ => Ok(()),
        }
    }
}

impl TryFrom<BTreeMap<String, String>> for TopicConfig {
    type Error = Error;

    fn try_from(settings: BTreeMap<String, String>) -> Result<Self> {
        let mut config = Self::default();
        settings.iter().try_for_each(|(name, value)| config.set(name, value))?;
        config.validate()?;
        Ok(config)
    }
}

impl From<TopicConfig> for BTreeMap<String, String> {
    fn from(config: TopicConfig) -> Self {
        config.overrides()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn or_unlimited(value: Option<u64>) -> String {
    value.map_or_else(|| "-1".to_owned(), |value| value.to_string())
}

/// Kafka counts in signed numbers of 64 bits: what is beyond is no limit to anybody.
const MOST: u64 = i64::MAX as u64;

/// What may stand behind a number, and how many of the setting's units it is.
type Units = [(&'static str, u64)];

const TIMES: &Units = &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: &Units = &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("B", 1)];

fn number(text: &str, units: &Units, range: impl RangeBounds<u64> + fmt::Debug) -> std::result::Result<u64, String> {
    let unit = units.iter().find_map(|(unit, times)| Some((text.strip_suffix(unit)?.trim_end(), *times)));
    let (digits, times) = unit.unwrap_or((text, 1));
    match u64::from_str(digits).ok().and_then(|number| number.checked_mul(times)) {
        Some(number) if range.contains(&number) && number <= MOST => Ok(number),
        _ => {
            let (unit, example) = if units == TIMES { ("milliseconds", "7d") } else { ("bytes", "64MiB") };
            Err(format!("{unit} in {range:?}, written as a number or like {example}"))
        }
    }
}

fn unlimited(
    text: &str,
    units: &Units,
    range: impl RangeBounds<u64> + fmt::Debug,
) -> std::result::Result<Option<u64>, String> {
    match text {
        "-1" => Ok(None),
        _ => number(text, units, range).map(Some).map_err(|wanted| format!("{wanted}, or -1 for no limit")),
    }
}

fn named<T: Copy>(names: &[(&'static str, T)], text: &str) -> std::result::Result<T, String> {
    let found = names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    found.ok_or_else(|| names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" | "))
}

fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: T) -> &'static str {
    names.iter().find(|(_, other)| *other == value).map_or("", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_read_as_it_is_written() {
        let wanted = [
            ("cleanup.policy", "compact,delete"),
            ("retention.ms", "604800000"),
            ("retention.bytes", "1073741824"),
            ("segment.bytes", "65536"),
            ("segment.ms", "1000"),
            ("max.message.bytes", "2048"),
            ("message.timestamp.type", "LogAppendTime"),
            ("delete.retention.ms", "0"),
            ("min.compaction.lag.ms", "5"),
            ("max.compaction.lag.ms", "6"),
            ("min.cleanable.dirty.ratio", "0.29"),
            ("tidemill.durability", "interval"),
        ];
        assert_eq!(wanted.map(|(name, _)| name).to_vec(), TopicConfig::names().collect::<Vec<_>>());
        let mut config = TopicConfig::default();
        for (name, value) in wanted {
            config.set(name, value).unwrap();
            assert_eq!(config.get(name).as_deref(), Some(value));
        }
        assert_eq!(config.overrides().len(), wanted.len());
        let stored = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<TopicConfig>(&stored).unwrap(), config);
        TopicConfig::names().for_each(|name| config.unset(name).unwrap());
        assert_eq!(config, TopicConfig::default());
        assert_eq!(serde_json::to_string(&config).unwrap(), "{}", "defaults are not stored");
    }

    #[test]
    fn faults_are_named() {
        let mut config = TopicConfig::default();
        let faults = [
            ("retention.msec", "1", "did you mean retention.ms?"),
            ("retention.ms", "-2", "-1 for no limit"),
            ("segment.bytes", "10", "4096"),
            ("segment.ms", "soon", "milliseconds in 1.."),
            ("segment.ms", "5w", "like 7d"),
            ("retention.bytes", "7d", "like 64MiB"),
            ("cleanup.policy", "archive", "delete | compact | compact,delete"),
            ("min.cleanable.dirty.ratio", "NaN", "from 0 to 1"),
            ("retention.ms", "18446744073709551615", "milliseconds"),
            ("retention.ms", "18446744073709551615d", "milliseconds"),
        ];
        for (name, value, part) in faults {
            let error = config.set(name, value).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        for (name, value, number) in
            [("retention.ms", "7d", "604800000"), ("segment.ms", "90 s", "90000"), ("segment.bytes", "1MiB", "1048576")]
        {
            config.set(name, value).unwrap();
            assert_eq!(config.get(name).as_deref(), Some(number));
        }
        config.set("cleanup.policy", "delete, compact").unwrap();
        assert_eq!(config.cleanup, Cleanup::CompactDelete);
        config.set("min.compaction.lag.ms", "10").unwrap();
        config.set("max.compaction.lag.ms", "9").unwrap();
        assert!(config.validate().is_err());
    }
}
