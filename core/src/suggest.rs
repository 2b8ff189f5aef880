//! The nearest name, for messages about one that does not exist.

/// The candidate that takes the fewest edits to `wanted`, ignoring case; none where all are too far off to help.
pub fn nearest<'a>(wanted: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    let scored = candidates.into_iter().map(|name| (distance(&wanted, &name.to_lowercase()), name));
    let (edits, name) = scored.min_by_key(|(edits, _)| *edits)?;
    (edits <= wanted.chars().count().max(name.chars().count()) / 2).then_some(name)
}

/// Levenshtein distance, for names of a few dozen characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut line: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = line[0];
        line[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let swap = corner + usize::from(x != *y);
            corner = line[j + 1];
            line[j + 1] = swap.min(corner + 1).min(line[j] + 1);
        }
    }
    line[b.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn the_nearest_is_found_unless_all_are_far() {
        let names = ["from", "to", "tables"];
        assert_eq!(nearest("table", names), Some("tables"));
        assert_eq!(nearest("FORM", names), Some("from"));
        assert_eq!(nearest("password", names), None);
        assert_eq!(nearest("x", []), None);
    }
}
