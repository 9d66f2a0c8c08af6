//! A run over several machines, each with an executor of its own: so machines, layers, services and sources are made
//! ready once a machine, whatever the tests are and whoever comes first. Those that are made for the run take part once
//! they are there: the run begins with the first.
//!
//! A machine is lost when an attempt there met trouble that may pass, and the machine then does not answer a new
//! connection, not even with another supervisor. What runs beside it is the dispatcher's business.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use testyard_backends::slurm;
use testyard_engine::{Copies, WarmMachine};
use testyard_machine::supervisor::socket_of;
use testyard_model::{
    BackendName, CommandStatus, ImageReference, Isolation, MachineInfo, MachineName, Problem, ProblemKind,
};
use testyard_probe::Report;
use testyard_runner::cancel::Cancel;
use testyard_runner::job::{Ability, Executor, Job, JobEvent, JobOutcome, Node, SourceTree};
use testyard_runner::run::room_of_host;
use testyard_runner::schedule::Room;

use super::aftermath::Care;
use super::allocation::{Allocations, SlurmNodes};
use super::executor::{MachineExecutor, MachineSource};
use super::trees::Trees;
use crate::yard::Testyard;

/// What ends a test from outside may be about to end its machine: it is given so long to do so.
const LAST_BREATH: Duration = Duration::from_millis(250);
/// A shell's exit code for a command that a signal ended is above this.
const SIGNALLED: u8 = 128;

/// Where a run's tests run.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Where {
    /// On machines that are found or made as the suites ask.
    #[default]
    Here,
    /// Spread over these machines, which run.
    Machines(Vec<MachineName>),
    /// Spread over nodes of a Slurm cluster, which are allocated for this run.
    Slurm(Box<SlurmNodes>),
}

/// What the executors of all machines stand on.
pub(super) struct Footing {
    pub(super) yard: Testyard,
    pub(super) report: Report,
    pub(super) trees: Arc<Trees>,
    pub(super) copies: Arc<Copies>,
    pub(super) care: Arc<Care>,
}

/// Runs each job on the machine that the dispatcher chose.
pub(super) struct Spread {
    footing: Footing,
    parts: Vec<Part>,
    /// The machines, where they are this run's own: gone with it.
    allocations: Option<Allocations>,
}

/// One of the machines.
struct Part {
    name: MachineName,
    /// Nothing until it is there.
    seat: OnceLock<Seat>,
    lost: AtomicBool,
}

/// A machine that is there.
struct Seat {
    room: Room,
    executor: MachineExecutor,
}

impl Footing {
    fn seat(&self, info: MachineInfo) -> Result<Seat, Problem> {
        let room = room_of(&self.yard, &info);
        let backend = info.spec.backend.clone();
        let machine = Box::new(OneMachine { yard: self.yard.clone(), info, copies: Arc::clone(&self.copies) });
        let (trees, care) = (Arc::clone(&self.trees), Arc::clone(&self.care));
        let executor = MachineExecutor::new(machine, self.report.clone(), trees, care)?;
        Ok(Seat { room, executor: executor.on_given(backend) })
    }
}

impl Spread {
    /// Over machines that run, each named once.
    ///
    /// # Errors
    /// There is no such machine, or it does not answer.
    pub(super) fn over(footing: Footing, names: &[MachineName]) -> Result<Self, Problem> {
        let mut parts: Vec<Part> = Vec::with_capacity(names.len());
        for name in names {
            if parts.iter().any(|part| part.name == *name) {
                return Err(Problem::new(ProblemKind::Usage, format!("--on names machine {name} twice"))
                    .hint("name each machine once; --jobs says how many tests run on each at once"));
            }
            let seat = footing.seat(answering(&footing.yard, name)?)?;
            parts.push(Part { name: name.clone(), seat: OnceLock::from(seat), lost: AtomicBool::new(false) });
        }
        Ok(Self { footing, parts, allocations: None })
    }

    /// Over machines of this run's own, of which the one with this number is there and the others are awaited.
    ///
    /// # Errors
    /// Nothing can be run on the first.
    pub(super) fn over_allocations(footing: Footing, allocations: Allocations, first: usize) -> Result<Self, Problem> {
        let part = |name| Part { name, seat: OnceLock::new(), lost: AtomicBool::new(false) };
        let parts = allocations.names().into_iter().map(part).collect();
        let spread = Self { footing, parts, allocations: Some(allocations) };
        spread.take_seat(first)?;
        Ok(spread)
    }

    /// A machine of this run's own is there, as its keeper has just said.
    fn take_seat(&self, number: usize) -> Result<&Seat, Problem> {
        let Some(part) = self.parts.get(number) else { return Err(unknown(number)) };
        if let Some(seat) = part.seat.get() {
            return Ok(seat);
        }
        let seat = self.footing.seat(self.footing.yard.machines().info(&part.name)?)?;
        Ok(part.seat.get_or_init(|| seat))
    }

    /// The executor of one that is there: what they all know, each of them knows.
    fn any(&self) -> Option<&MachineExecutor> {
        self.parts.iter().find_map(|part| Some(&part.seat.get()?.executor))
    }

    /// Why a machine counts as lost; none while it answers.
    fn loss_of(&self, part: &Part) -> Option<Problem> {
        let asked = answering(&self.footing.yard, &part.name);
        let problem = asked.err()?;
        part.lost.store(true, Ordering::Relaxed);
        // Whatever it is that became of it, the test has nothing to do with it.
        Some(Problem { kind: ProblemKind::Unavailable, ..problem })
    }

    fn left(&self) -> impl Iterator<Item = &Seat> {
        self.parts.iter().filter(|part| !part.lost.load(Ordering::Relaxed)).filter_map(|part| part.seat.get())
    }
}

