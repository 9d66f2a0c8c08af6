//! The runner's executor over machines: each test in an environment of a warm machine.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustix::fd::BorrowedFd;
use testyard_engine::{Attendance, EnvironmentRun, Output, Served, ServiceFailure, SharedServices, WarmMachine};
use testyard_linux::step::{Step, reach};
use testyard_machine::client::caller;
use testyard_model::{
    BackendName, EnvironmentId, EnvironmentSpec, ImageReference, Isolation, Network, Problem, ProblemKind, UserSpec,
};
use testyard_probe::{Answer, Report};
use testyard_protocol::RawText;
use testyard_registry::{PortLease, PortLeases};
use testyard_runner::cancel::Cancel;
use testyard_runner::capture::Stream;
use testyard_runner::job::{
    Ability, EnvironmentUsed, Executor, Finished, Job, JobEvent, JobOutcome, Refusal, SourceTree,
};
use testyard_runner::process::ProcessExecutor;
use testyard_runner::suite::TestUser;

use super::aftermath::{Care, Ended as After, linger_of};
use super::clusters::Clusters;
use super::pace::Pace;
use super::preparing::Preparations;
use super::services::{self, Shared};
use super::trees::{self, Trees};

/// Host ports that a test gets where it shares the host's network.
const PORTS: usize = 4;

/// Finds or makes the machine for a backend and an image, running.
pub trait MachineSource: Send + Sync {
    /// The machine, and what its environments can isolate at most. None for what a suite does not say.
    ///
    /// # Errors
    /// It cannot be had on this host, or could not be made.
    fn machine(
        &self,
        backend: Option<&BackendName>,
        image: Option<&ImageReference>,
    ) -> Result<(WarmMachine, Isolation), Problem>;

    /// A machine for one test alone, gone when the guard is dropped.
    ///
    /// # Errors
    /// As [`MachineSource::machine`].
    fn own_machine(
        &self,
        backend: Option<&BackendName>,
        image: &ImageReference,
    ) -> Result<(WarmMachine, Box<dyn Send>), Problem>;
}

type Key = (Option<BackendName>, ImageReference);
type Found = Arc<Mutex<Option<Result<(Arc<WarmMachine>, Isolation), Problem>>>>;

/// What a job stands on.
struct Ground {
    spec: EnvironmentSpec,
    /// The services that it shares with others of its suite.
    beside: Option<Arc<SharedServices>>,
    /// Held until its result is there.
    ports: Vec<PortLease>,
}

/// A job on the machine that it was given.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    machine: &'a WarmMachine,
    /// The machine itself, where it outlives the test.
    shared: Option<&'a Arc<WarmMachine>>,
    isolation: Isolation,
    job: &'a Job,
    cancel: &'a Cancel,
    events: &'a dyn Fn(JobEvent),
}

/// Runs tests on machines.
pub struct MachineExecutor {
    machines: Box<dyn MachineSource>,
    report: Report,
    trees: Arc<Trees>,
    ports: PortLeases,
    plain: ProcessExecutor,
    care: Arc<Care>,
    preparations: Preparations,
    warm: Mutex<HashMap<Key, Found>>,
    shared: Shared,
    pace: Pace,
    /// The backend of the one machine on which all tests run, those without any isolation too.
    given: Option<BackendName>,
    /// Where the tests of this run can reach clusters of this host.
    clusters: Option<Clusters>,
}

impl MachineExecutor {
    /// Over machines from `machines`, with abilities as `report` found them.
    ///
    /// # Errors
    /// No port can ever be leased on this host.
    pub(super) fn new(
        machines: Box<dyn MachineSource>,
        report: Report,
        trees: Arc<Trees>,
        care: Arc<Care>,
    ) -> Result<Self, Problem> {
        let ports = PortLeases::standard().map_err(|error| error.problem())?;
        Ok(Self {
            machines,
            report,
            trees,
            ports,
            plain: ProcessExecutor::new(),
            care,
            preparations: Preparations::default(),
            warm: Mutex::default(),
            shared: Shared::default(),
            pace: Pace::of_host(),
            given: None,
            clusters: None,
        })
    }

    /// Its tests can have clusters, which are reached on this host.
    pub(super) fn with_clusters(self, clusters: Clusters) -> Self {
        Self { clusters: Some(clusters), ..self }
    }

    /// Over one given machine of this backend, on which also those tests run that ask for no isolation.
    pub(super) fn on_given(self, backend: BackendName) -> Self {
        Self { given: Some(backend), ..self }
    }

