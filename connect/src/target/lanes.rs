//! Lanes: parts of the keys that several connections apply at once.
//!
//! A large batch is dealt by key to lanes, each with a connection and a transaction of its own, so that the changes of a
//! key stay in one place and in order. A lane's transaction writes how far the lane is; when all are done, the sink's own
//! transaction moves the topics' positions. A failure between the two leaves lanes that are ahead: what they have is left
//! out when the batch comes again.
//!
//! A lane holds the sync's positions locked for sharing while it writes, and writes only under the generation of its
//! sink. So whoever locks the positions to write them knows that no lane is under way, and a newer worker shuts out the
//! lanes of an older one.

use std::collections::BTreeMap;

use tidemill_core::topic::partition_of;

use super::ledger::Stored;
use crate::change::TableSchema;

/// Separates a topic from its lane in the target's table of positions; no topic's name holds it.
const MARK: char = '#';

/// One of some equal parts of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    /// Its number, from 0.
    pub number: u32,
    /// How many parts there are.
    pub of: u32,
}

impl Lane {
    /// The number of a key's lane among some. What is stored depends on it: it never changes.
    pub fn number_of(key: &[u8], of: u32) -> u32 {
        partition_of(key, of)
    }

    /// Its rows for the target's positions: that it is at these offsets. `rows` are the topics' own.
    pub fn rows(self, rows: &[Stored], next_offsets: &[(String, i64)], generation: i64) -> Vec<Stored> {
        let own = |row: &Stored| {
            let next = next_offsets.iter().find(|(topic, _)| *topic == row.topic).map(|(_, next)| *next)?;
            let topic = format!("{}{MARK}{}/{}", row.topic, self.number, self.of);
            // Where it began: what is stored of a lane means nothing to a topic that is applied anew from before.
            let began = Some(row.next_offset);
            Some(Stored { topic, log_id: row.log_id.clone(), next_offset: next, copy: None, schema: began, generation })
        };
        rows.iter().filter_map(own).collect()
    }

    fn parse(stored: &str) -> Option<(&str, Self)> {
        let (topic, lane) = stored.split_once(MARK)?;
        let (number, of) = lane.split_once('/')?;
        Some((topic, Self { number: number.parse().ok()?, of: of.parse().ok()? }))
    }
}

/// Whether a row of the target's positions is a lane's.
pub fn is_lane(row: &Stored) -> bool {
    row.topic.contains(MARK)
}

/// How far a target is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    /// The next offset to apply, by topic.
    pub next: BTreeMap<String, i64>,
    /// Lanes that have more, by topic: after a batch that some of them did not finish.
    ahead: BTreeMap<String, Vec<(Lane, i64)>>,
}

impl From<BTreeMap<String, i64>> for Positions {
    fn from(next: BTreeMap<String, i64>) -> Self {
        Self { next, ahead: BTreeMap::new() }
    }
}

impl Positions {
    /// What the rows of a target say.
    pub fn of(rows: &[Stored]) -> Self {
        let next: BTreeMap<_, _> =
            rows.iter().filter(|row| !is_lane(row)).map(|row| (row.topic.clone(), row.next_offset)).collect();
        let mut ahead: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for row in rows {
            let Some((topic, lane)) = Lane::parse(&row.topic) else { continue };
            if next
                .get(topic)
                .is_some_and(|next| *next < row.next_offset && row.schema.is_some_and(|began| began <= *next))
            {
                ahead.entry(topic.to_owned()).or_default().push((lane, row.next_offset));
            }
        }
        Self { next, ahead }
    }

    /// Whether no lane is ahead.
    pub fn are_even(&self) -> bool {
        self.ahead.is_empty()
    }

    /// The farthest offset that any lane has of a topic, where one is ahead.
    pub fn farthest(&self, topic: &str) -> Option<i64> {
        self.ahead.get(topic)?.iter().map(|(_, next)| *next).max()
    }

    /// Whether the lane of a record that is still to be applied has applied it.
    pub fn hold(&self, topic: &str, key: &[u8], offset: i64) -> bool {
        self.held_to(topic, key).is_some_and(|held| offset < held)
    }

    /// Up to where the lane of a key holds its records, where it is ahead.
    pub fn held_to(&self, topic: &str, key: &[u8]) -> Option<i64> {
        let own = |(lane, _): &&(Lane, i64)| Lane::number_of(key, lane.of) == lane.number;
        self.ahead.get(topic)?.iter().filter(own).map(|(_, next)| *next).max()
    }

    /// Forgets topics that nobody applies now: their lanes stay ahead for as long as they are left out.
    pub fn keep(&mut self, applied: impl Fn(&str) -> bool) {
        self.ahead.retain(|topic, _| applied(topic));
    }

    /// The topics are applied up to these offsets: lanes behind them are ahead no more.
    pub fn pass(&mut self, next: &[(String, i64)]) {
        for (topic, next) in next {
            if self.farthest(topic).is_some_and(|farthest| farthest <= *next) {
                self.ahead.remove(topic);
            }
        }
    }
}

