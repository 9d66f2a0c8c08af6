//! When a machine must end: pure decisions over what happened and what time it is.

use std::time::{Duration, Instant};

/// What the supervisor is to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing has happened in it for its idle time: stop it.
    Idle,
    /// Its time to live is over: delete it.
    Expired,
    /// It was asked to end and has not: kill it.
    Kill,
}

/// How a machine is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// Its files stay.
    Stop,
    /// Nothing stays.
    Delete,
}

/// A machine's clocks.
#[derive(Debug, Clone)]
pub(super) struct Life {
    idle_after: Option<Duration>,
    idle_since: Option<Instant>,
    expires: Option<Instant>,
    ending: Option<Ending>,
    open: u32,
}

#[derive(Debug, Clone, Copy)]
struct Ending {
    goal: Goal,
    kill_at: Option<Instant>,
}

impl Life {
    pub(super) fn new(now: Instant, idle_after: Option<Duration>, expires: Option<Instant>) -> Self {
        Self { idle_after, idle_since: Some(now), expires, ending: None, open: 0 }
    }

    /// So many streams, environments or commands are open now.
    pub(super) fn activity(&mut self, now: Instant, open: u32) {
        self.open = open;
        self.idle_since = (open == 0).then_some(now);
    }

    /// Somebody has just come, or holds a lease: it is not idle, whatever was counted last.
    pub(super) fn touch(&mut self, now: Instant) {
        if self.open == 0 {
            self.idle_since = Some(now);
        }
    }

    pub(super) fn open(&self) -> u32 {
        self.open
    }

    /// It was asked to end. Deleting outweighs stopping, and the earlier kill the later.
    pub(super) fn end(&mut self, goal: Goal, kill_at: Instant) {
        let ending = self.ending.get_or_insert(Ending { goal, kill_at: Some(kill_at) });
        if goal == Goal::Delete {
            ending.goal = Goal::Delete;
        }
        ending.kill_at = ending.kill_at.map(|earlier| earlier.min(kill_at));
    }

    pub(super) fn ending(&self) -> Option<Goal> {
        self.ending.map(|ending| ending.goal)
    }

    /// What to do at this moment; each is said once.
    pub(super) fn due(&mut self, now: Instant) -> Option<Due> {
        if let Some(ending) = &mut self.ending {
            let kill = ending.kill_at.is_some_and(|at| at <= now);
            if kill {
                ending.kill_at = None;
            }
            return kill.then_some(Due::Kill);
        }
        if self.expires.is_some_and(|at| at <= now) {
            self.expires = None;
            return Some(Due::Expired);
        }
        let idle = self.idle_at().is_some_and(|at| at <= now);
        if idle {
            self.idle_since = None;
        }
        idle.then_some(Due::Idle)
    }

    /// When to ask again at the latest.
    pub(super) fn next(&self) -> Option<Instant> {
        match &self.ending {
            Some(ending) => ending.kill_at,
            None => [self.expires, self.idle_at()].into_iter().flatten().min(),
        }
    }

    fn idle_at(&self) -> Option<Instant> {
        self.idle_since.zip(self.idle_after).and_then(|(since, after)| since.checked_add(after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn idle_time_counts_only_while_nothing_is_open() {
        let start = Instant::now();
        let mut life = Life::new(start, Some(5 * SECOND), None);
        assert_eq!(life.next(), Some(start + 5 * SECOND));
        life.activity(start + SECOND, 2);
        assert_eq!((life.next(), life.due(start + 60 * SECOND)), (None, None));
        life.activity(start + 60 * SECOND, 0);
        life.touch(start + 62 * SECOND);
        assert_eq!(life.due(start + 66 * SECOND), None);
        assert_eq!(life.due(start + 67 * SECOND), Some(Due::Idle));
        assert_eq!(life.due(start + 68 * SECOND), None);
        life.touch(start + 68 * SECOND);
        assert_eq!(life.due(start + 73 * SECOND), Some(Due::Idle));
    }

    #[test]
    fn the_end_of_its_time_to_live_outweighs_idleness() {
        let start = Instant::now();
        let mut life = Life::new(start, Some(5 * SECOND), Some(start + 3 * SECOND));
        assert_eq!(life.due(start + 9 * SECOND), Some(Due::Expired));
    }

    #[test]
    fn who_was_asked_to_end_is_killed_in_time() {
        let start = Instant::now();
        let mut life = Life::new(start, Some(SECOND), Some(start));
        life.end(Goal::Stop, start + 10 * SECOND);
        assert_eq!(life.due(start + 5 * SECOND), None);
        life.end(Goal::Delete, start + 7 * SECOND);
        life.end(Goal::Stop, start + 9 * SECOND);
        assert_eq!(life.ending(), Some(Goal::Delete));
        assert_eq!(life.due(start + 7 * SECOND), Some(Due::Kill));
        assert_eq!(life.due(start + 8 * SECOND), None);
    }
}
