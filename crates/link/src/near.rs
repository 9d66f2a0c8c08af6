//! The near side: a process that plays the agent of a machine which is on another host.
//!
//! ```text
//! supervisor ── orders, clients' sockets ──► near ══ ssh, srun … ══ far ──► the machine's agent there
//!                                             │
//!        connecting ──► up ──► lost ──► up …  └─ ended: broken beyond the grace, or told to end
//! ```
//!
//! It is started as an agent is, with the descriptors of [`testyard_protocol::start`]; its configuration is a
//! [`NearStart`]. When the connection breaks it makes another one, and the session goes on where it was; commands that
//! run notice nothing but the wait. Once the far side has given the session up, every client is told so.

use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use testyard_linux::signal::{Signal, SignalFd};
use testyard_linux::socket;
use testyard_machine::wire::FrameReader;
use testyard_model::{AgentUse, Problem, ProblemKind, Transport};
use testyard_protocol::start::{CONFIGURATION, LINK, LISTENER};
use testyard_protocol::{FrameHeader, Report};

use crate::bootstrap::Bundle;
use crate::connect::{self, Connected, Handle};
use crate::hub::{Arrival, Hub, Side};
use crate::message::LinkMessage;
use crate::wire::{Cut, Wire};

mod start;
mod supervised;

pub use start::{GRACE, NearStart};

/// How long the supervisor may take to give its first order.
const FIRST_ORDER: Duration = Duration::from_secs(5);
/// Between two tries to connect again: at first, and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// How long a client waits for a connection that is being made anew, before it is told.
const CLIENT_WAITS: Duration = Duration::from_secs(10);

/// Runs the near side in a process that was started for it; returns when the machine has ended.
pub fn run() -> Result<(), Problem> {
    let inherited = testyard_linux::process::inherited_descriptors([LINK, CONFIGURATION, LISTENER]);
    let [link, configuration, listener] =
        inherited.ok_or_else(|| Problem::new(ProblemKind::Usage, "`near` is started by testyard itself only"))?;
    let start: NearStart = serde_json::from_reader(std::fs::File::from(configuration))
        .map_err(|error| Problem::from_error(ProblemKind::Protocol, &error))?;
    let signals = SignalFd::new(&[Signal::TERM, Signal::INT, Signal::HUP]).map_err(|error| error.problem())?;
    testyard_linux::signal::ignore(Signal::PIPE).map_err(|error| error.problem())?;
    // The supervisor's first order: one that found us gone could not read why.
    let mut polled = [PollFd::new(&link, PollFlags::IN)];
    let patience = rustix::event::Timespec { tv_sec: FIRST_ORDER.as_secs().cast_signed(), tv_nsec: 0 };
    // Without it all goes on; what fails is then told less well.
    let _ = rustix::event::poll(&mut polled, Some(&patience));
    let never = matches!(&start.remote.transport, Transport::Ssh(ssh) if ssh.agent == AgentUse::Never);
    let mut near = Near::new(start, link, listener, signals);
    let outcome = if never { near.do_without(None) } else { near.serve() };
    let outcome = match outcome {
        // That host forbids programs that are brought there.
        Err(problem) if !never && !near.begun && problem.kind == ProblemKind::Unsupported => {
            near.do_without(Some(problem))
        }
        outcome => outcome,
    };
    if let Err(problem) = &outcome {
        near.hub.fail(problem);
        near.report(&Report::Broken(problem.clone()));
    }
    outcome
}

/// Where the connection is.
enum Phase {
    /// Being made, by a thread that says so by closing a pipe.
    Connecting { thread: JoinHandle<Result<Connected, Problem>>, done: OwnedFd, handle: Handle },
    /// There.
    Up { wire: Box<Wire>, child: Child, errors: Option<OwnedFd>, said: Vec<u8> },
    /// To be tried again at this time.
    Lost { again: Instant },
}

struct Near {
    start: NearStart,
    bundle: Option<Arc<Bundle>>,
    hub: Hub,
    phase: Phase,
    /// The supervisor, its frames, and whether it is there.
    supervisor: Option<(OwnedFd, FrameReader)>,
    listener: OwnedFd,
    signals: SignalFd,
    /// The session has begun on the far side.
    begun: bool,
    ready: Option<Vec<String>>,
    /// Since when there is no connection, and why.
    lost: Option<(Instant, Problem)>,
    pause: Duration,
    /// Clients that came while there is none, with until when they wait.
    waiting: Vec<(OwnedFd, Vec<u8>, Instant)>,
    reported: bool,
    /// The machine is to end by then.
    ending: Option<Instant>,
    over: Option<Result<(), Problem>>,
}

