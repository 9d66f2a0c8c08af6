//! A suite file, `testyard.toml`, as written: what its keys say, and where.
//!
//! Reading it touches no other file: globs are expanded and paths looked up by [`crate::plan`]. Every value
//! that a later step may refuse keeps its place in the text, so that the refusal can point at it.

mod check;
mod error;
mod parse;
mod read;
mod source;

use std::collections::BTreeMap;
use std::ops::Range;

use testyard_model::{BackendName, ByteSize, ImageReference, Isolation, Network};

pub(crate) use check::PLACEHOLDERS;
pub(crate) use error::nearest;
pub use error::{ConfigError, ConfigFault};
pub use parse::parse;
pub use source::SuiteSource;

/// The name of a suite's file.
pub const FILE_NAME: &str = "testyard.toml";

/// The version of the format that this crate reads.
pub const FORMAT: i64 = 1;

/// A value and the bytes of the file that it was written in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its place in the text, in bytes.
    pub span: Range<usize>,
}

/// A whole suite file.
#[derive(Debug, Clone, PartialEq)]
pub struct SuiteFile {
    /// Its text and path.
    pub source: SuiteSource,
    /// `suite.name`; none means the name of the folder.
    pub name: Option<Located<String>>,
    /// `suite.backend`; none means `auto`.
    pub backend: Option<BackendName>,
    /// `suite.image`; none means `host`.
    pub image: Option<ImageReference>,
    /// `suite.defaults`: what each test gets unless it says otherwise.
    pub defaults: Settings,
    /// `run`: how to run this suite unless the command line says otherwise.
    pub run: RunSettings,
    /// Each `[[test]]`, in order.
    pub tests: Vec<TestEntry>,
    /// Each `[[tests]]`, in order.
    pub globs: Vec<GlobEntry>,
}

/// `run = { … }`: defaults of `testyard run`'s own options.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunSettings {
    /// Tests at once.
    pub jobs: Option<u32>,
    /// Start no more tests after the first failure.
    pub fail_fast: Option<bool>,
    /// A skipped test counts as failed.
    pub no_skip: Option<bool>,
}

/// One `[[test]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct TestEntry {
    /// Its name, unique in the suite.
    pub name: Located<String>,
    /// What it runs.
    pub command: CommandLine,
    /// Everything else.
    pub settings: Settings,
}

/// One `[[tests]]`: a test for each file that matches.
#[derive(Debug, Clone, PartialEq)]
pub struct GlobEntry {
    /// Patterns below the suite's folder; at least one.
    pub globs: Vec<Located<String>>,
    /// Patterns of files to leave out.
    pub exclude: Vec<Located<String>>,
    /// A template with `{file}`, `{name}` or `{stem}`; none means that each file is itself executed.
    pub command: Option<Located<CommandLine>>,
    /// Everything else.
    pub settings: Settings,
}

/// What a test runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// A program and its arguments, verbatim.
    Arguments(Vec<String>),
    /// A line for `/bin/sh -c`.
    Shell(String),
}

impl CommandLine {
    /// The arguments to execute.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        match self {
            Self::Arguments(argv) => argv.clone(),
            Self::Shell(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
        }
    }
}

/// Whom a test runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TestUser {
    /// The user who runs Testyard: the same ids and groups, no capabilities.
    #[default]
    Caller,
    /// Root inside the environment.
    Root,
}

/// What a test, a glob or the suite's defaults may say.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// Abilities that the test cannot do without.
    pub needs: Vec<Located<String>>,
    /// The least isolation it accepts.
    pub isolation: Option<Located<Isolation>>,
    /// Its network.
    pub network: Option<Located<Network>>,
    /// How long it may take, in milliseconds of wall time.
    pub timeout_ms: Option<u64>,
    /// Variables it gets, by name.
    pub env: BTreeMap<String, String>,
    /// What it uses and may use.
    pub resources: Resources,
    /// Whom it runs as.
    pub user: Option<TestUser>,
    /// Where it runs, relative to the suite's folder or absolute.
    pub cwd: Option<Located<String>>,
    /// Words to select it by.
    pub tags: Vec<String>,
    /// Whom to ask about it.
    pub owner: Option<String>,
    /// How often a failure is tried again.
    pub retries: Option<u32>,
    /// Files that come back to the working tree, as patterns below the suite's folder.
    pub outputs: Vec<String>,
}

/// `resources = { … }`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resources {
    /// Processor time, in cores: a limit, and what the scheduler sets aside.
    pub cpus: Option<f64>,
    /// Memory: a limit, and what the scheduler sets aside.
    pub memory: Option<ByteSize>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Bytes it may write over its root.
    pub disk: Option<ByteSize>,
    /// Names of things of which there is one: tests that share a name never run at the same time.
    pub exclusive: Vec<String>,
}

impl Settings {
    /// These settings where they say something, else the defaults. Variables, tags, needs, outputs and
    /// exclusive names of both are joined.
    #[must_use]
    pub fn over(&self, defaults: &Self) -> Self {
        let own = self.clone();
        let mut env = defaults.env.clone();
        env.extend(own.env);
        Self {
            needs: joined(&defaults.needs, own.needs, |a, b| a.value == b.value),
            isolation: own.isolation.or_else(|| defaults.isolation.clone()),
            network: own.network.or_else(|| defaults.network.clone()),
            timeout_ms: own.timeout_ms.or(defaults.timeout_ms),
            env,
            resources: Resources {
                cpus: own.resources.cpus.or(defaults.resources.cpus),
                memory: own.resources.memory.or(defaults.resources.memory),
                pids: own.resources.pids.or(defaults.resources.pids),
                disk: own.resources.disk.or(defaults.resources.disk),
                exclusive: joined(&defaults.resources.exclusive, own.resources.exclusive, PartialEq::eq),
            },
            user: own.user.or(defaults.user),
            cwd: own.cwd.or_else(|| defaults.cwd.clone()),
            tags: joined(&defaults.tags, own.tags, PartialEq::eq),
            owner: own.owner.or_else(|| defaults.owner.clone()),
            retries: own.retries.or(defaults.retries),
            outputs: joined(&defaults.outputs, own.outputs, PartialEq::eq),
        }
    }
}

fn joined<T: Clone>(first: &[T], second: Vec<T>, same: impl Fn(&T, &T) -> bool) -> Vec<T> {
    let mut all = first.to_vec();
    for item in second {
        if !all.iter().any(|other| same(other, &item)) {
            all.push(item);
        }
    }
    all
}
