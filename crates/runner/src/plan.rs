//! From paths and filters to the tests of a run: suites found, globs expanded, files looked up.

mod error;
mod expand;
mod find;
mod list;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use testyard_model::{BackendName, EnvironmentLimits, ImageReference, Isolation, Network, Problem};

pub use error::PlanError;

use crate::filter::{Facts, Filter};
use crate::history::TestKey;
use crate::job::{Ability, Preparation};
use crate::suite::{ConfigFault, Located, RunSettings, SuiteFile, TestUser, nearest};

/// The tests of a run, and their suites.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The suites that have a test here.
    pub suites: Vec<PlannedSuite>,
    /// The tests, in the order of their files.
    pub tests: Vec<PlannedTest>,
}

/// A suite of a run.
#[derive(Debug, Clone)]
pub struct PlannedSuite {
    /// Its name.
    pub name: String,
    /// Its folder, absolute.
    pub root: PathBuf,
    /// What its file says.
    pub file: Arc<SuiteFile>,
    /// What is done before its tests and after them.
    pub preparation: Option<Arc<Preparation>>,
}

/// A test of a run, with every default filled in.
#[derive(Debug, Clone)]
pub struct PlannedTest {
    /// Its suite's place in [`Plan::suites`].
    pub suite: usize,
    /// Its name, unique in the suite.
    pub name: String,
    /// The file that it is, where a glob found it; absolute.
    pub file: Option<PathBuf>,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Where it runs, absolute.
    pub cwd: PathBuf,
    /// Variables that it asks for.
    pub env: BTreeMap<String, String>,
    /// Abilities that it cannot do without.
    pub needs: Vec<String>,
    /// Where each of them is written.
    need_spans: Vec<std::ops::Range<usize>>,
    /// The least isolation.
    pub isolation: Isolation,
    /// Its network.
    pub network: Network,
    /// Its limits.
    pub limits: EnvironmentLimits,
    /// Names that it shares with nobody while it runs.
    pub exclusive: Vec<String>,
    /// Whom it runs as.
    pub user: TestUser,
    /// How long it may take, where it says so.
    pub timeout: Option<Duration>,
    /// Words to select it by.
    pub tags: Vec<String>,
    /// Whom to ask about it.
    pub owner: Option<String>,
    /// How often a failure is tried again.
    pub retries: u32,
    /// Files that come back to the working tree.
    pub outputs: Vec<String>,
    /// Files that are kept with the result.
    pub artifacts: Vec<String>,
}

impl Plan {
    /// Finds the tests at these paths (the current folder where there are none) that the filter means.
    ///
    /// A path is a suite's folder or file, a folder or file of tests inside a suite, or a folder below which
    /// suites lie.
    ///
    /// # Errors
    /// The first thing that is wrong with a path or a suite file; [`PlanError::NothingSelected`] where no test is left.
    pub fn load(paths: &[PathBuf], current: &Path, filter: &Filter) -> Result<Self, PlanError> {
        let here = [PathBuf::from(".")];
        let paths = if paths.is_empty() { here.as_slice() } else { paths };
        let mut plan = Self { suites: Vec::new(), tests: Vec::new() };
        let mut names: Vec<String> = Vec::new();
        for found in find::suites(paths, current)? {
            let (suite, tests) = expand::suite(&found)?;
            if let Some(other) = plan.suites.iter().find(|other| other.name == suite.name) {
                return Err(PlanError::DuplicateSuite {
                    name: suite.name,
                    first: other.file.source.path().to_owned(),
                    second: found.file,
                });
            }
            let chosen = find::narrow(&found, &suite, tests)?;
            let index = plan.suites.len();
            names.extend(chosen.iter().map(|test| test.name.clone()));
            let before = plan.tests.len();
            plan.tests.extend(chosen.into_iter().filter(|test| filter.matches(&test.facts(&suite.name))).map(
                |mut test| {
                    test.suite = index;
                    test
                },
            ));
            if plan.tests.len() > before {
                plan.suites.push(suite);
            }
        }
        if plan.tests.is_empty() {
            let nearest = match filter {
                Filter::Contains(word) => nearest(word, names.iter().map(String::as_str)).map(str::to_owned),
                _ => None,
            };
            return Err(PlanError::NothingSelected { candidates: names.len(), nearest });
        }
        Ok(plan)
    }

