//! How many environments are made at once: more than there are processors for only wait for each other, and all of them
//! come late.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Whoever has waited so long goes ahead: one that hangs is nobody else's matter.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether the run was ended meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Turns at beginning.
#[derive(Debug)]
pub(super) struct Pace {
    free: Mutex<usize>,
    freed: Condvar,
}

/// A turn, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(Option<&'a Pace>);

impl Pace {
    /// As this host's processors suggest: each has one to work on and one that waits for the kernel.
    pub(super) fn of_host() -> Self {
        Self::new(2 * std::thread::available_parallelism().map_or(1, usize::from))
    }

    fn new(turns: usize) -> Self {
        Self { free: Mutex::new(turns), freed: Condvar::new() }
    }

    /// Waits for a turn, not for ever, and no longer than the run goes on.
    pub(super) fn turn(&self, is_over: impl Fn() -> bool) -> Turn<'_> {
        let until = Instant::now() + PATIENCE;
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            if is_over() || Instant::now() >= until {
                return Turn(None);
            }
            free = self.freed.wait_timeout(free, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
        *free -= 1;
        Turn(Some(self))
    }
}

impl Turn<'_> {
    /// Somebody else's turn, before this is dropped.
    pub(super) fn end(&mut self) {
        if let Some(pace) = self.0.take() {
            *pace.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            pace.freed.notify_one();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_taken_given_back_and_not_waited_for_for_ever() {
        let pace = Pace::new(1);
        let mut first = pace.turn(|| false);
        assert!(first.0.is_some());
        assert!(pace.turn(|| true).0.is_none(), "the run is over");
        first.end();
        first.end();
        let second = pace.turn(|| false);
        assert!(second.0.is_some() && *pace.free.lock().expect("ours") == 0);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| pace.turn(|| false).0.is_some());
            drop(second);
            assert!(waits.join().expect("it ends"));
        });
        assert_eq!(*pace.free.lock().expect("ours"), 1);
    }
}
