//! Waiting for processes and signalling them, by pidfd.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::error::{Context, Error, Result, checked};

/// What an ended process and the children it had waited for used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResourceUsage {
    /// Processor time in user mode, in microseconds.
    pub user_us: u64,
    /// Processor time in the kernel, in microseconds.
    pub system_us: u64,
    /// The largest resident set that one of them had, in bytes.
    pub max_rss_bytes: u64,
    /// Reads from disks, in blocks of 512 bytes.
    pub blocks_in: u64,
    /// Writes to disks, in blocks of 512 bytes.
    pub blocks_out: u64,
}

impl ResourceUsage {
    fn from_kernel(usage: &libc::rusage) -> Self {
        let positive = |value: libc::c_long| u64::try_from(value).unwrap_or(0);
        let microseconds = |time: libc::timeval| {
            u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0)
        };
        Self {
            user_us: microseconds(usage.ru_utime),
            system_us: microseconds(usage.ru_stime),
            max_rss_bytes: positive(usage.ru_maxrss) * 1024,
            blocks_in: positive(usage.ru_inblock),
            blocks_out: positive(usage.ru_oublock),
        }
    }
}

/// A descriptor for a process, close-on-exec. It names whoever has the pid now: compare the start time
/// ([`crate::identity::ProcessIdentity::open_pidfd`]) where the pid was learned earlier.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .context("open", || format!("process {}", pid.as_raw_nonzero()))
}

/// Sends a signal, by number; 0 only asks whether it may be sent.
///
/// # Errors
/// `ESRCH` when the process has ended, `EPERM` when it is another user's.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: the descriptor is open for the length of the call, and the null siginfo asks for kill's default.
    let returned = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    checked(returned).map(drop).context("signal", || format!("a process with signal {signal}"))
}

/// Waits for a child of this process to end and returns its wait status, as `waitpid` encodes it. With `nohang`
/// returns nothing at once where it still runs.
///
/// # Errors
/// `ECHILD` when it is no child of this process, or was waited for already.
pub fn pidfd_wait(pidfd: BorrowedFd<'_>, nohang: bool) -> Result<Option<i32>> {
    let mut information = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::__WALL | if nohang { libc::WNOHANG } else { 0 };
    loop {
        // SAFETY: `information` is writable memory of the right type, and the descriptor is open.
        let returned =
            unsafe { libc::waitid(libc::P_PIDFD, pidfd.as_raw_fd().unsigned_abs(), information.as_mut_ptr(), flags) };
        match checked(libc::c_long::from(returned)) {
            Ok(_) => break,
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => return Err(Error::new("wait for", "a child", error)),
        }
    }
    // SAFETY: zeroed above, which is a valid value, and perhaps filled in by the kernel.
    let information = unsafe { information.assume_init() };
    // SAFETY: waitid fills in the members of SIGCHLD or leaves the zeroes.
    let pid = unsafe { information.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: as above; waitid has filled it in.
    let status = unsafe { information.si_status() };
    Ok(Some(match information.si_code {
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_DUMPED => status | 0x80,
        _ => status,
    }))
}

/// The next child that has ended, with its wait status and what it used; nothing when all still run, or there are
/// none.
///
/// # Errors
/// What wait4 says; none is expected.
pub fn wait_any_nohang() -> Result<Option<(Pid, i32, ResourceUsage)>> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to writable memory of the right types.
    let returned = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, usage.as_mut_ptr()) };
    if returned == -1 {
        let error = std::io::Error::last_os_error();
        return if error.raw_os_error() == Some(Errno::CHILD.raw_os_error()) {
            Ok(None)
        } else {
            Err(Error::new("wait for", "any child", error))
        };
    }
    // SAFETY: zeroed above, which is a valid value, and filled in by the kernel where a child was found.
    let usage = unsafe { usage.assume_init() };
    Ok(Pid::from_raw(returned).map(|pid| (pid, status, ResourceUsage::from_kernel(&usage))))
}
