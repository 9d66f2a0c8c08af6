//! The agent's loop: every source of events in one epoll, every event to one function.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use testyard_linux::process::{self, Pid};
use testyard_linux::signal::{Signal, SignalFd};
use testyard_linux::{Error, Result, socket, step};
use testyard_model::step::Step;
use testyard_model::{EnvironmentId, EnvironmentSpec, Isolation, Network, Problem, ProblemKind, UserSpec};
use testyard_protocol::start::AgentStart;
use testyard_protocol::{RawText, Report};

use crate::activity::Activity;
use crate::command::Command;
use crate::connection::Connection;
use crate::early::Early;
use crate::environment::parking::ParkRequest;
use crate::environment::{self, Environment, MACHINE, PooledGroup};
use crate::generation::Generations;
use crate::place::Place;
use crate::source::Source;
use crate::synced::Presented;
use crate::timers::{Due, Timers};
use crate::worker::{Task, Worker};

/// Who an epoll event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Signals,
    Listener,
    /// A connection; 0 is the link to the supervisor.
    Connection(u64),
    /// An environment's init.
    Environment(EnvironmentId),
    /// A command's output, by channel.
    Output(u32, u8),
    /// A command's input.
    Input(u32),
    /// The maker of routes.
    Router,
}

impl Token {
    fn data(self) -> EventData {
        let (kind, low) = match self {
            Self::Signals => (0, 0),
            Self::Listener => (1, 0),
            Self::Connection(number) => (2, number),
            Self::Environment(id) => (3, id.0),
            Self::Output(command, channel) => (4, u64::from(command) << 8 | u64::from(channel)),
            Self::Input(command) => (5, u64::from(command)),
            Self::Router => (6, 0),
        };
        EventData::new_u64(kind << 56 | low)
    }

    fn from_data(data: EventData) -> Option<Self> {
        let value = data.u64();
        let low = value & ((1 << 56) - 1);
        Some(match value >> 56 {
            0 => Self::Signals,
            1 => Self::Listener,
            2 => Self::Connection(low),
            3 => Self::Environment(EnvironmentId(low)),
            4 => Self::Output((low >> 8) as u32, low as u8),
            5 => Self::Input(low as u32),
            6 => Self::Router,
            _ => return None,
        })
    }
}

/// What a child process of the agent is.
pub(crate) enum ChildKind {
    /// An environment's init.
    Environment(EnvironmentId),
    /// A file worker.
    Worker(Worker),
    /// The copier of a generation.
    Generation,
}

/// How a user namespace shows users that it does not have.
const OVERFLOW: u32 = 65_534;
/// The number of the connection to the supervisor.
pub(crate) const LINK: u64 = 0;
/// How long to wait for the end of what was killed.
const PATIENCE: Duration = Duration::from_secs(3);

/// The agent.
pub(crate) struct Agent {
    pub(crate) place: Place,
    pub(crate) machine: String,
    pub(crate) user: UserSpec,
    pub(crate) env: Vec<(RawText, RawText)>,
    pub(crate) epoll: OwnedFd,
    signals: SignalFd,
    listener: OwnedFd,
    pub(crate) connections: HashMap<u64, Connection>,
    pub(crate) children: HashMap<Pid, ChildKind>,
    pub(crate) commands: HashMap<u32, Command>,
    /// What was said to commands that are not there yet.
    pub(crate) early: Early,
    pub(crate) environments: BTreeMap<EnvironmentId, Environment>,
    pub(crate) sources: HashMap<u32, (u64, Rc<Source>)>,
    pub(crate) presented: Presented,
    pub(crate) generations: Generations,
    pub(crate) groups: Vec<PooledGroup>,
    pub(crate) timers: Timers,
    /// Network namespaces whose environments are gone, waiting for their turn.
    pub(crate) networks: VecDeque<OwnedFd>,
    /// Numbers that environments may have; all of them are the supervisor's to give.
    pub(crate) slots: VecDeque<std::ops::Range<u64>>,
    pub(crate) slots_asked: bool,
    /// Kinds of environments to keep parked, most recently used last, with how many.
    pub(crate) park: Vec<(EnvironmentSpec, u32)>,
    pub(crate) park_requests: Vec<ParkRequest>,
    pub(crate) made: u64,
    /// What this machine cannot isolate or limit.
    limits: Vec<String>,
    /// What is started in a command's stead; see [`AgentStart::relay`].
    pub(crate) relay: Vec<RawText>,
    pub(crate) next_number: u32,
    pub(crate) next_connection: u64,
    pub(crate) activity: Activity,
    /// Why and when to end.
    pub(crate) ending: Option<Duration>,
    /// Everything is being killed; the loop goes on until it is gone.
    leaving: bool,
    pub(crate) stop: bool,
}

/// The signals that the loop reads instead of being interrupted by.
pub(crate) fn watched_signals() -> Result<SignalFd> {
    SignalFd::new(&[Signal::CHLD, Signal::TERM, Signal::INT, Signal::HUP])
}

