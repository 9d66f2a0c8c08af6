//! What can be wrong with the registry's file, whatever was asked of it.

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use testyard_model::{Problem, ProblemKind};

/// The registry's file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Its content is not what was written: truncated, overwritten, a failing disk.
    #[error("the registry {} is damaged", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What showed it.
        #[source]
        source: DamageSign,
    },
    /// There are machines' folders, but the file that says what they are is gone.
    #[error("the registry {} is missing, but {} is not empty", file.display(), machines.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// The folder that holds what the file should describe.
        machines: PathBuf,
    },
    /// A newer Testyard wrote it.
    #[error("the registry {} has format {found}; this testyard knows formats up to {known}", file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: i64,
        /// The newest format known here.
        known: i64,
    },
    /// Another process kept it locked for longer than the busy timeout.
    #[error("the registry {} stayed locked by another process for {seconds} s", file.display())]
    Busy {
        /// The file.
        file: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// The disk is full.
    #[error("no space left for the registry {}", file.display())]
    Full {
        /// The file.
        file: PathBuf,
    },
    /// The operating system or SQLite refused.
    #[error("cannot {action} in the registry {}", file.display())]
    Failed {
        /// What was being done.
        action: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The file could not be made or looked at.
    #[error("cannot {action} the registry {}", file.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// How damage showed itself.
#[derive(Debug, thiserror::Error)]
pub enum DamageSign {
    /// The file has no content; Testyard never leaves it so.
    #[error("the file is empty")]
    Empty,
    /// The file does not end with a page.
    #[error("the file was cut off after {0} bytes")]
    Cut(u64),
    /// It is a database of something else.
    #[error("the file belongs to another program (application id {0:#x})")]
    Foreign(i64),
    /// SQLite found it malformed.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A row holds what this version cannot read.
    #[error("the {column} of {row} cannot be read: {text:?}")]
    Value {
        /// Which row.
        row: String,
        /// Which column.
        column: &'static str,
        /// What it holds.
        text: String,
    },
    /// SQLite's own check reported this.
    #[error("{0}")]
    Check(String),
}

impl RegistryError {
    /// Sorts an error of SQLite's.
    pub(crate) fn from_sqlite(file: &Path, action: &'static str, source: rusqlite::Error) -> Self {
        let file = file.to_owned();
        // 522 is SQLITE_IOERR_SHORT_READ: the file ends before its header says.
        let short_read = source.sqlite_error().is_some_and(|error| error.extended_code == 522);
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged { file, source: source.into() },
            _ if short_read => Self::Damaged { file, source: source.into() },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Self::Busy { file, seconds: crate::registry::BUSY_SECONDS }
            }
            Some(ErrorCode::DiskFull) => Self::Full { file },
            _ => Self::Failed { action, file, source },
        }
    }

    /// The error as people see it, with what to do next.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let kind = match self {
            Self::Damaged { .. } | Self::Missing { .. } | Self::Failed { .. } | Self::File { .. } => {
                ProblemKind::System
            }
            Self::Newer { .. } => ProblemKind::Unsupported,
            Self::Busy { .. } => ProblemKind::Unavailable,
            Self::Full { .. } => ProblemKind::Exhausted,
        };
        let problem = Problem::from_error(kind, self);
        match self {
            Self::Damaged { file, .. } => problem
                .hint(format!("restore {0} and {0}-wal from a backup, if there is one", file.display()))
                .hint(format!(
                    "or end what still runs (`testyard reap` cannot know it), then move the file away to begin anew: mv {0} {0}.damaged",
                    file.display()
                )),
            Self::Missing { file, machines } => problem
                .hint(format!("put {} back, so that `testyard reap` can remove what it describes", file.display()))
                .hint(format!("or move the machines' files away to begin anew: mv {0} {0}.orphaned", machines.display())),
            Self::Newer { .. } => problem.hint("use the newer testyard, or another TESTYARD_HOME for this one"),
            Self::Busy { file, .. } => problem.hint(format!("see who holds it: fuser -v {}", file.display())),
            Self::Full { file } => problem
                .hint(format!("free some space: df -h {}", file.parent().unwrap_or(file).display()))
                .hint("testyard image prune"),
            Self::Failed { .. } | Self::File { .. } => problem,
        }
    }
}
