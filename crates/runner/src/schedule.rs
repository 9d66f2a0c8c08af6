//! Which test is next: a pure decision over what waits and what is in use.
//!
//! The order is given (see [`crate::order`]). A test that does not fit yet is passed over, but not for ever: after [`PATIENCE`] others, what it needs is kept free for it.

use std::collections::{BTreeSet, VecDeque};

/// How many others may overtake a test that does not fit yet.
const PATIENCE: u32 = 16;

/// What the tests of a run may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Processor time, in thousandths of a core.
    pub milli_cpus: u64,
    /// Memory, in bytes.
    pub memory: u64,
}

/// What one test sets aside while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demand {
    /// Processor time, in thousandths of a core; 0 where it does not say.
    pub milli_cpus: u64,
    /// Memory, in bytes; 0 where it does not say.
    pub memory: u64,
    /// Numbers of the names that it shares with nobody.
    pub exclusive: Vec<u32>,
}

/// Tests that wait, and what the running ones use.
#[derive(Debug)]
pub struct Schedule {
    demands: Vec<Demand>,
    waiting: VecDeque<usize>,
    overtaken: Vec<u32>,
    capacity: Capacity,
    milli_cpus: u64,
    memory: u64,
    held: BTreeSet<u32>,
}

impl Schedule {
    /// All tests wait, in this order.
    #[must_use]
    pub fn new(demands: Vec<Demand>, order: Vec<usize>, capacity: Capacity) -> Self {
        let overtaken = vec![0; demands.len()];
        Self { demands, waiting: order.into(), overtaken, capacity, milli_cpus: 0, memory: 0, held: BTreeSet::new() }
    }

    /// Takes the next test that fits beside those that run.
    pub fn take(&mut self) -> Option<usize> {
        let mut kept_free: BTreeSet<u32> = BTreeSet::new();
        let mut keep_capacity = false;
        let mut chosen = None;
        for (place, test) in self.waiting.iter().enumerate() {
            let demand = &self.demands[*test];
            let named = demand.exclusive.iter().all(|name| !self.held.contains(name) && !kept_free.contains(name));
            let counted = demand.milli_cpus > 0 || demand.memory > 0;
            if named && self.has_room(demand) && !(keep_capacity && counted) {
                chosen = Some(place);
                break;
            }
            if self.overtaken[*test] >= PATIENCE {
                kept_free.extend(&demand.exclusive);
                keep_capacity |= counted;
            }
        }
        let place = chosen?;
        for test in self.waiting.iter().take(place) {
            self.overtaken[*test] += 1;
        }
        let test = self.waiting.remove(place)?;
        let demand = &self.demands[test];
        self.milli_cpus += demand.milli_cpus;
        self.memory += demand.memory;
        self.held.extend(&demand.exclusive);
        Some(test)
    }

    /// A running test has ended: what it used is free again.
    pub fn release(&mut self, test: usize) {
        let demand = &self.demands[test];
        self.milli_cpus -= demand.milli_cpus;
        self.memory -= demand.memory;
        for name in &demand.exclusive {
            self.held.remove(name);
        }
    }

    /// A released test is to run once more, before the others.
    pub fn again(&mut self, test: usize) {
        self.waiting.push_front(test);
    }

    /// Gives up everything that waits.
    pub fn drain(&mut self) -> impl Iterator<Item = usize> + use<> {
        std::mem::take(&mut self.waiting).into_iter()
    }

    /// Whether it fits; alone it always does, else a test that asks for more than there is would never run.
    fn has_room(&self, demand: &Demand) -> bool {
        let fits = |used: u64, more: u64, all: u64| more == 0 || used == 0 || used.saturating_add(more) <= all;
        fits(self.milli_cpus, demand.milli_cpus, self.capacity.milli_cpus)
            && fits(self.memory, demand.memory, self.capacity.memory)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPACITY: Capacity = Capacity { milli_cpus: 2_000, memory: 100 };

    #[test]
    fn one_that_asks_for_more_than_there_is_runs_alone() {
        let large = Demand { milli_cpus: 9_000, ..Demand::default() };
        let small = Demand { milli_cpus: 500, ..Demand::default() };
        let mut schedule = Schedule::new(vec![small.clone(), large, small], vec![0, 1, 2], CAPACITY);
        assert_eq!(schedule.take(), Some(0));
        assert_eq!(schedule.take(), Some(2));
        assert_eq!(schedule.take(), None);
        schedule.release(0);
        assert_eq!(schedule.take(), None);
        schedule.release(2);
        assert_eq!(schedule.take(), Some(1));
    }

    #[test]
    fn nobody_is_overtaken_for_ever() {
        let both = Demand { exclusive: vec![0, 1], ..Demand::default() };
        let mut demands = vec![both];
        demands.extend((0..200).map(|index| Demand { exclusive: vec![index % 2], ..Demand::default() }));
        let mut schedule = Schedule::new(demands, (0..201).collect(), CAPACITY);
        // Another holds one of the names first, and each that ends makes room for its like.
        schedule.held.insert(0);
        let mut running = vec![schedule.take().expect("one of the other name")];
        schedule.held.remove(&0);
        for started in 1.. {
            assert!(started < 100, "test 0 starves");
            running.extend(schedule.take());
            if running.contains(&0) {
                break;
            }
            let ended = running.remove(0);
            schedule.release(ended);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_runs_once_and_no_limit_is_passed(
            demands in prop::collection::vec((0..3_000_u64, 0..150_u64, prop::collection::btree_set(0..4_u32, 0..3)), 1..40),
            ends in prop::collection::vec(any::<prop::sample::Index>(), 200),
        ) {
            let demands: Vec<Demand> = demands
                .into_iter()
                .map(|(cpus, memory, names)| Demand {
                    milli_cpus: cpus / 500 * 500,
                    memory: memory / 50 * 50,
                    exclusive: names.into_iter().collect(),
                })
                .collect();
            let mut schedule = Schedule::new(demands.clone(), (0..demands.len()).collect(), CAPACITY);
            let (mut running, mut done) = (Vec::new(), Vec::new());
            for end in ends {
                while let Some(test) = schedule.take() {
                    running.push(test);
                }
                let names: Vec<u32> = running.iter().flat_map(|test: &usize| demands[*test].exclusive.clone()).collect();
                prop_assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len(), "a name is held twice");
                let users = running.iter().filter(|test| demands[**test].milli_cpus > 0).count();
                let cpus: u64 = running.iter().map(|test| demands[*test].milli_cpus).sum();
                prop_assert!(cpus <= CAPACITY.milli_cpus || users == 1);
                if running.is_empty() {
                    break;
                }
                let ended = running.swap_remove(end.index(running.len()));
                schedule.release(ended);
                done.push(ended);
            }
            done.sort_unstable();
            prop_assert_eq!(done, (0..demands.len()).collect::<Vec<_>>());
        }
    }
}
