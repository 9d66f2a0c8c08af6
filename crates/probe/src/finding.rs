//! What a probe found: what its process says in one line of JSON.

use std::error::Error;
use std::fmt::Display;

use serde::{Deserialize, Serialize};

/// A probe's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub(crate) yes: bool,
    /// What was done, or what refused: a lower-case fragment.
    pub(crate) reason: String,
    /// The command that would provide it.
    pub(crate) provide: Option<String>,
    /// More that a person may want to know.
    pub(crate) detail: Option<String>,
}

/// A probe ends with what it did or with what it lacks.
pub(crate) type Outcome = Result<Done, Lacking>;

/// The ability is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) reason: String,
    pub(crate) detail: Option<String>,
}

impl Done {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), detail: None }
    }

    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

/// The ability is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lacking {
    pub(crate) reason: String,
    pub(crate) provide: Option<String>,
    pub(crate) detail: Option<String>,
    /// The kernel's error number, where that was the reason; the hint may depend on it.
    pub(crate) errno: Option<i32>,
}

impl Lacking {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), provide: None, detail: None, errno: None }
    }

    /// What was being done, and everything that the error says about why not.
    pub(crate) fn doing(what: impl Display, error: &(dyn Error + 'static)) -> Self {
        let mut reason = format!("{what}: {error}");
        let mut errno = errno_of(error);
        let mut source = error.source();
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            errno = errno.or_else(|| errno_of(cause));
            source = cause.source();
        }
        Self { errno, ..Self::new(reason) }
    }

    pub(crate) fn provide(mut self, command: impl Into<String>) -> Self {
        self.provide = Some(command.into());
        self
    }

    /// A command, where there is one and none was named before.
    pub(crate) fn provide_or(mut self, command: Option<String>) -> Self {
        self.provide = self.provide.or(command);
        self
    }
}

fn errno_of(error: &(dyn Error + 'static)) -> Option<i32> {
    if let Some(error) = error.downcast_ref::<std::io::Error>() {
        return error.raw_os_error();
    }
    error.downcast_ref::<rustix::io::Errno>().map(|errno| errno.raw_os_error())
}

impl From<testyard_linux::Error> for Lacking {
    fn from(error: testyard_linux::Error) -> Self {
        let errno = error.source.raw_os_error();
        Self { errno, ..Self::new(format!("{error}: {}", error.source)) }
    }
}

impl From<Outcome> for Finding {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Ok(done) => Self { yes: true, reason: done.reason, provide: None, detail: done.detail },
            Err(lacking) => {
                Self { yes: false, reason: lacking.reason, provide: lacking.provide, detail: lacking.detail }
            }
        }
    }
}

/// Names the step that failed.
pub(crate) trait Step<T> {
    fn step(self, what: impl Display) -> Result<T, Lacking>;
}

impl<T, E: Error + 'static> Step<T> for Result<T, E> {
    fn step(self, what: impl Display) -> Result<T, Lacking> {
        self.map_err(|error| Lacking::doing(what, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_is_named_with_its_causes_and_number() {
        let error = testyard_linux::Error::new("mount", "proc", rustix::io::Errno::PERM);
        let lacking = Err::<(), _>(error).step("mounting a fresh proc").expect_err("it failed");
        assert_eq!(lacking.reason, "mounting a fresh proc: cannot mount proc: Operation not permitted (os error 1)");
        assert_eq!(lacking.errno, Some(1));
    }
}
