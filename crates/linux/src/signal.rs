//! Signals by name and number, masks, and signals read from a descriptor.
//!
//! Masks go to the kernel as its own 64-bit words: the C library hides signals 32 and 33.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::str::FromStr;

use crate::error::{Error, Result};

/// One of the kernel's signals, 1–64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(u8);

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// The first real-time signal, as the C library numbers them for programs.
const FIRST_REAL_TIME: u8 = 34;
const LAST: u8 = 64;

impl Signal {
    /// The terminal went away.
    pub const HUP: Self = Self(1);
    /// Interrupted from the keyboard.
    pub const INT: Self = Self(2);
    /// Asked to quit with a core dump.
    pub const QUIT: Self = Self(3);
    /// Ends a process, whatever it does.
    pub const KILL: Self = Self(9);
    /// For the program's own use.
    pub const USR1: Self = Self(10);
    /// For the program's own use.
    pub const USR2: Self = Self(12);
    /// Wrote to a pipe without readers.
    pub const PIPE: Self = Self(13);
    /// A timer.
    pub const ALRM: Self = Self(14);
    /// Asked to end.
    pub const TERM: Self = Self(15);
    /// A child changed its state.
    pub const CHLD: Self = Self(17);
    /// Goes on after a stop.
    pub const CONT: Self = Self(18);
    /// Stops a process, whatever it does.
    pub const STOP: Self = Self(19);
    /// Stopped from the keyboard.
    pub const TSTP: Self = Self(20);
    /// The window changed its size.
    pub const WINCH: Self = Self(28);

    /// Sends it to a process. Only for a child that has not been waited for: any other pid may name somebody else.
    ///
    /// # Errors
    /// `ESRCH` when there is none, `EPERM` when it is not ours to signal.
    pub fn send_to(self, process: rustix::process::Pid) -> Result<()> {
        self.send_raw(process.as_raw_nonzero().get())
    }

    /// Sends it to a process group.
    ///
    /// # Errors
    /// As [`Self::send_to`].
    pub fn send_to_group(self, group: rustix::process::Pid) -> Result<()> {
        self.send_raw(-group.as_raw_nonzero().get())
    }

    fn send_raw(self, target: i32) -> Result<()> {
        // SAFETY: kill takes two numbers and touches no memory.
        match unsafe { libc::kill(target, self.number()) } {
            0 => Ok(()),
            _ => Err(Error::new("signal", format!("process {target}"), std::io::Error::last_os_error())),
        }
    }

    /// The signal of this number, when it is one (1–64).
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        u8::try_from(number).ok().filter(|number| (1..=LAST).contains(number)).map(Self)
    }

    /// Its number, 1–64.
    #[must_use]
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }

    fn bit(self) -> u64 {
        1 << (self.0 - 1)
    }
}

impl fmt::Display for Signal {
    /// `SIGTERM`, `SIGRTMIN+2`; the two that the C library keeps for itself are `SIG32`, `SIG33`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0) - 1) {
            Some(name) => write!(f, "SIG{name}"),
            None if self.0 == FIRST_REAL_TIME => f.write_str("SIGRTMIN"),
            None if self.0 > FIRST_REAL_TIME => write!(f, "SIGRTMIN+{}", self.0 - FIRST_REAL_TIME),
            None => write!(f, "SIG{}", self.0),
        }
    }
}

/// A text that names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a signal: write a name such as TERM or a number from 1 to 64")]
pub struct SignalNameError(String);

impl FromStr for Signal {
    type Err = SignalNameError;

