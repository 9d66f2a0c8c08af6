//! What a test did to the files of its environment, as it is told and asked for.

use serde::{Deserialize, Serialize};
use testyard_model::EnvironmentId;

use crate::text::RawText;

/// One line of the answer to [`crate::Request::Changes`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeLine {
    /// Where the source is, before its changes.
    Source(RawText),
    /// A path that is no longer as it was.
    Entry(FileChange),
    /// There was more than was asked for.
    Cut,
}

/// A path that is no longer as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// In which part of the environment's files.
    pub part: Part,
    /// Relative to the root of that part.
    pub path: RawText,
    /// What happened.
    pub change: ChangeKind,
    /// What is there; of what was deleted, what was there.
    pub file: FileKind,
    /// Bytes of a file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    /// Where a link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<RawText>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Parts of an environment's files that are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The working tree; paths are relative to its top.
    Source,
    /// Everything else; paths are relative to `/`.
    Root,
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It was there and is another, or has another mode or owner.
    Changed,
    /// It is gone.
    Deleted,
}

impl ChangeKind {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Deleted => "deleted",
        }
    }
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, pipe or socket.
    Special,
}

/// Some files of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Of which.
    pub environment: EnvironmentId,
    /// From which part.
    pub part: Part,
    /// As they are now, or as they were before.
    pub when: When,
}

/// Before or after what an environment's commands did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// As the environment began.
    Before,
    /// As they are now. Only what was changed is there.
    Now,
}
