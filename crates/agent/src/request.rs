//! What clients and the supervisor ask for.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use testyard_linux::step;
use testyard_model::step::Step;
use testyard_model::{Isolation, Problem, ProblemKind, UserSpec};
use testyard_protocol::{
    AgentStatus, Command as CommandMessage, ENTER_WITH_VERSION, Event, Exec, Frame, FrameKind, Hello, KEEPING_VERSION,
    LINK_VERSION, Order, Place, Request, Role, SYNC_VERSION, VERSION, Welcome, agree,
};

use crate::agent::{Agent, LINK, Token, watch};
use crate::command::Command;
use crate::connection::{Connection, Received};
use crate::early::Word;
use crate::environment::joining::{Files, Joining};
use crate::environment::keeping::release;
use crate::environment::looking::{Look, Looking};
use crate::environment::{MACHINE, State, Waiting};
use crate::place::PlaceKind;
use crate::relay::Output;
use crate::source::Source;
use crate::standard_streams::StandardStreams;

fn parse<T: serde::de::DeserializeOwned>(frame: &Frame) -> Result<T, Problem> {
    serde_json::from_slice(&frame.payload).map_err(|error| Problem::from_error(ProblemKind::Protocol, &error))
}

/// Refuses what a connection's version does not have.
fn check_version(version: u16, request: &Request) -> Result<(), Problem> {
    let (since, cannot) = match request {
        Request::Enter(_) | Request::Namespaces => (2, "cannot hand out namespaces"),
        Request::EnterWith { .. } => (ENTER_WITH_VERSION, "shows no source to those who enter"),
        Request::Link { .. } => (LINK_VERSION, "cannot cut a machine off"),
        Request::Listening { .. } => (3, "cannot wait for a port"),
        Request::Keep { .. }
        | Request::Changes { .. }
        | Request::Fetch(_)
        | Request::Fork { .. }
        | Request::Seal { .. } => (KEEPING_VERSION, "keeps no environments"),
        Request::Sync(_) | Request::Synced(_) | Request::Present(_) => (SYNC_VERSION, "syncs no trees"),
        _ => return Ok(()),
    };
    if version >= since {
        return Ok(());
    }
    let message = format!("this connection speaks protocol version {version}, which {cannot}");
    Err(Problem::new(ProblemKind::Unsupported, message))
}

impl Agent {
    /// Follows one frame.
    pub(crate) fn frame(&mut self, number: u64, received: Received) {
        let Received { frame, attached } = received;
        let stream = frame.header.stream;
        match frame.header.kind {
            FrameKind::Data => self.input(number, stream, Some(&frame.payload)),
            FrameKind::End => self.input(number, stream, None),
            FrameKind::Credit => {
                let bytes = frame.payload.as_slice().try_into().map_or(0, u32::from_le_bytes);
                self.credit(number, stream, frame.header.channel, bytes);
            }
            FrameKind::Message if number == LINK => self.follow_order(&frame, attached),
            FrameKind::Message => {
                if let Err(problem) = self.message(number, &frame, attached) {
                    self.fail(number, stream, problem);
                }
            }
        }
    }

    /// Ends a stream with a problem.
    pub(crate) fn fail(&mut self, connection: u64, stream: u32, problem: Problem) {
        self.early.forget(connection, stream);
        self.answer(connection, stream, &Event::Failed(problem));
    }