    /// The machine of a key: made once, by whoever needs it first, while others wait.
    fn warm(&self, job: &Job, events: &dyn Fn(JobEvent)) -> Result<(Arc<WarmMachine>, Isolation), Problem> {
        let image = job.image.clone().unwrap_or(ImageReference::Host);
        let key = (job.backend.clone(), image.clone());
        let slot = Arc::clone(self.warm.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok((machine, most))) = &*slot {
            return Ok((Arc::clone(machine), *most));
        }
        // A permanent refusal is the same for every test; a passing one is tried again by the next.
        if let Some(Err(problem)) = &*slot
            && !problem.kind.is_transient()
        {
            return Err(problem.clone());
        }
        events(JobEvent::Preparing(format!("machine of image {image}")));
        let made = self
            .machines
            .machine(job.backend.as_ref(), job.image.as_ref())
            .map(|(machine, most)| (Arc::new(machine), most));
        reach(Step::RunnerLeased);
        *slot = Some(made.clone());
        made
    }

    /// A machine that went away is looked for again by the next attempt.
    fn forget(&self, job: &Job) {
        let image = job.image.clone().unwrap_or(ImageReference::Host);
        self.warm.lock().unwrap_or_else(PoisonError::into_inner).remove(&(job.backend.clone(), image));
    }

    fn attempt(&self, attempt: Attempt<'_>) -> JobOutcome {
        let Attempt { machine, shared: _, isolation, job, cancel, events } = attempt;
        let top = trees::top_of(&job.root);
        self.trees.want(&top, job.sync);
        let tree = self.trees.shown(&top);
        let Ground { spec, beside, ports } = match self.ground(attempt) {
            Ok(ground) => ground,
            Err(failure) => return services::unserved(job, failure),
        };
        let (mut stdout, mut stderr) = (job.capture(Stream::Stdout), job.capture(Stream::Stderr));
        let backend = job.backend.as_ref().or(self.given.as_ref()).unwrap_or(&self.report.tier.backend);
        let label = format!("{backend}/{}", machine.name());
        let run = run_of(job, &spec, &tree, &ports);
        let descriptor = cancel.descriptor().ok();
        // Services take their time to get ready, mostly in waiting.
        let among = job.services.is_empty().then(|| self.pace.among());
        let mut turn = among.as_ref().and_then(|among| among.turn(|| cancel.reason().is_some()));
        let mut runs = turn.is_some().then_some(|| drop(turn.take()));
        let began = SystemTime::now();
        let attendance = Attendance {
            output: &mut |kind, bytes| match kind {
                Output::Standard => stdout.write(bytes),
                Output::Error => stderr.write(bytes),
            },
            cancel: descriptor,
            cancelled: &|| is_cancelled(cancel, descriptor),
            started: &mut || events(JobEvent::Started { environment: label.clone() }),
            running: runs.as_mut().map(|runs| runs as &mut dyn FnMut()),
        };
        // Services that the suite shares are as they are at the end of this test.
        let served = services::run(machine, run, job, attendance, events);
        let Served { ended, services } = match services::with_shared(served, beside.as_deref()) {
            Ok(served) => served,
            Err(failure) => return self.not_run(machine, job, &spec, failure),
        };
        let after = ended.lingering.map(|environment| {
            events(JobEvent::Ending);
            let (status, cancelled) = (ended.status, cancel.reason().is_some());
            self.care.after(&After { machine, environment, job, top: &top, began, status, cancelled }, &self.trees)
        });
        match after.transpose() {
            Err(problem) => JobOutcome::Infrastructure(problem),
            Ok(aftermath) => JobOutcome::Finished(Finished {
                status: ended.status,
                usage: ended.usage,
                stdout: stdout.finish(),
                stderr: stderr.finish(),
                environment: EnvironmentUsed { label: labelled(&label, ended.environment), isolation },
                aftermath: Box::new(aftermath.unwrap_or_default()),
                services: services::results(job, services),
            }),
        }
    }

    /// The environment and the ports that a job gets, once the layer and the services that it stands on are there.
    fn ground(&self, attempt: Attempt<'_>) -> Result<Ground, ServiceFailure> {
        let Attempt { machine, shared, isolation, job, cancel, events } = attempt;
        let top = trees::top_of(&job.root);
        let layer = self.preparations.layer(machine, job, &self.trees, cancel, events)?;
        self.preparations.remember(shared, job, &top, layer.as_deref());
        let spec = EnvironmentSpec { layer, ..spec_of(job, isolation, &top) };
        let beside = self.shared.of(job, machine, &spec, &self.trees.shown(&top))?;
        let joins = beside.as_ref().map(|beside| beside.environment());
        Ok(Ground { spec: EnvironmentSpec { joins, ..spec }, beside, ports: self.ports_for(job, isolation)? })
    }

