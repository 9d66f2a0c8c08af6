//! Times as docker writes them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, in seconds since 1970-01-01 UTC.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

/// `2026-01-31 23:59:59 +0000 UTC`.
pub(crate) fn date(seconds: u64) -> String {
    let (year, month, day) = civil(seconds / 86_400);
    let of_day = seconds % 86_400;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} +0000 UTC")
}

/// Year, month and day of a day since 1970-01-01: the years are counted from a March, so that a leap day comes last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// `3 seconds`, `2 hours`.
pub(crate) fn span(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0 => return "Less than a second".to_owned(),
        1..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_civil() {
        assert_eq!(date(0), "1970-01-01 00:00:00 +0000 UTC");
        assert_eq!(date(951_827_696), "2000-02-29 12:34:56 +0000 UTC");
        assert_eq!(date(1_798_761_599), "2026-12-31 23:59:59 +0000 UTC");
    }

    #[test]
    fn spans_are_rounded_down() {
        for (seconds, text) in
            [(0, "Less than a second"), (1, "1 second"), (119, "1 minute"), (7200, "2 hours"), (400_000, "4 days")]
        {
            assert_eq!(span(seconds), text);
        }
    }
}
