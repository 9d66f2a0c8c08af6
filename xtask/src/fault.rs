//! Why a verb could not do its work. A failed check is a result, not a fault.

use std::fmt;
use std::path::Path;

/// What a verb gives back.
pub(crate) type Outcome<T> = Result<T, Fault>;

/// Why a verb stopped.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The command line makes no sense.
    Usage(String),
    /// A program could not be started, or ended badly where it must not.
    Program { line: String, why: String },
    /// A file could not be read or written.
    File { path: String, why: String },
    /// Something this verb needs does not exist (yet).
    Missing { what: String, hint: String },
}

impl Fault {
    /// For an IO error on a path.
    pub(crate) fn file(path: &Path, error: &std::io::Error) -> Self {
        Self::File { path: path.display().to_string(), why: error.to_string() }
    }

    /// 2 for wrong usage, 69 for everything the surroundings did: the codes that `testyard` itself uses.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            _ => 69,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) => f.write_str(message),
            Self::Program { line, why } => write!(f, "`{line}`: {why}"),
            Self::File { path, why } => write!(f, "{path}: {why}"),
            Self::Missing { what, hint } => write!(f, "{what}\nhint: {hint}"),
        }
    }
}

impl std::error::Error for Fault {}