fn unknown(number: usize) -> Problem {
    Problem::new(ProblemKind::Bug, format!("there is no machine number {number}"))
}

/// A machine that answers a new connection; where only its supervisor died, with another one.
fn answering(yard: &Testyard, name: &MachineName) -> Result<MachineInfo, Problem> {
    let mut machine = yard.connect(name)?;
    machine.status()?;
    yard.machines().info(name)
}

/// A slot a processor, of those that the machine has.
fn room_of(yard: &Testyard, info: &MachineInfo) -> Room {
    let mut room = room_of_host();
    if let Some((cpus, memory)) = slurm::room_of(&yard.place_of_info(info).folder) {
        room.jobs = cpus.max(1) as usize;
        room.capacity.milli_cpus = u64::from(cpus) * 1_000;
        room.capacity.memory = memory.map_or(u64::MAX, |memory| memory.0);
        return room;
    }
    if let Some(cpus) = info.spec.cpus {
        room.jobs = room.jobs.min(cpus.ceil().max(1.0) as usize);
        room.capacity.milli_cpus = room.capacity.milli_cpus.min((cpus * 1_000.0) as u64);
    }
    if let Some(memory) = info.spec.memory {
        room.capacity.memory = room.capacity.memory.min(memory.0);
    }
    room
}

/// Whether a test ended as those do whose machine is being ended.
fn may_be_cut_off(outcome: &JobOutcome) -> bool {
    let JobOutcome::Finished(finished) = outcome else { return false };
    match finished.status {
        CommandStatus::Signalled(_) => true,
        CommandStatus::Exited(code) => code > SIGNALLED,
        CommandStatus::TimedOut => false,
    }
}

impl Executor for Spread {
    fn nodes(&self) -> Vec<Node> {
        let guess = self.parts.iter().find_map(|part| Some(part.seat.get()?.room)).unwrap_or_else(room_of_host);
        let node = |part: &Part| {
            let seat = part.seat.get();
            Node { name: part.name.to_string(), room: seat.map_or(guess, |seat| seat.room), awaited: seat.is_none() }
        };
        self.parts.iter().map(node).collect()
    }

    fn await_node(&self, node: usize, over: &Cancel) -> Result<Room, Problem> {
        let Some(allocations) = &self.allocations else { return Err(unknown(node)) };
        let stop = over.descriptor().map_err(|error| Problem::from_error(ProblemKind::Exhausted, &error))?;
        allocations.wait_for(node, stop)?;
        self.take_seat(node).map(|seat| seat.room)
    }

    fn abilities(&self, needs: &[String]) -> Vec<Ability> {
        self.any().map(|executor| executor.abilities(needs)).unwrap_or_default()
    }

    fn source_tree(&self, root: &Path) -> Result<SourceTree, Problem> {
        let first = self.any().ok_or_else(|| Problem::new(ProblemKind::Usage, "no machine was named"))?;
        first.source_tree(root)
    }

    fn source_changed(&self, root: &Path) -> bool {
        self.any().is_some_and(|executor| executor.source_changed(root))
    }

    fn finish(&self) -> Vec<Problem> {
        self.left().flat_map(|seat| seat.executor.finish()).collect()
    }

    fn run(&self, job: &Job, cancel: &Cancel, events: &dyn Fn(JobEvent)) -> JobOutcome {
        let part = self.parts.get(job.node).and_then(|part| Some((part, part.seat.get()?)));
        let Some((part, seat)) = part else { return JobOutcome::Infrastructure(unknown(job.node)) };
        let outcome = seat.executor.run(job, cancel, events);
        let suspicious = match &outcome {
            JobOutcome::Infrastructure(problem) | JobOutcome::Unserved { problem, .. } => problem.kind.is_transient(),
            outcome => may_be_cut_off(outcome) && cancel.wait(LAST_BREATH).is_none(),
        };
        match suspicious.then(|| self.loss_of(part)).flatten() {
            Some(problem) => JobOutcome::Lost(problem),
            None => outcome,
        }
    }
}

/// The one machine of an executor, whatever a suite says about what it wants: a test that asks for another is skipped.
struct OneMachine {
    yard: Testyard,
    info: MachineInfo,
    copies: Arc<Copies>,
}

impl OneMachine {
    fn refuse(&self, what: &str) -> Problem {
        let message = format!("machine {} is {what}", self.info.name);
        Problem::new(ProblemKind::Unsupported, message).hint("run it without --on, or on a machine that is as it asks")
    }
}

impl MachineSource for OneMachine {
    fn machine(
        &self,
        backend: Option<&BackendName>,
        image: Option<&ImageReference>,
    ) -> Result<(WarmMachine, Isolation), Problem> {
        let spec = &self.info.spec;
        if backend.is_some_and(|backend| *backend != spec.backend) {
            return Err(self.refuse(&format!("of backend {}", spec.backend)));
        }
        if image.is_some_and(|image| *image != spec.image) {
            return Err(self.refuse(&format!("of image {}", spec.image)));
        }
        let most = spec.backend.most_isolation();
        let socket = socket_of(self.yard.options().home.runtime(), &self.info.name);
        let machine = WarmMachine::new(self.info.name.to_string(), socket).with_copies(Arc::clone(&self.copies));
        Ok((machine, most))
    }

    fn own_machine(
        &self,
        _backend: Option<&BackendName>,
        _image: &ImageReference,
    ) -> Result<(WarmMachine, Box<dyn Send>), Problem> {
        Err(Problem::new(ProblemKind::Unsupported, "a run over given machines makes no others")
            .hint("run it without --on"))
    }
}
