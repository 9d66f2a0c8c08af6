//! The agent's book of environments: making, leasing, running in, ending.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use testyard_linux::Result as LinuxResult;
use testyard_linux::step;
use testyard_model::step::Step;
use testyard_model::{EnvironmentId, EnvironmentSpec, Isolation, Network, Problem, ProblemKind};
use testyard_protocol::{Exec, Linger, Place, Report};

use super::init::{FirstCommand, ForkedFrom, has_namespaces};
use super::order::{self, Order};
use super::source::{SourceMount, SourcePlace};
use super::{Environment, HIGH, MACHINE, Made, PooledGroup, Request, State, make};
use crate::agent::{Agent, ChildKind, Token, rewatch, watch};
use crate::command::Command;
use crate::place::PlaceKind;
use crate::relay::{Input, Output};
use crate::source::Source;
use crate::standard_streams::StandardStreams;

/// With more environments than this, each keeps as few descriptors open as it can.
const MANY: usize = 32;

impl Agent {
    /// Refuses what this machine cannot give. Nothing weaker than asked for is ever given.
    pub(crate) fn check(&self, spec: &EnvironmentSpec) -> Result<(), Problem> {
        match (&self.place.kind, spec.isolation) {
            (PlaceKind::Process { .. }, Isolation::Namespace | Isolation::Machine) => Err(Problem::new(
                ProblemKind::Unsupported,
                "a machine of backend `host` cannot isolate more than workspaces",
            )
            .hint("create the machine with --backend namespace; `testyard doctor` tells what it needs")),
            (_, Isolation::Machine) => Err(Problem::new(
                ProblemKind::Unsupported,
                "an environment inside a machine cannot be a machine of its own",
            )),
            _ => check_network(spec).and_then(|()| self.check_layer(spec)),
        }
    }

    /// A command with an environment of its own.
    pub(crate) fn exec_fresh(
        &mut self,
        connection: u64,
        stream: u32,
        mut exec: Exec,
        streams: StandardStreams,
    ) -> Result<(), Problem> {
        let Place::Fresh(spec) = std::mem::take(&mut exec.place) else {
            return Err(Problem::new(ProblemKind::Bug, "a command without a fresh environment"));
        };
        self.check(&spec)?;
        if self.files_are_current()? {
            if let Some(id) = self.take_parked(&spec) {
                return self.exec_in_environment(connection, stream, id, exec, streams, true);
            }
            if self.needs_route(&spec) {
                return self.exec_once_routed(connection, stream, &spec, exec, streams);
            }
            if let Some(id) = self.take_preparing(&spec) {
                return self.exec_in_environment(connection, stream, id, exec, streams, true);
            }
            let number = self.number();
            let source = self.source_mount(&exec, &spec)?;
            let shown = self.source_of(&exec)?.cloned();
            let mut streams = streams;
            let first = FirstCommand {
                number,
                exec: &exec,
                source: source.as_ref(),
                streams: streams.command.take(),
                once: true,
            };
            let id = self.make_environment(&spec, Some(first))?;
            self.keep_parked(&spec);
            if let Some(environment) = self.environments.get_mut(&id) {
                environment.state = State::InUse;
                environment.once = true;
                environment.linger = exec.linger;
                environment.shown = shown;
                environment.holder = Some(connection);
            }
            self.track_in_environment(connection, stream, number, id, &exec, streams);
            return Ok(());
        }
        self.early.expect(connection, stream);
        self.generations.delayed.push((connection, stream, *spec, exec, streams));
        Ok(())
    }

    /// Whether environments would show the machine's files as they are now; if not, that is under way.
    pub(crate) fn files_are_current(&mut self) -> Result<bool, Problem> {
        let running = self.commands.values().any(|command| command.place == MACHINE);
        match self.generations.refresh(self.place.token, running).map_err(|error| error.problem())? {
            None => Ok(true),
            Some(pid) => {
                self.children.insert(pid, ChildKind::Generation);
                Ok(false)
            }
        }
    }

