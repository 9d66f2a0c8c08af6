//! What a process may say of itself: whom its orphans go to, who may look into it, what it may open and keeps open.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

use crate::error::{Context, Error, Result, checked};

/// Whether orphans below this process become its children, instead of pid 1's.
///
/// # Errors
/// None is expected.
pub fn set_subreaper(wanted: bool) -> Result<()> {
    // Only whether there is a pid matters: prctl takes a flag.
    let flag = if wanted { Some(rustix::process::getpid()) } else { None };
    rustix::process::set_child_subreaper(flag).context("become the reaper of", || "orphans")
}

/// Whether other processes of the same user may trace this one and read its `/proc` folder. Without it, the files
/// in there belong to the host's root.
///
/// # Errors
/// None is expected.
pub fn set_dumpable(wanted: bool) -> Result<()> {
    let behavior = if wanted { DumpableBehavior::Dumpable } else { DumpableBehavior::NotDumpable };
    rustix::process::set_dumpable_behavior(behavior).context("change who may trace", || "this process")
}

/// Gives up, for ever, that exec grants privileges (setuid programs, file capabilities). What an unprivileged
/// process must do before it may install a seccomp filter.
///
/// # Errors
/// None is expected.
pub fn set_no_new_privileges() -> Result<()> {
    rustix::thread::set_no_new_privs(true).context("forbid new privileges to", || "this process")
}

/// The signal (by number) that this process gets when the thread that made it ends. Cleared by exec of a setuid
/// program and by changes of user, and too late where the parent has ended already: check afterwards.
///
/// # Errors
/// `EINVAL` for a number that is no signal.
pub fn set_parent_death_signal(signal: i32) -> Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a number and touches no memory.
    let returned = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::c_ulong::from(signal.unsigned_abs()), 0, 0, 0) };
    checked(libc::c_long::from(returned)).map(drop).context("set the parent's death signal to", || signal)
}

/// Makes this process the leader of a new session and a new process group, without a terminal.
///
/// # Errors
/// `EPERM` when it leads a process group already.
pub fn set_session() -> Result<()> {
    rustix::process::setsid().map(drop).context("make", || "a session")
}

/// Sets a resource limit of this process; nothing means unlimited. A hard limit once lowered stays so for who has
/// not `CAP_SYS_RESOURCE`.
///
/// # Errors
/// `EPERM` for raising a hard limit, `EINVAL` for a soft one above the hard one.
pub fn set_resource_limit(resource: Resource, soft: Option<u64>, hard: Option<u64>) -> Result<()> {
    let limit = Rlimit { current: soft, maximum: hard };
    rustix::process::setrlimit(resource, limit).context("set", || format!("the limit {resource:?}"))
}

/// How many files a process may open, as it was before it was raised to what is allowed at most.
///
/// What a process starts should have the usual limit again: programs that use `select` cannot have more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    soft: Option<u64>,
    hard: Option<u64>,
}

impl OpenFiles {
    /// Allows this process all that it may allow itself; nothing where it has that already.
    #[must_use]
    pub fn raise() -> Option<Self> {
        let Rlimit { current: soft, maximum: hard } = rustix::process::getrlimit(Resource::Nofile);
        (soft != hard && set_resource_limit(Resource::Nofile, hard, hard).is_ok()).then_some(Self { soft, hard })
    }

    /// The limit as it was, for this process.
    ///
    /// # Errors
    /// None is expected.
    pub fn restore(self) -> Result<()> {
        set_resource_limit(Resource::Nofile, self.soft, self.hard)
    }
}

/// Ends the process at once: no destructor runs, no handler, no buffer is flushed. All threads end.
pub fn exit_immediately(code: i32) -> ! {
    // SAFETY: _exit has no precondition and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` on but the ones named. Only for a process that is about to exec and uses no
/// object any more that owns one of the others.
///
/// # Errors
/// `ENOSYS` before Linux 5.9.
pub fn close_range_from(first: RawFd, except: &[BorrowedFd<'_>]) -> Result<()> {
    close_gaps(first, except).context("close descriptors from", || first)
}

fn close_gaps(first: RawFd, except: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<RawFd> = except.iter().map(AsRawFd::as_raw_fd).filter(|fd| *fd >= first).collect();
    kept.sort_unstable();
    let mut start = first.unsigned_abs();
    for fd in kept {
        let fd = fd.unsigned_abs();
        if fd > start {
            close_range(start, fd - 1, 0)?;
        }
        start = start.max(fd + 1);
    }
    close_range(start, libc::c_uint::MAX, 0)
}

pub(super) fn close_range(first: libc::c_uint, last: libc::c_uint, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: closes or marks descriptors by number and touches no memory; the callers' documentation says who
    // may ask for closing.
    let returned = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    checked(returned).map(drop)
}

/// The error for a process that is not there.
pub(super) fn no_such_process(pid: i32) -> Error {
    Error::new("find", format_args!("process {pid}"), Errno::SRCH)
}
