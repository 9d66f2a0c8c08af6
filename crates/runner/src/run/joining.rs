//! Nodes that are not there when a run begins: each is awaited by a thread, until it comes or the run is over.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use testyard_model::{Problem, ProblemKind};

use super::{Event, RunOptions};
use crate::cancel::{Cancel, CancelReason};
use crate::dispatch::Input;
use crate::job::{Executor, Node};
use crate::schedule::Room;

/// The threads that wait.
pub(super) struct Joining {
    over: Cancel,
    threads: Vec<JoinHandle<()>>,
}

impl Joining {
    /// Awaits those of these nodes that are not there.
    pub(super) fn begin(executor: &Arc<dyn Executor>, nodes: &[Node], events: &Sender<Event>) -> Self {
        let mut joining = Self { over: Cancel::new(), threads: Vec::new() };
        for node in (0..nodes.len()).filter(|node| nodes[*node].awaited) {
            let (executor, over, sender) = (Arc::clone(executor), joining.over.clone(), events.clone());
            let wait = move || {
                let room = executor.await_node(node, &over);
                // A run that was killed listens no more.
                let _ = sender.send(Event::Joined { node, room });
            };
            match std::thread::Builder::new().name(format!("node-{node}")).spawn(wait) {
                Ok(thread) => joining.threads.push(thread),
                Err(error) => {
                    let problem = Problem::new(ProblemKind::Unavailable, "cannot start a thread").because(error);
                    // The run that listens is our caller.
                    let _ = events.send(Event::Joined { node, room: Err(problem) });
                }
            }
        }
        joining
    }

    /// Nobody needs those any more that have not come.
    pub(super) fn end(self) {
        self.over.request(CancelReason::Interrupted);
        for thread in self.threads {
            // One that panicked awaits nothing any more either.
            let _ = thread.join();
        }
    }
}

/// What the dispatcher is told of it.
pub(super) fn input(node: usize, room: Result<Room, Problem>, options: &RunOptions) -> Input {
    match room {
        Ok(room) => Input::Joined { node, room: Room { jobs: options.node_jobs.unwrap_or(room.jobs).max(1), ..room } },
        Err(problem) => Input::Missed { node, problem },
    }
}
