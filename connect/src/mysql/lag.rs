//! How far a follower is, for people and for comparing.

use super::{
    catalog::present,
    endpoint::connect,
    gtid::{MariaPosition, MysqlSet},
    position::{Head, Place},
};
use crate::{Result, endpoint::Server};

/// A head as [`SourceLag::position`](crate::connector::SourceLag::position) writes it: `0-1-5 (binlog.000002:1200)`.
pub(super) fn shown(head: &Head) -> String {
    let place = format!("{}:{}", head.file, head.position);
    if head.gtid.is_empty() { place } else { format!("{} ({place})", head.gtid) }
}

/// Where the server's binlog ends now.
pub(crate) async fn end(server: &Server) -> Result<String> {
    Ok(shown(&present(&mut connect(server).await?).await?))
}

/// Whether a position is at a place of the binlog or behind it: by the names of transactions, where there are any.
pub(crate) fn is_reached(position: &str, place: &str) -> bool {
    let parts = |text: &str| match text.split_once(" (") {
        Some((gtid, place)) => (gtid.to_owned(), place.trim_end_matches(')').to_owned()),
        None => (String::new(), text.to_owned()),
    };
    let (position, place) = (parts(position), parts(place));
    if !position.0.is_empty() && !place.0.is_empty() {
        let of_maria = MariaPosition::parse(&place.0).zip(MariaPosition::parse(&position.0));
        let of_mysql = || MysqlSet::parse(&place.0).zip(MysqlSet::parse(&position.0));
        return match of_maria {
            Some((place, position)) => place.is_within(&position),
            None => of_mysql().is_some_and(|(place, position)| place.is_within(&position)),
        };
    }
    let in_files = |text: &str| text.rsplit_once(':').and_then(|(file, at)| Some(Place::new(file, at.parse().ok()?)));
    in_files(&position.1).zip(in_files(&place.1)).is_some_and(|(position, place)| position >= place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_compared_by_transactions_and_else_by_files() {
        for (position, place, reached) in [
            ("0-1-5 (b.000001:90)", "0-1-5 (b.000002:4)", true),
            ("0-1-4 (b.000009:90)", "0-1-5 (b.000002:4)", false),
            ("0-1-5,1-2-3 (b.1:1)", "1-2-2,0-1-5 (b.1:1)", true),
            ("aa:1-7,bb:1 (b.1:1)", "aa:2-7 (b.1:1)", true),
            ("aa:1-6 (b.1:9)", "aa:1-7 (b.1:1)", false),
            ("b.000010:4", "b.000009:900", true),
            ("b.000009:899", "b.000009:900", false),
            ("", "b.000009:900", false),
        ] {
            assert_eq!(is_reached(position, place), reached, "{position} and {place}");
        }
    }
}