    /// The suite of a test.
    #[must_use]
    pub fn suite_of(&self, test: &PlannedTest) -> &PlannedSuite {
        &self.suites[test.suite]
    }

    /// A test across runs.
    #[must_use]
    pub fn key(&self, index: usize) -> TestKey<'_> {
        let test = &self.tests[index];
        TestKey { suite: &self.suites[test.suite].name, name: &test.name }
    }

    /// What the suites say about running them: the first that says something wins, but one that asks for
    /// strictness gets it.
    #[must_use]
    pub fn run_settings(&self) -> RunSettings {
        let mut settings = RunSettings::default();
        for own in self.suites.iter().map(|suite| &suite.file.run) {
            settings.jobs = settings.jobs.or(own.jobs);
            settings.fail_fast = settings.fail_fast.max(own.fail_fast);
            settings.no_skip = settings.no_skip.max(own.no_skip);
        }
        settings
    }

    /// Every ability that some test needs, once.
    #[must_use]
    pub fn needs(&self) -> Vec<String> {
        let all: std::collections::BTreeSet<&String> = self.tests.iter().flat_map(|test| &test.needs).collect();
        all.into_iter().cloned().collect()
    }

    /// Refuses the first need that nobody knows.
    ///
    /// # Errors
    /// With the place in its suite file and the nearest ability.
    pub fn check_needs(&self, abilities: &BTreeMap<String, Ability>) -> Result<(), PlanError> {
        for test in &self.tests {
            for (need, span) in test.needs.iter().zip(&test.need_spans) {
                if let Some(Ability::Unknown(known)) = abilities.get(need) {
                    let fault = ConfigFault::UnknownWord {
                        key: "needs".to_owned(),
                        word: need.clone(),
                        nearest: nearest(need, known.iter().map(String::as_str)).map(str::to_owned),
                        known: known.join(", "),
                    };
                    return Err(PlanError::Config(self.suite_of(test).file.source.fault(span.clone(), fault)));
                }
            }
        }
        Ok(())
    }
}

impl PlannedTest {
    fn facts<'a>(&'a self, suite: &'a str) -> Facts<'a> {
        Facts { suite, name: &self.name, tags: &self.tags, needs: &self.needs, owner: self.owner.as_deref() }
    }

    fn set_needs(&mut self, needs: Vec<Located<String>>) {
        (self.needs, self.need_spans) = needs.into_iter().map(|need| (need.value, need.span)).unzip();
    }
}

impl PlannedSuite {
    /// The machine's backend; none means that the executor chooses.
    #[must_use]
    pub fn backend(&self) -> Option<&BackendName> {
        self.file.backend.as_ref().map(|backend| &backend.value)
    }

    /// The machine's image; none means this host.
    #[must_use]
    pub fn image(&self) -> Option<&ImageReference> {
        self.file.image.as_ref().map(|image| &image.value)
    }

    /// Refuses a suite whose backend or image is not there, at its place in the file. What is there the caller knows.
    ///
    /// # Errors
    /// What the caller says of the backend or the image.
    pub fn check_place(
        &self,
        backend: impl FnOnce(&BackendName) -> Result<(), Problem>,
        image: impl FnOnce(&ImageReference) -> Result<(), Problem>,
    ) -> Result<(), PlanError> {
        let refused = |span: &std::ops::Range<usize>, problem: Problem| {
            let fault = ConfigFault::NotThere { message: problem.message, hint: problem.hints.into_iter().next() };
            PlanError::Config(self.file.source.fault(span.clone(), fault))
        };
        if let Some(wanted) = &self.file.backend {
            backend(&wanted.value).map_err(|problem| refused(&wanted.span, problem))?;
        }
        if let Some(wanted) = &self.file.image {
            image(&wanted.value).map_err(|problem| refused(&wanted.span, problem))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
