//! Which test is next, and on which node: a pure decision over what waits and what is in use.
//!
//! The order is given (see [`crate::order`]). A test that does not fit yet is passed over, but not for ever: after
//! [`PATIENCE`] others, what it needs is kept free for it. Names are exclusive over all nodes of a run.

use std::collections::{BTreeSet, VecDeque};

/// How many others may overtake a test that does not fit yet.
const PATIENCE: u32 = 16;

/// What the tests of a node may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Processor time, in thousandths of a core.
    pub milli_cpus: u64,
    /// Memory, in bytes.
    pub memory: u64,
}

/// What one node gives to tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Tests at once; above 0.
    pub jobs: usize,
    /// What they may use together.
    pub capacity: Capacity,
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

/// A node and what of it is in use.
#[derive(Debug)]
struct Node {
    room: Room,
    running: usize,
    milli_cpus: u64,
    memory: u64,
    awaited: bool,
    lost: bool,
}

/// Tests that wait, and what the running ones use.
#[derive(Debug)]
pub struct Schedule {
    demands: Vec<Demand>,
    waiting: VecDeque<usize>,
    overtaken: Vec<u32>,
    nodes: Vec<Node>,
    /// The node of each test that runs.
    placed: Vec<usize>,
    held: BTreeSet<u32>,
}

impl Schedule {
    /// All tests wait, in this order, for one of these nodes.
    #[must_use]
    pub fn new(demands: Vec<Demand>, order: Vec<usize>, rooms: Vec<Room>) -> Self {
        let node = |room| Node { room, running: 0, milli_cpus: 0, memory: 0, awaited: false, lost: false };
        Self {
            overtaken: vec![0; demands.len()],
            placed: vec![0; demands.len()],
            demands,
            waiting: order.into(),
            nodes: rooms.into_iter().map(node).collect(),
            held: BTreeSet::new(),
        }
    }

    /// Takes the next test that fits beside those that run, and the node for it.
    pub fn take(&mut self) -> Option<(usize, usize)> {
        if !self.nodes.iter().any(Node::is_open) {
            return None;
        }
        let mut kept_free: BTreeSet<u32> = BTreeSet::new();
        let mut kept_nodes: BTreeSet<usize> = BTreeSet::new();
        let mut chosen = None;
        for (place, test) in self.waiting.iter().enumerate() {
            let demand = &self.demands[*test];
            let named = demand.exclusive.iter().all(|name| !self.held.contains(name) && !kept_free.contains(name));
            let counted = demand.milli_cpus > 0 || demand.memory > 0;
            let kept = |node: &usize| counted && kept_nodes.contains(node);
            if let Some(node) = self.emptiest(demand, kept).filter(|_| named) {
                chosen = Some((place, node));
                break;
            }
            if self.overtaken[*test] >= PATIENCE {
                kept_free.extend(&demand.exclusive);
                if counted {
                    kept_nodes.extend(self.kept_for(*test));
                }
            }
        }
        let (place, node) = chosen?;
        for test in self.waiting.iter().take(place) {
            self.overtaken[*test] += 1;
        }
        let test = self.waiting.remove(place)?;
        let demand = &self.demands[test];
        self.nodes[node].running += 1;
        self.nodes[node].milli_cpus += demand.milli_cpus;
        self.nodes[node].memory += demand.memory;
        self.held.extend(&demand.exclusive);
        self.placed[test] = node;
        Some((test, node))
    }

    /// A running test has ended: what it used is free again.
    pub fn release(&mut self, test: usize) {
        let demand = &self.demands[test];
        let node = &mut self.nodes[self.placed[test]];
        node.running -= 1;
        node.milli_cpus -= demand.milli_cpus;
        node.memory -= demand.memory;
        for name in &demand.exclusive {
            self.held.remove(name);
        }
    }

    /// A released test is to run once more, before the others.
    pub fn again(&mut self, test: usize) {
        self.waiting.push_front(test);
    }

    /// Nothing is placed on this node before it [joins](Self::join).
    pub fn await_node(&mut self, node: usize) {
        self.nodes[node].awaited = true;
    }

    /// A node that was awaited is there, with this room.
    pub fn join(&mut self, node: usize, room: Room) {
        self.nodes[node].awaited = false;
        self.nodes[node].room = room;
    }

    /// Nothing is placed on this node any more.
    pub fn lose(&mut self, node: usize) {
        self.nodes[node].lost = true;
    }