/// What happened in one turn.
#[derive(Default)]
struct Happened {
    supervisor: bool,
    listener: bool,
    signals: bool,
    connected: bool,
    input: bool,
    /// Nothing can be sent any more.
    broken: bool,
    errors: bool,
    channels: Vec<(u32, PollFlags)>,
}

impl Near {
    fn new(start: NearStart, link: OwnedFd, listener: OwnedFd, signals: SignalFd) -> Self {
        Self {
            start,
            bundle: None,
            hub: Hub::new(Side::Near),
            phase: Phase::Lost { again: Instant::now() },
            supervisor: Some((link, FrameReader::new(4096))),
            listener,
            signals,
            begun: false,
            ready: None,
            lost: None,
            pause: PAUSES[0],
            waiting: Vec::new(),
            reported: false,
            ending: None,
            over: None,
        }
    }

    fn serve(&mut self) -> Result<(), Problem> {
        loop {
            if let Some(over) = self.over.take() {
                self.hang_up();
                return over;
            }
            let happened = self.wait()?;
            self.turn(&happened)?;
            self.keep_time(Instant::now())?;
            self.report_activity();
        }
    }

    fn turn(&mut self, happened: &Happened) -> Result<(), Problem> {
        if happened.signals {
            while let Ok(Some(_)) = self.signals.read() {
                self.end(Duration::from_secs(2));
            }
        }
        if happened.supervisor {
            self.hear_supervisor();
        }
        if happened.listener {
            self.accept_supervisor();
        }
        if happened.connected {
            self.connected()?;
        }
        if happened.errors {
            self.hear_errors();
        }
        for (id, flags) in &happened.channels {
            self.hub.serve(*id, *flags);
        }
        // What was said last may be there to be read.
        self.exchange(happened.input || happened.broken);
        if happened.broken && !happened.input {
            self.cut(&Cut::Closed);
        }
        Ok(())
    }

