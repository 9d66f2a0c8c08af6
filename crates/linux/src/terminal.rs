//! Pseudo-terminals and the terminal of a person.

use std::os::fd::{AsFd, OwnedFd};

use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, Winsize};

use crate::error::{Error, Result};

/// A window's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Height in lines.
    pub rows: u16,
    /// Width in columns.
    pub columns: u16,
}

/// Opens a pseudo-terminal of the `/dev/ptmx` that this process sees: (controller, terminal), both
/// close-on-exec, the terminal nobody's controlling one yet.
pub fn open_pty(size: Size) -> Result<(OwnedFd, OwnedFd)> {
    let controller = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .map_err(|errno| Error::new("open", "a pseudo-terminal", errno))?;
    let terminal = terminal_of(&controller, size)?;
    Ok((controller, terminal))
}

/// The terminal of an opened `ptmx`, unlocked and sized; works also where that devpts is mounted
/// nowhere that we see.
pub fn terminal_of(controller: impl AsFd, size: Size) -> Result<OwnedFd> {
    let failed = |errno| Error::new("open", "a pseudo-terminal's other end", errno);
    rustix::pty::unlockpt(&controller).map_err(failed)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&controller, flags).map_err(failed)?;
    set_size(&terminal, size.rows, size.columns)?;
    Ok(terminal)
}

/// Tells a terminal its size; its foreground processes get SIGWINCH when it changed.
pub fn set_size(terminal: impl AsFd, rows: u16, columns: u16) -> Result<()> {
    let window = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, window).map_err(|errno| Error::new("resize", "a terminal", errno))
}

/// Whether this process is among those that may read and set this terminal; others are stopped when they try.
#[must_use]
pub fn is_in_foreground(terminal: impl AsFd) -> bool {
    // SAFETY: It takes nothing and only returns a number: 0 where the group's leader is outside of this process's
    // pid namespace, which is no `Pid`.
    let own = unsafe { libc::getpgrp() };
    rustix::termios::tcgetpgrp(terminal).is_ok_and(|group| group.as_raw_nonzero().get() == own)
}

/// A terminal's size.
pub fn size(terminal: impl AsFd) -> Result<Size> {
    let window = rustix::termios::tcgetwinsize(terminal)
        .map_err(|errno| Error::new("ask for the size of", "a terminal", errno))?;
    Ok(Size { rows: window.ws_row, columns: window.ws_col })
}

/// Starts a session of which this terminal is the controlling one.
///
/// The caller must not lead a process group, which is true of every fresh child.
pub fn make_controlling(terminal: impl AsFd) -> Result<()> {
    rustix::process::setsid().map_err(|errno| Error::new("start", "a session", errno))?;
    rustix::process::ioctl_tiocsctty(terminal).map_err(|errno| Error::new("take over", "a terminal", errno))
}

/// A terminal that hands over every key as it is typed; back as it was when this is dropped.
///
/// A process that is killed or exits without unwinding must call [`RawMode::restore`] itself.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
    restored: bool,
}

impl RawMode {
    /// Makes a terminal raw; an error when it is none.
    pub fn enter(terminal: impl AsFd) -> Result<Self> {
        let failed = |errno| Error::new("make raw", "a terminal", errno);
        let terminal = rustix::io::fcntl_dupfd_cloexec(terminal, 3).map_err(failed)?;
        let before = rustix::termios::tcgetattr(&terminal).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&terminal, OptionalActions::Drain, &raw).map_err(failed)?;
        Ok(Self { terminal, before, restored: false })
    }

    /// Makes a terminal hand over each key at once and show none, while its signals and its output stay as they are;
    /// an error when it is none.
    pub fn enter_keys(terminal: impl AsFd) -> Result<Self> {
        Self::without(terminal, LocalModes::empty(), OptionalActions::Drain)
    }

    /// As [`RawMode::enter_keys`], with the keys too that would be signals: what is typed is for nobody's eyes, and
    /// nothing may end this process before the terminal is as it was. What was typed before is dropped: it was shown, and
    /// meant for something else.
    pub fn enter_secret(terminal: impl AsFd) -> Result<Self> {
        Self::without(terminal, LocalModes::ISIG | LocalModes::IEXTEN, OptionalActions::Flush)
    }

    fn without(terminal: impl AsFd, more: LocalModes, typed: OptionalActions) -> Result<Self> {
        let failed = |errno| Error::new("read the keys of", "a terminal", errno);
        let terminal = rustix::io::fcntl_dupfd_cloexec(terminal, 3).map_err(failed)?;
        let before = rustix::termios::tcgetattr(&terminal).map_err(failed)?;
        let mut keys = before.clone();
        keys.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | more);
        keys.special_codes[SpecialCodeIndex::VMIN] = 1;
        keys.special_codes[SpecialCodeIndex::VTIME] = 0;
        rustix::termios::tcsetattr(&terminal, typed, &keys).map_err(failed)?;
        Ok(Self { terminal, before, restored: false })
    }

    /// Puts the terminal back as it was; a second call does nothing.
    pub fn restore(&mut self) -> Result<()> {
        if self.restored {
            return Ok(());
        }
        rustix::termios::tcsetattr(&self.terminal, OptionalActions::Drain, &self.before)
            .map_err(|errno| Error::new("restore", "a terminal", errno))?;
        self.restored = true;
        Ok(())
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that hung up cannot be restored, and nobody is left to care.
        let _ = self.restore();
    }
}

#[cfg(test)]
mod tests {
    use rustix::termios::LocalModes;

    use super::*;

    #[test]
    fn a_pty_carries_bytes_and_sizes() {
        let (controller, terminal) = open_pty(Size { rows: 24, columns: 80 }).expect("devpts is mounted");
        assert!(rustix::termios::isatty(&terminal));
        assert_eq!(size(&controller).expect("sized"), Size { rows: 24, columns: 80 });
        set_size(&controller, 50, 132).expect("open");
        assert_eq!(size(&terminal).expect("sized"), Size { rows: 50, columns: 132 });
        rustix::io::write(&controller, b"line\n").expect("open");
        let mut buffer = [0; 16];
        let length = rustix::io::read(&terminal, &mut buffer).expect("a line is there");
        assert_eq!(&buffer[..length], b"line\n");
    }

    #[test]
    fn raw_mode_ends() {
        let (_controller, terminal) = open_pty(Size { rows: 24, columns: 80 }).expect("devpts is mounted");
        let is_raw = || !rustix::termios::tcgetattr(&terminal).expect("open").local_modes.contains(LocalModes::ICANON);
        assert!(!is_raw());
        let raw = RawMode::enter(&terminal).expect("a terminal");
        assert!(is_raw());
        drop(raw);
        assert!(!is_raw());
        assert!(RawMode::enter(std::fs::File::open("/dev/null").expect("always there")).is_err());
    }

    #[test]
    fn what_was_typed_ahead_is_no_secret() {
        let (controller, terminal) = open_pty(Size { rows: 24, columns: 80 }).expect("devpts is mounted");
        rustix::io::write(&controller, b"ls\n").expect("open");
        let mut polled = [rustix::event::PollFd::new(&terminal, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut polled, None).expect("a line has come");
        let _secret = RawMode::enter_secret(&terminal).expect("a terminal");
        rustix::io::write(&controller, b"s").expect("open");
        let mut buffer = [0; 16];
        let length = rustix::io::read(&terminal, &mut buffer).expect("a key is there");
        assert_eq!(&buffer[..length], b"s");
    }
}
