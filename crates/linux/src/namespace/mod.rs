//! Namespaces: leaving one's own, joining others', naming and filling new ones.

mod id_map;
#[cfg(test)]
mod tests;

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open as open_file};
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

pub use id_map::{IdMap, granted_user_namespace, knows_every_id, new_user_namespace, run_newidmap, write_id_maps};

use crate::error::{Context, Result, checked};
use crate::process::CloneFlags;

/// A sort of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Users, groups and capabilities.
    User,
    /// Mounts.
    Mount,
    /// Process numbers.
    Pid,
    /// System V IPC and message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Network.
    Network,
    /// The view of the cgroup tree.
    Cgroup,
}

impl Kind {
    /// Every sort, in the order in which a process joins them: users first, which gives the right to join the others.
    pub const ALL: [Self; 7] = [Self::User, Self::Mount, Self::Pid, Self::Ipc, Self::Uts, Self::Network, Self::Cgroup];

    /// Its name in `/proc/PID/ns`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mnt",
            Self::Pid => "pid",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Network => "net",
            Self::Cgroup => "cgroup",
        }
    }

    /// Its flag.
    #[must_use]
    pub const fn flag(self) -> CloneFlags {
        match self {
            Self::User => CloneFlags::NEWUSER,
            Self::Mount => CloneFlags::NEWNS,
            Self::Pid => CloneFlags::NEWPID,
            Self::Ipc => CloneFlags::NEWIPC,
            Self::Uts => CloneFlags::NEWUTS,
            Self::Network => CloneFlags::NEWNET,
            Self::Cgroup => CloneFlags::NEWCGROUP,
        }
    }
}

/// Moves this thread into new namespaces; with [`CloneFlags::NEWPID`] not itself, but its next child.
///
/// # Errors
/// `EPERM` where namespaces are refused, `EINVAL` for a user namespace in a process with several threads.
pub fn unshare(flags: CloneFlags) -> Result<()> {
    let flags = UnshareFlags::from_bits_retain(flags.bits().try_into().unwrap_or(u32::MAX));
    // SAFETY: the flags are CloneFlags, of which none unshares the descriptor table; the rest leaves memory and
    // descriptors as they are.
    unsafe { rustix::thread::unshare_unsafe(flags) }.context("leave for new namespaces", || format!("{flags:?}"))
}

/// Joins a namespace (its descriptor, and its flag or none to take any), or several of a process at once (its pidfd,
/// and the flags of those wanted). A pid namespace is joined by the next child, not by the caller. In the order of
/// the kernel: the user namespace first.
///
/// # Errors
/// `EPERM` without capabilities over it, `EINVAL` for a user or mount namespace in a process with several threads,
/// `ESRCH` when the process of a pidfd has ended.
pub fn enter(namespace: BorrowedFd<'_>, flags: CloneFlags) -> Result<()> {
    // SAFETY: setns takes a descriptor and a number, and touches no memory.
    let returned = unsafe { libc::setns(namespace.as_raw_fd(), flags.bits().try_into().unwrap_or(0)) };
    checked(libc::c_long::from(returned)).map(drop).context("join", || format!("namespaces {:#x}", flags.bits()))
}

/// A descriptor that names, and keeps alive, a namespace of a process (of this one where none is named).
///
/// # Errors
/// `EACCES` for a process that may not be looked into, `ENOENT` when there is none.
pub fn open(process: Option<Pid>, kind: Kind) -> Result<OwnedFd> {
    let path = match process {
        Some(pid) => format!("/proc/{}/ns/{}", pid.as_raw_nonzero(), kind.as_str()),
        None => format!("/proc/self/ns/{}", kind.as_str()),
    };
    open_file(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context("open", || path)
}

/// Sets the host name of this UTS namespace.
///
/// # Errors
/// `EPERM` without capabilities over it, `EINVAL` for more than 64 bytes.
pub fn set_host_name(name: &str) -> Result<()> {
    rustix::system::sethostname(name.as_bytes()).context("set the host name to", || name.to_owned())
}

/// Brings the loopback interface of this network namespace up, with its addresses.
///
/// # Errors
/// `EPERM` without capabilities over the namespace.
pub fn loopback_up() -> Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let operation = "bring up";
    let subject = || "the loopback interface";
    let socket =
        socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).context(operation, subject)?;
    // SAFETY: all zeroes is a valid value of this structure of plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo\0") {
        *to = from as libc::c_char;
    }
    // A fresh loopback has no other flag worth keeping; the kernel ignores what may not be changed.
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING | libc::IFF_LOOPBACK) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads a `struct ifreq`, which this is.
    let returned = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    checked(libc::c_long::from(returned)).map(drop).context(operation, subject)
}

/// How many more namespaces of each sort this user namespace may make, as `/proc/sys/user/max_*` says; nothing where
/// that is not to be read.
#[must_use]
pub fn limit(kind: Kind) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/user/max_{}_namespaces", kind.as_str())).ok()?.trim().parse().ok()
}
