//! From paths and filters to the tests of a run: suites found, globs expanded, files looked up.

mod changed;
mod error;
mod expand;
mod find;
mod list;
mod select;
mod shard;
mod variants;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use testyard_model::{BackendName, EnvironmentLimits, ImageReference, Isolation, Network, Problem};

pub use error::PlanError;
pub use select::{ChangedInputs, Selection};
pub use shard::{Shard, ShardBy, ShardError, ShardInfo};

use crate::cluster::SuiteCluster;
use crate::filter::Facts;
use crate::history::{History, Known, TestKey};
use crate::job::{Ability, Preparation};
use crate::service::{Service, ServiceScope};
use crate::suite::{ConfigFault, Located, RunSettings, SuiteFile, TestUser, nearest};

/// The tests of a run, and their suites.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The suites that have a test here.
    pub suites: Vec<PlannedSuite>,
    /// The tests, in the order of their files.
    pub tests: Vec<PlannedTest>,
    /// Which part of the tests these are, where only a part was asked for.
    pub shard: Option<ShardInfo>,
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
    /// Its services, in the order of its file.
    pub services: Vec<Arc<Service>>,
}

/// A test as people name it: `suite::name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestName<'a> {
    /// The suite's name.
    pub suite: &'a str,
    /// The test's name, unique in the suite.
    pub name: &'a str,
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
    /// Files that it depends on, as patterns below the suite's folder.
    pub inputs: Vec<String>,
    /// After how long it is called slow.
    pub slow_after: Duration,
    /// The variant of the suite's matrix, as it stands in the name's brackets.
    pub variant: Option<String>,
    /// The machine's backend; none means that the executor chooses.
    pub backend: Option<BackendName>,
    /// The machine's image; none means this host.
    pub image: Option<ImageReference>,
    /// Its quarantine, by its place in the suite's file; the first that means it.
    pub quarantine: Option<usize>,
    /// Which of several runs of the same test this is, from 1.
    pub repetition: Option<u32>,
    /// What earlier runs tell of it, once they were asked.
    pub known: Option<Known>,
    /// The services that it uses, in the order of their start.
    pub services: Vec<Arc<Service>>,
    /// The suite's cluster, where it uses that.
    pub cluster: Option<Arc<SuiteCluster>>,
}

impl Plan {
    /// Finds the tests at these paths (the current folder where there are none) that are meant. The history is asked
    /// only where the selection depends on it.
    ///
    /// A path is a suite's folder or file, a folder or file of tests inside a suite, or a folder below which
    /// suites lie.
    ///
    /// # Errors
    /// The first thing that is wrong with a path or a suite file; [`PlanError::NothingSelected`] where no test is left.
    pub fn load(
        paths: &[PathBuf],
        current: &Path,
        selection: &Selection,
        history: &dyn History,
    ) -> Result<Self, PlanError> {
        let here = [PathBuf::from(".")];
        let paths = if paths.is_empty() { here.as_slice() } else { paths };
        let mut plan = Self { suites: Vec::new(), tests: Vec::new(), shard: None };
        for found in find::suites(paths, current)? {
            let (suite, tests) = expand::suite(&found)?;
            if let Some(other) = plan.suites.iter().find(|other| other.name == suite.name) {
                return Err(PlanError::DuplicateSuite {
                    name: suite.name,
                    first: other.file.source.path().to_owned(),
                    second: found.file,
                });
            }
            let mut chosen = find::narrow(&found, &suite, tests)?;
            chosen.iter_mut().for_each(|test| test.suite = plan.suites.len());
            if plan.tests.is_empty() {
                plan.tests = chosen;
            } else {
                plan.tests.append(&mut chosen);
            }
            plan.suites.push(suite);
        }
        select::apply(&mut plan, selection, history)?;
        Ok(plan)
    }

