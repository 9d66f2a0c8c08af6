//! Failpoints: the places at which the kill matrix ends a process of ours.
//!
//! Code that makes or removes something calls [`reach`] just after. In a debug build two variables, read once by
//! [`prepare`], make it do something: `TESTYARD_STEP_LOG=<file>` gets a line `<pid> <step>` for each step reached,
//! and `TESTYARD_KILL_AT=<step>` kills the process that reaches that step. In a release build both are ignored
//! and [`reach`] is empty, so an environment variable can never end a user's machine.

pub use testyard_model::step::Step;

/// Reads the environment and opens the log, once. To be called first in `main`, before the process's file system
/// or environment changes; later calls do nothing.
pub fn prepare() {
    #[cfg(debug_assertions)]
    active::prepare();
}

/// Says that the process has just done what the step names. Ends the process if it was asked to end here.
#[inline]
pub fn reach(step: Step) {
    #[cfg(debug_assertions)]
    active::reach(step);
    #[cfg(not(debug_assertions))]
    let _ = step;
}

/// The open log, if there is one: who closes descriptors wholesale must keep this one.
#[must_use]
pub fn log() -> Option<std::os::fd::BorrowedFd<'static>> {
    #[cfg(debug_assertions)]
    return active::log();
    #[cfg(not(debug_assertions))]
    None
}

#[cfg(debug_assertions)]
mod active {
    use std::ffi::OsString;
    use std::os::fd::OwnedFd;
    use std::path::Path;
    use std::sync::OnceLock;

    use rustix::fs::{Mode, OFlags, open};
    use rustix::process::{Signal, getpid, kill_process};

    use super::Step;

    struct Switches {
        kill_at: Option<OsString>,
        log: Option<OwnedFd>,
    }

    static SWITCHES: OnceLock<Switches> = OnceLock::new();

    pub(super) fn prepare() {
        SWITCHES.get_or_init(|| Switches {
            kill_at: std::env::var_os("TESTYARD_KILL_AT"),
            log: std::env::var_os("TESTYARD_STEP_LOG").and_then(|path| open_log(Path::new(&path))),
        });
    }

    pub(super) fn log() -> Option<std::os::fd::BorrowedFd<'static>> {
        use std::os::fd::AsFd as _;

        SWITCHES.get().and_then(|switches| switches.log.as_ref()).map(|log| log.as_fd())
    }

    fn open_log(path: &Path) -> Option<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
        open(path, flags, Mode::from_raw_mode(0o600)).ok()
    }

    pub(super) fn reach(step: Step) {
        let Some(switches) = SWITCHES.get() else { return };
        if let Some(log) = &switches.log {
            // One write of one line: several processes append to the same file.
            let line = format!("{} {}\n", getpid().as_raw_nonzero(), step.as_str());
            let _ = rustix::io::write(log, line.as_bytes());
        }
        if switches.kill_at.as_deref().is_some_and(|word| word == step.as_str()) {
            let _ = kill_process(getpid(), Signal::KILL);
            // Pid 1 of a pid namespace does not take a SIGKILL from inside it.
            crate::process::exit_immediately(137);
        }
    }
}
