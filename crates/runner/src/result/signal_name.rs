//! Signals by their names.

use std::fmt;

/// A signal as people name it.
#[derive(Debug, Clone, Copy)]
pub struct SignalName(pub i32);

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 31] = [
            "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
            "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
            "WINCH", "IO", "PWR", "SYS",
        ];
        let name = usize::try_from(self.0 - 1).ok().and_then(|index| NAMES.get(index));
        match name {
            Some(name) => write!(f, "{} (SIG{name})", self.0),
            None => write!(f, "{}", self.0),
        }
    }
}
