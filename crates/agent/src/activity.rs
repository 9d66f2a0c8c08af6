//! Whether the machine is in use, as its supervisor is told.
//!
//! A connection by itself is no use: clients keep some at rest for their next command, for as long as they live. What
//! counts is what was asked for over it: commands, files on their way, environments.

use std::time::{Duration, Instant};

use testyard_protocol::Report;

use crate::agent::{Agent, LINK};
use crate::timers::Due;

/// Whoever keeps a connection goes on at once as a rule. Shorter rests are not told: that would be two words a command.
const REST: Duration = Duration::from_millis(50);

/// What the supervisor knows.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// What was last told to be open.
    told: u32,
    /// Nothing is open since then, and that is not told yet.
    resting: Option<Instant>,
    /// Whether a timer will look again.
    looks_again: bool,
}

impl Agent {
    /// Tells the supervisor when the machine becomes idle or busy.
    pub(crate) fn report_activity(&mut self) {
        let open = self.open();
        if open > 0 {
            self.activity.resting = None;
            if self.activity.told == 0 {
                self.tell_activity(open);
            }
            return;
        }
        if self.activity.told == 0 {
            return;
        }
        let now = Instant::now();
        let over = *self.activity.resting.get_or_insert(now) + REST;
        if over <= now || self.connections.keys().all(|number| *number == LINK) {
            self.tell_activity(0);
        } else if !self.activity.looks_again {
            self.activity.looks_again = true;
            self.timers.add(over, Due::Rest);
        }
    }

    /// The loop looks again by itself.
    pub(crate) fn rested(&mut self) {
        self.activity.looks_again = false;
    }

    fn tell_activity(&mut self, open: u32) {
        self.activity.told = open;
        self.activity.resting = None;
        self.tell_supervisor(&Report::Activity { open });
    }

    fn open(&self) -> u32 {
        // The machine itself is nobody's either.
        let parked = 1 + self.environments.values().filter(|one| one.is_spare()).count();
        let waiting = self.generations.delayed.len() + self.generations.delayed_opens.len();
        let environments = self.environments.len().saturating_sub(parked);
        u32::try_from(self.commands.len() + usize::from(self.has_workers()) + environments + waiting)
            .unwrap_or(u32::MAX)
    }
}
