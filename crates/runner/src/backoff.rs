//! How long to wait before something transient is tried again.

use std::time::Duration;

/// Pseudo-random numbers that a seed decides (SplitMix64): enough for jitter, replayable in tests.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is above 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64() % end
    }
}

/// Before the attempt after `attempt`: 200 ms, doubled each time up to 5 s, less up to half of it by chance, so
/// that tests that failed together do not come back together.
#[must_use]
pub fn delay(attempt: u32, random: &mut Random) -> Duration {
    let full = 200_u64.saturating_mul(1 << attempt.saturating_sub(1).min(10)).min(5_000);
    Duration::from_millis(full - random.below(full / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_end() {
        let mut random = Random::seeded(1);
        for (attempt, most) in [(1, 200), (2, 400), (3, 800), (6, 5_000), (u32::MAX, 5_000)] {
            for _ in 0..100 {
                let millis = delay(attempt, &mut random).as_millis();
                assert!((most / 2..=most).contains(&millis), "{attempt}: {millis}");
            }
        }
    }
}
