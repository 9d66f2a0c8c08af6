//! What is to happen later: deadlines of commands, and slow clean-up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use testyard_model::EnvironmentId;

/// Something due at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// A command's time is up.
    Deadline(u32),
    /// What was asked to end by SIGTERM must be killed.
    Kill,
    /// A kept environment's time is over.
    Expire(EnvironmentId),
    /// A file worker that was asked to end must be killed.
    Worker(Pid),
    /// Some network namespaces may go.
    Networks,
    /// Trees that nothing uses may go.
    Trees,
    /// The machine may have been at rest for long enough to say so.
    Rest,
    /// The agent has waited long enough for the end of everything.
    Leave,
}

/// Times, in order.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeMap<(Instant, u64), Due>,
    next: u64,
}

impl Timers {
    /// Adds one.
    pub(crate) fn add(&mut self, at: Instant, due: Due) {
        self.next += 1;
        self.due.insert((at, self.next), due);
    }

    /// Adds one, unless the same is due already.
    pub(crate) fn add_once(&mut self, at: Instant, due: Due) {
        if !self.due.values().any(|other| *other == due) {
            self.add(at, due);
        }
    }

    /// How long until the next, if there is one.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        self.due.keys().next().map(|(at, _)| at.saturating_duration_since(now))
    }

    /// The next that is due.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Due> {
        let entry = self.due.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// Forgets a command's deadline.
    pub(crate) fn forget(&mut self, due: Due) {
        self.due.retain(|_, other| *other != due);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_in_order_and_once() {
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.add(start + Duration::from_secs(2), Due::Deadline(2));
        timers.add(start + Duration::from_secs(1), Due::Deadline(1));
        timers.add(start + Duration::from_secs(1), Due::Networks);
        timers.add_once(start, Due::Deadline(1));
        timers.forget(Due::Networks);
        assert_eq!(timers.take(start), None);
        assert_eq!(timers.wait(start), Some(Duration::from_secs(1)));
        let later = start + Duration::from_secs(3);
        assert_eq!(timers.take(later), Some(Due::Deadline(1)));
        assert_eq!(timers.take(later), Some(Due::Deadline(2)));
        assert_eq!(timers.take(later), None);
    }
}