    /// A generation was copied: what waited for it goes on, what is parked over an older one goes.
    pub(crate) fn generation_made(&mut self, status: i32) {
        let made = self.generations.made(status);
        let current = self.generations.number;
        let old: Vec<EnvironmentId> = self
            .environments
            .values()
            .filter(|one| one.is_spare() && one.generation != current)
            .map(|one| one.id)
            .collect();
        for id in old {
            self.end_environment(id);
        }
        for (connection, stream, spec, mut exec, streams) in std::mem::take(&mut self.generations.delayed) {
            if !exec.detach && !self.connections.contains_key(&connection) {
                continue;
            }
            let outcome = if made {
                exec.place = Place::Fresh(Box::new(spec));
                self.exec_fresh(connection, stream, exec, streams)
            } else {
                Err(Problem::new(
                    ProblemKind::Exhausted,
                    "the machine's own files could not be copied for its environments",
                )
                .hint("free disk space below the state folder: testyard reap, testyard image prune"))
            };
            if let Err(problem) = outcome {
                self.fail(connection, stream, problem);
            }
        }
        for (connection, stream, spec) in std::mem::take(&mut self.generations.delayed_opens) {
            if let Err(problem) = self.open_environment(connection, stream, &spec) {
                self.fail(connection, stream, problem);
            }
        }
    }

    /// The source that a command names.
    pub(crate) fn source_of(&self, exec: &Exec) -> Result<Option<&Rc<Source>>, Problem> {
        let Some(number) = exec.source else { return Ok(None) };
        let found = self.sources.get(&number).map(|(_, source)| source);
        let missing = || Problem::new(ProblemKind::Protocol, format!("source {number} is not on this connection"));
        found.ok_or_else(missing).map(Some)
    }

    /// The source of a command, to be mounted.
    fn source_mount(&self, exec: &Exec, spec: &EnvironmentSpec) -> Result<Option<SourceMount>, Problem> {
        let Some(source) = self.source_of(exec)? else { return Ok(None) };
        mount_of(source, spec)
    }

    /// A cgroup for an environment: one used before, else a new one.
    fn group_for(&mut self, id: EnvironmentId, spec: &EnvironmentSpec) -> LinuxResult<Option<PooledGroup>> {
        let Some(machine) = &self.place.group else { return Ok(None) };
        let limits = &spec.limits;
        let limited = limits.memory.is_some() || limits.pids.is_some() || limits.cpus.is_some();
        let mut pooled = match self.groups.pop() {
            Some(pooled) if !limited => pooled,
            other => {
                self.groups.extend(other);
                PooledGroup::create(machine, id.to_string(), limits)?
            }
        };
        pooled.begin();
        step::reach(Step::AgentEnvironmentCgroups);
        Ok(Some(pooled))
    }