    /// Sends an event, if the client is still there.
    pub(crate) fn answer(&mut self, connection: u64, stream: u32, event: &Event) {
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.event(stream, event);
        }
        self.rewatch(connection);
    }

    fn follow_order(&mut self, frame: &Frame, mut attached: Vec<OwnedFd>) {
        match parse(frame) {
            Ok(Order::Adopt { read }) => {
                if let Some(socket) = attached.pop() {
                    self.adopt(socket, &read.0);
                }
            }
            Ok(Order::Shutdown { grace_ms }) => self.shut_down(Duration::from_millis(grace_ms)),
            Ok(Order::Slots { first, count }) => {
                self.slots_asked = false;
                self.slots.push_back(first..first.saturating_add(count));
            }
            Ok(Order::Rename(name)) => {
                if let PlaceKind::Namespace(_) = self.place.kind {
                    // Where it is refused, the new name is seen from the next start on.
                    let _ = testyard_linux::namespace::set_host_name(name.as_str());
                }
            }
            // A newer supervisor's orders are its own problem; this one goes on.
            Err(_) => {}
        }
    }

    fn adopt(&mut self, socket: OwnedFd, read: &[u8]) {
        let number = self.next_connection;
        self.next_connection += 1;
        if rustix::io::ioctl_fionbio(&socket, true).is_err()
            || watch(&self.epoll, &socket, Token::Connection(number), EventFlags::IN).is_err()
        {
            return;
        }
        self.connections.insert(number, Connection::new(socket, read));
        self.serve_connection(number, EventFlags::empty());
    }

    fn message(&mut self, number: u64, frame: &Frame, attached: Vec<OwnedFd>) -> Result<(), Problem> {
        let stream = frame.header.stream;
        let known = self.command_of(number, stream).is_some() || self.is_transfer(number, stream);
        if known || self.early.expects(number, stream) {
            return self.command_message(number, stream, parse(frame)?);
        }
        let request: Request = parse(frame)?;
        let greeted = self.connections.get(&number).and_then(|connection| connection.version);
        let Some(version) = greeted else {
            return self.greet(number, stream, request);
        };
        check_version(version, &request)?;
        self.check_elsewhere(&request)?;
        match request {
            Request::Exec(exec) => self.exec(number, stream, *exec, attached),
            Request::Environment(mut spec) => {
                self.settle_user(&mut spec.user);
                self.open_environment(number, stream, &spec)
            }
            Request::Release(id) => self.release(number, stream, id),
            Request::Enter(id) => self.join(id, Joining::client(number, stream)),
            Request::EnterWith { environment, source } => self.show_and_join((number, stream), environment, source),
            Request::Namespaces => self.hand_out_machine(number, stream),
            Request::Listening { environment, port, patience_ms } => {
                self.await_listening(number, stream, environment, port, patience_ms)
            }
            Request::Park(mut spec, count) => {
                self.settle_user(&mut spec.user);
                self.park_on_request(number, stream, *spec, count)
            }
            Request::Source { path } => self.add_source(number, stream, path.as_path(), &attached),
            Request::Sync(sync) => self.sync(number, stream, sync, attached),
            Request::Synced(synced) => self.show_synced(number, stream, &synced),
            Request::Present(synced) => self.present(number, stream, &synced),
            Request::Keep { .. }
            | Request::Changes { .. }
            | Request::Fetch(_)
            | Request::Fork { .. }
            | Request::Seal { .. } => self.look_into((number, stream), request, attached),
            Request::Push(transfer) => {
                self.begin_transfer(Files { connection: number, stream, transfer, attached, push: true })
            }
            Request::Pull(transfer) => {
                self.begin_transfer(Files { connection: number, stream, transfer, attached, push: false })
            }
            Request::Link { connected } => self.link_machine(number, stream, connected),
            Request::Status => {
                let status = self.status();
                self.answer(number, stream, &Event::Status(status));
                Ok(())
            }
            Request::Hello(_) => Err(Problem::new(ProblemKind::Protocol, "hello was said twice")),
            Request::Info | Request::Stop { .. } | Request::Delete { .. } | Request::Renamed(_) | Request::Quiesce => {
                Err(Problem::new(
                    ProblemKind::Protocol,
                    "only a machine's supervisor can do that: connect with role `supervisor`",
                ))
            }
        }
    }

    /// Environments that outlive their commands.
    fn look_into(
        &mut self,
        (connection, stream): (u64, u32),
        request: Request,
        attached: Vec<OwnedFd>,
    ) -> Result<(), Problem> {
        let to = attached.into_iter().next();
        let (environment, look) = match request {
            Request::Keep { environment, for_ms } => {
                self.keep(environment, for_ms)?;
                self.answer(connection, stream, &Event::Done);
                return Ok(());
            }
            Request::Changes { environment, limit } => (environment, Look::Changes { to, limit }),
            Request::Fetch(fetch) => (fetch.environment, Look::fetch(fetch, to)),
            Request::Fork { environment, for_ms } => (environment, Look::Fork { for_ms }),
            Request::Seal { environment, layer } => (environment, Look::Seal { layer }),
            _ => return Err(Problem::new(ProblemKind::Bug, "a request that is about no environment")),
        };
        self.look(environment, Looking { connection, stream, look })
    }

    fn greet(&mut self, number: u64, stream: u32, request: Request) -> Result<(), Problem> {
        let Request::Hello(Hello { oldest, newest, role: Role::Agent, client }) = request else {
            return Err(Problem::new(ProblemKind::Protocol, "the first message must be a hello to the agent"));
        };
        let version = agree(oldest, newest).ok_or_else(|| {
            let message = format!(
                "{client} speaks protocol versions {oldest} to {newest}; this machine's agent speaks up to {VERSION}"
            );
            Problem::new(ProblemKind::Protocol, message)
                .hint("restart the machine with this version of testyard: testyard restart NAME")
        })?;
        let welcome = Welcome {
            version,
            server: concat!("testyard-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
            generation: 0,
            elsewhere: self.is_elsewhere(),
        };
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.version = Some(version);
            connection.event(stream, &Event::Welcome(welcome));
        }
        Ok(())
    }

    pub(crate) fn command_message(&mut self, number: u64, stream: u32, message: CommandMessage) -> Result<(), Problem> {
        let Some((command, entry)) = self.command_of(number, stream) else {
            if !self.is_transfer(number, stream) {
                self.keep_early(number, stream, Word::Message(message));
            } else if message == CommandMessage::Kill {
                self.end_transfer(number, stream);
            }
            return Ok(());
        };
        let (place, terminal) = (entry.place, entry.terminal);
        match message {
            CommandMessage::Signal(signal) => self.signal_command(command, place, signal, terminal),
            CommandMessage::Kill => {
                self.kill(command);
                Ok(())
            }
            CommandMessage::Resize(size) => {
                if let Some(controller) = entry.outputs.first().and_then(Output::pipe) {
                    testyard_linux::terminal::set_size(controller, size.rows, size.columns)
                        .map_err(|error| error.problem())?;
                }
                Ok(())
            }
        }
    }

    fn status(&self) -> AgentStatus {
        let count = |state| self.environments.values().filter(|one| one.state == state).count() as u32;
        AgentStatus {
            clients: self.connections.keys().filter(|number| **number != LINK).count() as u32,
            commands: self.commands.len() as u32,
            environments: [State::InUse, State::Preparing, State::Ending]
                .map(count)
                .iter()
                .sum::<u32>()
                .saturating_sub(1),
            parked: count(State::Parked),
            made: self.made,
            lasting: self.lasting(),
            layers: self.layers(),
        }
    }

    fn exec(&mut self, number: u64, stream: u32, mut exec: Exec, attached: Vec<OwnedFd>) -> Result<(), Problem> {
        if exec.argv.is_empty() {
            return Err(Problem::new(ProblemKind::Usage, "no command was given").hint("write the command after `--`"));
        }
        if !exec.ports.is_empty() {
            let ports = exec.ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
            exec.env.push(("TESTYARD_PORTS".into(), ports.into()));
        }
        exec.user.iter_mut().for_each(|user| self.settle_user(user));
        if let Place::Fresh(spec) = &mut exec.place {
            self.settle_user(&mut spec.user);
        }
        self.hand_over(&mut exec)?;
        let processes = matches!(self.place.kind, PlaceKind::Process { .. });
        if processes && exec.cwd.is_none() {
            exec.cwd = self.source_of(&exec)?.map(|source| source.path.as_path().into());
        }
        // To show a tree takes a mount namespace, and with it this is no plain process on the machine any more.
        let plain = processes || exec.source.is_none();
        let streams = StandardStreams::open(&exec, attached)?;
        match &exec.place {
            Place::Machine | Place::Environment(MACHINE) => self.exec_on_machine(number, stream, exec, streams),
            Place::Environment(id) => {
                let id = *id;
                self.exec_in_environment(number, stream, id, exec, streams, false)
            }
            Place::Fresh(spec) if spec.isolation == Isolation::None && plain => {
                self.check(spec)?;
                exec.user.get_or_insert(spec.user.clone());
                self.exec_on_machine(number, stream, exec, streams)
            }
            Place::Fresh(_) => self.exec_fresh(number, stream, exec, streams),
        }
    }

    /// Whom a request means that may leave it open.
    pub(crate) fn whom<'u>(&'u self, user: Option<&'u UserSpec>) -> &'u UserSpec {
        user.filter(|user| **user != UserSpec::Machine).unwrap_or(&self.user)
    }

    /// Says whom a request means by the machine's own default.
    fn settle_user(&self, user: &mut UserSpec) {
        if *user == UserSpec::Machine {
            *user = self.user.clone();
        }
    }

    fn exec_on_machine(
        &mut self,
        connection: u64,
        stream: u32,
        exec: Exec,
        streams: StandardStreams,
    ) -> Result<(), Problem> {
        self.generations.touch();
        step::reach(Step::AgentCommandStarted);
        self.exec_in_environment(connection, stream, MACHINE, exec, streams, false)
    }

    fn add_source(&mut self, connection: u64, stream: u32, path: &Path, attached: &[OwnedFd]) -> Result<(), Problem> {
        let number = self.number();
        let source = Source::take(&self.place.kind, number, path, attached.first())?;
        self.sources.insert(number, (connection, Rc::new(source)));
        self.answer(connection, stream, &Event::Source(number));
        Ok(())
    }

    /// The client is gone: so are its commands and environments, unless they were detached.
    pub(crate) fn close_connection(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            crate::agent::unwatch(&self.epoll, &connection.socket);
        }
        self.early.forget_client(number);
        self.presented.forget_client(number);
        let commands: Vec<u32> = self
            .commands
            .iter()
            .filter(|(_, command)| command.connection == number && !command.detach)
            .map(|(command, _)| *command)
            .collect();
        for command in commands {
            if let Some(command) = self.commands.get_mut(&command) {
                // Nobody reads it any more.
                command.outputs.clear();
                command.input = None;
            }
            self.kill(command);
        }
        let gone = Problem::new(ProblemKind::Unavailable, "the client is gone");
        self.end_workers(&gone, |worker| worker.is_transfer_of(number));
        self.forget_joining(number);
        self.end_environments_of(number);
        let sources: Vec<u32> =
            self.sources.iter().filter(|(_, (holder, _))| *holder == number).map(|(source, _)| *source).collect();
        for source in sources {
            if let Some((_, source)) = self.sources.remove(&source) {
                release(source);
            }
        }
    }

    /// Remembers that a request waits for an environment.
    pub(crate) fn wait_for(&mut self, id: testyard_model::EnvironmentId, waiting: Waiting) {
        if let Some(environment) = self.environments.get_mut(&id) {
            environment.waiting.push(waiting);
        }
    }
}

/// Both directions of a terminal go over frames. Returns credit for what was typed before it was there.
pub(crate) fn attach_terminal(command: &mut Command, controller: OwnedFd) -> Result<Option<u64>, Problem> {
    let system = |error| testyard_linux::Error::new("prepare", "a terminal", error).problem();
    rustix::io::ioctl_fionbio(&controller, true).map_err(|error| system(std::io::Error::from(error)))?;
    let input = controller.try_clone().map_err(system)?;
    command.outputs.push(Output::new(1, controller));
    Ok(command.input.as_mut().and_then(|one| one.attach(input)))
}
