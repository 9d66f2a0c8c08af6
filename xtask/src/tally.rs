//! The counts of one whole check: how many passed, failed and were skipped, from everything that ran.

use std::fmt;
use std::path::Path;

use serde_json::Value;

/// How many of something passed, failed and were skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    /// One check that passed or failed.
    pub(crate) fn of(passed: bool) -> Self {
        if passed { Self { passed: 1, ..Self::default() } } else { Self { failed: 1, ..Self::default() } }
    }

    /// Adds another.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Whose output is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// One summary of everything. What tests print is indented, so theirs is not taken for it.
    Nextest,
    /// One line for each test program.
    Libtest,
    /// The closing line of a run, which is all of a line.
    Testyard,
    /// The last line, between signs or not. Its skips are in the skip log, every one of them.
    Pytest,
}

impl Reader {
    /// The counts of a summary and what separates them; none for every other line.
    fn counts(self, line: &str) -> Option<(&str, char)> {
        match self {
            Self::Nextest => Some((line.strip_prefix("     Summary [")?.split_once("run:")?.1, ',')),
            Self::Testyard => (line.split(' ').count() == 6 && line.ends_with(" skipped")).then_some((line, ',')),
            Self::Libtest => Some((line.strip_prefix("test result: ")?.split_once(". ")?.1, ';')),
            Self::Pytest => {
                let (counts, time) = line.trim_matches(['=', ' ']).split_once(" in ")?;
                let took = time.split(' ').next()?.strip_suffix('s')?.parse::<f64>().is_ok();
                let known =
                    |part: &str| part.trim().split_once(' ').is_some_and(|(count, _)| count.parse::<u64>().is_ok());
                (took && counts.split(',').all(known)).then_some((counts, ','))
            }
        }
    }
}

/// Reads the counts out of what test programs print.
#[derive(Debug)]
pub(crate) struct Summaries {
    reader: Reader,
    /// What they add up to.
    pub(crate) tally: Tally,
    /// How many summaries were seen; none means that nothing ran.
    pub(crate) seen: u64,
    /// Whether the last summary told of failures that cargo has not told of yet.
    told: bool,
    /// What was printed of the tests that failed, to be shown again at the very end.
    pub(crate) failures: Vec<String>,
    /// Whether the lines that come now are about failures.
    failing: bool,
}

/// As much is shown again of what one command's failed tests printed, in lines.
const SHOWN_AGAIN: usize = 200;

impl Summaries {
    /// Nothing seen yet.
    pub(crate) fn new(reader: Reader) -> Self {
        Self { reader, tally: Tally::default(), seen: 0, told: false, failures: Vec::new(), failing: false }
    }

    /// Looks at one line of output.
    pub(crate) fn look(&mut self, line: &str) {
        self.failing = match self.reader {
            // Each failure's output follows the summary.
            Reader::Nextest => self.failing || self.seen > 0,
            Reader::Libtest => !line.starts_with("test result: ") && (self.failing || line == "failures:"),
            Reader::Testyard => self.failing || line.starts_with("==== "),
            Reader::Pytest => {
                let head = line.trim_matches(['=', ' ']);
                self.failing || line.starts_with("=====") && matches!(head, "FAILURES" | "ERRORS")
            }
        };
        if self.failing && self.failures.len() < SHOWN_AGAIN {
            self.failures.push(line.to_owned());
        }
        let Some((counts, separator)) = self.reader.counts(line) else {
            // A program that dies has no summary; cargo says so of it as of those that have one.
            if self.reader == Reader::Libtest && line.starts_with("error: test failed, to rerun pass") {
                self.tally.failed += u64::from(!self.told);
                self.told = false;
            }
            return;
        };
        self.seen += 1;
        if self.reader == Reader::Pytest {
            // The sessions that tests start themselves print such a line too; the last one is that of all.
            self.tally = Tally::default();
        }
        self.told = line.starts_with("test result: FAILED");
        // "118 passed (2 slow, 1 flaky)", "2 failed", "1 timed out", "3 ignored", "7 filtered out"
        for part in counts.split([separator, '(', ')']) {
            let mut words = part.split_whitespace();
            let Some(count) = words.next().and_then(|word| word.parse::<u64>().ok()) else { continue };
            match words.next() {
                Some("passed") => self.tally.passed += count,
                Some("failed" | "timed" | "exec" | "error" | "errors" | "xpassed") => self.tally.failed += count,
                Some("ignored" | "skipped") if self.reader != Reader::Pytest => self.tally.skipped += count,
                _ => {}
            }
        }
    }
}

/// One skip that a test wrote into the log named by `TESTYARD_SKIP_LOG` (see testkit's `skip!`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skip {
    /// What was skipped.
    pub(crate) name: String,
    /// Why.
    pub(crate) reason: String,
    /// The host truly lacks the ability: nothing that could be installed would provide it.
    pub(crate) forced_by_host: bool,
    /// A whole test that returned early, which its test program counted as passed.
    pub(crate) whole_test: bool,
}

/// The skips in a log. A line that cannot be read counts as a skip too: nothing is lost in silence.
pub(crate) fn read_skips(log: &Path) -> Vec<Skip> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter(|line| !line.trim().is_empty()).map(read_skip).collect()
}