    /// Reads `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+2`, `RTMAX-1`.
    fn from_str(text: &str) -> std::result::Result<Self, SignalNameError> {
        let bad = || SignalNameError(text.to_owned());
        if let Ok(number) = text.parse::<i32>() {
            return Self::from_number(number).ok_or_else(bad);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(index) = NAMES.iter().position(|known| *known == name) {
            return u8::try_from(index + 1).map(Self).map_err(|_| bad());
        }
        let distance = |text: &str, sign: char| match text.strip_prefix(sign) {
            Some(digits) => digits.parse::<u8>().ok(),
            None => text.is_empty().then_some(0),
        };
        let number = if let Some(rest) = name.strip_prefix("RTMIN") {
            distance(rest, '+').and_then(|up| FIRST_REAL_TIME.checked_add(up))
        } else if let Some(rest) = name.strip_prefix("RTMAX") {
            distance(rest, '-').and_then(|down| LAST.checked_sub(down)).filter(|number| *number >= FIRST_REAL_TIME)
        } else {
            match name {
                "POLL" => Some(29),
                "IOT" => Some(6),
                "CLD" => Some(17),
                _ => name.parse::<u8>().ok(),
            }
        };
        number.and_then(|number| Self::from_number(i32::from(number))).ok_or_else(bad)
    }
}

/// The signals that a thread has blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask(u64);

impl Mask {
    /// The calling thread's.
    pub fn current() -> Result<Self> {
        change_mask(libc::SIG_BLOCK, 0)
    }

    /// Whether this one is blocked.
    #[must_use]
    pub fn has(self, signal: Signal) -> bool {
        self.0 & signal.bit() != 0
    }

    /// Makes it the calling thread's mask; what waited and is not blocked any more acts at once.
    pub fn restore(self) -> Result<()> {
        change_mask(libc::SIG_SETMASK, self.0).map(drop)
    }
}

/// Adds these signals to the calling thread's mask.
pub fn block(signals: &[Signal]) -> Result<()> {
    change_mask(libc::SIG_BLOCK, signals.iter().fold(0, |mask, signal| mask | signal.bit())).map(drop)
}

/// Empties the calling thread's mask: a new program must not inherit ours.
pub fn unblock_all() -> Result<()> {
    change_mask(libc::SIG_SETMASK, 0).map(drop)
}

/// Lets a signal that was read from a [`SignalFd`] act on this process as if it had not been blocked, which ends most;
/// returns where it is ignored, or once its handler has run.
pub fn let_act(signal: Signal) -> Result<()> {
    let before = change_mask(libc::SIG_UNBLOCK, signal.bit())?;
    // Before this returns: this thread has it unblocked.
    let sent = signal.send_to(rustix::process::getpid());
    before.restore()?;
    sent
}

/// Changes the calling thread's mask; the one that it had.
fn change_mask(how: i32, mask: u64) -> Result<Mask> {
    let mut before = 0_u64;
    // SAFETY: both masks are live 8-byte values, as the given length says.
    let answer =
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const mask, &raw mut before, size_of::<u64>()) };
    if answer == 0 {
        Ok(Mask(before))
    } else {
        Err(Error::new("change", "the signal mask", std::io::Error::last_os_error()))
    }
}

/// The kernel's `struct sigaction`: a handler, flags, a restorer and a mask, all words.
#[repr(C)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// Sets every signal's action back to the default, ignored ones included (exec keeps those).
///
/// For children between fork and exec, or that run on without one.
pub fn reset_handlers() -> Result<()> {
    for number in 1..=LAST {
        let signal = Signal(number);
        if signal != Signal::KILL && signal != Signal::STOP {
            set_action(signal, libc::SIG_DFL)?;
        }
    }
    Ok(())
}

/// Gives a signal its default action.
///
/// # Errors
/// `EINVAL` for `KILL` and `STOP`, whose action is fixed.
pub fn restore_default(signal: Signal) -> Result<()> {
    set_action(signal, libc::SIG_DFL)
}

/// Ignores a signal; the choice survives exec.
pub fn ignore(signal: Signal) -> Result<()> {
    set_action(signal, libc::SIG_IGN)
}

fn set_action(signal: Signal, handler: usize) -> Result<()> {
    let action = KernelAction { handler, flags: 0, restorer: 0, mask: 0 };
    // SAFETY: `action` is a live value of the kernel's layout whose handler is SIG_DFL or SIG_IGN,
    // so no code of ours is called by it; no old action is asked for.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal.number(),
            &raw const action,
            std::ptr::null_mut::<KernelAction>(),
            size_of::<u64>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(Error::new("set the action of", signal, std::io::Error::last_os_error())) }
}

