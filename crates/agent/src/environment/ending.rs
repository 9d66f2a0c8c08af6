//! The end of environments: their processes first, then what the agent keeps for them.

use std::time::{Duration, Instant};

use testyard_linux::signal::Signal;
use testyard_linux::step;
use testyard_model::step::Step;
use testyard_model::{CommandStatus, EnvironmentId, Problem, ProblemKind, Usage};
use testyard_protocol::{Event, Linger};

use super::joining::Joining;
use super::order::Order;
use super::{Environment, PooledGroup, State, Waiting};
use crate::agent::{Agent, unwatch};
use crate::timers::Due;
use crate::worker::Task;

/// Network namespaces are let go so many at a time, so far apart: destroying many at once slows everything.
const NETWORKS_AT_ONCE: usize = 32;
const NETWORKS_APART: Duration = Duration::from_millis(40);
/// With more than this many waiting, memory matters more.
const NETWORKS_WAITING: usize = 256;
/// How many control groups are kept for the next environments. Each is descriptors, which every fork copies.
const GROUPS: usize = 16;

impl Agent {
    /// Ends an environment whose client is gone with the last of the commands that were to outlive it.
    pub(crate) fn end_if_forsaken(&mut self, id: EnvironmentId, ended: u32) {
        let others = self.commands.iter().any(|(number, command)| *number != ended && command.place == id);
        let held = self.environments.get(&id).and_then(|one| one.holder);
        if !others && held.is_some_and(|holder| !self.connections.contains_key(&holder)) {
            self.end_environment(id);
        }
    }

    /// A command has ended, and with it the environment that was made for it alone. The status goes out first: until it
    /// has, the init only waits.
    pub(crate) fn finish_once(&mut self, id: EnvironmentId, number: u32, event: Event) {
        let once = self.environments.get_mut(&id).filter(|one| one.once).map(|one| one.state = State::Ending).is_some();
        self.end_if_forsaken(id, number);
        self.finish(number, event);
        if once {
            self.end_environment(id);
        }
    }

    /// Ends an environment: its processes first, then, when they are gone, the rest.
    pub(crate) fn end_environment(&mut self, id: EnvironmentId) {
        let Some(environment) = self.environments.get_mut(&id) else { return };
        environment.state = State::Ending;
        // Whoever lets a mount namespace go last takes its mounts down, and waits for that: here it would be this process,
        // for milliseconds. So it is the init, in its own end.
        environment.namespaces = None;
        let pid = environment.pid;
        // Not waited for: the number is its own.
        let there = self.children.contains_key(&pid);
        if environment.workspace.is_some() {
            // Its init ends what it started one by one, then itself; also one that somebody stopped.
            let _ = self.order(id, &Order::End, &[]);
            let _ = there.then(|| Signal::CONT.send_to(pid));
        } else {
            let _ = there.then(|| Signal::KILL.send_to(pid));
        }
    }

    /// A command's time is up or its client is gone.
    pub(crate) fn kill_in_environment(&mut self, number: u32, id: EnvironmentId) {
        let once = self.environments.get(&id).is_some_and(|one| one.once && one.linger == Linger::Never);
        if once {
            self.end_environment(id);
        } else {
            // An init that is gone takes its commands with it.
            let _ = self.order(id, &Order::Kill { command: number }, &[]);
        }
    }

    /// An environment's init has ended, and with it every process inside.
    pub(crate) fn environment_gone(&mut self, id: EnvironmentId) {
        self.hear_the_rest(id);
        step::reach(Step::AgentEnvironmentKilled);
        let Some(mut environment) = self.environments.remove(&id) else { return };
        unwatch(&self.epoll, &environment.control);
        let commands: Vec<u32> = self
            .commands
            .iter()
            .filter(|(_, command)| command.place == id && command.ended.is_none())
            .map(|(number, _)| *number)
            .collect();
        for number in commands {
            if self.commands.get(&number).is_some_and(|command| command.worker.is_none()) {
                self.finish_killed(number, &environment);
            }
        }
        self.let_go_of(&mut environment);
        let why = Problem::new(ProblemKind::Unavailable, format!("environment {id} ended while files were moved"));
        self.kill_workers(&why, |worker| worker.place == id && worker.task != Task::Look);
        let joining = std::mem::take(&mut environment.joining);
        let showing = std::mem::take(&mut environment.showing);
        let client = |(connection, stream)| Joining::client(connection, stream);
        self.fail_joining(id, joining.into_iter().chain(showing.into_iter().map(client)).collect());
        if environment.user.is_some() {
            self.disconnect_route(id);
        }
        for command in std::mem::take(&mut environment.delayed) {
            let problem = Problem::new(ProblemKind::Unavailable, format!("environment {id} ended before it was ready"));
            self.fail(command.connection, command.stream, problem);
        }
        self.give_back(environment.group.take());
        if let Some(network) = environment.network.take() {
            self.networks.push_back(network);
            if self.networks.len() == 1 {
                self.timers.add(Instant::now() + NETWORKS_APART, Due::Networks);
            } else if self.networks.len() > NETWORKS_WAITING {
                self.networks.pop_front();
            }
        }
        for waiting in environment.waiting {
            match waiting {
                Waiting::Gone { connection, stream } => self.answer(connection, stream, &Event::Done),
                Waiting::Ready { connection, stream, .. } | Waiting::Listening { connection, stream, .. } => {
                    let problem =
                        Problem::new(ProblemKind::Unavailable, format!("environment {id} ended before it was ready"));
                    self.fail(connection, stream, problem);
                }
            }
        }
    }

    fn finish_killed(&mut self, number: u32, environment: &Environment) {
        let Some(command) = self.commands.get(&number) else { return };
        let status = if command.timed_out { CommandStatus::TimedOut } else { CommandStatus::Signalled(9) };
        let mut usage = Usage { wall_us: command.started.elapsed().as_micros() as u64, ..Usage::default() };
        self.add_usage(environment, &mut usage);
        self.finish(number, Event::Exited { status, usage, environment: None });
    }

    fn give_back(&mut self, group: Option<PooledGroup>) {
        let Some(group) = group else { return };
        if self.groups.len() >= GROUPS || !group.is_reusable() {
            group.remove();
        } else {
            self.groups.push(group);
        }
        step::reach(Step::AgentEnvironmentRemoved);
    }

    /// Lets some network namespaces go.
    pub(crate) fn drop_networks(&mut self) {
        let count = self.networks.len().min(NETWORKS_AT_ONCE);
        self.networks.drain(..count);
        if !self.networks.is_empty() {
            self.timers.add(Instant::now() + NETWORKS_APART, Due::Networks);
        }
    }

    /// Ends the environments that a client held.
    pub(crate) fn end_environments_of(&mut self, connection: u64) {
        self.park_requests.retain(|request| request.connection != connection);
        let detached: Vec<EnvironmentId> =
            self.commands.values().filter(|command| command.detach).map(|command| command.place).collect();
        let held: Vec<EnvironmentId> = self
            .environments
            .values()
            .filter(|one| one.holder == Some(connection) && !detached.contains(&one.id))
            .map(|one| one.id)
            .collect();
        for id in held {
            self.end_environment(id);
        }
    }

    /// The end of the machine: everything at once.
    pub(crate) fn kill_commands_and_environments(&mut self) {
        let commands: Vec<u32> = self.commands.keys().copied().collect();
        for number in commands {
            self.kill(number);
        }
        let environments: Vec<EnvironmentId> = self.environments.keys().copied().collect();
        for id in environments {
            self.end_environment(id);
        }
    }
}