    pub(super) fn unavailable_limits(&self, spec: &EnvironmentSpec, group: Option<&PooledGroup>) -> Vec<&'static str> {
        match group {
            Some(group) => group.unavailable.clone(),
            None => {
                let limits = &spec.limits;
                let mut missing = Vec::new();
                missing.extend(limits.memory.map(|_| "memory"));
                missing.extend(limits.pids.map(|_| "pids"));
                missing.extend(limits.cpus.map(|_| "cpus"));
                missing
            }
        }
    }

    fn next_slot(&mut self) -> Result<EnvironmentId, Problem> {
        let left: u64 = self.slots.iter().map(|range| range.end - range.start).sum();
        if left < 4096 && !self.slots_asked {
            self.slots_asked = true;
            self.tell_supervisor(&Report::NeedSlots);
        }
        while let Some(range) = self.slots.front_mut() {
            match range.next() {
                Some(number) => return Ok(EnvironmentId(number)),
                None => self.slots.pop_front(),
            };
        }
        Err(Problem::new(
            ProblemKind::Exhausted,
            "the machine has no environment numbers left, and its supervisor gives none",
        )
        .hint("restart the machine"))
    }

    pub(crate) fn make_environment(
        &mut self,
        spec: &EnvironmentSpec,
        first: Option<FirstCommand<'_>>,
    ) -> Result<EnvironmentId, Problem> {
        let generations = self.generations.layers().to_vec();
        self.make_over(spec, first, generations, None)
    }

    /// Makes an environment over these layers, as the first or as a fork.
    pub(crate) fn make_over(
        &mut self,
        spec: &EnvironmentSpec,
        first: Option<FirstCommand<'_>>,
        generations: Vec<PathBuf>,
        forked: Option<ForkedFrom<'_>>,
    ) -> Result<EnvironmentId, Problem> {
        let id = self.next_slot()?;
        let group = self.group_for(id, spec).map_err(|error| error.problem())?;
        let unavailable = self.unavailable_limits(spec, group.as_ref());
        if spec.strict_limits && !unavailable.is_empty() {
            self.groups.extend(group.filter(|group| !group.limited));
            return Err(Problem::new(
                ProblemKind::Unsupported,
                format!("this host cannot limit {}", unavailable.join(", ")),
            )
            .hint("see `testyard doctor` for the cgroup controllers that can be written"));
        }
        let network = self.network_of(spec)?;
        let many = self.environments.len() > MANY;
        let request = Request {
            machine: &self.machine,
            network,
            id,
            spec,
            group: group.as_ref().and_then(PooledGroup::group),
            generations: &generations,
            machine_env: &self.env,
            first,
            forked,
            many,
        };
        let made = make(&self.place, request).map_err(|error| error.problem())?;
        let group = group.map(|group| if many { group.rested() } else { group });
        self.enter_in_book(id, spec.clone(), made, group).map_err(|error| error.problem())?;
        if let Some(environment) = self.environments.get_mut(&id) {
            environment.generations = generations;
        }
        self.made += 1;
        Ok(id)
    }

    /// A descriptor that is kept as long as its environment lives, under a number that no new init has to copy.
    pub(crate) fn put_aside(&self, descriptor: OwnedFd) -> OwnedFd {
        if self.environments.len() > MANY { testyard_linux::process::lifted(descriptor, HIGH) } else { descriptor }
    }

    /// Begins to keep a record of an environment that was made.
    pub(crate) fn enter_in_book(
        &mut self,
        id: EnvironmentId,
        spec: EnvironmentSpec,
        made: Made,
        group: Option<PooledGroup>,
    ) -> LinuxResult<()> {
        let Made { pid, control, network, user, workspace } = made;
        let control = self.put_aside(control);
        let network = network.map(|network| self.put_aside(network));
        watch(&self.epoll, &control, Token::Environment(id), EventFlags::IN)?;
        self.children.insert(pid, ChildKind::Environment(id));
        let environment = Environment {
            id,
            spec,
            state: if id == MACHINE { State::InUse } else { State::Preparing },
            pid,
            control,
            inbox: order::Inbox::default(),
            outbox: order::Outbox::default(),
            group,
            network,
            holder: None,
            generation: self.generations.number,
            waiting: Vec::new(),
            once: false,
            workspace,
            user,
            delayed: Vec::new(),
            namespaces: None,
            joining: Vec::new(),
            showing: VecDeque::new(),
            generations: Vec::new(),
            linger: Linger::Never,
            kept: false,
            shown: None,
            looking: VecDeque::new(),
        };
        self.environments.insert(id, environment);
        Ok(())
    }

    fn track_in_environment(
        &mut self,
        connection: u64,
        stream: u32,
        number: u32,
        id: EnvironmentId,
        exec: &Exec,
        streams: StandardStreams,
    ) {
        let command = Command {
            connection,
            stream,
            place: id,
            detach: exec.detach,
            told: exec.quiet,
            started: Instant::now(),
            timed_out: false,
            terminal: exec.terminal.is_some(),
            input: match exec.terminal {
                Some(_) => Some(Input::of_terminal()),
                None => streams.input.map(Input::new),
            },
            outputs: streams.outputs.into_iter().map(|(channel, pipe)| Output::new(channel, pipe)).collect(),
            ended: None,
            worker: None,
        };
        self.track(number, command, exec.timeout_ms);
        if id != MACHINE {
            step::reach(Step::AgentEnvironmentCommand);
        }
        self.say_early(connection, stream);
    }

    /// Runs a command in an environment that is ready (or about to be: orders wait in its socket).
    pub(crate) fn exec_in_environment(
        &mut self,
        connection: u64,
        stream: u32,
        id: EnvironmentId,
        exec: Exec,
        streams: StandardStreams,
        once: bool,
    ) -> Result<(), Problem> {
        let there = self.environments.get(&id).filter(|one| one.state != State::Ending);
        let missing = || Problem::new(ProblemKind::NotFound, format!("environment {id} is not there"));
        let source = self.source_mount(&exec, &there.ok_or_else(missing)?.spec)?;
        let shown = self.source_of(&exec)?.cloned();
        let number = self.number();
        let environment = self.environments.get_mut(&id).ok_or_else(missing)?;
        if let Some(shown) = shown {
            environment.shown.get_or_insert(shown);
        }
        if once {
            environment.once = true;
            environment.linger = exec.linger;
            environment.holder = Some(connection);
            if let Some(group) = &mut environment.group {
                group.begin_unless_begun();
            }
        }
        let mut streams = streams;
        let own = streams.command.take();
        let mut attached: Vec<_> = source.iter().map(|source| source.tree.as_fd()).collect();
        attached.extend(own.iter().flatten().map(|fd| fd.as_fd()));
        let run = Order::Run {
            command: number,
            exec: Box::new(exec),
            source: source.as_ref().map(|one| one.place.clone()),
            once,
        };
        self.order(id, &run, &attached).map_err(|error| error.problem())?;
        let Order::Run { exec, .. } = run else { return Ok(()) };
        self.track_in_environment(connection, stream, number, id, &exec, streams);
        Ok(())
    }

    /// Gives an environment's init an order, without waiting for it to be read.
    pub(crate) fn order(&mut self, id: EnvironmentId, order: &Order, attached: &[BorrowedFd<'_>]) -> LinuxResult<()> {
        let Some(environment) = self.environments.get_mut(&id) else { return Ok(()) };
        let waited = !environment.outbox.is_empty();
        let sent = environment.outbox.send(environment.control.as_fd(), order, attached);
        if !waited && !environment.outbox.is_empty() {
            rewatch(&self.epoll, &environment.control, Token::Environment(id), EventFlags::IN | EventFlags::OUT);
        }
        sent
    }
}

/// A source as an environment of this kind shows it; none where there is nothing to mount.
pub(super) fn mount_of(source: &Source, spec: &EnvironmentSpec) -> Result<Option<SourceMount>, Problem> {
    let mounted = source.mount().transpose().map_err(|error| error.problem())?;
    Ok(mounted.map(|tree| SourceMount { tree, place: place_of(source, spec) }))
}

/// Where an environment of this kind shows a source.
pub(super) fn place_of(source: &Source, spec: &EnvironmentSpec) -> SourcePlace {
    let target = spec.source.as_ref().unwrap_or(&source.path);
    SourcePlace { origin: source.path.as_path().into(), target: target.as_path().into(), layers: source.layers() }
}

/// Refuses a network that a weak isolation does not have. `private` is let pass there: clients say it by default.
fn check_network(spec: &EnvironmentSpec) -> Result<(), Problem> {
    if has_namespaces(spec.isolation) || matches!(spec.network, Network::Host | Network::Private) {
        return Ok(());
    }
    let message = format!(
        "isolation `{}` shares the machine's network, and cannot have network `{}`",
        spec.isolation, spec.network
    );
    Err(Problem::new(ProblemKind::Usage, message).hint("ask for isolation `namespace`, or for no network"))
}
