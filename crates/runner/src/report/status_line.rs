//! The one line at the bottom of a terminal: how far the run is, and what runs.

use std::time::Duration;

/// How far a run is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) total: usize,
    pub(super) done: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
    pub(super) errors: usize,
}

/// The line, never wider than `width` columns. `running` holds the oldest first.
pub(super) fn status_line<'a>(
    counts: Counts,
    running: impl ExactSizeIterator<Item = (&'a str, Duration)>,
    width: usize,
) -> String {
    let mut line = format!("[{}/{}]", counts.done, counts.total);
    for (count, word) in [(counts.failed, "failed"), (counts.skipped, "skipped"), (counts.errors, "errors")] {
        if count > 0 {
            line.push_str(&format!(" {count} {word},"));
        }
    }
    let all = running.len();
    line.push_str(&format!(" {all} running"));
    let mut used = columns(&line);
    for (shown, (name, age)) in running.enumerate() {
        let left = all - shown;
        let more = if left > 1 { format!(" +{}", left - 1) } else { String::new() };
        let age = seconds(age);
        let fixed = 2 + 1 + age.len();
        // At least a few letters of the name, else nothing says more than half a word.
        let room = width.saturating_sub(used + fixed + more.len());
        if room < 8.min(columns(name)) {
            line.push_str(&cut(&format!(" +{left}"), width.saturating_sub(used)));
            break;
        }
        let name = cut(name, room);
        line.push_str(if shown == 0 { ": " } else { ", " });
        line.push_str(&name);
        line.push(' ');
        line.push_str(&age);
        used += fixed + columns(&name);
    }
    cut(&line, width)
}

/// Whole seconds above ten, else one place after the point.
pub(super) fn seconds(age: Duration) -> String {
    if age.as_secs() >= 60 {
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

    #[test]
    fn shows_the_oldest_and_counts_the_rest() {
        let counts = Counts { total: 50, done: 12, failed: 2, skipped: 0, errors: 0 };
        let running = [("suite::tests/long_name_of_a_test.sh", 12_400), ("suite::b", 1_240), ("suite::c", 0)];
        let line = |width| {
            let running = running.iter().map(|(name, millis)| (*name, Duration::from_millis(*millis)));
            status_line(counts, running, width)
        };
        assert_eq!(
            line(100),
            "[12/50] 2 failed, 3 running: suite::tests/long_name_of_a_test.sh 12s, suite::b 1.2s, suite::c 0.0s"
        );
        assert_eq!(line(60), "[12/50] 2 failed, 3 running: ..long_name_of_a_test.sh 12s +2");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn is_never_wider_than_the_terminal(
            width in 0_usize..120,
            names in prop::collection::vec("[a-zä漢/]{1,40}", 0..10),
            done in 0_usize..10_000,
        ) {
            let counts = Counts { total: 10_000, done, failed: done / 2, skipped: done / 3, errors: done / 100 };
            let line = status_line(counts, names.iter().map(|name| (name.as_str(), Duration::from_secs(70))), width);
            prop_assert!(columns(&line) <= width, "{line:?}");
        }
    }
}
