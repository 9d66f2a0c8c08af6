//! What became of a test's files, as part of its result.

use serde::{Deserialize, Serialize};
use testyard_model::Problem;

/// What became of a test's files after its command.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Aftermath {
    /// What it changed in its file system, where it did not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FileChanges>,
    /// Outputs that came back to the working tree, relative to its top.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub returned: Vec<String>,
    /// Files that are kept with the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
    /// Its environment, where it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptEnvironment>,
    /// What of this went wrong, beside the test.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// What a test changed in its file system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FileChanges {
    /// Files and links that are new.
    pub added: usize,
    /// Files and links that are others.
    pub changed: usize,
    /// Paths that are gone.
    pub deleted: usize,
    /// There are more than were counted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// Some of them.
    pub entries: Vec<ChangedFile>,
}

/// A path that a test changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedFile {
    /// Absolute.
    pub path: String,
    /// `added`, `changed` or `deleted`.
    pub change: String,
    /// Bytes that it has now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// A file that is kept with a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Relative to the suite's folder, as the test wrote it.
    pub path: String,
    /// Where it is kept, absolute.
    pub file: String,
    /// Its bytes.
    pub size: u64,
}

/// An environment that was kept for a look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptEnvironment {
    /// Its name for `testyard env`: `MACHINE/NUMBER`.
    pub environment: String,
    /// Until when, in milliseconds since 1970-01-01 UTC.
    pub until_ms: i64,
    /// The command that opens a shell in it.
    pub enter: String,
}