    fn not_run(
        &self,
        machine: &WarmMachine,
        job: &Job,
        spec: &EnvironmentSpec,
        mut failure: ServiceFailure,
    ) -> JobOutcome {
        match failure.problem.kind {
            ProblemKind::Unsupported => JobOutcome::Skipped(refusal(job, &failure.problem)),
            ProblemKind::NotFound if spec.layer.is_some() => {
                self.preparations.forget(machine, job);
                failure.problem.kind = ProblemKind::Unavailable;
                services::unserved(job, failure)
            }
            _ => services::unserved(job, failure),
        }
    }

    fn ports_for(&self, job: &Job, isolation: Isolation) -> Result<Vec<PortLease>, Problem> {
        if isolation >= Isolation::Namespace && job.network != Network::Host {
            return Ok(Vec::new());
        }
        let key = format!("{}/{}", job.suite, job.test);
        self.ports.acquire_for(&key, PORTS).map_err(|error| error.problem())
    }
}

/// A job's command as the engine takes it.
fn run_of<'a>(job: &'a Job, spec: &'a EnvironmentSpec, tree: &'a Path, ports: &[PortLease]) -> EnvironmentRun<'a> {
    EnvironmentRun {
        spec,
        argv: job.argv.iter().map(|word| RawText::from(word.as_str())).collect(),
        cwd: Some(&job.cwd),
        env: job.env.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect(),
        tree: Some(tree),
        timeout: Some(job.timeout),
        ports: ports.iter().map(PortLease::port).collect(),
        linger: linger_of(job),
    }
}

/// An environment as people would name it.
fn labelled(machine: &str, environment: Option<EnvironmentId>) -> String {
    environment.map_or_else(|| machine.to_owned(), |id| format!("{machine}/{id}"))
}

/// The eventfd says that something happened; the reason says what.
pub(super) fn is_cancelled(cancel: &Cancel, descriptor: Option<BorrowedFd<'_>>) -> bool {
    if let Some(descriptor) = descriptor {
        // Emptied so that it does not wake the wait again; its value means nothing.
        let _ = rustix::io::read(descriptor, &mut [0; 8]);
    }
    cancel.reason().is_some()
}

fn spec_of(job: &Job, isolation: Isolation, tree: &Path) -> EnvironmentSpec {
    EnvironmentSpec {
        network: job.network,
        limits: job.limits,
        source: Some(tree.to_path_buf()),
        ..EnvironmentSpec::new(isolation, user_of(job.user))
    }
}

/// Whom a test runs as.
pub(super) fn user_of(user: TestUser) -> UserSpec {
    match user {
        TestUser::Root => UserSpec::Root,
        TestUser::Caller => caller(),
    }
}

/// A test that would see the tree itself where a copy was asked for.
fn unfrozen(job: &Job) -> Refusal {
    Refusal {
        missing: "a frozen source".to_owned(),
        reason: format!("isolation `{}` on this host sees the working tree itself", job.isolation),
        hint: Some("run with --source live, or write isolation = \"namespace\"".to_owned()),
    }
}

/// Whatever could not be done for a test whose working tree is gone meanwhile: that is why.
fn treeless(job: &Job) -> Option<Problem> {
    let top = trees::top_of(&job.root);
    let gone = std::fs::symlink_metadata(&top).err().filter(|error| error.kind() == std::io::ErrorKind::NotFound)?;
    Some(Problem::new(ProblemKind::NotFound, format!("the working tree {} is gone", top.display())).because(gone))
}

fn refusal(job: &Job, problem: &Problem) -> Refusal {
    let mut reason = problem.message.clone();
    for cause in &problem.causes {
        reason.push_str(": ");
        reason.push_str(cause);
    }
    Refusal { missing: format!("isolation {}", job.isolation), reason, hint: problem.hints.first().cloned() }
}

impl Executor for MachineExecutor {
    fn abilities(&self, needs: &[String]) -> Vec<Ability> {
        needs
            .iter()
            .map(|need| match self.report.probe(need) {
                Some(probe) if probe.answer == Answer::Yes => Ability::Available,
                Some(probe) => Ability::Missing { reason: probe.reason.clone(), hint: probe.provide.clone() },
                None => Ability::Unknown(testyard_probe::abilities().iter().map(|one| one.name.to_owned()).collect()),
            })
            .collect()
    }

    fn source_tree(&self, root: &Path) -> Result<SourceTree, Problem> {
        self.trees.look(root)
    }