    /// Asks the history about each test of which nothing was asked yet.
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn recall(&mut self, history: &dyn History) -> Result<(), Problem> {
        if self.tests.iter().all(|test| test.known.is_some()) {
            return Ok(());
        }
        let keys: Vec<_> = (0..self.tests.len()).map(|index| self.history_key(index)).collect();
        let known = history.known(&keys)?;
        self.tests.iter_mut().zip(known).for_each(|(test, known)| test.known = Some(known));
        Ok(())
    }

    /// Keeps those of these suites that have a test, in their order.
    fn keep_suites(&mut self, suites: Vec<PlannedSuite>) {
        let mut places = vec![None; suites.len()];
        let used: std::collections::BTreeSet<usize> = self.tests.iter().map(|test| test.suite).collect();
        for (place, suite) in suites.into_iter().enumerate().filter(|(place, _)| used.contains(place)) {
            places[place] = Some(self.suites.len());
            self.suites.push(suite);
        }
        self.tests.iter_mut().for_each(|test| test.suite = places[test.suite].unwrap_or(0));
    }

    /// The suite of a test.
    #[must_use]
    pub fn suite_of(&self, test: &PlannedTest) -> &PlannedSuite {
        &self.suites[test.suite]
    }

    /// A test as people name it.
    #[must_use]
    pub fn key(&self, index: usize) -> TestName<'_> {
        let test = &self.tests[index];
        TestName { suite: &self.suites[test.suite].name, name: &test.name }
    }

    /// A test across runs.
    #[must_use]
    pub fn history_key(&self, index: usize) -> TestKey<'_> {
        let test = &self.tests[index];
        TestKey { file: self.suites[test.suite].file.source.path(), name: test.once() }
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
    /// Its name without the repetition: the same test in every run.
    #[must_use]
    pub fn once(&self) -> &str {
        let suffix = self.repetition.map(|number| format!(" #{number}"));
        suffix.and_then(|suffix| self.name.strip_suffix(suffix.as_str())).unwrap_or(&self.name)
    }

    /// Its name without the variant.
    #[must_use]
    pub fn plain_name(&self) -> &str {
        let variant = self.variant.as_ref().and_then(|label| {
            self.once().strip_suffix(']').and_then(|name| name.strip_suffix(label.as_str()))?.strip_suffix('[')
        });
        variant.unwrap_or(self.once())
    }

    fn facts<'a>(&'a self, suite: &'a str) -> Facts<'a> {
        Facts {
            suite,
            name: &self.name,
            tags: &self.tags,
            needs: &self.needs,
            owner: self.owner.as_deref(),
            variant: self.variant.as_deref(),
            last: self.known.and_then(|known| known.last),
        }
    }

    fn set_needs(&mut self, needs: Vec<Located<String>>) {
        (self.needs, self.need_spans) = needs.into_iter().map(|need| (need.value, need.span)).unzip();
    }
}

impl PlannedSuite {
    /// The services that the suite's tests share, of those some of these tests use, in the order of their start.
    pub(crate) fn shared(&self, tests: &[&PlannedTest]) -> Vec<Arc<Service>> {
        let used =
            |service: &Arc<Service>| tests.iter().any(|test| test.services.iter().any(|one| one.name == service.name));
        let names: Vec<String> = self
            .services
            .iter()
            .filter(|service| service.scope == ServiceScope::Suite && used(service))
            .map(|service| service.name.clone())
            .collect();
        crate::suite::order(&self.file, &names).into_iter().map(|place| self.services[place].clone()).collect()
    }
    /// Refuses a suite whose backend or image is not there, at its place in the file. What is there the caller knows.
    ///
    /// # Errors
    /// What the caller says of the backend or the image.
    pub fn check_place(
        &self,
        backend: impl Fn(&BackendName) -> Result<(), Problem>,
        image: impl Fn(&ImageReference) -> Result<(), Problem>,
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
        for variant in &self.file.variants {
            variant.backend.as_ref().map_or(Ok(()), &backend).map_err(|problem| refused(&self.file.matrix, problem))?;
            variant.image.as_ref().map_or(Ok(()), &image).map_err(|problem| refused(&self.file.matrix, problem))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