    /// Whether there is a node left, or one to come.
    #[must_use]
    pub fn has_node(&self) -> bool {
        self.nodes.iter().any(|node| !node.lost)
    }

    /// Gives up everything that waits.
    pub fn drain(&mut self) -> impl Iterator<Item = usize> + use<> {
        std::mem::take(&mut self.waiting).into_iter()
    }

    /// Of the nodes on which it fits, the one with the largest share of its slots free; the first of several.
    fn emptiest(&self, demand: &Demand, kept: impl Fn(&usize) -> bool) -> Option<usize> {
        let fits = |(number, node): &(usize, &Node)| node.is_open() && node.fits(demand) && !kept(number);
        let more_free = |(_, one): &(usize, &Node), (_, other): &(usize, &Node)| {
            (other.running * one.room.jobs).cmp(&(one.running * other.room.jobs))
        };
        // The last of equals is the greatest to `max_by`: looked at from behind, that is the first.
        self.nodes.iter().enumerate().rev().filter(fits).max_by(more_free).map(|(number, _)| number)
    }

    /// The node that is kept for a test which waits for too long: always the same one, while that is there.
    fn kept_for(&self, test: usize) -> Option<usize> {
        let there = |node: &usize| !self.nodes[*node].lost && !self.nodes[*node].awaited;
        let left: Vec<usize> = (0..self.nodes.len()).filter(there).collect();
        left.get(test % left.len().max(1)).copied()
    }
}

impl Node {
    fn is_open(&self) -> bool {
        !self.lost && !self.awaited && self.running < self.room.jobs
    }