impl Agent {
    /// An agent in its place, not yet serving.
    pub(crate) fn new(
        start: AgentStart,
        mut place: Place,
        link: OwnedFd,
        listener: OwnedFd,
        signals: SignalFd,
    ) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(|error| Error::new("make", "an epoll", error))?;
        let spec = machine_spec(&start);
        let machine = environment::make_machine(&mut place, &start, &spec)?;
        let mut agent = Self {
            generations: Generations::new(&place),
            place,
            machine: start.machine,
            user: start.user,
            env: start.env,
            epoll,
            signals,
            listener,
            connections: HashMap::new(),
            children: HashMap::new(),
            commands: HashMap::new(),
            early: Early::default(),
            environments: BTreeMap::new(),
            sources: HashMap::new(),
            presented: Presented::default(),
            groups: Vec::new(),
            timers: Timers::default(),
            networks: VecDeque::new(),
            slots: VecDeque::new(),
            slots_asked: false,
            park: Vec::new(),
            park_requests: Vec::new(),
            made: 0,
            limits: start.limits,
            relay: start.relay,
            next_number: 1,
            next_connection: 1,
            activity: Activity::default(),
            ending: None,
            leaving: false,
            stop: false,
        };
        watch(&agent.epoll, &agent.signals, Token::Signals, EventFlags::IN)?;
        watch(&agent.epoll, &agent.listener, Token::Listener, EventFlags::IN)?;
        if let Some(router) = &agent.place.router {
            watch(&agent.epoll, &router.control, Token::Router, EventFlags::IN)?;
        }
        agent.enter_in_book(MACHINE, spec, machine, None)?;
        agent.add_link(link)?;
        Ok(agent)
    }

    fn add_link(&mut self, link: OwnedFd) -> Result<()> {
        watch(&self.epoll, &link, Token::Connection(LINK), EventFlags::IN)?;
        self.connections.insert(LINK, Connection::new(link, &[]));
        Ok(())
    }

    fn report_ready(&mut self) {
        self.tell_supervisor(&Report::Ready { limits: self.limits.clone() });
    }

    /// Serves until told to end.
    pub(crate) fn run(&mut self) -> Result<()> {
        step::reach(Step::AgentServing);
        // The last thing before it serves: a machine whose agent said so is there.
        self.report_ready();
        let mut events = Vec::with_capacity(64);
        while !self.stop {
            let now = Instant::now();
            let idle_work = self.idle_work_in(now);
            let wait = [idle_work, self.timers.wait(now)].into_iter().flatten().min();
            events.clear();
            self.wait(&mut events, wait)?;
            if events.is_empty() && idle_work.is_some() && idle_work == wait {
                self.do_idle_work();
            }
            for event in &events {
                let (data, flags) = (event.data, event.flags);
                if let Some(token) = Token::from_data(data) {
                    self.handle(token, flags);
                }
            }
            while let Some(due) = self.timers.take(Instant::now()) {
                self.due(due);
            }
            self.report_activity();
        }
        Ok(())
    }

    fn wait(&self, events: &mut Vec<epoll::Event>, wait: Option<Duration>) -> Result<()> {
        let wait = wait.map(|wait| rustix::event::Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        });
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Error::new("wait for", "events", error)),
        }
    }

    fn handle(&mut self, token: Token, flags: EventFlags) {
        match token {
            Token::Signals => self.read_signals(),
            Token::Listener => self.accept_supervisor(),
            Token::Connection(number) => self.serve_connection(number, flags),
            Token::Environment(id) => self.attend_environment(id, flags),
            Token::Output(command, channel) => self.relay_output(command, channel),
            Token::Input(command) => self.relay_input(command),
            Token::Router => self.hear_router(),
        }
    }

    fn read_signals(&mut self) {
        while let Ok(Some(received)) = self.signals.read() {
            if received.signal != Signal::CHLD {
                self.shut_down(Duration::from_secs(2));
            }
        }
        while let Ok(Some((pid, status, _))) = process::wait_any_nohang() {
            match self.children.remove(&pid) {
                Some(ChildKind::Environment(id)) => {
                    self.environment_gone(id);
                    // Everything on the machine has ended with its init, and nothing can be started any more.
                    if id == MACHINE {
                        self.kill_everything();
                    }
                    self.stop |= self.is_over();
                }
                Some(ChildKind::Worker(worker)) => self.worker_ended(worker, status),
                Some(ChildKind::Generation) => self.generation_made(status),
                // An orphan: a plain-process machine's agent is its commands' subreaper.
                None => {}
            }
        }
    }

    /// A new supervisor has come: the old one is dead.
    fn accept_supervisor(&mut self) {
        let Ok(link) = socket::accept(&self.listener) else { return };
        // Of those outside a mapped range nothing more can be told; the socket and its folder are their owner's alone.
        let owner = if self.place.is_mapped() { OVERFLOW } else { rustix::process::getuid().as_raw() };
        if !socket::peer(&link).is_ok_and(|peer| peer.uid == owner) {
            return;
        }
        if let Some(old) = self.connections.remove(&LINK) {
            unwatch(&self.epoll, &old.socket);
        }
        // A link that cannot be watched leaves the agent without a supervisor until the next one tries.
        if self.add_link(link).is_ok() {
            self.report_ready();
        }
    }

    pub(crate) fn serve_connection(&mut self, number: u64, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let mut open = true;
        if flags.intersects(EventFlags::OUT) {
            open = connection.flush().is_ok();
            if open && connection.paused && !connection.is_full() {
                connection.paused = false;
                self.resume_outputs(number);
            }
        }
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if open && flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP) {
            open = connection.receive().unwrap_or(false);
        }
        loop {
            let Some(connection) = self.connections.get_mut(&number) else { return };
            match connection.next() {
                Ok(Some(received)) => self.frame(number, received),
                Ok(None) => break,
                Err(problem) => {
                    connection.event(0, &testyard_protocol::Event::Failed(problem));
                    open = false;
                    break;
                }
            }
        }
        if open { self.rewatch(number) } else { self.close_connection(number) }
    }

    /// Watches for room to send while something waits for it.
    pub(crate) fn rewatch(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if connection.is_stuck() {
            self.close_connection(number);
            return;
        }
        let mut flags = EventFlags::IN;
        if connection.has_queued() {
            flags |= EventFlags::OUT;
        }
        if connection.watched != flags {
            connection.watched = flags;
            rewatch(&self.epoll, &connection.socket, Token::Connection(number), flags);
        }
    }

    fn due(&mut self, due: Due) {
        match due {
            Due::Deadline(command) => self.deadline(command),
            Due::Kill => self.kill_everything(),
            Due::Worker(pid) => self.worker_is_due(pid),
            Due::Networks => self.drop_networks(),
            Due::Trees => self.sweep_trees(),
            Due::Rest => self.rested(),
            Due::Expire(id) => self.end_environment(id),
            // What has not ended by now ends by itself, as its agent is gone.
            Due::Leave => self.stop = true,
        }
    }

    /// Ends commands and environments: SIGTERM now, SIGKILL after the grace.
    pub(crate) fn shut_down(&mut self, grace: Duration) {
        if self.ending.replace(grace).is_some() {
            return;
        }
        self.terminate_commands();
        self.end_workers(&stopped(), |worker| worker.task != Task::Look);
        if (self.commands.is_empty() && !self.has_workers()) || grace.is_zero() {
            self.kill_everything();
        } else {
            self.timers.add(Instant::now() + grace, Due::Kill);
        }
    }

    /// Whether everything has ended that was to end before the agent.
    pub(crate) fn is_over(&self) -> bool {
        self.leaving && self.environments.is_empty() && !self.has_workers()
    }

    pub(crate) fn kill_everything(&mut self) {
        if std::mem::replace(&mut self.leaving, true) {
            return;
        }
        self.kill_commands_and_environments();
        self.kill_workers(&stopped(), |_| true);
        self.stop = self.is_over();
        self.timers.add(Instant::now() + PATIENCE, Due::Leave);
    }

    /// Sends a report, if there is a supervisor.
    pub(crate) fn tell_supervisor(&mut self, report: &Report) {
        if let Some(link) = self.connections.get_mut(&LINK) {
            link.send(0, report, Vec::new());
        }
    }

    /// The next number for a command, source or stream of the agent's own.
    pub(crate) fn number(&mut self) -> u32 {
        self.next_number = self.next_number.wrapping_add(1).max(1);
        self.next_number & 0x00ff_ffff
    }
}

/// Why a transfer ended with the machine.
fn stopped() -> Problem {
    Problem::new(ProblemKind::Unavailable, "the machine was stopped while files were moved")
}

/// The machine itself, as an environment: it has all that the machine has.
fn machine_spec(start: &AgentStart) -> EnvironmentSpec {
    EnvironmentSpec { network: Network::Host, ..EnvironmentSpec::new(Isolation::None, start.user.clone()) }
}

/// Starts watching a descriptor.
pub(crate) fn watch(epoll: &OwnedFd, fd: impl AsFd, token: Token, flags: EventFlags) -> Result<()> {
    epoll::add(epoll, fd, token.data(), flags).map_err(|error| Error::new("watch", "a descriptor", error))
}

/// Watches for something else from now on.
pub(crate) fn rewatch(epoll: &OwnedFd, fd: impl AsFd, token: Token, flags: EventFlags) {
    // The descriptor is open and registered, so this cannot fail.
    let _ = epoll::modify(epoll, fd, token.data(), flags);
}

/// Stops watching a descriptor.
pub(crate) fn unwatch(epoll: &OwnedFd, fd: impl AsFd) {
    // One that was never watched is no less unwatched.
    let _ = epoll::delete(epoll, fd);
}
