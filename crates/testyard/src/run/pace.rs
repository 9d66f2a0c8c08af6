//! How many environments are made at once: more than there are processors for only wait for each other, and all of them
//! come late.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Whoever has waited so long goes ahead: one that hangs is nobody else's matter.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether the run was ended meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Turns at beginning.
#[derive(Debug)]
pub(super) struct Pace {
    turns: usize,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Tests that run, whether they have begun or not.
    running: usize,
    /// Those of them whose turn it is.
    beginning: usize,
}

/// One of the tests that run, until this is dropped.
#[derive(Debug)]
pub(super) struct Among<'a>(&'a Pace);

/// A turn, until this is dropped: once the test's command runs.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Pace);

impl Pace {
    /// As this host's processors suggest: each has one to work on and one that waits for the kernel.
    pub(super) fn of_host() -> Self {
        Self::new(2 * std::thread::available_parallelism().map_or(1, usize::from))
    }

    fn new(turns: usize) -> Self {
        Self { turns, state: Mutex::default(), freed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more test runs.
    pub(super) fn among(&self) -> Among<'_> {
        self.state().running += 1;
        Among(self)
    }
}

impl<'a> Among<'a> {
    /// Waits for a turn, not for ever, and no longer than the run goes on. None is needed where all tests that run may
    /// begin at once.
    pub(super) fn turn(&self, is_over: impl Fn() -> bool) -> Option<Turn<'a>> {
        let pace = self.0;
        let until = Instant::now() + PATIENCE;
        let mut state = pace.state();
        if state.running <= pace.turns {
            return None;
        }
        while state.beginning >= pace.turns {
            if is_over() || Instant::now() >= until {
                return None;
            }
            state = pace.freed.wait_timeout(state, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.beginning += 1;
        Some(Turn(pace))
    }
}

impl Drop for Among<'_> {
    fn drop(&mut self) {
        self.0.state().running -= 1;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().beginning -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_taken_given_back_and_not_waited_for_for_ever() {
        let pace = Pace::new(1);
        let first = pace.among();
        assert!(first.turn(|| false).is_none(), "nobody else is there");
        let second = pace.among();
        let turn = second.turn(|| false);
        assert!(turn.is_some());
        assert!(first.turn(|| true).is_none(), "the run is over");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| first.turn(|| false).is_some());
            drop(turn);
            assert!(waits.join().expect("it ends"));
        });
        assert_eq!(pace.state().beginning, 0);
        drop((first, second));
        assert_eq!(pace.state().running, 0);
    }
}