    /// Whether it fits; alone it always does, else a test that asks for more than there is would never run.
    fn fits(&self, demand: &Demand) -> bool {
        let fits = |used: u64, more: u64, all: u64| more == 0 || used == 0 || used.saturating_add(more) <= all;
        fits(self.milli_cpus, demand.milli_cpus, self.room.capacity.milli_cpus)
            && fits(self.memory, demand.memory, self.room.capacity.memory)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPACITY: Capacity = Capacity { milli_cpus: 2_000, memory: 100 };
    const ROOM: Room = Room { jobs: 1_000, capacity: CAPACITY };

    #[test]
    fn one_that_asks_for_more_than_there_is_runs_alone() {
        let large = Demand { milli_cpus: 9_000, ..Demand::default() };
        let small = Demand { milli_cpus: 500, ..Demand::default() };
        let mut schedule = Schedule::new(vec![small.clone(), large, small], vec![0, 1, 2], vec![ROOM]);
        assert_eq!(schedule.take(), Some((0, 0)));
        assert_eq!(schedule.take(), Some((2, 0)));
        assert_eq!(schedule.take(), None);
        schedule.release(0);
        assert_eq!(schedule.take(), None);
        schedule.release(2);
        assert_eq!(schedule.take(), Some((1, 0)));
    }

    #[test]
    fn nobody_is_overtaken_for_ever() {
        let both = Demand { exclusive: vec![0, 1], ..Demand::default() };
        let mut demands = vec![both];
        demands.extend((0..200).map(|index| Demand { exclusive: vec![index % 2], ..Demand::default() }));
        let mut schedule = Schedule::new(demands, (0..201).collect(), vec![ROOM]);
        // Another holds one of the names first, and each that ends makes room for its like.
        schedule.held.insert(0);
        let mut running = vec![schedule.take().expect("one of the other name").0];
        schedule.held.remove(&0);
        for started in 1.. {
            assert!(started < 100, "test 0 starves");
            running.extend(schedule.take().map(|(test, _)| test));
            if running.contains(&0) {
                break;
            }
            let ended = running.remove(0);
            schedule.release(ended);
        }
    }

    #[test]
    fn tests_go_where_most_is_free_and_nowhere_once_a_node_is_lost() {
        let rooms = [2, 4].map(|jobs| Room { jobs, capacity: CAPACITY });
        let mut schedule = Schedule::new(vec![Demand::default(); 9], (0..9).collect(), rooms.to_vec());
        let nodes: Vec<usize> = (0..6).map(|_| schedule.take().expect("there is room").1).collect();
        assert_eq!(nodes, [0, 1, 1, 0, 1, 1]);
        assert_eq!(schedule.take(), None);
        schedule.lose(1);
        schedule.release(1);
        assert_eq!(schedule.take(), None, "what is free on a lost node is of no use");
        schedule.release(0);
        schedule.again(0);
        assert_eq!(schedule.take(), Some((0, 0)));
        schedule.lose(0);
        schedule.release(3);
        assert!(schedule.take().is_none() && !schedule.has_node());
        assert_eq!(schedule.drain().count(), 3);
    }

    #[test]
    fn a_node_that_is_awaited_takes_nothing_until_it_joins() {
        let rooms = vec![Room { jobs: 1, capacity: CAPACITY }; 2];
        let mut schedule = Schedule::new(vec![Demand::default(); 4], (0..4).collect(), rooms);
        schedule.await_node(1);
        assert_eq!((schedule.take(), schedule.take()), (Some((0, 0)), None));
        schedule.lose(0);
        assert!(schedule.has_node(), "one is to come");
        schedule.join(1, Room { jobs: 2, capacity: CAPACITY });
        assert_eq!([schedule.take(), schedule.take(), schedule.take()], [Some((1, 1)), Some((2, 1)), None]);
    }

    #[test]
    fn a_name_is_held_by_one_over_all_nodes_and_what_a_large_test_waits_for_is_kept_on_one() {
        let named = Demand { exclusive: vec![0], ..Demand::default() };
        let mut schedule = Schedule::new(vec![named; 2], vec![0, 1], vec![ROOM; 2]);
        assert!(schedule.take().is_some() && schedule.take().is_none());

        let (large, small) =
            (Demand { milli_cpus: 2_000, ..Demand::default() }, Demand { milli_cpus: 1_000, ..Demand::default() });
        let mut demands = vec![small; 100];
        demands[0] = large;
        // The large one is last at first, so that small ones fill both nodes.
        let order = (1..5).chain([0]).chain(5..100).collect();
        let mut schedule = Schedule::new(demands, order, vec![ROOM; 2]);
        let mut running: VecDeque<usize> = (0..4).map(|_| schedule.take().expect("there is room").0).collect();
        for started in 4.. {
            assert!(started < 60, "the large test starves");
            schedule.release(running.pop_front().expect("something runs"));
            running.extend(schedule.take().map(|(test, _)| test));
            if running.contains(&0) {
                break;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_runs_once_and_no_limit_is_passed(
            demands in prop::collection::vec((0..3_000_u64, 0..150_u64, prop::collection::btree_set(0..4_u32, 0..3)), 1..40),
            ends in prop::collection::vec(any::<prop::sample::Index>(), 200),
            nodes in prop::collection::vec(1..5_usize, 1..4),
        ) {
            let demands: Vec<Demand> = demands
                .into_iter()
                .map(|(cpus, memory, names)| Demand {
                    milli_cpus: cpus / 500 * 500,
                    memory: memory / 50 * 50,
                    exclusive: names.into_iter().collect(),
                })
                .collect();
            let rooms = nodes.iter().map(|jobs| Room { jobs: *jobs, capacity: CAPACITY }).collect();
            let mut schedule = Schedule::new(demands.clone(), (0..demands.len()).collect(), rooms);
            let (mut running, mut done) = (Vec::new(), Vec::new());
            for end in ends {
                while let Some(placed) = schedule.take() {
                    running.push(placed);
                }
                let all = running.iter().map(|(test, _): &(usize, usize)| &demands[*test]);
                let names: Vec<u32> = all.flat_map(|demand| demand.exclusive.clone()).collect();
                prop_assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len(), "a name is held twice");
                for (node, jobs) in nodes.iter().enumerate() {
                    let here: Vec<&Demand> =
                        running.iter().filter(|placed| placed.1 == node).map(|placed| &demands[placed.0]).collect();
                    prop_assert!(here.len() <= *jobs);
                    let users = here.iter().filter(|demand| demand.milli_cpus > 0).count();
                    let cpus: u64 = here.iter().map(|demand| demand.milli_cpus).sum();
                    prop_assert!(cpus <= CAPACITY.milli_cpus || users == 1);
                }
                if running.is_empty() {
                    break;
                }
                let (ended, _) = running.swap_remove(end.index(running.len()));
                schedule.release(ended);
                done.push(ended);
            }
            done.sort_unstable();
            prop_assert_eq!(done, (0..demands.len()).collect::<Vec<_>>());
        }
    }
}
