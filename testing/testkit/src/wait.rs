//! Waiting on a condition, never on time.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const BETWEEN: Duration = Duration::from_millis(2);

/// Looks at a condition until it holds; whether it did before the deadline. It is looked at once at least.
pub fn wait_until(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    wait_for(deadline, || condition().then_some(())).is_some()
}

/// Asks until there is an answer; none when the deadline passed first. It asks once at least.
pub fn wait_for<T>(deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::park_timeout(BETWEEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_looked_at_until_it_holds() {
        let mut looks = 0;
        assert!(wait_until(Duration::from_secs(10), || {
            looks += 1;
            looks == 3
        }));
        assert_eq!(looks, 3);
    }

    #[test]
    fn a_passed_deadline_still_looks_once() {
        let mut looks = 0;
        assert!(!wait_until(Duration::ZERO, || {
            looks += 1;
            false
        }));
        assert_eq!(looks, 1);
    }
}
