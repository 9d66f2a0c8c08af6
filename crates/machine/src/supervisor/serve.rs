//! The supervisor's loop: who came, what the agent says, what time it is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags};
use testyard_linux::signal::Signal;
use testyard_linux::step::{Step, reach};
use testyard_linux::{process, socket};
use testyard_model::{MachineName, MachineState, Problem, ProblemKind, milliseconds};
use testyard_protocol::{Event, Order, Report, Request};

use super::begin::{Running, SLOTS, death, end_descendants, how_it_ended};
use super::life::{Due, Goal, Life};
use super::visitor::{Visitor, Wish, send_now};
use super::{Setup, SupervisorError, names, teardown};
use crate::backend::RecordError;

/// Between SIGTERM and SIGKILL for what runs in a machine that is stopped.
const GRACE: Duration = Duration::from_secs(5);
/// The agent gets so much longer than what it ends.
const MARGIN: Duration = Duration::from_secs(2);
/// What is still ending when somebody asks for the machine to be free gets so long: a command that has been answered
/// for, a client that has just closed its connection.
const PATIENCE: Duration = Duration::from_millis(500);
/// More clients than this at once are not greeted until others have left.
const MOST_VISITORS: usize = 512;

/// A supervisor whose machine is up.
pub(super) struct Supervisor {
    setup: Setup,
    running: Running,
    life: Life,
    visitors: Vec<Visitor>,
    /// Who is told, on which stream, when the machine has ended.
    waiting: Vec<(OwnedFd, u32)>,
    /// Who holds the machine still: nobody else is let in until it leaves.
    quiet: Option<Visitor>,
    /// Who asked for something that cannot be while the machine is in use.
    patient: Vec<Patient>,
    /// What the agent said or did last, if it was its end.
    broken: Option<SupervisorError>,
    ended: bool,
    status: Option<i32>,
    /// The agent waits for environment numbers that could not be reserved yet.
    slots_owed: bool,
}

/// What a visitor's request came to.
enum Served {
    Answer(Event),
    AtTheEnd,
    Quiet,
    /// The machine is in use, which may be over in a moment.
    Busy(Problem),
}

/// A visitor whose request waits for the machine's use to end.
struct Patient {
    visitor: Visitor,
    stream: u32,
    request: Request,
    until: Instant,
}

impl Supervisor {
    pub(super) fn new(setup: Setup, running: Running) -> Self {
        let now = Instant::now();
        let expires = setup.info.spec.ttl.map(|ttl| now + left_of(setup.info.created_ms, ttl.0));
        let life = Life::new(now, setup.info.spec.idle.map(|idle| idle.0), expires);
        Self {
            setup,
            running,
            life,
            visitors: Vec::new(),
            waiting: Vec::new(),
            quiet: None,
            patient: Vec::new(),
            broken: None,
            ended: false,
            status: None,
            slots_owed: false,
        }
    }

    pub(super) fn run(mut self) -> Result<(), SupervisorError> {
        while !self.ended {
            self.turn()?;
        }
        self.finish()
    }

    fn turn(&mut self) -> Result<(), SupervisorError> {
        let ready = self.wait()?;
        self.take_signals()?;
        self.take_reports();
        if ready.agent_ended {
            self.ended = true;
            return Ok(());
        }
        if ready.newcomers {
            self.accept();
        }
        self.serve_visitors();
        let now = Instant::now();
        self.serve_patient(now);
        match self.life.due(now) {
            Some(Due::Kill) => self.kill_agent(),
            Some(Due::Expired) => self.end_unasked(Goal::Delete),
            Some(Due::Idle) if self.is_leased() => self.life.touch(now),
            Some(Due::Idle) => self.end_unasked(Goal::Stop),
            None => {}
        }
        Ok(())
    }

