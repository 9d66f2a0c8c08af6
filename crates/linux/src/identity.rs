//! What makes a kernel object itself and no other: start times, boot ids, inode numbers of namespaces.
//!
//! A pid or a path names something only at the moment. What is recorded for later, and compared before anything is
//! deleted, are the values here.

use std::fs;
use std::hash::Hasher;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::process::Pid;

use crate::error::{Context, Error, Result, malformed};
use crate::process::pidfd_open;

/// A process, so that it is never taken for another that got its pid later, or for one of another boot, container or
/// machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// Its number in the pid namespace below.
    pub pid: i32,
    /// When it started, in clock ticks since the boot.
    pub start_ticks: u64,
    /// The boot, as [`boot_id`] has it.
    pub boot_id: String,
    /// The inode of the pid namespace in which the number counts: that of the observer.
    pub pid_namespace_inode: u64,
}

impl ProcessIdentity {
    /// The process that has this pid now, as seen from here.
    ///
    /// # Errors
    /// `ESRCH` when there is none.
    pub fn of(pid: Pid) -> Result<Self> {
        let pid = pid.as_raw_nonzero().get();
        let stat = read_stat(pid)?
            .ok_or_else(|| Error::new("find", format_args!("process {pid}"), rustix::io::Errno::SRCH))?;
        Ok(Self { pid, start_ticks: stat.start_ticks, boot_id: boot_id()?, pid_namespace_inode: own_pid_namespace()? })
    }

    /// This process.
    ///
    /// # Errors
    /// What reading `/proc` says.
    pub fn of_self() -> Result<Self> {
        Self::of(rustix::process::getpid())
    }

    /// Whether this boot and this pid namespace are those in which the identity was taken: elsewhere nothing can be
    /// said of the process.
    ///
    /// # Errors
    /// What reading `/proc` says.
    pub fn is_of_here(&self) -> Result<bool> {
        Ok(self.boot_id == boot_id()? && self.pid_namespace_inode == own_pid_namespace()?)
    }

    /// Whether it still runs. A zombie does not. False too for an identity of another boot or pid namespace: ask
    /// [`Self::is_of_here`] where that matters.
    ///
    /// # Errors
    /// What reading `/proc` says, other than that the process is gone.
    pub fn is_alive(&self) -> Result<bool> {
        let stat = read_stat(self.pid)?;
        let same = stat.is_some_and(|stat| stat.start_ticks == self.start_ticks && !stat.is_zombie());
        Ok(same && self.is_of_here()?)
    }

