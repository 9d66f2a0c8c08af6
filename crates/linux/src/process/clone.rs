//! New processes by clone3: a fork that also makes namespaces and returns a pidfd.

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::BitOr;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Pid;

use super::attributes::close_range;
use crate::error::{Context, Error, Result, checked};

/// Proof that this process has one thread, which makes forking it safe: no other thread can hold a lock that the
/// child would wait for, for ever.
///
/// A proof of the moment: who holds one starts no thread. It cannot be sent to another thread.
#[derive(Debug, Clone, Copy)]
pub struct SingleThreaded(PhantomData<*const ()>);

impl SingleThreaded {
    /// Asks the kernel whether this process has one thread. Works without `/proc`.
    ///
    /// # Errors
    /// `EBUSY` when there are several; what reading `/proc/self/task` says where a filter forbids the direct question.
    pub fn check() -> Result<Self> {
        // SAFETY: unshare with CLONE_THREAD changes nothing: it succeeds in a process with one thread, and is
        // refused in others.
        let returned = unsafe { libc::unshare(libc::CLONE_THREAD) };
        let single = match checked(libc::c_long::from(returned)) {
            Ok(_) => true,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
            // A directory has two links and one more for each folder in it.
            Err(_) => fs::metadata("/proc/self/task").context("count the threads of", || "this process")?.nlink() == 3,
        };
        let several = || Error::new("fork a process with several threads:", "this one", Errno::BUSY);
        if single { Ok(Self(PhantomData)) } else { Err(several()) }
    }
}

/// The namespaces that a new process gets for its own, as the kernel's `CLONE_NEW*` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CloneFlags(u64);

impl CloneFlags {
    /// A plain fork.
    pub const NONE: Self = Self(0);
    /// A user namespace.
    pub const NEWUSER: Self = Self(libc::CLONE_NEWUSER as u64);
    /// A mount namespace.
    pub const NEWNS: Self = Self(libc::CLONE_NEWNS as u64);
    /// A pid namespace, whose pid 1 the child is.
    pub const NEWPID: Self = Self(libc::CLONE_NEWPID as u64);
    /// A namespace of System V IPC objects and POSIX message queues.
    pub const NEWIPC: Self = Self(libc::CLONE_NEWIPC as u64);
    /// A namespace of host and domain name.
    pub const NEWUTS: Self = Self(libc::CLONE_NEWUTS as u64);
    /// A network namespace.
    pub const NEWNET: Self = Self(libc::CLONE_NEWNET as u64);
    /// A cgroup namespace.
    pub const NEWCGROUP: Self = Self(libc::CLONE_NEWCGROUP as u64);
    /// All seven.
    pub const ALL: Self = Self(
        Self::NEWUSER.0
            | Self::NEWNS.0
            | Self::NEWPID.0
            | Self::NEWIPC.0
            | Self::NEWUTS.0
            | Self::NEWNET.0
            | Self::NEWCGROUP.0,
    );

    /// The kernel's bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These but not those.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of the other's are among these.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for CloneFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

/// What else [`clone3`] may be told.
#[derive(Debug, Clone, Copy)]
pub struct CloneOptions<'a> {
    /// The signal that the parent gets when the child ends; `SIGCHLD` by default. With 0 the parent gets none, and
    /// only a wait for that very child sees it end.
    pub exit_signal: i32,
    /// The cgroup v2 folder in which the child starts.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The new process is not this one's child but its sibling, whose end its parent is told as of this one's.
    pub sibling: bool,
    /// The child gets only descriptors below this number, where there are many above it: they are neither copied nor
    /// closed again. Until it has its own, the two share them and the parent waits: until the child has had a processor
    /// for a moment. Nothing for a sibling.
    pub below: Option<RawFd>,
}

impl Default for CloneOptions<'_> {
    fn default() -> Self {
        Self { exit_signal: libc::SIGCHLD, cgroup: None, sibling: false, below: None }
    }
}

/// On which side of the fork one is.
#[derive(Debug)]
pub enum Forked {
    /// In the process that called, with its new child.
    Parent(Child),
    /// In the new process.
    Child,
}

