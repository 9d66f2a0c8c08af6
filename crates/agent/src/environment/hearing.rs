//! What an environment's init says, and what follows from it.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::epoll::EventFlags;
use testyard_linux::step;
use testyard_model::step::Step;
use testyard_model::{CommandStatus, EnvironmentId, Problem, Usage};
use testyard_protocol::Event;

use super::order::Answer;
use super::{DelayedCommand, Environment, MACHINE, PooledGroup, State, Waiting};
use crate::agent::{Agent, Token, rewatch, unwatch};
use crate::command::channels_of;
use crate::place::Around;

use crate::request::attach_terminal;

impl Agent {
    /// An environment's init said something, or has room for orders.
    pub(crate) fn attend_environment(&mut self, id: EnvironmentId, flags: EventFlags) {
        if flags.contains(EventFlags::OUT)
            && let Some(environment) = self.environments.get_mut(&id)
        {
            // An init that is gone is noticed by its end.
            let _ = environment.outbox.flush(environment.control.as_fd());
            if environment.outbox.is_empty() {
                rewatch(&self.epoll, &environment.control, Token::Environment(id), EventFlags::IN);
            }
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP) {
            self.hear_environment(id);
        }
    }

    /// Reads what an environment's init says.
    pub(crate) fn hear_environment(&mut self, id: EnvironmentId) {
        let Some(environment) = self.environments.get_mut(&id) else { return };
        if !environment.inbox.fill(&environment.control).unwrap_or(false) {
            unwatch(&self.epoll, &environment.control);
        }
        self.heed_environment(id);
    }

    /// Reads all that an environment's init has said before it ended.
    pub(super) fn hear_the_rest(&mut self, id: EnvironmentId) {
        if let Some(environment) = self.environments.get_mut(&id) {
            environment.inbox.fill_with_the_rest(&environment.control);
        }
        self.heed_environment(id);
    }

    /// Does what follows from what was read.
    fn heed_environment(&mut self, id: EnvironmentId) {
        loop {
            let Some(environment) = self.environments.get_mut(&id) else { return };
            let Ok(Some(answer)) = environment.inbox.take() else { return };
            match answer {
                Answer::Ready => {
                    if let Some(network) = environment.inbox.attached.pop_front() {
                        let network = self.put_aside(network);
                        if let Some(environment) = self.environments.get_mut(&id) {
                            environment.network = Some(network);
                        }
                    }
                    self.environment_ready(id);
                }
                Answer::Broken(problem) => self.environment_broken(id, &problem),
                Answer::Started { command, pid } => {
                    let controller = environment.inbox.attached.pop_front();
                    self.command_started(id, command, pid, controller);
                }
                Answer::Namespaces => self.namespaces_came(id),
                Answer::Listening { wait, accepts } => self.listening_answered(id, wait, accepts),
                Answer::Shown { problem } => self.source_shown(id, problem),
                Answer::Uppers { root, source } => self.uppers_came(id, root, source),
                Answer::Exited { command, status, cpu_us, memory_peak } => {
                    if let Some(network) = environment.inbox.attached.pop_front() {
                        environment.network = Some(network);
                    }
                    self.command_exited(id, command, status, cpu_us, memory_peak);
                }
                Answer::Failed { command, problem } => {
                    self.finish_once(id, command, Event::Failed(problem));
                }
            }
        }
    }

    fn environment_ready(&mut self, id: EnvironmentId) {
        step::reach(Step::AgentEnvironmentReady);
        if self.environments.get(&id).is_some_and(Environment::awaits_route) {
            if let Err(problem) = self.connect_route(id) {
                self.environment_broken(id, &problem);
                self.end_environment(id);
            }
            return;
        }
        self.environment_usable(id);
    }

