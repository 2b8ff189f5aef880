//! Names of transactions: MariaDB's last one of each domain, MySQL's sets.

use std::collections::BTreeMap;

use super::binlog::event::MariaGtid;

/// MariaDB's position: of each domain the server and the number of the last transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MariaPosition {
    domains: BTreeMap<u32, (u32, u64)>,
}

impl MariaPosition {
    /// Reads `0-1-5,3-1-9`; a state, with several servers of a domain, gives the greatest number.
    pub fn parse(text: &str) -> Option<Self> {
        let mut position = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let mut numbers = part.split('-');
            let (domain, server) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
            let sequence = numbers.next()?.parse().ok().filter(|_| numbers.next().is_none())?;
            let last = position.domains.entry(domain).or_insert((server, sequence));
            if sequence >= last.1 {
                *last = (server, sequence);
            }
        }
        Some(position)
    }

    /// A transaction was seen.
    pub fn note(&mut self, gtid: MariaGtid) {
        self.domains.insert(gtid.domain, (gtid.server, gtid.sequence));
    }

    /// Whether a server that is so far has seen all of it.
    pub fn is_within(&self, state: &Self) -> bool {
        self.domains.iter().all(|(domain, (_, own))| state.domains.get(domain).is_some_and(|(_, seen)| seen >= own))
    }
}

impl std::fmt::Display for MariaPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (domain, (server, sequence))) in self.domains.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{domain}-{server}-{sequence}")?;
        }
        Ok(())
    }
}

/// MySQL's set: of each server ranges of numbers, ends included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MysqlSet {
    servers: BTreeMap<String, Vec<(u64, u64)>>,
}

impl MysqlSet {
    /// Reads `uuid:1-5:7,uuid:1`. Sets with tags are not understood.
    pub fn parse(text: &str) -> Option<Self> {
        let mut set = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (uuid, ranges) = part.split_once(':')?;
            for range in ranges.split(':') {
                let (from, to) = range.split_once('-').unwrap_or((range, range));
                let (from, to) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
                set.servers.entry(uuid.trim().to_ascii_lowercase()).or_default().push((from, to));
            }
        }
        Some(set)
    }

    /// Whether another set has all of it.
    pub fn is_within(&self, other: &Self) -> bool {
        let none = Vec::new();
        self.servers.iter().all(|(uuid, ranges)| {
            let others = other.servers.get(uuid).unwrap_or(&none);
            ranges.iter().all(|(from, to)| others.iter().any(|(first, last)| first <= from && to <= last))
        })
    }

    /// A transaction was seen.
    pub fn note(&mut self, uuid: &str, number: u64) {
        let ranges = self.servers.entry(uuid.to_owned()).or_default();
        match ranges.iter_mut().find(|(from, to)| (*from..=*to + 1).contains(&number)) {
            Some(range) => range.1 = range.1.max(number),
            None => ranges.push((number, number)),
        }
        ranges.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        for (from, to) in std::mem::take(ranges) {
            match joined.last_mut() {
                Some(last) if from <= last.1 + 1 => last.1 = last.1.max(to),
                _ => joined.push((from, to)),
            }
        }
        *ranges = joined;
    }
}

impl std::fmt::Display for MysqlSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (uuid, ranges)) in self.servers.iter().enumerate() {
            write!(f, "{}{uuid}", if i > 0 { "," } else { "" })?;
            for (from, to) in ranges {
                if from == to {
                    write!(f, ":{from}")?;
                } else {
                    write!(f, ":{from}-{to}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_of_domains() {
        let mut position = MariaPosition::parse("0-1-5, 3-1-9").unwrap();
        position.note(MariaGtid { domain: 0, server: 2, sequence: 6 });
        assert_eq!(position.to_string(), "0-2-6,3-1-9");
        let state = |text| MariaPosition::parse(text).unwrap();
        assert!(position.is_within(&state("0-1-5,0-2-7,3-1-9")));
        assert!(!position.is_within(&state("0-2-5,3-1-9")));
        assert!(!position.is_within(&state("0-2-6")));
        assert_eq!(MariaPosition::parse("0-1"), None);
    }

    #[test]
    fn sets_grow() {
        let mut set = MysqlSet::parse("AA:1-5:7,bb:1").unwrap();
        set.note("aa", 6);
        set.note("cc", 1);
        assert_eq!(set.to_string(), "aa:1-7,bb:1,cc:1");
        assert_eq!(MysqlSet::parse("aa:tag:1"), None);
    }
}
