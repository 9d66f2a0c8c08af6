//! `testyard history`

use std::time::Duration;

use testyard::run::RegistryHistory;
use testyard_model::{Problem, ProblemKind, Span};
use testyard_registry::{Flakes, TestRecord};
use testyard_runner::history::History as _;

use super::{DONE, Outcome};
use crate::output::{Output, printable, table};
use crate::{describe, yard};

/// Show what became of tests in earlier runs.
///
/// TEST is a part of their names; several are listed, one is shown run by run: how long it takes,
/// how often it is flaky, and since which tree it fails. The last 100 outcomes of a test are kept.
/// Without --anywhere only suites in this folder, above it and below it are looked at.
///
/// Examples:
///     testyard history
///     testyard history tests/boot.sh
///     testyard history --json | jq -r '.tests[] | select(.flakes.rate > 0.05) | .test'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct History {
    /// A part of the tests' names [default: every test]
    #[arg(value_name = "TEST")]
    test: Option<String>,
    /// At most so many tests
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: u32,
    /// Suites of every folder
    #[arg(long)]
    anywhere: bool,
}

impl History {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let history = RegistryHistory::new(&yard::options()?.home);
        let current = std::env::current_dir()
            .map_err(|error| Problem::new(ProblemKind::System, "cannot tell the current folder").because(error))?;
        let near = (!self.anywhere).then_some(current.as_path());
        let part = self.test.as_deref().unwrap_or("");
        let mut tests = history.find(part, near, self.limit)?;
        if let Some(problem) = history.remark() {
            output.warn_of(&problem);
        }
        // A name in full means just that test, also where it is a part of others.
        if tests.iter().any(|record| record.test == part) {
            tests.retain(|record| record.test == part);
        }
        if tests.is_empty() && self.test.is_some() {
            let problem = Problem::new(ProblemKind::NotFound, format!("no run of a test like `{part}` is remembered"));
            return Err(problem.hint("testyard history --anywhere shows every test that is"));
        }
        if output.json {
            output.json("tests", &tests)?;
        } else if let ([record], Some(_)) = (tests.as_slice(), &self.test) {
            output.data(&one(record, describe::now_ms()))?;
        } else if tests.is_empty() {
            output.say("no run is remembered; make one: testyard run");
        } else {
            output.data(&many(&tests))?;
        }
        DONE
    }
}

fn many(tests: &[TestRecord]) -> String {
    let row = |record: &TestRecord| {
        vec![
            format!("{}::{}", record.suite, record.test),
            record.last.as_str().to_owned(),
            record.expected_ms.map(millis).unwrap_or_default(),
            rate(&record.flakes),
            record.first_bad.as_ref().and_then(|bad| bad.tree.as_deref()).map(short).unwrap_or_default(),
        ]
    };
    table(&["TEST", "LAST", "USUALLY", "FLAKY", "FAILS SINCE TREE"], &tests.iter().map(row).collect::<Vec<_>>())
}

fn one(record: &TestRecord, now_ms: i64) -> String {
    let mut text = format!("{}::{} ({})\n", record.suite, record.test, record.suite_file.display());
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<12}{value}\n"));
    line("last", record.last.as_str().to_owned());
    if let Some(expected) = record.expected_ms {
        line("usually", millis(expected));
    }
    line("flaky", rate(&record.flakes));
    if let Some(bad) = &record.first_bad {
        let tree = bad.tree.as_deref().map_or(String::new(), |tree| format!(", tree {tree}"));
        line("fails since", format!("{} ago{tree}", describe::age(bad.at_ms, now_ms)));
    }
    if let Some(tree) = &record.last_good_tree {
        line("passed on", format!("tree {tree}"));
    }
    let row = |past: &testyard_registry::PastOutcome| {
        let failed = match past.failed_attempts {
            0 => String::new(),
            failed => format!(" (failed {failed}x)"),
        };
        vec![
            format!("{} ago", describe::age(past.at_ms, now_ms)),
            format!("{}{failed}", past.outcome.as_str()),
            millis(past.duration_us / 1_000),
            past.tree.as_deref().map(short).unwrap_or_default(),
            past.run.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = record.outcomes.iter().map(row).collect();
    let heading = text.lines().map(|line| format!("{}\n", printable(line))).collect::<String>();
    format!("{heading}\n{}", table(&["WHEN", "RESULT", "TOOK", "TREE", "RUN"], &rows))
}

/// `2 of 40 runs, 5.0% (95%: 1.4 to 16.5%)`.
fn rate(flakes: &Flakes) -> String {
    let percent = |part: f64| format!("{:.1}", part * 100.0);
    let Flakes { flaky, runs, rate, low, high } = *flakes;
    if runs == 0 {
        return "not known".to_owned();
    }
    format!("{flaky} of {runs}, {}% (95%: {} to {}%)", percent(rate), percent(low), percent(high))
}

fn millis(millis: u64) -> String {
    Span(Duration::from_millis(millis)).to_string()
}

fn short(tree: &str) -> String {
    tree.chars().take(12).collect()
}
