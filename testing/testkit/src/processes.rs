//! The processes that this host shows, among which a test finds its own by their words.

use std::path::PathBuf;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

/// A process that was there a moment ago, and may be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its number, as the host has it.
    pub pid: i32,
}

impl Process {
    /// Where the kernel tells of it.
    #[must_use]
    pub fn folder(self) -> PathBuf {
        format!("/proc/{}", self.pid).into()
    }

    /// Its words, with spaces between them; empty for one that is gone, and for threads of the kernel.
    #[must_use]
    pub fn command_line(self) -> String {
        let line = std::fs::read(self.folder().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned()
    }

    /// Whether this text is anywhere in the environment that it was started with; no for one that this user may not ask.
    #[must_use]
    pub fn environment_has(self, text: &str) -> bool {
        let environment = std::fs::read(self.folder().join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(text)
    }
}

/// Every process.
///
/// # Panics
///
/// Where `/proc` is not mounted: then nothing could be said to be gone.
pub fn all() -> impl Iterator<Item = Process> {
    let entries = std::fs::read_dir("/proc").expect("a proc").flatten();
    entries.filter_map(|entry| Some(Process { pid: entry.file_name().to_str()?.parse().ok()? }))
}

/// Whether a process has exactly these words, with spaces between them.
///
/// # Panics
///
/// As [`all`].
#[must_use]
pub fn runs(command_line: &str) -> bool {
    all().any(|process| process.command_line() == command_line)
}

/// Sends a signal to processes that a test knows to be its own. One that has ended by then, because another of them has,
/// needs none.
///
/// # Panics
///
/// On a process that is not this user's.
pub fn signal(pids: &[i32], signal: Signal) {
    for pid in pids {
        let sent = kill_process(Pid::from_raw(*pid).expect("a process id"), signal);
        assert!(matches!(sent, Ok(()) | Err(Errno::SRCH)), "{pid}: {sent:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_by_its_words() {
        let own = i32::try_from(std::process::id()).expect("a process id");
        let found = all().find(|process| process.pid == own).expect("it runs");
        let line = found.command_line();
        assert!(line.contains("testkit"), "{line}");
        assert!(runs(&line) && !runs(&line[1..]));
        assert!(found.environment_has("PATH=") && !found.environment_has("no test has this in its environment"));
    }
}