/// A signal that was read, and who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Which.
    pub signal: Signal,
    /// The sender's process id; 0 for the kernel.
    pub pid: u32,
    /// The sender's user id.
    pub uid: u32,
}

/// A descriptor that is readable while a signal waits; non-blocking and close-on-exec.
#[derive(Debug)]
pub struct SignalFd {
    file: OwnedFd,
}

impl SignalFd {
    /// Blocks these signals in the calling thread and opens a descriptor to read them from.
    pub fn new(signals: &[Signal]) -> Result<Self> {
        block(signals)?;
        let mask = signals.iter().fold(0, |mask, signal| mask | signal.bit());
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the mask is a live 8-byte value, as its given length says.
        let answer = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size_of::<u64>(), flags) };
        let Ok(raw) = i32::try_from(answer) else { unreachable!("a descriptor is an int") };
        if raw < 0 {
            return Err(Error::new("open", "a signal descriptor", std::io::Error::last_os_error()));
        }
        // SAFETY: the kernel just returned this descriptor, and nobody else owns it.
        Ok(Self { file: unsafe { OwnedFd::from_raw_fd(raw) } })
    }

    /// The next waiting signal; `None` when there is none.
    pub fn read(&self) -> Result<Option<Received>> {
        let mut information = [0_u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.file, &mut information)) {
            Ok(length) if length == information.len() => {}
            Ok(_) | Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(errno) => return Err(Error::new("read", "a signal descriptor", errno)),
        }
        let word = |at: usize| {
            let bytes = [information[at], information[at + 1], information[at + 2], information[at + 3]];
            u32::from_ne_bytes(bytes)
        };
        // ssi_signo, ssi_errno, ssi_code, ssi_pid, ssi_uid: the struct's first five words.
        let signal = word(0).try_into().ok().and_then(Signal::from_number);
        Ok(signal.map(|signal| Received { signal, pid: word(12), uid: word(16) }))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_a_name_that_reads_back() {
        for number in 1..=64 {
            let signal = Signal::from_number(number).expect("in range");
            assert_eq!(signal.to_string().parse(), Ok(signal), "{signal}");
            assert_eq!(number.to_string().parse(), Ok(signal));
        }
        for (text, number) in
            [("term", 15), ("SigKill", 9), ("RTMAX", 64), ("RTMAX-30", 34), ("RTMIN+30", 64), ("POLL", 29), ("32", 32)]
        {
            assert_eq!(text.parse::<Signal>().map(Signal::number), Ok(number), "{text}");
        }
        for bad in ["", "0", "65", "-1", "SIG", "NOPE", "RTMIN+31", "RTMAX-31", "RTMIN-1", "RTMINx", "SIG99"] {
            assert!(bad.parse::<Signal>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mask_is_put_back() {
        let signal = Signal::from_number(41).expect("in range");
        let before = Mask::current().expect("no error");
        assert!(!before.has(signal));
        block(&[signal]).expect("no error");
        assert!(Mask::current().expect("no error").has(signal));
        before.restore().expect("no error");
        assert_eq!(Mask::current().expect("no error"), before);
    }

    #[test]
    fn a_blocked_signal_is_read_with_its_sender() {
        let signal = Signal::from_number(40).expect("in range");
        let descriptor = SignalFd::new(&[signal]).expect("signalfd works");
        assert_eq!(descriptor.read().expect("no error"), None);
        // SAFETY: asks for nothing but a number.
        let this_thread = unsafe { libc::pthread_self() };
        // SAFETY: the signal goes to this thread only, which has it blocked.
        let sent = unsafe { libc::pthread_kill(this_thread, signal.number()) };
        assert_eq!(sent, 0);
        let received = descriptor.read().expect("no error").expect("it waits");
        assert_eq!(received.signal, signal);
        assert_eq!(received.pid, std::process::id());
        assert_eq!(descriptor.read().expect("no error"), None);
    }
}
