//! Every setting of a topic is held by a test: none is only stored.

use tidemill_core::topic::TopicConfig;

/// For each setting: how a test names it, the test that shows it enforced, and the file of that.
const HELD_BY: [(&str, &str, &str, &str); 12] = [
    ("cleanup.policy", "cleanup.policy", "a_partition_keeps_at_least_its_bytes", include_str!("retention.rs")),
    ("retention.ms", "retention.ms", "segments_go_when_their_newest_record_is_old", include_str!("retention.rs")),
    ("retention.bytes", "retention.bytes", "a_partition_keeps_at_least_its_bytes", include_str!("retention.rs")),
    ("segment.bytes", "segment.bytes", "a_topics_own_limits_hold", include_str!("topics.rs")),
    ("segment.ms", "segment.ms", "a_segment_ends_at_its_age", include_str!("retention.rs")),
    ("max.message.bytes", "max.message.bytes", "a_topics_own_limits_hold", include_str!("topics.rs")),
    ("message.timestamp.type", "timestamp_type", "the_logs_own_time_is_written_in", include_str!("producers.rs")),
    ("delete.retention.ms", "tombstone_delay", "the_newest_of_each_key_stays", include_str!("compact/model.rs")),
    ("min.compaction.lag.ms", "min_compaction_lag", LAGS, include_str!("compact/model.rs")),
    ("max.compaction.lag.ms", "max_compaction_lag", LAGS, include_str!("compact/model.rs")),
    ("min.cleanable.dirty.ratio", "min.cleanable.dirty.ratio", LAGS, include_str!("compact/model.rs")),
    (
        "tidemill.durability",
        "tidemill.durability",
        "only_the_moment_of_the_answer_differs",
        include_str!("durability.rs"),
    ),
];

const LAGS: &str = "young_records_stay_and_old_ones_are_due";

#[test]
fn every_setting_is_held_by_a_test() {
    let names: Vec<_> = TopicConfig::names().collect();
    assert_eq!(names, HELD_BY.map(|(name, ..)| name), "a setting without a test that shows it enforced");
    for (name, word, test, file) in HELD_BY {
        assert!(file.contains(&format!("fn {test}()")), "{name}: there is no test {test}");
        assert!(file.contains(word), "{name} does not occur as {word} in the file of {test}");
    }
}