fn read_skip(line: &str) -> Skip {
    let value: Value = serde_json::from_str(line).unwrap_or(Value::Null);
    let text = |key: &str| value[key].as_str().unwrap_or("(unreadable)").to_owned();
    Skip {
        name: text("name"),
        reason: text("reason"),
        forced_by_host: value["forced_by_host"].as_bool().unwrap_or(false),
        whole_test: value["whole_test"].as_bool().unwrap_or(false),
    }
}

/// The counts once the skips are known: a test that skipped itself did not pass.
pub(crate) fn with_skips(mut tally: Tally, skips: &[Skip]) -> Tally {
    let whole = skips.iter().filter(|skip| skip.whole_test).count() as u64;
    tally.passed = tally.passed.saturating_sub(whole);
    tally.skipped += skips.len() as u64;
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally_of(reader: Reader, lines: &[&str]) -> Tally {
        let mut summaries = Summaries::new(reader);
        lines.iter().for_each(|line| summaries.look(line));
        summaries.tally
    }

    #[test]
    fn nextest_is_understood() {
        let lines = [
            "        PASS [   0.005s] testyard-model names::tests::ids",
            "    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.34s",
            "         Summary [   1.234s] 7 tests run: 7 passed, 0 skipped",
            "     Summary [   1.234s] 124 tests run: 120 passed (2 slow, 1 flaky), 3 failed, 1 timed out, 5 skipped",
        ];
        assert_eq!(tally_of(Reader::Nextest, &lines), Tally { passed: 120, failed: 4, skipped: 5 });
        let one = ["     Summary [   0.010s] 1 test run: 1 passed, 0 skipped"];
        assert_eq!(tally_of(Reader::Nextest, &one).passed, 1);
    }

    #[test]
    fn libtest_is_understood_and_added_up() {
        let lines = [
            "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 7 filtered out; finished in 0.01s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        ];
        assert_eq!(tally_of(Reader::Libtest, &lines), Tally { passed: 13, failed: 2, skipped: 3 });
    }

    #[test]
    fn a_program_that_dies_without_a_summary_has_failed() {
        let cargo = "error: test failed, to rerun pass `-p a --test b`";
        let failed =
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let passed = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(tally_of(Reader::Libtest, &[failed, cargo]).failed, 2);
        assert_eq!(tally_of(Reader::Libtest, &[failed, cargo, passed, cargo]).failed, 3);
        assert_eq!(tally_of(Reader::Libtest, &[cargo]).failed, 1);
    }

    #[test]
    fn what_failed_tests_said_is_kept() {
        let kept = |reader, lines: &[&str]| {
            let mut summaries = Summaries::new(reader);
            lines.iter().for_each(|line| summaries.look(line));
            summaries.failures.join("|")
        };
        let summary = "     Summary [   1.234s] 2 tests run: 1 passed, 1 failed, 0 skipped";
        assert_eq!(
            kept(Reader::Nextest, &["  PASS [ 0.005s] a", summary, "  FAIL [ 0.005s] b", "why"]),
            "  FAIL [ 0.005s] b|why"
        );
        let result =
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let lines = ["test a ... ok", "failures:", "why", result, "test c ... ok"];
        assert_eq!(kept(Reader::Libtest, &lines), "failures:|why");
        let lines = ["FAIL 12ms s::b", "==== failed s::b: exit code 3", "why"];
        assert_eq!(kept(Reader::Testyard, &lines), "==== failed s::b: exit code 3|why");
    }

    #[test]
    fn our_own_closing_line_is_understood() {
        let lines = ["PASS       1.2s  own::a (1 passed, 2 failed, 3 skipped)", "5 passed, 1 failed, 2 skipped"];
        assert_eq!(tally_of(Reader::Testyard, &lines), Tally { passed: 5, failed: 1, skipped: 2 });
    }

    #[test]
    fn pytests_last_line_is_understood() {
        let last = "== 1 failed, 7 passed, 3 skipped, 2 warnings, 1 error in 83.21s (0:01:23) ==";
        let lines = ["2 failed in 0.10s", "FAILED a.py::b - assert 'in 3' in 4", last];
        assert_eq!(tally_of(Reader::Pytest, &lines), Tally { passed: 7, failed: 2, skipped: 0 });
        assert_eq!(tally_of(Reader::Pytest, &["== no tests ran in 0.01s =="]), Tally::default());
        assert_eq!(tally_of(Reader::Pytest, &["5 passed in 0.12s"]).passed, 5);
    }

    #[test]
    fn a_test_that_skipped_itself_did_not_pass() {
        let whole = read_skip(r#"{"name":"a","reason":"b","forced_by_host":true,"whole_test":true}"#);
        let part = read_skip("not json");
        assert!(whole.forced_by_host && !part.forced_by_host);
        let tally = with_skips(Tally { passed: 5, failed: 0, skipped: 1 }, &[whole, part]);
        assert_eq!(tally, Tally { passed: 4, failed: 0, skipped: 3 });
        assert_eq!(tally.to_string(), "4 passed, 0 failed, 3 skipped");
    }
}
