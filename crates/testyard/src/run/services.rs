//! Services of tests on machines: from what a suite says to what the engine runs, and those that a suite's tests share.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use testyard_engine::{
    Attendance, EnvironmentRun, Readiness, Served, ServiceFailure, ServiceRecord, SharedServices, WarmMachine,
};
use testyard_machine::client::caller;
use testyard_model::{EnvironmentSpec, Problem, ProblemKind, UserSpec, microseconds};
use testyard_protocol::RawText;
use testyard_runner::capture::Captured;
use testyard_runner::job::{Job, JobEvent, JobOutcome};
use testyard_runner::service::{self, Service, ServiceResult, ServiceUser};

/// Whose services these are: a suite's name, and the machine that they are on.
type Key = (String, String);
/// Started by whoever needs them first, while others wait; what went wrong then is the same for all.
type Slot = Arc<Mutex<Option<Result<Arc<SharedServices>, Failure>>>>;

/// As [`ServiceFailure`], for several tests.
#[derive(Debug, Clone)]
struct Failure {
    problem: Problem,
    services: Vec<ServiceRecord>,
}

/// The services that tests of one suite share, over all suites of a run.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<HashMap<Key, Slot>>);

impl Shared {
    /// The shared services of a job, running; none where it uses none.
    pub(super) fn of(
        &self,
        job: &Job,
        machine: &WarmMachine,
        spec: &EnvironmentSpec,
        tree: &Path,
    ) -> Result<Option<Arc<SharedServices>>, ServiceFailure> {
        if job.services.shared.is_empty() {
            return Ok(None);
        }
        let key = (job.suite.clone(), machine.name().to_owned());
        let slot = Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match &*slot {
            Some(made) => made.clone(),
            None => {
                let spec = EnvironmentSpec { joins: None, user: caller(), ..spec.clone() };
                let started = services_of(&job.services.shared)
                    .map_err(ServiceFailure::from)
                    .and_then(|services| machine.share_services(&spec, Some(tree), &services));
                let made = started.map(Arc::new).map_err(|failure| {
                    let ServiceFailure { problem, services } = failure;
                    Failure { problem, services }
                });
                // What may pass is tried again by the next attempt.
                if !matches!(&made, Err(failure) if failure.problem.kind.is_transient()) {
                    *slot = Some(made.clone());
                }
                made
            }
        };
        let shared = made.map_err(|Failure { problem, services }| ServiceFailure { problem, services })?;
        shared.check()?;
        Ok(Some(shared))
    }

    /// Ends all of them.
    pub(super) fn end(&self) {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for slot in all.into_values() {
            let made = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            // One that a test still holds, which was given up, ends when that lets it go.
            if let Some(Ok(shared)) = made
                && let Some(shared) = Arc::into_inner(shared)
            {
                shared.end();
            }
        }
    }
}

/// As the engine takes them.
pub(super) fn services_of(services: &[Arc<Service>]) -> Result<Vec<testyard_engine::Service>, Problem> {
    let words = |argv: &[String]| argv.iter().map(|word| RawText::from(word.as_str())).collect::<Vec<_>>();
    let service = |service: &Arc<Service>| {
        let ready = match &service.ready {
            service::Readiness::Started => Readiness::Started,
            service::Readiness::Port(port) => Readiness::Port(*port),
            service::Readiness::Log(pattern) => {
                let pattern = regex::bytes::Regex::new(pattern);
                Readiness::Line(pattern.map_err(|error| Problem::from_error(ProblemKind::Usage, &error))?)
            }
            service::Readiness::Command(argv) => Readiness::Command(words(argv)),
        };
        Ok(testyard_engine::Service {
            name: service.name.clone(),
            argv: words(&service.argv),
            cwd: Some(service.cwd.clone()),
            env: service.env.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect(),
            user: match &service.user {
                ServiceUser::Caller => caller(),
                ServiceUser::Root => UserSpec::Root,
                ServiceUser::Named(name) => UserSpec::Named(name.clone()),
            },
            ready,
            patience: service.patience,
            stop_signal: service.stop_signal,
            stop_patience: service.stop_patience,
        })
    };
    services.iter().map(service).collect()
}

/// Runs a job's command, with its own services where it has some.
pub(super) fn run(
    machine: &WarmMachine,
    run: EnvironmentRun<'_>,
    job: &Job,
    attendance: Attendance<'_>,
    events: &dyn Fn(JobEvent),
) -> Result<Served, ServiceFailure> {
    // Without any, nothing is in the way of the one request that does everything.
    if job.services.is_empty() {
        let ended = machine.run(run, attendance)?;
        return Ok(Served { ended, services: Vec::new() });
    }
    let names = job.services.own.iter().map(|service| service.name.as_str()).collect::<Vec<_>>().join(", ");
    events(JobEvent::Preparing(format!("services {names}")));
    machine.run_with_services(run, &services_of(&job.services.own)?, attendance)
}

/// Adds what is known of the services that the suite shares.
pub(super) fn with_shared(
    served: Result<Served, ServiceFailure>,
    shared: Option<&SharedServices>,
) -> Result<Served, ServiceFailure> {
    let Some(shared) = shared else { return served };
    match served {
        Ok(Served { ended, mut services }) => {
            services.extend(shared.records());
            Ok(Served { ended, services })
        }
        Err(ServiceFailure { problem, mut services }) => {
            services.extend(shared.records());
            Err(ServiceFailure { problem, services })
        }
    }
}

/// A job that was not run because of its services.
pub(super) fn unserved(job: &Job, failure: ServiceFailure) -> JobOutcome {
    let ServiceFailure { problem, services } = failure;
    if services.is_empty() {
        return JobOutcome::Infrastructure(problem);
    }
    JobOutcome::Unserved { problem, services: results(job, services) }
}

/// As results show them.
pub(super) fn results(job: &Job, records: Vec<ServiceRecord>) -> Vec<ServiceResult> {
    let all = || job.services.own.iter().chain(&job.services.shared);
    let result = |record: ServiceRecord| ServiceResult {
        scope: all().find(|service| service.name == record.name).map(|service| service.scope).unwrap_or_default(),
        name: record.name,
        ready_us: record.ready_after.map(microseconds),
        died: record.died,
        bytes: record.log.written,
        text: None,
        log: Captured::of(&record.log.bytes),
    };
    records.into_iter().map(result).collect()
}
