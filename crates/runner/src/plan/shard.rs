//! `--shard I/N`: the tests of one of several hosts, so that all of them are done at about the same time.
//!
//! Every host decides alone. They agree as far as they know the same: the parts follow from the tests' names and, by
//! durations, from what the history knows. [`ShardInfo::basis`] tells hosts that do not.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{PlannedSuite, PlannedTest};

/// One of several parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 1.
    index: u32,
    /// Of how many.
    count: u32,
}

/// By what the parts are balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShardBy {
    /// By how long the tests usually take.
    #[default]
    Durations,
    /// By their number alone: the same on hosts with different histories.
    Names,
}

impl ShardBy {
    /// Whether the history is asked.
    #[must_use]
    pub fn needs_history(self) -> bool {
        self == Self::Durations
    }
}

/// What was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// Which part, from 1.
    pub index: u32,
    /// Of how many.
    pub count: u32,
    /// Tests of all parts together.
    pub of: usize,
    /// A hash of the names and durations that the parts follow from: the parts of two hosts fit together where it
    /// is the same.
    pub basis: String,
}

/// A part that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// Not two numbers.
    #[error("{0:?} is not a shard: write the part and their number, such as 2/4")]
    Form(String),
    /// Not among them.
    #[error("there is no shard {index} of {count}: write 1/{count} to {count}/{count}")]
    OutOfRange {
        /// Which was asked for.
        index: u32,
        /// Of how many.
        count: u32,
    },
    /// No part at all.
    #[error("there cannot be 0 shards")]
    Zero,
}

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let number = |digits: &str| digits.parse::<u32>().map_err(|_| ShardError::Form(text.to_owned()));
        let (index, count) = text.split_once('/').ok_or_else(|| ShardError::Form(text.to_owned()))?;
        match (number(index)?, number(count)?) {
            (_, 0) => Err(ShardError::Zero),
            (index, count) if index == 0 || index > count => Err(ShardError::OutOfRange { index, count }),
            (index, count) => Ok(Self { index, count }),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl Shard {
    /// Leaves the tests of this part, in their order.
    pub(super) fn take(self, tests: &mut Vec<PlannedTest>, suites: &[PlannedSuite], by: ShardBy) -> ShardInfo {
        let duration = |test: &PlannedTest| test.known.and_then(|known| known.duration).filter(|_| by.needs_history());
        let mut known: Vec<Duration> = tests.iter().filter_map(duration).collect();
        known.sort_unstable();
        // A test costs something even where it takes no time, else all the short ones would fall to one part.
        let usual = known.get(known.len() / 2).copied().unwrap_or_default() + Duration::from_millis(1);
        let weight = |test: &PlannedTest| duration(test).map_or(usual, |took| took + Duration::from_millis(1));
        let name = |test: &PlannedTest| (suites[test.suite].name.clone(), test.name.clone());
        let mut order: Vec<usize> = (0..tests.len()).collect();
        order.sort_by_cached_key(|index| (std::cmp::Reverse(weight(&tests[*index])), name(&tests[*index])));
        let mut loads = vec![Duration::ZERO; self.count as usize];
        let mut mine = vec![false; tests.len()];
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for index in &order {
            let part = (0..loads.len()).min_by_key(|part| (loads[*part], *part)).unwrap_or(0);
            loads[part] += weight(&tests[*index]);
            mine[*index] = part + 1 == self.index as usize;
            let (suite, test) = name(&tests[*index]);
            let millis = weight(&tests[*index]).as_millis().to_le_bytes();
            for byte in suite.bytes().chain([0]).chain(test.bytes()).chain([0]).chain(millis) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        let info = ShardInfo {
            index: self.index,
            count: self.count,
            of: tests.len(),
            basis: format!("{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff)),
        };
        let mut places = mine.into_iter();
        tests.retain(|_| places.next().unwrap_or(false));
        info
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_numbered_from_one_to_their_count() {
        assert_eq!("2/4".parse(), Ok(Shard { index: 2, count: 4 }));
        for (text, message) in [
            ("5/4", "there is no shard 5 of 4: write 1/4 to 4/4"),
            ("0/4", "there is no shard 0 of 4: write 1/4 to 4/4"),
            ("1/0", "there cannot be 0 shards"),
            ("1", "\"1\" is not a shard: write the part and their number, such as 2/4"),
            ("a/4", "\"a/4\" is not a shard: write the part and their number, such as 2/4"),
            ("-1/4", "\"-1/4\" is not a shard: write the part and their number, such as 2/4"),
        ] {
            assert_eq!(text.parse::<Shard>().expect_err(text).to_string(), message);
        }
    }
}
