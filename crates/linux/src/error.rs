//! The one error of this crate: which operation on which thing the kernel refused, and with which number.

use std::fmt::Display;
use std::io;

use rustix::io::Errno;
use testyard_model::{Problem, ProblemKind};

/// What every fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// A system call that failed: the operation, the thing it was about, and the kernel's answer.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {subject}")]
pub struct Error {
    /// A verb phrase that follows "cannot": `mount`, `write the uid map of`.
    pub operation: &'static str,
    /// The thing it was about, with the kernel's own words behind it where it gave some.
    pub subject: String,
    /// The kernel's answer.
    pub source: io::Error,
}

impl Error {
    /// An error of this operation on this thing.
    pub fn new(operation: &'static str, subject: impl Display, source: impl Into<io::Error>) -> Self {
        Self { operation, subject: subject.to_string(), source: source.into() }
    }

    /// The kernel's error number; [`Errno::IO`] where the failure was not the kernel's (text that does not parse).
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.source.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
    }

    /// Whether the thing was not there: no such file, process or device.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self.errno(), Errno::NOENT | Errno::SRCH | Errno::NODEV)
    }

    /// Message and cause in one line, for a channel that carries only text.
    #[must_use]
    pub fn with_cause(&self) -> String {
        format!("{self}: {}", self.source)
    }

    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> ProblemKind {
        match self.errno() {
            Errno::PERM | Errno::ACCESS => ProblemKind::Denied,
            Errno::NOSYS | Errno::OPNOTSUPP => ProblemKind::Unsupported,
            Errno::NOSPC | Errno::NOMEM | Errno::AGAIN | Errno::MFILE | Errno::NFILE | Errno::DQUOT | Errno::USERS => {
                ProblemKind::Exhausted
            }
            _ => ProblemKind::System,
        }
    }

    /// As it is shown to people: with its cause, and a hint where the number alone says what to do.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let problem = Problem::from_error(self.kind(), self);
        match self.errno() {
            Errno::PERM | Errno::ACCESS | Errno::NOSYS | Errno::OPNOTSUPP => {
                problem.hint("see what this host allows: testyard doctor")
            }
            Errno::NOSPC => problem.hint("free some disk space or inodes, or raise the limit: testyard reap"),
            Errno::USERS => problem.hint("raise the number of namespaces: sysctl user.max_user_namespaces=15000"),
            Errno::MFILE => problem.hint("raise the number of open files: ulimit -n 20000"),
            Errno::NOMEM | Errno::AGAIN | Errno::NFILE => problem.hint("end what is no longer needed: testyard reap"),
            _ => problem,
        }
    }
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        error.problem()
    }
}

/// Turns a kernel's refusal into an [`Error`]; the closure names the thing and runs only on failure.
pub(crate) trait Context<T> {
    /// Names the operation and the thing.
    fn context<S: Display>(self, operation: &'static str, subject: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: Display>(self, operation: &'static str, subject: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|source| Error::new(operation, subject(), source))
    }
}

/// The result of a raw system call: minus one means that `errno` holds the reason.
pub(crate) fn checked(returned: libc::c_long) -> io::Result<libc::c_long> {
    if returned == -1 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// An error for text of the kernel's that is not what it should be.
pub(crate) fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_operation_thing_and_cause() {
        let error = Error::new("mount", "overlay on /x", Errno::PERM);
        assert_eq!(error.to_string(), "cannot mount overlay on /x");
        assert_eq!(error.errno(), Errno::PERM);
        let problem = error.problem();
        assert_eq!(problem.kind, ProblemKind::Denied);
        assert_eq!(problem.causes, ["Operation not permitted (os error 1)"]);
        assert_eq!(problem.hints, ["see what this host allows: testyard doctor"]);
    }

    #[test]
    fn an_error_without_number_is_an_input_output_error() {
        assert_eq!(Error::new("read", "/proc/x", malformed("no colon")).errno(), Errno::IO);
    }
}
