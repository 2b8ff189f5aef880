//! Every setting of a topic is held by a test: none is only stored.

use tidemill_core::topic::TopicConfig;

/// Which test shows that a setting is enforced, and in which file it is.
const HELD_BY: [(&str, &str, &str); 12] = [
    ("cleanup.policy", "a_partition_keeps_at_least_its_bytes", include_str!("retention.rs")),
    ("retention.ms", "segments_go_when_their_newest_record_is_old", include_str!("retention.rs")),
    ("retention.bytes", "a_partition_keeps_at_least_its_bytes", include_str!("retention.rs")),
    ("segment.bytes", "a_topics_own_limits_hold", include_str!("topics.rs")),
    ("segment.ms", "a_segment_ends_at_its_age", include_str!("retention.rs")),
    ("max.message.bytes", "a_topics_own_limits_hold", include_str!("topics.rs")),
    ("message.timestamp.type", "", ""),
    ("delete.retention.ms", "", ""),
    ("min.compaction.lag.ms", "", ""),
    ("max.compaction.lag.ms", "", ""),
    ("min.cleanable.dirty.ratio", "", ""),
    ("tidemill.durability", "only_the_moment_of_the_answer_differs", include_str!("durability.rs")),
];

/// Those that no test holds yet: compaction's, and whose time a record bears. Nothing is added here.
const NOT_YET: [&str; 5] = [
    "message.timestamp.type",
    "delete.retention.ms",
    "min.compaction.lag.ms",
    "max.compaction.lag.ms",
    "min.cleanable.dirty.ratio",
];

#[test]
fn every_setting_is_held_by_a_test() {
    let names: Vec<_> = TopicConfig::names().collect();
    assert_eq!(names, HELD_BY.map(|(name, ..)| name), "a setting without a test that shows it enforced");
    for (name, test, file) in HELD_BY {
        if NOT_YET.contains(&name) {
            assert!(test.is_empty(), "{name} is held now: take it off the list");
            continue;
        }
        assert!(file.contains(&format!("fn {test}()")), "{name}: there is no test {test}");
        assert!(file.contains(&format!("\"{name}\"")), "{name} does not occur in the file of {test}");
    }
}