/// A child process of this one.
#[derive(Debug)]
pub struct Child {
    /// Its number in this process's pid namespace; names it until it has been waited for.
    pub pid: Pid,
    /// A descriptor that names it for ever, readable once it has ended.
    pub pidfd: OwnedFd,
}

/// The kernel's `CLONE_INTO_CGROUP`; libc's constant has too few bits.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// The kernel's `struct clone_args`, of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A child that begins with its parent's descriptors themselves, and takes a copy of some.
struct Apart {
    below: RawFd,
    told: OwnedFd,
    tell: OwnedFd,
}

impl Apart {
    /// Nothing where the number leaves no room: then all are copied, as always.
    fn prepare(below: RawFd) -> Option<Self> {
        let (told, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).ok()?;
        (told.as_raw_fd() < below && tell.as_raw_fd() < below).then_some(Self { below, told, tell })
    }

    /// In the child, before anything else: what is closed before would be closed in the parent, too.
    fn take_own(self) {
        let own = close_range(self.below.unsigned_abs(), libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE);
        if own.is_err() || rustix::io::write(&self.tell, b"x") != Ok(1) {
            super::exit_immediately(127);
        }
    }

    /// In the parent: until the child has its own, or has ended.
    fn wait(self, child: &OwnedFd) -> Result<()> {
        let mut polled = [PollFd::new(&self.told, PollFlags::IN), PollFd::new(child, PollFlags::IN)];
        loop {
            match poll(&mut polled, None) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::new("wait for", "a new process", io::Error::from(errno))),
                Ok(_) => return Ok(()),
            }
        }
    }
}

/// Forks this process into new namespaces. The child is a copy with one thread; it ends by
/// [`super::exit_immediately`] or [`super::execute`], never by returning from `main`.
///
/// glibc is not told: handlers of `pthread_atfork` do not run, and its record of the thread's number is the
/// parent's. Nothing here depends on either.
///
/// # Errors
/// What clone3 says: `EPERM` where namespaces are refused, `ENOSPC` or `EUSERS` at their limits, `EAGAIN` at the
/// limit of processes.
pub fn clone3(_proof: SingleThreaded, flags: CloneFlags, options: CloneOptions<'_>) -> Result<Forked> {
    let mut pidfd: RawFd = -1;
    let mut arguments = CloneArguments {
        flags: flags.bits() | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: u64::from(options.exit_signal.unsigned_abs()),
        ..CloneArguments::default()
    };
    let apart = options.below.filter(|_| !options.sibling).and_then(Apart::prepare);
    if apart.is_some() {
        arguments.flags |= libc::CLONE_FILES as u64;
    }
    if options.sibling {
        // The kernel refuses a signal of one's own beside it.
        arguments.flags |= libc::CLONE_PARENT as u64;
        arguments.exit_signal = 0;
    }
    if let Some(cgroup) = options.cgroup {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: `arguments` and `pidfd` outlive the call and the size is theirs. Neither CLONE_VM nor a stack is
    // asked for, so the child runs on its own copy of this memory, like after fork; the proof says that no
    // other thread existed whose locks it could have copied.
    let returned = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArguments>()) };
    match checked(returned) {
        Ok(0) => {
            if let Some(apart) = apart {
                apart.take_own();
            }
            Ok(Forked::Child)
        }
        Ok(pid) => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let pid = pid.ok_or_else(|| Error::new("name", "a new process", io::Error::from(Errno::OVERFLOW)))?;
            // SAFETY: clone3 succeeded with CLONE_PIDFD, so this is a new descriptor that nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            if let Err(error) = apart.map_or(Ok(()), |apart| apart.wait(&pidfd)) {
                // It may still have this process's descriptors.
                let _ = super::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
                return Err(error);
            }
            Ok(Forked::Parent(Child { pid, pidfd }))
        }
        Err(source) => Err(Error::new("make", format_args!("a process with namespaces {:#x}", flags.bits()), source)),
    }
}