    /// Waits for whatever comes first.
    fn wait(&self) -> Result<Happened, Problem> {
        let deadline = self.deadline();
        let Self { hub, phase, supervisor, listener, signals, .. } = self;
        let mut polled = vec![
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        let supervised = supervisor.as_ref().map(|(socket, _)| socket.as_fd());
        polled.extend(supervised.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let first = polled.len();
        let (connecting, mut with_errors) = (matches!(phase, Phase::Connecting { .. }), false);
        match phase {
            Phase::Connecting { done, .. } => polled.push(PollFd::from_borrowed_fd(done.as_fd(), PollFlags::IN)),
            Phase::Up { wire, errors, .. } => {
                let interests = wire.interests(hub);
                polled.extend(interests.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
                with_errors = errors.is_some();
                polled.extend(errors.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
            }
            Phase::Lost { .. } => {}
        }
        let channels = polled.len();
        let interests = hub.interests();
        polled.extend(interests.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)));
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()).min(Duration::from_secs(3600)));
        let left = left.and_then(|left| left.try_into().ok());
        match rustix::event::poll(&mut polled, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(Problem::new(ProblemKind::System, "cannot wait for clients and the link").because(errno));
            }
        }
        let at = |index: usize| polled.get(index).is_some_and(|fd| !fd.revents().is_empty());
        let up = channels > first && !connecting;
        let numbers = interests.iter().map(|(id, ..)| *id);
        let flags = polled[channels..].iter().map(PollFd::revents);
        Ok(Happened {
            listener: at(0),
            signals: at(1),
            supervisor: supervised.is_some() && at(2),
            connected: connecting && at(first),
            input: up && at(first),
            broken: up && polled[first + 1].revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL),
            errors: with_errors && at(first + 2),
            channels: numbers.zip(flags).filter(|(_, flags)| !flags.is_empty()).collect(),
        })
    }

    fn deadline(&self) -> Option<Instant> {
        let link = match &self.phase {
            Phase::Up { wire, .. } => Some(wire.deadline()),
            Phase::Lost { again } => Some(*again),
            Phase::Connecting { .. } => None,
        };
        let given_up = self.lost.as_ref().map(|(since, _)| *since + self.start.grace());
        let clients = self.waiting.iter().map(|(.., until)| *until);
        link.into_iter().chain(given_up).chain(self.ending).chain(clients).min()
    }

    fn keep_time(&mut self, now: Instant) -> Result<(), Problem> {
        if self.ending.is_some_and(|by| now >= by) {
            // It ends there all the same, at the latest when the grace is over.
            self.over = Some(Ok(()));
            return Ok(());
        }
        if let Phase::Up { wire, .. } = &mut self.phase
            && let Err(cut) = wire.keep_alive(now)
        {
            self.cut(&cut);
        }
        if let Some((since, problem)) = &self.lost
            && now >= *since + self.start.grace()
        {
            return Err(self.gone(problem.clone()));
        }
        if matches!(self.phase, Phase::Lost { again } if now >= again) {
            self.dial()?;
        }
        let late = self.waiting.extract_if(.., |(.., until)| *until <= now);
        for (client, ..) in late.collect::<Vec<_>>() {
            let problem = self.lost.as_ref().map(|(_, problem)| problem.clone());
            self.refuse(&client, &problem.unwrap_or_else(|| self.not_there()));
        }
        Ok(())
    }

    fn not_there(&self) -> Problem {
        let message = format!("the connection to {} is not there", self.start.remote.transport.name());
        Problem::new(ProblemKind::Unavailable, message)
    }

    /// Why a session is over that nobody ended.
    fn gone(&self, cause: Problem) -> Problem {
        let host = self.start.remote.transport.name();
        let mut problem =
            Problem::new(ProblemKind::Unavailable, format!("the connection to {host} is lost")).because(cause.message);
        let said = self.lost.iter().flat_map(|(_, first)| &first.causes).filter(|one| !cause.causes.contains(one));
        problem.causes.extend(said.chain(&cause.causes).cloned());
        problem
            .because(
                "how commands ended there that were running is not known; whatever runs there is ended by its own side",
            )
            .hint(format!("start the machine anew: testyard start {}", self.start.name))
    }

    fn refuse(&self, client: &OwnedFd, problem: &Problem) {
        let event = testyard_protocol::Event::Failed(problem.clone());
        if let Ok(payload) = serde_json::to_vec(&event) {
            let mut bytes = Vec::new();
            testyard_protocol::frame::encode(FrameHeader::message(0), &payload, &mut bytes);
            // A client that does not read learns it from the end of its connection.
            let _ = socket::try_send(client, &[std::io::IoSlice::new(&bytes)], &[]);
        }
    }

    /// Starts to connect.
    fn dial(&mut self) -> Result<(), Problem> {
        let (dialled, patience) = self.start.dialled(!self.begun)?;
        let bundle = match &self.bundle {
            Some(bundle) => Arc::clone(bundle),
            None => Arc::clone(self.bundle.insert(Arc::new(Bundle::load(&self.start.programs)?))),
        };
        let hello = self.start.hello(self.begun.then(|| self.hub.inbox().tell()));
        let (done, told) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|errno| Problem::new(ProblemKind::System, "cannot make a pipe").because(errno))?;
        let handle: Handle = Arc::new(Mutex::new(None));
        let held = Arc::clone(&handle);
        let thread = std::thread::Builder::new().name("connect".to_owned()).spawn(move || {
            let outcome = connect::connect(&dialled, &bundle, &hello, patience, &held);
            drop(told);
            outcome
        });
        let thread =
            thread.map_err(|error| Problem::new(ProblemKind::System, "cannot start a thread").because(error))?;
        self.phase = Phase::Connecting { thread, done, handle };
        Ok(())
    }

    fn connected(&mut self) -> Result<(), Problem> {
        let Phase::Connecting { thread, .. } =
            std::mem::replace(&mut self.phase, Phase::Lost { again: Instant::now() })
        else {
            return Ok(());
        };
        let outcome = thread.join().unwrap_or_else(|_| Err(Problem::new(ProblemKind::Bug, "connecting panicked")));
        match outcome {
            Ok(connected) => self.resume(connected),
            // The first try is its caller's to repeat; and what is not transient stays as it is.
            Err(problem) if !self.begun || !problem.kind.is_transient() => {
                Err(if self.begun { self.gone(problem) } else { problem })
            }
            Err(problem) => {
                self.lose(problem);
                Ok(())
            }
        }
    }

    fn resume(&mut self, connected: Connected) -> Result<(), Problem> {
        let Connected { child, input, output, errors, read, received, .. } = connected;
        if let Err(mismatch) = self.hub.resume(received) {
            return Err(self.gone(Problem::from_error(ProblemKind::Protocol, &mismatch)));
        }
        let alive = Duration::from_millis(self.start.alive_ms);
        let mut wire = Wire::new(input, output, &read, alive)
            .map_err(|error| Problem::new(ProblemKind::System, "cannot use a connection").because(error))?;
        if !matches!(self.start.remote.transport, Transport::Ssh(_)) {
            crate::promptly::send_promptly(child.id());
            wire = wire.answering();
        }
        self.begun = true;
        self.lost = None;
        self.pause = PAUSES[0];
        let decoded = self.decode(&mut wire);
        self.phase = Phase::Up { wire: Box::new(wire), child, errors, said: Vec::new() };
        if let Err(cut) = decoded {
            self.cut(&cut);
        }
        for (client, read, _) in std::mem::take(&mut self.waiting) {
            self.hub.adopt(client, &read);
        }
        self.exchange(false);
        Ok(())
    }

    fn decode(&mut self, wire: &mut Wire) -> Result<(), Cut> {
        let mut words = Vec::new();
        let outcome = wire.decode(&mut self.hub, &mut |_: &mut Hub, arrival| words.push(arrival));
        words.into_iter().for_each(|word| self.arrived(word));
        outcome
    }

    /// Moves frames between the hub and the connection.
    fn exchange(&mut self, readable: bool) {
        let Phase::Up { wire, .. } = &mut self.phase else { return };
        let mut words = Vec::new();
        let mut outcome = Ok(());
        if readable {
            outcome = wire.receive(&mut self.hub, |_, arrival| words.push(arrival));
        }
        let outcome = outcome.and_then(|()| wire.send(&mut self.hub));
        words.into_iter().for_each(|word| self.arrived(word));
        if let Err(cut) = outcome {
            self.cut(&cut);
        }
    }

    fn arrived(&mut self, arrival: Arrival) {
        match arrival {
            // Once: the rest is nothing that anybody waits for.
            Arrival::Word(LinkMessage::Ready { limits }) if self.ready.is_none() => {
                let limits: Vec<String> = self.start.notes.iter().cloned().chain(limits).collect();
                self.ready = Some(limits.clone());
                self.report(&Report::Ready { limits });
            }
            Arrival::Word(LinkMessage::Broken(problem)) => self.over = Some(Err(problem)),
            Arrival::Word(LinkMessage::Ended) if self.ending.is_some() => self.over = Some(Ok(())),
            Arrival::Word(LinkMessage::Ended) => {
                let cause = Problem::new(ProblemKind::Unavailable, "the other side has ended the machine");
                self.over = Some(Err(self.gone(cause)));
            }
            _ => {}
        }
    }

    /// The connection is gone.
    fn cut(&mut self, cut: &Cut) {
        let said = match std::mem::replace(&mut self.phase, Phase::Lost { again: Instant::now() }) {
            Phase::Up { child, errors, mut said, .. } => {
                connect::end(child);
                // Why it ends is what it says last.
                if let Some(errors) = &errors {
                    connect::hear(errors.as_fd(), &mut said);
                }
                said
            }
            _ => Vec::new(),
        };
        if self.over.is_some() {
            return;
        }
        let host = self.start.remote.transport.name();
        if let Cut::Breach(breach) = cut {
            // Another connection would lead to the same.
            self.over = Some(Err(breach.problem(&host, &self.start.name)));
            return;
        }
        let mut problem = Problem::from_error(ProblemKind::Unavailable, cut);
        problem.message = format!("the connection to {host} broke: {}", problem.message);
        let said = String::from_utf8_lossy(&said).into_owned();
        problem.causes.extend(crate::transport::last_lines(&said));
        self.lose(problem);
    }

    fn lose(&mut self, problem: Problem) {
        let now = Instant::now();
        match &mut self.lost {
            Some((_, known)) => *known = problem,
            None => self.lost = Some((now, problem)),
        }
        self.phase = Phase::Lost { again: now + self.pause };
        self.pause = (self.pause * 2).min(PAUSES[1]);
    }

    fn hear_errors(&mut self) {
        if let Phase::Up { errors: held, said, .. } = &mut self.phase
            && let Some(errors) = held
            && !connect::hear(errors.as_fd(), said)
        {
            *held = None;
        }
    }
}