    fn source_changed(&self, root: &Path) -> bool {
        self.trees.has_changed(root)
    }

    fn finish(&self) -> Vec<Problem> {
        self.shared.end();
        let mut problems = self.preparations.restore(&self.trees);
        problems.extend(self.clusters.iter().flat_map(Clusters::end));
        problems
    }

    fn run(&self, job: &Job, cancel: &Cancel, events: &dyn Fn(JobEvent)) -> JobOutcome {
        match self.run_with_cluster(job, cancel, events) {
            JobOutcome::Infrastructure(problem) => JobOutcome::Infrastructure(treeless(job).unwrap_or(problem)),
            outcome => outcome,
        }
    }
}

impl MachineExecutor {
    fn run_with_cluster(&self, job: &Job, cancel: &Cancel, events: &dyn Fn(JobEvent)) -> JobOutcome {
        let Some(wanted) = &job.cluster else { return self.run_job(job, cancel, events) };
        let Some(clusters) = &self.clusters else {
            return JobOutcome::Skipped(Refusal {
                missing: "a cluster".to_owned(),
                reason: "a test that runs on another machine cannot reach a cluster of this host".to_owned(),
                hint: Some("run this suite without --on".to_owned()),
            });
        };
        events(JobEvent::Preparing(format!("cluster of {} nodes", wanted.nodes)));
        match clusters.told(job, wanted, &trees::top_of(&job.root)) {
            Ok(job) => self.run_job(&job, cancel, events),
            Err(problem) if problem.kind == ProblemKind::Unsupported => {
                let refusal = refusal(job, &problem);
                JobOutcome::Skipped(Refusal { missing: "a cluster".to_owned(), ..refusal })
            }
            Err(problem) => JobOutcome::Infrastructure(problem),
        }
    }

    fn run_job(&self, job: &Job, cancel: &Cancel, events: &dyn Fn(JobEvent)) -> JobOutcome {
        if job.isolation == Isolation::None && self.given.is_none() {
            if self.trees.are_frozen() {
                return JobOutcome::Skipped(unfrozen(job));
            }
            let began = SystemTime::now();
            let mut outcome = self.plain.run(job, cancel, events);
            if let (JobOutcome::Finished(finished), None) = (&mut outcome, cancel.reason()) {
                self.care.after_direct(job, &trees::top_of(&job.root), began, &mut finished.aftermath);
            }
            return outcome;
        }
        if job.isolation == Isolation::Machine {
            let image = job.image.clone().unwrap_or(ImageReference::Host);
            events(JobEvent::Preparing(format!("machine of image {image}")));
            // Its machine goes with the test, and everything that is in it.
            let job = &Job { keep_failed: None, ..job.clone() };
            return match self.machines.own_machine(job.backend.as_ref(), &image) {
                Ok((machine, _gone_at_the_end)) => {
                    let (machine, isolation) = (&machine, Isolation::Namespace);
                    self.attempt(Attempt { machine, shared: None, isolation, job, cancel, events })
                }
                Err(problem) if problem.kind == ProblemKind::Unsupported => JobOutcome::Skipped(refusal(job, &problem)),
                Err(problem) => JobOutcome::Infrastructure(problem),
            };
        }
        match self.warm(job, events) {
            Ok((_, most)) if most < job.isolation => JobOutcome::Skipped(Refusal {
                missing: format!("isolation {}", job.isolation),
                reason: match &self.given {
                    Some(backend) => format!("the machine is of backend {backend}"),
                    None => self.report.tier.reason.clone(),
                },
                hint: Some("see what is missing: testyard doctor".to_owned()),
            }),
            // On this host itself a test sees the tree itself.
            Ok((_, most)) if most < Isolation::Namespace && self.trees.are_frozen() => {
                JobOutcome::Skipped(unfrozen(job))
            }
            Ok((machine, _)) => {
                let (shared, isolation) = (Some(&machine), job.isolation);
                let outcome = self.attempt(Attempt { machine: &machine, shared, isolation, job, cancel, events });
                let problem = match &outcome {
                    JobOutcome::Infrastructure(problem) | JobOutcome::Unserved { problem, .. } => Some(problem),
                    _ => None,
                };
                if problem.is_some_and(|problem| problem.kind.is_transient()) {
                    self.forget(job);
                }
                outcome
            }
            Err(problem) if problem.kind == ProblemKind::Unsupported => JobOutcome::Skipped(refusal(job, &problem)),
            Err(problem) => JobOutcome::Infrastructure(problem),
        }
    }
}