    fn wait(&self) -> Result<Ready, SupervisorError> {
        let greeting = self.quiet.is_none();
        let visitors = self.visitors.iter().filter(|visitor| greeting || visitor.deadline().is_none());
        let waited_for = self.patient.iter().map(|patient| patient.until);
        let deadlines = self.life.next().into_iter().chain(waited_for);
        let deadline = deadlines.chain(visitors.clone().filter_map(Visitor::deadline)).min();
        let link_wants = if self.running.link.wants_to_write() { PollFlags::OUT } else { PollFlags::empty() };
        let mut polled = vec![
            PollFd::from_borrowed_fd(self.running.pidfd.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.setup.signals.as_fd(), PollFlags::IN),
        ];
        if self.broken.is_none() {
            polled.push(PollFd::from_borrowed_fd(self.running.link.as_fd(), PollFlags::IN | link_wants));
        }
        let watched = visitors.map(AsFd::as_fd).chain(self.quiet.as_ref().map(AsFd::as_fd));
        polled.extend(watched.map(|fd: BorrowedFd<'_>| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let listens = greeting && self.visitors.len() < MOST_VISITORS;
        if listens {
            polled.push(PollFd::from_borrowed_fd(self.running.listener.as_fd(), PollFlags::IN));
        }
        let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        // Clamped far below what the kernel's clock holds; the loop just turns once more.
        let timeout = timeout.map(|left| left.min(Duration::from_secs(86_400)));
        let again = self.slots_owed.then_some(Duration::from_secs(1));
        let timeout = timeout.into_iter().chain(again).min();
        let timeout = timeout.and_then(|left| left.try_into().ok());
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                let error = testyard_linux::Error::new("wait for", "clients and the agent", errno);
                return Err(SupervisorError::System(error));
            }
        }
        let happened = |fd: &PollFd<'_>| !fd.revents().is_empty();
        Ok(Ready { agent_ended: happened(&polled[0]), newcomers: listens && polled.last().is_some_and(happened) })
    }

    fn take_signals(&mut self) -> Result<(), SupervisorError> {
        while let Some(received) = self.setup.signals.read().map_err(SupervisorError::System)? {
            if received.signal != Signal::CHLD {
                self.end_unasked(Goal::Stop);
            } else if self.setup.own_process {
                // The agent's own end first, because it is told apart; then whatever was left to us.
                if let Ok(Some(status)) = process::pidfd_wait(self.running.pidfd.as_fd(), true) {
                    self.status = Some(status);
                    self.ended = true;
                }
                while let Ok(Some(_)) = process::wait_any_nohang() {}
            }
        }
        Ok(())
    }

    fn take_reports(&mut self) {
        if self.broken.is_some() {
            return;
        }
        if let Err(error) = self.exchange() {
            self.broken = Some(error);
            // Without its link it serves nobody: it ends, if it has not already.
            self.kill_agent();
        }
    }

    fn exchange(&mut self) -> Result<(), SupervisorError> {
        self.running.link.flush()?;
        while let Some(report) = self.running.link.report()? {
            match report {
                Report::Activity { open } => self.life.activity(Instant::now(), open),
                Report::NeedSlots => self.slots_owed = true,
                Report::Broken(problem) => return Err(SupervisorError::AgentBroken(Box::new(problem))),
                Report::Ready { limits } => self.setup.info.limits = limits,
            }
        }
        if self.slots_owed
            && let Ok(first) = self.reserve_slots()
        {
            self.slots_owed = false;
            self.running.link.order(&Order::Slots { first, count: SLOTS.into() }, None)?;
        }
        Ok(())
    }

    /// A registry that is busy or full now is asked again a moment later: the machine lives on.
    fn reserve_slots(&self) -> Result<u64, RecordError> {
        (self.setup.open_records)()?.reserve_slots(&self.setup.place.id, SLOTS)
    }

    fn kill_agent(&mut self) {
        // It may just have ended by itself, which is as good.
        let _ = process::pidfd_signal(self.running.pidfd.as_fd(), libc::SIGKILL);
    }

    fn accept(&mut self) {
        let own = rustix::process::geteuid().as_raw();
        while self.visitors.len() < MOST_VISITORS {
            // Nobody there any more, or no descriptor free: the next turn tries again.
            let Ok(client) = socket::accept(&self.running.listener) else { return };
            let allowed = socket::peer(&client).is_ok_and(|peer| peer.uid == own || peer.uid == 0);
            if allowed {
                self.visitors.push(Visitor::new(client, Instant::now()));
            } else {
                let problem = Problem::new(ProblemKind::Denied, "this machine belongs to another user");
                send_now(&client, 0, &Event::Failed(problem));
            }
        }
    }

    fn serve_visitors(&mut self) {
        let now = Instant::now();
        if let Some(visitor) = self.quiet.take() {
            self.serve(visitor, now, true);
        }
        for visitor in std::mem::take(&mut self.visitors) {
            if self.quiet.is_some() && visitor.deadline().is_some() {
                self.visitors.push(visitor);
            } else {
                self.serve(visitor, now, false);
            }
        }
    }

    /// Serves what one visitor wants now, and keeps it or lets it go.
    fn serve(&mut self, mut visitor: Visitor, now: Instant, mut quiet: bool) {
        loop {
            match visitor.wish() {
                Wish::Nothing if visitor.deadline().is_some_and(|deadline| deadline <= now) => return,
                Wish::Nothing if quiet => return self.quiet = Some(visitor),
                Wish::Nothing => return self.visitors.push(visitor),
                Wish::Leave => return,
                Wish::Agent(read) => return self.introduce(visitor, read),
                Wish::Request(stream, request) => {
                    let served = self.answer(&request);
                    if let Served::Busy(_) = served {
                        self.patient.push(Patient { visitor, stream, request: *request, until: now + PATIENCE });
                        return;
                    }
                    quiet |= matches!(served, Served::Quiet);
                    if !self.tell(&visitor, stream, served) {
                        return;
                    }
                }
            }
        }
    }

