//! What can be wrong when tests are looked for.

use std::path::PathBuf;

use testyard_model::{Problem, ProblemKind};

use crate::suite::{ConfigError, FILE_NAME};

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A suite file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A path that does not exist.
    #[error("{path} does not exist", path = path.display())]
    NoSuchPath {
        /// The path as given.
        path: PathBuf,
    },
    /// A path that is in no suite and has none below it.
    #[error("no {FILE_NAME} in {path}, above it or below it", path = path.display())]
    NoSuite {
        /// The path as given.
        path: PathBuf,
    },
    /// A path inside a suite at which there is no test.
    #[error("no test of suite `{suite}` is at {path}", path = path.display())]
    NotATest {
        /// The path as given.
        path: PathBuf,
        /// The suite around it.
        suite: String,
    },
    /// Two suites of one name.
    #[error("two suites are named `{name}`: {first} and {second}", first = first.display(), second = second.display())]
    DuplicateSuite {
        /// Their name.
        name: String,
        /// The first one's file.
        first: PathBuf,
        /// The second one's file.
        second: PathBuf,
    },
    /// A file or folder that cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No test is left.
    #[error("nothing selected: none of {candidates} tests {why}")]
    NothingSelected {
        /// How many tests there are without the selection.
        candidates: usize,
        /// What none of them does.
        why: String,
        /// The name nearest to the filter's word.
        nearest: Option<String>,
    },
    /// What has changed cannot be told.
    #[error("cannot tell what changed since `{reference}` in {folder}: {reason}", folder = folder.display())]
    Changed {
        /// The commit that was named.
        reference: String,
        /// Where git was asked.
        folder: PathBuf,
        /// What it said.
        reason: String,
    },
    /// Too many repetitions.
    #[error("{tests} tests {times} times are more than {most} runs")]
    TooManyRuns {
        /// How many tests.
        tests: usize,
        /// How often each.
        times: u32,
        /// How many runs of tests are allowed.
        most: usize,
    },
    /// The selection depends on earlier runs, and they cannot be told.
    #[error("cannot tell how the tests ended last: {}", .0.message)]
    History(Problem),
}

impl PlanError {
    /// As every other error is shown.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let problem = match self {
            Self::Config(error) => return error.problem(),
            Self::History(inner) => {
                let mut problem = inner.clone();
                problem.message = self.to_string();
                return problem;
            }
            // A suite that cannot be read is wrong configuration.
            Self::Read { .. } => Problem::from_error(ProblemKind::Usage, self),
            _ => Problem::from_error(ProblemKind::Usage, self),
        };
        match self {
            Self::Config(_) | Self::History(_) => problem,
            Self::Changed { .. } => problem.hint("give a commit, branch or tag that git knows: git log --oneline"),
            Self::TooManyRuns { .. } => problem.hint("select fewer tests with --filter, or repeat them less often"),
            Self::NoSuchPath { .. } => problem.hint("give a suite's folder, or a test's file"),
            Self::NoSuite { .. } => problem
                .hint(format!("write one from what is there: testyard init; or give a path that has a {FILE_NAME}")),
            Self::NotATest { .. } => problem.hint("testyard run --list shows the tests of a suite"),
            Self::DuplicateSuite { .. } => problem.hint("give one of them another `name` in its [suite]"),
            Self::Read { .. } => problem.hint("check that it is a readable file in UTF-8"),
            Self::NothingSelected { nearest: Some(nearest), .. } => problem.hint(format!("did you mean `{nearest}`?")),
            Self::NothingSelected { .. } => problem.hint("testyard run --list shows every test and its tags"),
        }
    }
}
