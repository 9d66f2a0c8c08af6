//! Handing work from process to process on one processor.
//!
//! A command in an environment that waits for it goes through four processes, none of which has anything to do while
//! the next one works. The kernel spreads them over idle processors all the same, and waking one of those takes
//! longer than all that the processes do: 40 µs against 6 where the next process follows on the same processor. So
//! they are kept together from the order to the moment at which the command runs, and not longer.

use std::os::fd::OwnedFd;

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use testyard_linux::process::Pid;

/// So often at most the processes that a command has started by then are gone through.
const PASSES: usize = 16;

/// Where this process, and those it forks, may run.
#[derive(Clone)]
pub(crate) struct Processors {
    allowed: Option<CpuSet>,
    together: bool,
}

impl Processors {
    /// Those that this process may use now.
    pub(crate) fn here() -> Self {
        Self { allowed: sched_getaffinity(None).ok().filter(|all| all.count() > 1), together: false }
    }

    /// Keeps this process and another, which is about to be woken and to wake this one, on this processor.
    pub(crate) fn keep_together(&mut self, other: Pid) {
        if self.allowed.is_none() {
            return;
        }
        let mut one = CpuSet::new();
        one.set(sched_getcpu());
        // Where that is refused they are spread, which only takes longer.
        if sched_setaffinity(Some(other), &one).is_ok() {
            self.together = sched_setaffinity(None, &one).is_ok();
        }
    }

    /// Whether this process is kept on one processor.
    pub(crate) fn are_together(&self) -> bool {
        self.together
    }

    /// Lets this process run anywhere again.
    pub(crate) fn spread(&mut self) {
        if let (true, Some(allowed)) = (std::mem::take(&mut self.together), &self.allowed) {
            let _ = sched_setaffinity(None, allowed);
        }
    }

    /// As [`Self::spread`], and leaves this processor to the command that still runs on it.
    pub(crate) fn leave(&mut self) {
        if let (true, Some(allowed)) = (self.together, &self.allowed) {
            let mut others = *allowed;
            others.unset(sched_getcpu());
            let _ = sched_setaffinity(None, &others);
        }
        self.spread();
    }

    /// [`Self::spread`], for one that another process kept together with itself.
    pub(crate) fn spread_this(&self) {
        if let Some(allowed) = &self.allowed {
            let _ = sched_setaffinity(None, allowed);
        }
    }

    /// Lets this process, its first child and everything that started meanwhile run anywhere again. For process 1 of a
    /// process namespace that nobody else has been in; `load` is its `/proc/loadavg`.
    pub(crate) fn spread_all(&self, load: &OwnedFd, first: Pid) {
        self.spread_this();
        let Some(allowed) = &self.allowed else { return };
        let mut next = first.as_raw_nonzero().get();
        for _ in 0..PASSES {
            // What one that is not yet spread starts meanwhile has a higher number than all that were seen.
            let Some(last) = last_number(load).filter(|last| *last >= next) else { return };
            for pid in (next..=last).filter_map(Pid::from_raw) {
                // It may have ended.
                let _ = sched_setaffinity(Some(pid), allowed);
            }
            next = last + 1;
        }
    }
}

/// The number of the youngest process of this namespace: the last word of `/proc/loadavg`.
fn last_number(load: &OwnedFd) -> Option<i32> {
    let mut text = [0; 128];
    let length = rustix::io::pread(load, &mut text, 0).ok()?;
    std::str::from_utf8(&text[..length]).ok()?.split_ascii_whitespace().next_back()?.parse().ok()
}