    /// It is ready, and has a route where it needs one.
    pub(crate) fn environment_usable(&mut self, id: EnvironmentId) {
        let Some(environment) = self.environments.get_mut(&id) else { return };
        if environment.state == State::Preparing {
            environment.state =
                if environment.holder.is_some() || environment.kept { State::InUse } else { State::Parked };
            // Its accounts begin before it is needed: reading them would be in the command's way.
            let parked = environment.state == State::Parked;
            environment.group.as_mut().filter(|_| parked).map(PooledGroup::begin_at_rest);
        }
        let delayed = std::mem::take(&mut environment.delayed);
        let ready: Vec<Waiting> = std::mem::take(&mut environment.waiting);
        for waiting in ready {
            match waiting {
                Waiting::Ready { connection, stream, parked } => {
                    self.answer(connection, stream, &Event::Environment { id, parked });
                }
                Waiting::Gone { .. } | Waiting::Listening { .. } => self.wait_for(id, waiting),
            }
        }
        for DelayedCommand { connection, stream, exec, streams } in delayed {
            if let Err(problem) = self.exec_in_environment(connection, stream, id, exec, streams, true) {
                self.fail(connection, stream, problem);
                self.end_environment(id);
            }
        }
        self.tell_parked();
    }

    pub(crate) fn environment_broken(&mut self, id: EnvironmentId, problem: &Problem) {
        let Some(environment) = self.environments.get_mut(&id) else { return };
        let waiting = std::mem::take(&mut environment.waiting);
        let delayed = std::mem::take(&mut environment.delayed);
        let spec = environment.spec.clone();
        environment.state = State::Ending;
        // Trying again at once would fail again, and again.
        self.park.retain(|(kind, _)| *kind != spec);
        let problem = problem.clone().because("while an environment was made");
        for one in waiting {
            match one {
                Waiting::Ready { connection, stream, .. } | Waiting::Listening { connection, stream, .. } => {
                    self.fail(connection, stream, problem.clone());
                }
                Waiting::Gone { connection, stream } => self.answer(connection, stream, &Event::Done),
            }
        }
        let commands: Vec<u32> =
            self.commands.iter().filter(|(_, command)| command.place == id).map(|(number, _)| *number).collect();
        for number in commands {
            self.finish(number, Event::Failed(problem.clone()));
        }
        for command in delayed {
            self.fail(command.connection, command.stream, problem.clone());
        }
        self.fail_parks(&problem);
    }

    fn command_started(&mut self, id: EnvironmentId, number: u32, pid: i32, controller: Option<OwnedFd>) {
        let Some(command) = self.commands.get_mut(&number) else { return };
        if let Some(controller) = controller
            && let Ok(credit) = attach_terminal(command, controller)
        {
            self.watch_output(number, 1);
            self.after_input(number, credit);
        }
        let Some(command) = self.commands.get_mut(&number).filter(|command| !command.told) else { return };
        command.told = true;
        let (connection, stream, channels) = (command.connection, command.stream, channels_of(command));
        self.answer(connection, stream, &Event::Started { pid, environment: (id != MACHINE).then_some(id) });
        for channel in channels {
            self.watch_output(number, channel);
        }
    }

    fn command_exited(&mut self, id: EnvironmentId, number: u32, raw: i32, cpu_us: u64, memory_peak: u64) {
        let Some(command) = self.commands.get(&number) else { return };
        let mut usage = Usage {
            wall_us: command.started.elapsed().as_micros() as u64,
            cpu_us,
            memory_peak: Some(memory_peak),
            ..Usage::default()
        };
        let status = if command.timed_out { CommandStatus::TimedOut } else { CommandStatus::from_wait_status(raw) };
        if let Some(environment) = self.environments.get(&id) {
            self.add_usage(environment, &mut usage);
        }
        let environment = self.lingers(id, raw).then_some(id);
        let exited = Event::Exited { status, usage, environment };
        if environment.is_none() {
            return self.finish_once(id, number, exited);
        }
        self.end_if_forsaken(id, number);
        self.finish(number, exited);
    }

    /// What an environment used, and which readings and limits there were none of.
    pub(crate) fn add_usage(&self, environment: &Environment, usage: &mut Usage) {
        let missing = self.unavailable_limits(&environment.spec, environment.group.as_ref());
        usage.unavailable = missing.into_iter().map(str::to_owned).collect();
        match &environment.group {
            Some(group) => group.add_usage(usage),
            None => {
                usage.unavailable.push("io".to_owned());
                // Whose process it was is not told: one that ended meanwhile, if there was one.
                usage.out_of_memory = self.place.around.as_ref().is_some_and(Around::has_killed);
            }
        }
    }
}
