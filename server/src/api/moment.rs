//! Moments as people write them: `2026-11-22T09:30:00Z`, `2026-11-22`, `-15m`, `@1795309182989`.

use tidemill_core::Error;

/// What may stand behind a relative time, in milliseconds.
const UNITS: [(char, i64); 4] = [('s', 1000), ('m', 60_000), ('h', 3_600_000), ('d', 86_400_000)];
const DAY_MS: i64 = 86_400_000;

/// Whether a text means a moment at all, rather than an offset or a word.
pub fn is_moment(text: &str) -> bool {
    text.starts_with(['-', '@']) || text.as_bytes().get(4) == Some(&b'-')
}

/// Milliseconds since 1970 UTC. A time without a zone is UTC; `now_ms` is what relative times are relative to.
///
/// # Errors
/// `Invalid` with the forms that are understood.
pub fn parse(text: &str, now_ms: i64) -> Result<i64, Error> {
    let found = match text.split_at_checked(1) {
        Some(("@", ms)) => ms.parse().ok(),
        Some(("-", ago)) => parse_ago(ago).and_then(|ago| now_ms.checked_sub(ago)),
        _ => parse_date_time(text),
    };
    found.ok_or_else(|| {
        Error::invalid(format!(
            "{text:?} is no moment; write 2026-11-22T09:30:00Z, 2026-11-22, -15m (also s, h, d), or @ and milliseconds since 1970"
        ))
    })
}

fn parse_ago(text: &str) -> Option<i64> {
    let (unit, times) = UNITS.into_iter().find(|(unit, _)| text.ends_with(*unit))?;
    let digits = text.strip_suffix(unit)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<i64>().ok()?.checked_mul(times)).flatten()
}

fn parse_date_time(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let days = days_since_1970(year, month, day)?;
    let time = match rest.strip_prefix(['T', 't', ' ']) {
        None if rest.is_empty() => 0,
        None => return None,
        Some(time) => parse_time(time)?,
    };
    Some(days * DAY_MS + time)
}

/// The time of day with its zone, in milliseconds since the beginning of that day in UTC.
fn parse_time(text: &str) -> Option<i64> {
    let (clock, zone_ms) = match text.find(['Z', 'z', '+', '-']) {
        None => (text, 0),
        Some(at) if text[at..].eq_ignore_ascii_case("z") => (&text[..at], 0),
        Some(at) => {
            let [hours, minutes] = numbers(&text[at + 1..], ':', [2, 2])?;
            let zone_ms = (hours * 60 + minutes) * 60_000;
            (&text[..at], if text[at..].starts_with('-') { -zone_ms } else { zone_ms })
        }
    };
    let (clock, millis) = match clock.split_once('.') {
        None => (clock, 0),
        Some((clock, fraction)) => {
            let digits = !fraction.is_empty() && fraction.bytes().all(|b| b.is_ascii_digit());
            let three: String = fraction.chars().chain("000".chars()).take(3).collect();
            (clock, three.parse::<i64>().ok().filter(|_| digits)?)
        }
    };
    let [hours, minutes, seconds] = match clock.len() {
        5 => numbers(clock, ':', [2, 2]).map(|[hours, minutes]| [hours, minutes, 0])?,
        _ => numbers(clock, ':', [2, 2, 2])?,
    };
    let sound = hours < 24 && minutes < 60 && seconds < 61;
    sound.then_some((hours * 3600 + minutes * 60 + seconds) * 1000 + millis - zone_ms)
}

/// Numbers of so many digits each, with a separator between.
fn numbers<const N: usize>(text: &str, separator: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut found = [0; N];
    for (number, digits) in found.iter_mut().zip(digits) {
        let part = parts.next()?;
        *number = part.parse().ok().filter(|_| part.len() == digits && part.bytes().all(|b| b.is_ascii_digit()))?;
    }
    parts.next().is_none().then_some(found)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar: years are counted from March, so that a leap day is the last
/// day of one.
fn days_since_1970(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=length).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    Some(year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read() {
        let wanted = [
            ("1970-01-01", 0),
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00+02:00", 951_818_400_000),
            ("2026-11-22 09:30", 1_795_339_800_000),
            ("2026-11-22t09:30:15.25z", 1_795_339_815_250),
            ("2026-11-22T09:30:15.2500009-00:30", 1_795_341_615_250),
            ("1969-12-31T23:59:59.999Z", -1),
            ("@1795339815250", 1_795_339_815_250),
            ("-15m", 1_000_000 - 900_000),
            ("-1d", 1_000_000 - 86_400_000),
        ];
        for (text, ms) in wanted {
            assert!(is_moment(text), "{text}");
            assert_eq!(parse(text, 1_000_000).unwrap(), ms, "{text}");
        }
        // Each day follows the one before, over all kinds of leap years.
        let mut last = None;
        for year in 1896..2105 {
            for (month, day) in (1..=12).flat_map(|month| (1..=31).map(move |day| (month, day))) {
                if let Some(days) = days_since_1970(year, month, day) {
                    assert!(last.is_none_or(|last| days == last + 1), "{year}-{month}-{day}");
                    last = Some(days);
                }
            }
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "-",
            "@",
            "-5",
            "-5w",
            "--5m",
            "-99999999999999999d",
            "@x",
            "2026-13-01",
            "2026-02-29",
            "2026-11-22T",
            "2026-11-22T24:00",
            "2026-11-22T09:30:00.",
            "2026-11-22T09:30Zx",
            "2026-11-22T9:30",
            "2026-11-22x",
            "ää-11-22",
            "2026-11-22T09:30+2",
        ] {
            assert!(parse(text, 0).is_err(), "{text}");
        }
        assert!(!is_moment("start") && !is_moment("17") && !is_moment("2026"));
    }
}