    /// A descriptor for exactly this process; nothing when it has ended.
    ///
    /// # Errors
    /// What pidfd_open says, other than that the process is gone.
    pub fn open_pidfd(&self) -> Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        match pidfd_open(pid) {
            // Compared after opening: from here on the pid cannot change its owner unnoticed.
            Ok(pidfd) => Ok(self.is_alive()?.then_some(pidfd)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What is needed of one `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) state: u8,
    pub(crate) start_ticks: u64,
}

impl ProcessStat {
    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|byte| *byte == b'(')?;
        // The name may hold anything, parentheses and newlines too: the last one closes it.
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let pid = std::str::from_utf8(text.get(..open)?).ok()?.trim().parse().ok()?;
        let mut fields = std::str::from_utf8(text.get(close + 1..)?).ok()?.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        // State is field 3 and the start time field 22, of which two have been taken.
        let start_ticks = fields.nth(17)?.parse().ok()?;
        Some(Self { pid, parent, state, start_ticks })
    }
}

/// Nothing when there is no such process.
pub(crate) fn read_stat(pid: i32) -> Result<Option<ProcessStat>> {
    let path = format!("/proc/{pid}/stat");
    match read_process_file(&path) {
        Ok(text) => match ProcessStat::parse(&text) {
            Some(stat) => Ok(Some(stat)),
            None => Err(Error::new("understand", path, malformed("not the fields of a process"))),
        },
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(Error::new("read", path, error)),
    }
}

/// Reads a file of `/proc`. Whoever is root in a machine can put something else there, a pipe for example, that would
/// be waited for: what is not the kernel's own file counts as missing.
pub(crate) fn read_process_file(path: &str) -> io::Result<Vec<u8>> {
    use io::Read as _;
    use rustix::fs::{Mode, OFlags};

    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    if rustix::fs::fstatfs(&file)?.f_type != rustix::fs::PROC_SUPER_MAGIC {
        return Err(rustix::io::Errno::NOENT.into());
    }
    let mut content = Vec::new();
    fs::File::from(file).read_to_end(&mut content)?;
    Ok(content)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

fn own_pid_namespace() -> Result<u64> {
    namespace_inode(Path::new("/proc/self/ns/pid"))
}

/// The random id that the kernel chose when it booted.
///
/// # Errors
/// What reading `/proc/sys/kernel/random/boot_id` says.
pub fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).context("read", || path)?.trim().to_owned())
}

/// An id of this installation in 32 hexadecimal digits: a hash of `/etc/machine-id`, which itself should not be
/// shown around; where there is none, of the boot id.
///
/// # Errors
/// What reading the boot id says.
pub fn host_id() -> Result<String> {
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let machine = machine.trim();
    if machine.is_empty() || machine == "uninitialized" { Ok(digest(&boot_id()?)) } else { Ok(digest(machine)) }
}

fn digest(text: &str) -> String {
    let half = |key: u64| {
        #[expect(deprecated, reason = "its algorithm is fixed, unlike that of the hasher which replaces it")]
        let mut hasher = std::hash::SipHasher::new_with_keys(key, 0x7465_7374_7961_7264);
        hasher.write(text.as_bytes());
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(1), half(2))
}

/// The number that names a namespace, from a path such as `/proc/self/ns/net`.
///
/// # Errors
/// What stat says.
pub fn namespace_inode(path: &Path) -> Result<u64> {
    Ok(rustix::fs::stat(path).context("identify", || path.display())?.st_ino)
}

/// The number that names a namespace, from its descriptor.
///
/// # Errors
/// What fstat says.
pub fn namespace_inode_of(namespace: BorrowedFd<'_>) -> Result<u64> {
    Ok(file_identity(namespace)?.1)
}

/// Device and inode number of an open file or folder, a cgroup's too.
///
/// # Errors
/// What fstat says.
pub fn file_identity(file: impl AsFd) -> Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file).context("identify", || "an open file")?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_process_name_does_not_confuse_the_parser() {
        let rest = "S 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 10 11";
        for name in ["true", "a) R 99 (b", "x\ny", "", ")))"] {
            let stat = ProcessStat::parse(format!("42 ({name}) {rest}\n").as_bytes());
            assert_eq!(stat, Some(ProcessStat { pid: 42, parent: 7, state: b'S', start_ticks: 4242 }), "{name:?}");
        }
        assert_eq!(ProcessStat::parse(b"42 (true) S 7"), None);
        assert_eq!(ProcessStat::parse(b""), None);
    }

    #[test]
    fn this_process_is_alive_and_a_later_one_of_its_pid_is_not_it() {
        let own = ProcessIdentity::of_self().expect("this process has an identity");
        assert!(own.is_alive().expect("/proc is readable"));
        assert!(own.open_pidfd().expect("a pidfd can be opened").is_some());
        let later = ProcessIdentity { start_ticks: own.start_ticks + 1, ..own.clone() };
        assert!(!later.is_alive().expect("/proc is readable"));
        assert!(later.open_pidfd().expect("a pidfd can be opened").is_none());
        let elsewhere = ProcessIdentity { boot_id: "another".into(), ..own };
        assert!(!elsewhere.is_alive().expect("/proc is readable"));
    }

    #[test]
    fn the_host_id_is_stable_and_does_not_show_the_machine_id() {
        let id = host_id().expect("a host has an id");
        assert_eq!(id, host_id().expect("a host has an id"));
        assert_eq!(id.len(), 32);
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        assert_ne!(id, machine.trim());
        assert_eq!(digest("x"), digest("x"));
        assert_ne!(digest("x"), digest("y"));
    }
}
