//! The lines at the bottom of a terminal: how far the run is, and what runs for how long.

use std::time::Duration;

/// Running tests that are named, at most.
const NAMED: usize = 8;
/// Columns of the bar.
const BAR: usize = 24;

/// How far a run is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) total: usize,
    pub(super) done: usize,
    pub(super) failed: usize,
    pub(super) flaky: usize,
    pub(super) skipped: usize,
    pub(super) errors: usize,
}

/// A running test.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running<'a> {
    /// Its name, and what it waits for.
    pub(super) name: &'a str,
    /// Since when.
    pub(super) age: Duration,
    /// It takes longer than it should.
    pub(super) slow: bool,
}

/// The room that there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) columns: usize,
    pub(super) rows: usize,
    pub(super) color: bool,
}

/// The lines, none of them wider than the room; `running` holds the oldest first, `since` is the run's age.
pub(super) fn status_lines(counts: Counts, running: &[Running<'_>], since: Duration, room: Room) -> Vec<String> {
    let mut lines = vec![summary(counts, running.len(), since, room)];
    // A third of the terminal: what has happened stays in sight.
    let named = NAMED.min(room.rows / 3).min(running.len());
    for one in &running[..named] {
        lines.push(told(one, room));
    }
    if running.len() > named && named > 0 {
        lines.push(cut(&format!("          and {} more", running.len() - named), room.columns));
    }
    lines
}

/// A test and its age, as wide as there is room for.
pub(super) fn told(one: &Running<'_>, room: Room) -> String {
    let age = format!("{:>8}", seconds(one.age));
    let name = cut(one.name, room.columns.saturating_sub(age.len() + 2));
    let age = cut(&age, room.columns);
    let age = if one.slow { painted(room, "33", &age) } else { age };
    if name.is_empty() { age } else { format!("{age}  {name}") }
}

fn summary(counts: Counts, running: usize, since: Duration, room: Room) -> String {
    let mut words = vec![(format!("{}/{}", counts.done, counts.total), "1")];
    let told = [
        (counts.failed, "failed", "31"),
        (counts.errors, "errors", "35"),
        (counts.flaky, "flaky", "33"),
        (counts.skipped, "skipped", "33"),
    ];
    words.extend(
        told.into_iter().filter(|told| told.0 > 0).map(|(count, word, color)| (format!("{count} {word}"), color)),
    );
    words.push((format!("{running} running"), "0"));
    words.push((seconds(since), "2"));
    let plain: Vec<&str> = words.iter().map(|(word, _)| word.as_str()).collect();
    let plain = plain.join("  ");
    if columns(&plain) > room.columns {
        return cut(&plain, room.columns);
    }
    let colored: Vec<String> = words.iter().map(|(word, color)| painted(room, color, word)).collect();
    let colored = colored.join("  ");
    let length = BAR.min(room.columns.saturating_sub(columns(&plain) + 2));
    if length < 8 {
        return colored;
    }
    let done = (length * counts.done).checked_div(counts.total).unwrap_or(0);
    let (done, left) = ("=".repeat(done), "-".repeat(length - done));
    let color = if counts.failed + counts.errors > 0 { "31" } else { "32" };
    format!("{}{}  {colored}", painted(room, color, &done), painted(room, "2", &left))
}

fn painted(room: Room, color: &str, text: &str) -> String {
    if room.color && !text.is_empty() && color != "0" { format!("\x1b[{color}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Whole seconds above ten, else one place after the point.
pub(super) fn seconds(age: Duration) -> String {
    if age.as_secs() >= 3_600 {
        format!("{}h{:02}m", age.as_secs() / 3_600, age.as_secs() / 60 % 60)
    } else if age.as_secs() >= 60 {
        format!("{}m{:02}s", age.as_secs() / 60, age.as_secs() % 60)
    } else if age.as_secs() >= 10 {
        format!("{}s", age.as_secs())
    } else {
        format!("{}.{}s", age.as_secs(), age.subsec_millis() / 100)
    }
}

/// How many columns a terminal may use for it; characters beyond ASCII count as two, which is the most that any takes.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(|character| if character.is_ascii() { 1 } else { 2 }).sum()
}

/// As much as fits, its end kept where it must be cut: the end of a path says more than its beginning.
fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    if width < 3 {
        return String::new();
    }
    let mut room = width - 2;
    let mut kept = text.len();
    for (place, character) in text.char_indices().rev() {
        let needed = columns(character.encode_utf8(&mut [0; 4]));
        if needed > room {
            break;
        }
        room -= needed;
        kept = place;
    }
    format!("..{}", &text[kept..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn running(name: &str, millis: u64) -> Running<'_> {
        Running { name, age: Duration::from_millis(millis), slow: millis > 60_000 }
    }

    #[test]
    fn shows_how_far_it_is_and_the_oldest_first() {
        let counts = Counts { total: 50, done: 12, failed: 2, ..Counts::default() };
        let all = [running("suite::tests/long_name_of_a_test.sh", 72_400), running("suite::b", 1_240), running("c", 0)];
        let lines =
            |columns, rows| status_lines(counts, &all, Duration::from_secs(75), Room { columns, rows, color: false });
        assert_eq!(
            lines(79, 24),
            [
                "=====-------------------  12/50  2 failed  3 running  1m15s",
                "   1m12s  suite::tests/long_name_of_a_test.sh",
                "    1.2s  suite::b",
                "    0.0s  c",
            ]
        );
        assert_eq!(
            lines(40, 6),
            [
                "12/50  2 failed  3 running  1m15s",
                "   1m12s  ..tests/long_name_of_a_test.sh",
                "    1.2s  suite::b",
                "          and 1 more"
            ]
        );
        assert_eq!(lines(40, 2).len(), 1);
        let colored = status_lines(counts, &all, Duration::ZERO, Room { columns: 79, rows: 24, color: true });
        assert!(colored[0].contains("\x1b[31m2 failed\x1b[0m") && colored[1].starts_with("\x1b[33m   1m12s\x1b[0m"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn is_never_wider_or_higher_than_the_terminal(
            width in 0_usize..120,
            rows in 1_usize..60,
            names in prop::collection::vec("[a-zä漢/]{1,40}", 0..20),
            done in 0_usize..10_000,
        ) {
            let counts = Counts { total: 10_000, done, failed: done / 2, flaky: 3, skipped: done / 3, errors: done / 100 };
            let all: Vec<Running<'_>> = names.iter().map(|name| running(name, 70_000)).collect();
            let lines = status_lines(counts, &all, Duration::from_secs(7_000), Room { columns: width, rows, color: false });
            prop_assert!(lines.len() <= rows.max(2), "{lines:?}");
            for line in lines {
                prop_assert!(columns(&line) <= width, "{line:?}");
            }
        }
    }
}
