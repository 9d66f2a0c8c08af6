//! A suite file, `testyard.toml`, as written: what its keys say, and where.
//!
//! Reading it touches no other file: globs are expanded and paths looked up by [`crate::plan`]. Every value
//! that a later step may refuse keeps its place in the text, so that the refusal can point at it.

mod check;
mod cluster;
mod error;
mod keys;
mod parse;
mod quarantine;
mod read;
mod schema;
mod services;
mod settings;
mod source;
mod variant;

use std::ops::Range;

use testyard_model::{BackendName, ImageReference};

use crate::cluster::SuiteCluster;

pub(crate) use check::PLACEHOLDERS;
pub(crate) use error::nearest;
pub use error::{ConfigError, ConfigFault};
pub use parse::parse;
pub use quarantine::QuarantineEntry;
pub use schema::schema;
pub use services::ServiceEntry;
pub(crate) use services::order;
pub use settings::{Resources, Settings, TestUser};
pub use source::SuiteSource;
pub use variant::Variant;

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
    pub backend: Option<Located<BackendName>>,
    /// `suite.image`; none means `host`.
    pub image: Option<Located<ImageReference>>,
    /// `suite.prepare`, `suite.restore` and what they depend on.
    pub preparation: WrittenPreparation,
    /// The variants of `suite.matrix`, in order; none means that each test runs once, as it is.
    pub variants: Vec<Variant>,
    /// Where they are written; empty where they are not.
    pub matrix: Range<usize>,
    /// `suite.defaults`: what each test gets unless it says otherwise.
    pub defaults: Settings,
    /// `sync`: what machines have of the working tree.
    pub sync: SyncSettings,
    /// `run`: how to run this suite unless the command line says otherwise.
    pub run: RunSettings,
    /// `cluster`: what tests that ask for it can reach.
    pub cluster: Option<SuiteCluster>,
    /// Each `[[service]]`, in order.
    pub services: Vec<ServiceEntry>,
    /// Each `[[test]]`, in order.
    pub tests: Vec<TestEntry>,
    /// Each `[[tests]]`, in order.
    pub globs: Vec<GlobEntry>,
    /// Each `[[quarantine]]`, in order.
    pub quarantine: Vec<QuarantineEntry>,
}

/// `sync = { … }`: what machines have of the working tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SyncSettings {
    /// A copy that the machine keeps, also where it could be shown the tree itself.
    pub always: bool,
    /// Git's objects and references, beside the files of a copy.
    pub history: bool,
}

/// What is done before a suite's tests, and after them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WrittenPreparation {
    /// `suite.prepare`.
    pub prepare: Option<CommandLine>,
    /// `suite.restore`.
    pub restore: Option<CommandLine>,
    /// `suite.inputs`: files that decide whether `prepare` must be run again, as patterns below the suite's folder.
    pub inputs: Vec<String>,
    /// `suite.prepare-timeout`: how long each of both may take, in milliseconds.
    pub timeout_ms: Option<u64>,
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