    /// Tells a visitor what its request came to; whether it is still there.
    fn tell(&mut self, visitor: &Visitor, stream: u32, served: Served) -> bool {
        match served {
            Served::Answer(event) => visitor.answer(stream, &event),
            Served::Busy(problem) => visitor.answer(stream, &Event::Failed(problem)),
            Served::Quiet => visitor.answer(stream, &Event::Done),
            Served::AtTheEnd => match rustix::io::fcntl_dupfd_cloexec(&visitor.socket, 3) {
                Ok(socket) => {
                    self.waiting.push((socket, stream));
                    true
                }
                Err(_) => false,
            },
        }
    }

    /// Asks again for those who wait until the machine is free; who has waited long enough is refused.
    fn serve_patient(&mut self, now: Instant) {
        for patient in std::mem::take(&mut self.patient) {
            let served = self.answer(&patient.request);
            if matches!(served, Served::Busy(_)) && now < patient.until {
                self.patient.push(patient);
                continue;
            }
            let quiet = matches!(served, Served::Quiet);
            if self.tell(&patient.visitor, patient.stream, served) {
                // It may have asked for more in the meantime.
                self.serve(patient.visitor, now, quiet);
            }
        }
    }

    /// Hands a client over to the agent, with its socket.
    fn introduce(&mut self, visitor: Visitor, read: Vec<u8>) {
        if self.life.ending().is_some() {
            visitor.answer(0, &Event::Failed(self.ends()));
            return;
        }
        self.life.touch(Instant::now());
        if let Err(error) = self.running.link.adopt(visitor.socket, read) {
            self.broken = Some(error);
            self.kill_agent();
        }
    }

    fn answer(&mut self, request: &Request) -> Served {
        let refusal = |problem: Problem| Served::Answer(Event::Failed(problem));
        match request {
            Request::Info => Served::Answer(Event::Info(Box::new(self.setup.info.clone()))),
            Request::Stop { force } => self.end_asked(Goal::Stop, *force),
            Request::Delete { force: false } if self.life.open() > 0 => Served::Busy(self.busy("delete")),
            Request::Delete { .. } => self.end_asked(Goal::Delete, true),
            Request::Renamed(name) => match self.rename(name.clone()) {
                Ok(()) => Served::Answer(Event::Done),
                Err(error) => refusal(Problem::from_error(ProblemKind::System, &error)),
            },
            Request::Quiesce if self.life.ending().is_some() => refusal(self.ends()),
            Request::Quiesce if self.life.open() > 0 || self.quiet.is_some() => Served::Busy(self.busy("clone")),
            Request::Quiesce => Served::Quiet,
            _ => refusal(Problem::new(ProblemKind::Protocol, "a supervisor does not serve this request")),
        }
    }

    fn busy(&self, verb: &str) -> Problem {
        let name = &self.setup.place.name;
        let problem = Problem::new(ProblemKind::WrongState, format!("machine {name} is in use"))
            .because("commands, environments or connections are open in it");
        match verb {
            "delete" => problem.hint(format!("end them with it: testyard delete {name} --force")),
            _ => problem.hint(format!("stop it first: testyard stop {name}")),
        }
    }

    fn ends(&self) -> Problem {
        let name = &self.setup.place.name;
        Problem::new(ProblemKind::WrongState, format!("machine {name} is being ended"))
            .hint(format!("start it again: testyard start {name}"))
    }

    fn rename(&mut self, name: MachineName) -> Result<(), testyard_linux::Error> {
        names::link(&self.setup.runtime, &name, &self.setup.place.id)?;
        // The name that it has is a new one as well: its link was just made.
        if name != self.setup.place.name {
            names::unlink(&self.setup.runtime, &self.setup.place.name, &self.setup.place.id)?;
        }
        self.setup.info.name = name.clone();
        self.setup.place.name = name.clone();
        if self.broken.is_none()
            && let Err(error) = self.running.link.order(&Order::Rename(name), None)
        {
            self.broken = Some(error);
            self.kill_agent();
        }
        Ok(())
    }

    fn end_asked(&mut self, goal: Goal, force: bool) -> Served {
        match self.record_ending(goal) {
            Ok(()) => {
                self.end(goal, if force { Duration::ZERO } else { GRACE });
                Served::AtTheEnd
            }
            Err(error) => Served::Answer(Event::Failed(error.problem())),
        }
    }

