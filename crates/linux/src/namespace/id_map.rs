//! User namespaces and the maps that give ids in them a meaning outside.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;

use rustix::process::{Pid, Signal, getpid, getppid};

use super::Kind;
use crate::error::{Context, Error, Result, checked, malformed};
use crate::process::{pidfd_signal, pidfd_wait};

/// A run of ids that mean something in a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdMap {
    /// The first id inside.
    pub inside: u32,
    /// What it is outside, as the process that writes the map counts.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl IdMap {
    /// A map of one id.
    #[must_use]
    pub const fn single(inside: u32, outside: u32) -> Self {
        Self { inside, outside, count: 1 }
    }
}

/// Whether this user namespace knows every id, as that of a host does. Inside a container there may be too few to give
/// any away.
#[must_use]
pub fn knows_every_id() -> bool {
    ["/proc/self/uid_map", "/proc/self/gid_map"]
        .iter()
        .all(|file| fs::read_to_string(file).is_ok_and(|map| is_identity(&map)))
}

fn is_identity(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Gives a process's new user namespace its maps. Each can be written once, in one go.
///
/// An ordinary user may map only the own id, and the groups only after setgroups was denied.
///
/// # Errors
/// `EPERM` for ids that are not the writer's to give, `EINVAL` for overlapping runs, `EACCES` when the process is
/// not dumpable and the writer is not root.
pub fn write_id_maps(process: Pid, uids: &[IdMap], gids: &[IdMap], deny_setgroups: bool) -> Result<()> {
    let folder = format!("/proc/{}", process.as_raw_nonzero());
    let write = |file: &str, text: &str| {
        let path = format!("{folder}/{file}");
        fs::write(&path, text).context("write", || format!("{path} ({})", text.trim().replace('\n', ", ")))
    };
    if deny_setgroups {
        write("setgroups", "deny")?;
    }
    write("gid_map", &lines(gids))?;
    write("uid_map", &lines(uids))
}

/// Has newuidmap and newgidmap (package `uidmap`) write the maps: they let an ordinary user map the ranges that
/// `/etc/subuid` and `/etc/subgid` grant. setgroups stays allowed.
///
/// # Errors
/// `ENOENT` when a program is not installed; what the program said when it refused.
pub fn run_newidmap(process: Pid, uids: &[IdMap], gids: &[IdMap]) -> Result<()> {
    for (program, maps) in [("newuidmap", uids), ("newgidmap", gids)] {
        let mut command = Command::new(program);
        command.arg(process.as_raw_nonzero().to_string());
        for map in maps {
            command.args([map.inside.to_string(), map.outside.to_string(), map.count.to_string()]);
        }
        let output = command.output().context("run", || program)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let source = io::Error::new(io::ErrorKind::PermissionDenied, said);
            return Err(Error::new("map ids with", program, source));
        }
    }
    Ok(())
}

/// A user namespace with these maps, alive as long as its descriptor. For idmapped mounts, and for processes that
/// join it later.
///
/// A short-lived process holds it while the maps are written; that process shares this one's memory and only
/// waits, so nothing is copied however large the caller is, and the caller may have many threads.
///
/// # Errors
/// As clone and [`write_id_maps`].
pub fn new_user_namespace(uids: &[IdMap], gids: &[IdMap], deny_setgroups: bool) -> Result<OwnedFd> {
    held_user_namespace(|pid| write_id_maps(pid, uids, gids, deny_setgroups))
}

/// As [`new_user_namespace`], with maps that newuidmap and newgidmap write for an ordinary user.
///
/// # Errors
/// As clone and [`run_newidmap`].
pub fn granted_user_namespace(uids: &[IdMap], gids: &[IdMap]) -> Result<OwnedFd> {
    held_user_namespace(|pid| run_newidmap(pid, uids, gids))
}

fn held_user_namespace(fill: impl FnOnce(Pid) -> Result<()>) -> Result<OwnedFd> {
    let holder = Holder::start()?;
    let filled = fill(holder.pid).and_then(|()| super::open(Some(holder.pid), Kind::User));
    let ended = holder.end();
    let namespace = filled?;
    ended?;
    Ok(namespace)
}

/// The process that keeps a new user namespace alive until somebody has opened it.
struct Holder {
    pid: Pid,
    pidfd: OwnedFd,
    /// Its stack. Never read here, only kept until the process has ended.
    _stack: Vec<u128>,
}

/// Bytes of the holder's stack, in units of 16 for the alignment that every architecture is content with.
const STACK_UNITS: usize = 16 * 1024 / 16;

impl Holder {
    fn start() -> Result<Self> {
        let operation = "make";
        let subject = || "a user namespace";
        let mut stack = vec![0_u128; STACK_UNITS];
        let top = stack.as_mut_ptr_range().end.cast::<libc::c_void>();
        let mut pidfd: RawFd = -1;
        // Without CLONE_SIGHAND the child has its own handlers, copies of ours: none may run in it, so every signal
        // is blocked before and let through again only here. The exit signal is 0: nobody is told of its end.
        let flags = libc::CLONE_VM | libc::CLONE_NEWUSER | libc::CLONE_PIDFD;
        let parent = std::ptr::without_provenance_mut(getpid().as_raw_nonzero().get() as usize);
        let mask = block_signals().context(operation, subject)?;
        // SAFETY: the child runs `wait_for_the_end` on a stack of its own that `Holder` keeps until the process has
        // been waited for, shares this memory but touches only that stack, and has all signals blocked.
        let returned = unsafe { libc::clone(wait_for_the_end, top, flags, parent, &raw mut pidfd) };
        let returned = checked(libc::c_long::from(returned));
        restore_signals(&mask);
        let pid = returned.context(operation, subject)?;
        // SAFETY: clone succeeded with CLONE_PIDFD, so this is a new descriptor that nothing else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Error::new(operation, subject(), malformed("clone returned no pid")))?;
        Ok(Self { pid, pidfd, _stack: stack })
    }

    fn end(self) -> Result<()> {
        let killed = pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
        if killed.is_err() {
            // It runs on: its stack must stay.
            std::mem::forget(self);
            return killed;
        }
        pidfd_wait(self.pidfd.as_fd(), false).map(drop)
    }
}

/// What the holder runs; its argument is its parent's pid. Everything through rustix, which makes the system calls
/// itself: errno is the caller's thread's, in shared memory.
extern "C" fn wait_for_the_end(parent: *mut libc::c_void) -> libc::c_int {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // The parent may have died before it could be listened for.
    while getppid().is_some_and(|pid| pid.as_raw_nonzero().get() as usize == parent.addr()) {
        rustix::event::pause();
    }
    0
}

fn block_signals() -> io::Result<libc::sigset_t> {
    // SAFETY: all zeroes is a valid value of this structure of plain numbers.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a writable set.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: both pointers are to sets that outlive the call.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) } {
        0 => Ok(before),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: the mask is one that the kernel gave, and the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

fn lines(maps: &[IdMap]) -> String {
    let mut text = String::new();
    for map in maps {
        let _ = writeln!(text, "{} {} {}", map.inside, map.outside, map.count);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_hosts_map_has_every_id() {
        assert!(is_identity("         0          0 4294967295\n"));
        for map in ["0 1610612736 65536", "0 1000 1\n1 100000 65536\n", "0 0 65536", ""] {
            assert!(!is_identity(map), "{map}");
        }
    }
}