/// Whether keys of a table are one in the target only where they are one to the last bit: else the delete of a key and an
/// insert of the same key, written otherwise, would be in two lanes, and either might come first. `exact_text` tells
/// whether the target compares text so.
pub fn keys_are_exact(table: &TableSchema, exact_text: bool) -> bool {
    let exact = |declared: &str| {
        let lower = declared.to_ascii_lowercase();
        match lower.split(['(', ' ']).next().unwrap_or_default() {
            "smallint" | "integer" | "int" | "bigint" | "tinyint" | "mediumint" | "boolean" | "uuid" | "date"
            | "timestamp" | "datetime" | "bytea" | "varbinary" => true,
            "text" | "varchar" | "tinytext" | "mediumtext" | "longtext" => exact_text,
            "character" => exact_text && lower.starts_with("character varying"),
            _ => false,
        }
    };
    table.key_columns().into_iter().all(|column| exact(&table.columns[column].declared_type))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Column;

    fn row(topic: &str, next_offset: i64) -> Stored {
        Stored { topic: topic.into(), log_id: "L".into(), next_offset, copy: None, schema: None, generation: 1 }
    }

    #[test]
    fn lanes_are_ahead_until_the_topic_passes_them() {
        let key = b"{\"id\":7}";
        let number = Lane::number_of(key, 4);
        let lane = |number, next| Lane { number, of: 4 }.rows(&[row("s.t", 10)], &[("s.t".into(), next)], 1).remove(0);
        let other = (number + 1) % 4;
        let mut positions = Positions::of(&[row("s.t", 10), lane(number, 20), lane(other, 10), row("s.u", 3)]);
        assert_eq!((positions.next["s.t"], positions.next.len()), (10, 2));
        assert!(positions.hold("s.t", key, 19) && !positions.hold("s.t", key, 20) && !positions.hold("s.u", key, 1));
        assert_eq!((positions.farthest("s.t"), positions.farthest("s.u")), (Some(20), None));
        assert_eq!((positions.held_to("s.t", key), positions.held_to("s.u", key)), (Some(20), None));
        let of_other =
            (0..100).map(|id| format!("{{\"id\":{id}}}")).find(|key| Lane::number_of(key.as_bytes(), 4) == other);
        assert!(!positions.hold("s.t", of_other.expect("one of a hundred").as_bytes(), 15));
        positions.pass(&[("s.t".into(), 19)]);
        assert!(!positions.are_even());
        positions.pass(&[("s.t".into(), 20)]);
        assert!(positions.are_even() && !positions.hold("s.t", key, 12));
        let mut left_out = Positions::of(&[row("s.t", 10), lane(number, 20)]);
        left_out.keep(|topic| topic != "s.t");
        assert!(left_out.are_even());
    }

    #[test]
    fn lanes_of_another_number_are_read_by_that_number() {
        let lane = Lane { number: 1, of: 3 };
        let lane = lane.rows(&[row("s.t", 0)], &[("s.t".into(), 5)], 1).remove(0);
        let positions = Positions::of(&[row("s.t", 0), lane]);
        for id in 0..50 {
            let key = format!("{{\"id\":{id}}}");
            assert_eq!(positions.hold("s.t", key.as_bytes(), 4), Lane::number_of(key.as_bytes(), 3) == 1);
        }
    }

    #[test]
    fn lanes_of_an_earlier_life_mean_nothing() {
        let lane = Lane { number: 0, of: 1 }.rows(&[row("s.t", 10)], &[("s.t".into(), 20)], 1).remove(0);
        let hold = |next| Positions::of(&[row("s.t", next), lane.clone()]).hold("s.t", b"k", 15);
        assert!(hold(10) && hold(14) && !hold(9) && !hold(20));
        assert!(Positions::of(std::slice::from_ref(&lane)).are_even());
    }

    #[test]
    fn keys_that_may_be_written_in_two_ways_are_not_dealt() {
        let exact = |declared: &[&str], text| {
            let column = |(place, declared): (usize, &&str)| Column {
                name: format!("c{place}"),
                declared_type: (*declared).into(),
                not_null: true,
                key: u32::try_from(place).ok(),
            };
            let columns = declared.iter().enumerate().map(column).collect();
            keys_are_exact(&TableSchema { schema: None, name: "t".into(), columns }, text)
        };
        assert!(
            exact(&["bigint", "uuid"], false)
                && exact(&["character varying(20)"], true)
                && exact(&["int unsigned"], false)
        );
        assert!(exact(&["timestamp with time zone"], false) && exact(&["varchar(10)"], true));
        assert!(
            !exact(&["numeric(10,2)"], true) && !exact(&["double precision"], true) && !exact(&["character(4)"], true)
        );
        assert!(!exact(&["text"], false) && !exact(&["bigint", "interval"], true) && !exact(&["char(3)"], true));
    }
}
