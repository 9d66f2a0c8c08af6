//! A run over several machines, each with an executor of its own: so machines, layers, services and sources are made
//! ready once a machine, whatever the tests are and whoever comes first.
//!
//! A machine is lost when an attempt there met trouble that may pass, and the machine then does not answer a new
//! connection, not even with another supervisor. What runs beside it is the dispatcher's business.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Runs each job on the machine that the dispatcher chose.
pub(super) struct Spread {
    yard: Testyard,
    parts: Vec<Part>,
    /// The machines, where they are this run's own: gone with it.
    _allocations: Option<Allocations>,
}

/// One of the machines.
struct Part {
    name: MachineName,
    room: Room,
    executor: MachineExecutor,
    lost: AtomicBool,
}

impl Spread {
    /// Over machines that run, each named once.
    ///
    /// # Errors
    /// There is no such machine, or it does not answer.
    pub(super) fn over(
        yard: &Testyard,
        names: &[MachineName],
        allocations: Option<Allocations>,
        report: &Report,
        (trees, copies): (&Arc<Trees>, &Arc<Copies>),
        care: &Arc<Care>,
    ) -> Result<Self, Problem> {
        let mut parts: Vec<Part> = Vec::with_capacity(names.len());
        for name in names {
            if parts.iter().any(|part| part.name == *name) {
                return Err(Problem::new(ProblemKind::Usage, format!("--on names machine {name} twice"))
                    .hint("name each machine once; --jobs says how many tests run on each at once"));
            }
            // Of one that was made for this run, its keeper has just said that it answers.
            let info = if allocations.is_some() { yard.machines().info(name)? } else { answering(yard, name)? };
            let room = room_of(yard, &info);
            let backend = info.spec.backend.clone();
            let machine = Box::new(OneMachine { yard: yard.clone(), info, copies: Arc::clone(copies) });
            let executor = MachineExecutor::new(machine, report.clone(), Arc::clone(trees), Arc::clone(care))?;
            let executor = executor.on_given(backend);
            parts.push(Part { name: name.clone(), room, executor, lost: AtomicBool::new(false) });
        }
        Ok(Self { yard: yard.clone(), parts, _allocations: allocations })
    }

    /// Why a machine counts as lost; none while it answers.
    fn loss_of(&self, part: &Part) -> Option<Problem> {
        let asked = answering(&self.yard, &part.name);
        let problem = asked.err()?;
        part.lost.store(true, Ordering::Relaxed);
        // Whatever it is that became of it, the test has nothing to do with it.
        Some(Problem { kind: ProblemKind::Unavailable, ..problem })
    }

    fn left(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| !part.lost.load(Ordering::Relaxed))
    }
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
        self.parts.iter().map(|part| Node { name: part.name.to_string(), room: part.room }).collect()
    }

    fn abilities(&self, needs: &[String]) -> Vec<Ability> {
        self.parts.first().map(|part| part.executor.abilities(needs)).unwrap_or_default()
    }

    fn source_tree(&self, root: &Path) -> Result<SourceTree, Problem> {
        let first = self.parts.first().ok_or_else(|| Problem::new(ProblemKind::Usage, "no machine was named"))?;
        first.executor.source_tree(root)
    }

    fn source_changed(&self, root: &Path) -> bool {
        self.parts.first().is_some_and(|part| part.executor.source_changed(root))
    }

    fn finish(&self) -> Vec<Problem> {
        self.left().flat_map(|part| part.executor.finish()).collect()
    }

    fn run(&self, job: &Job, cancel: &Cancel, events: &dyn Fn(JobEvent)) -> JobOutcome {
        let Some(part) = self.parts.get(job.node) else {
            let message = format!("there is no machine number {}", job.node);
            return JobOutcome::Infrastructure(Problem::new(ProblemKind::Bug, message));
        };
        let outcome = part.executor.run(job, cancel, events);
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