    /// Idle, expired, or told by a signal. Its processes end even when that cannot be written down: the
    /// reaper then finds what became of it.
    fn end_unasked(&mut self, goal: Goal) {
        let _ = self.record_ending(goal);
        self.end(goal, GRACE);
    }

    fn record_ending(&mut self, goal: Goal) -> Result<(), RecordError> {
        let mut records = (self.setup.open_records)()?;
        let id = &self.setup.place.id;
        let state = match (goal, self.life.ending()) {
            (Goal::Delete, Some(Goal::Delete)) | (Goal::Stop, Some(_)) => return Ok(()),
            (Goal::Delete, _) => {
                records.begin_deletion(id)?;
                reach(Step::DeleteIntent);
                MachineState::Deleting
            }
            (Goal::Stop, None) => {
                records.transition(id, MachineState::Running, MachineState::Stopping)?;
                MachineState::Stopping
            }
        };
        self.setup.info.state = state;
        Ok(())
    }

    fn end(&mut self, goal: Goal, grace: Duration) {
        self.life.end(goal, Instant::now() + grace + MARGIN);
        let grace_ms = milliseconds(grace);
        if self.broken.is_none()
            && let Err(error) = self.running.link.order(&Order::Shutdown { grace_ms }, None)
        {
            self.broken = Some(error);
            self.kill_agent();
        }
    }

    fn is_leased(&self) -> bool {
        let leased = (self.setup.open_records)().and_then(|mut records| records.is_leased(&self.setup.place.id));
        // When nobody can tell, the machine stays: to stop one that is leased would be worse. But a home that was
        // removed, its locks with it, is nobody's any more.
        leased.unwrap_or_else(|_| rustix::fs::fstat(&self.setup.lock).map_or(true, |lock| lock.st_nlink > 0))
    }

    /// The agent has ended: writes down what became of the machine and tells whoever waits for it.
    fn finish(mut self) -> Result<(), SupervisorError> {
        let cause = self.cause();
        let outcome = self.clean_up(cause.as_ref());
        let event = match &outcome {
            Ok(()) => Event::Done,
            Err(error) => Event::Failed(error.problem(&self.setup.place)),
        };
        for (socket, stream) in &self.waiting {
            send_now(socket, *stream, &event);
        }
        match (outcome, cause) {
            (Ok(()), Some(cause)) => Err(cause),
            (outcome, _) => outcome,
        }
    }

    /// Why it ended, if nobody asked for it.
    fn cause(&mut self) -> Option<SupervisorError> {
        if self.life.ending().is_some() {
            return None;
        }
        let said = match &self.broken {
            Some(SupervisorError::AgentBroken(problem)) => Some(&**problem),
            _ => None,
        };
        if let Some(problem) = self.setup.backend.ending(&self.setup.place, said) {
            return Some(SupervisorError::AgentBroken(Box::new(problem)));
        }
        match self.broken.take() {
            Some(SupervisorError::AgentGone) | None => Some(match self.status {
                Some(status) => SupervisorError::AgentEnded { how: how_it_ended(status), log: Vec::new() },
                None => death(&self.setup, &self.running.pidfd),
            }),
            broken => broken,
        }
    }

    fn clean_up(&mut self, cause: Option<&SupervisorError>) -> Result<(), SupervisorError> {
        let setup = &self.setup;
        teardown::kill(&setup.place, self.running.pid, &self.running.pidfd)?;
        end_descendants(setup)?;
        let mut records = (setup.open_records)()?;
        if self.life.ending() == Some(Goal::Delete) {
            teardown::delete(&setup.place, &setup.runtime, &*setup.backend, &mut *records, None)?;
            return Ok(());
        }
        let cleared = teardown::clear(&setup.place, &setup.runtime, &*setup.backend, &mut *records);
        records.record_supervisor(&setup.place.id, None)?;
        let state = setup.info.state;
        match (cause, &cleared) {
            (Some(cause), _) => records.record_failure(&setup.place.id, state, &cause.problem(&setup.place))?,
            (None, Err(error)) => records.record_failure(&setup.place.id, state, &error.problem())?,
            (None, Ok(())) => records.transition(&setup.place.id, state, MachineState::Stopped)?,
        }
        Ok(cleared?)
    }
}

struct Ready {
    agent_ended: bool,
    newcomers: bool,
}

/// How much of a span that began at a time of the day is left.
fn left_of(begin_ms: i64, span: Duration) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let begin = Duration::from_millis(u64::try_from(begin_ms).unwrap_or(0));
    (begin + span).saturating_sub(now)
}
