//! In which order tests are started: a pure decision over what is known of them.

use std::time::Duration;

use crate::backoff::Random;
use crate::history::Known;

/// What goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// What is known to take longest, so that no long test is left for the end.
    #[default]
    Longest,
    /// As the suites' files say.
    File,
    /// As chance has it; the same seed gives the same order of the same tests.
    Random,
}

/// The tests' places in the order in which they are to be started. Of tests of which nothing is known it is taken
/// that they are neither long nor short; of equals the earlier one goes first.
#[must_use]
pub fn order(known: &[Known], order: Order, failed_first: bool, seed: u64) -> Vec<usize> {
    let mut places: Vec<usize> = (0..known.len()).collect();
    match order {
        Order::Longest => {
            let mut durations: Vec<Duration> = known.iter().filter_map(|known| known.duration).collect();
            durations.sort_unstable();
            let usual = durations.get(durations.len() / 2).copied().unwrap_or_default();
            places.sort_by_key(|place| std::cmp::Reverse(known[*place].duration.unwrap_or(usual)));
        }
        Order::File => {}
        Order::Random => {
            let mut random = Random::seeded(seed);
            for last in (1..places.len()).rev() {
                let other = random.below(last as u64 + 1);
                places.swap(last, usize::try_from(other).unwrap_or(last));
            }
        }
    }
    if failed_first {
        places.sort_by_key(|place| !known[*place].failed());
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(seconds: &[Option<u64>]) -> Vec<Known> {
        seconds.iter().map(|number| Known { duration: number.map(Duration::from_secs), last: None }).collect()
    }

    #[test]
    fn the_longest_known_go_first_and_ties_keep_their_order() {
        let known = known(&[Some(1), None, Some(9), Some(5), None, Some(5)]);
        assert_eq!(order(&known, Order::Longest, false, 0), [2, 1, 3, 4, 5, 0]);
        assert_eq!(order(&known, Order::File, false, 0), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_failed_last_goes_first_within_any_order() {
        let mut known = known(&[Some(1), Some(2), Some(3), Some(4)]);
        known[0].last = Some("failed");
        known[2].last = Some("infrastructure-error");
        known[3].last = Some("flaky");
        assert_eq!(order(&known, Order::Longest, true, 0), [2, 0, 3, 1]);
        assert_eq!(order(&known, Order::File, true, 0), [0, 2, 1, 3]);
    }

    #[test]
    fn a_seed_decides_a_random_order_of_all() {
        let known = known(&[None; 50]);
        let of = |seed| order(&known, Order::Random, false, seed);
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        let mut sorted = of(7);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }
}
