//! The machines that runs use: made at the first need, kept warm between runs, found again by name.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use testyard_engine::{Copies, WarmMachine};
use testyard_machine::supervisor::socket_of;
use testyard_model::{
    BackendName, ImageReference, Isolation, MachineName, MachineSpec, MachineState, Problem, ProblemKind, Span,
};

use testyard_registry::{Lease, LeaseKind, LeaseRequest};

use super::executor::MachineSource;
use crate::yard::Testyard;

/// A run's machine is stopped when nobody used it for so long.
const IDLE: Span = Span(Duration::from_secs(15 * 60));
/// A machine that one test had for itself is gone after so long, whatever became of the run.
const OWN_TTL: Span = Span(Duration::from_secs(60 * 60));
/// How long to wait for a machine that another run is just creating.
const PATIENCE: Duration = Duration::from_secs(120);

/// The machines of runs.
#[derive(Debug)]
pub struct WarmMachines {
    yard: Testyard,
    auto: BackendName,
    copies: Arc<Copies>,
    made: AtomicU32,
}

impl WarmMachines {
    /// In this home; `auto` is the backend where a suite names none, and `copies` are those of working trees.
    #[must_use]
    pub fn new(yard: Testyard, auto: BackendName, copies: Arc<Copies>) -> Self {
        Self { yard, auto, copies, made: AtomicU32::new(0) }
    }

    fn spec(&self, backend: Option<&BackendName>, image: &ImageReference) -> MachineSpec {
        let mut spec = MachineSpec::new(backend.unwrap_or(&self.auto).clone());
        spec.image = image.clone();
        spec.idle = Some(IDLE);
        spec
    }

    fn opened(&self, name: &MachineName) -> WarmMachine {
        WarmMachine::new(name.to_string(), socket_of(self.yard.options().home.runtime(), name))
            .with_copies(Arc::clone(&self.copies))
    }

    /// Makes sure that a machine of this name runs, whoever else wants the same at the same time.
    fn ensure(&self, name: &MachineName, spec: &MachineSpec) -> Result<(), Problem> {
        let machines = self.yard.machines();
        let (spec, held) = machines.with_image(spec)?;
        drop(held);
        let spec = &spec;
        let until = Instant::now() + PATIENCE;
        loop {
            let problem = match machines.info(name) {
                Ok(info) if info.spec != *spec => {
                    // Over what the image's name meant then, or made by an older version of this very code; nobody else
                    // uses the name.
                    machines.delete(name, false)?;
                    continue;
                }
                Ok(info) => match info.state {
                    MachineState::Running => return Ok(()),
                    MachineState::Stopped | MachineState::Failed => match machines.start(name) {
                        Ok(_) => return Ok(()),
                        Err(problem) => problem,
                    },
                    state => Problem::new(ProblemKind::WrongState, format!("machine {name} is {state}")),
                },
                Err(problem) if problem.kind == ProblemKind::NotFound => match machines.create(name, spec) {
                    Ok(_) => return Ok(()),
                    Err(problem) => problem,
                },
                Err(problem) => problem,
            };
            // What broke while we made it is for the test's next attempt.
            let passing = matches!(problem.kind, ProblemKind::AlreadyExists | ProblemKind::WrongState);
            if !passing || Instant::now() > until {
                return Err(problem);
            }
            // Another run is at it. There is nothing to wait on but its row.
            testyard_linux::pause(Duration::from_millis(20));
        }
    }
}

/// A name that is the same for the same backend and image.
fn shared_name(spec: &MachineSpec) -> Result<MachineName, Problem> {
    let image = spec.image.to_string();
    let mut hasher = std::hash::DefaultHasher::new();
    image.hash(&mut hasher);
    let shown: String =
        image.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).take(24).collect();
    named(&format!("run-{}-{shown}-{:04x}", spec.backend, hasher.finish() & 0xffff))
}

fn named(name: &str) -> Result<MachineName, Problem> {
    name.parse().map_err(|error| Problem::from_error(ProblemKind::Bug, &error))
}

/// Deletes a machine when its test is over.
struct Own {
    yard: Testyard,
    name: MachineName,
    /// Abandoned when this process is killed: the reaper then deletes the machine.
    lease: Option<Lease>,
}

impl Drop for Own {
    fn drop(&mut self) {
        // What fails here is finished by the reaper: the lease is let go of only after the machine is gone.
        let deleted = self.yard.machines().delete(&self.name, true);
        if let (Ok(()), Ok(registry), Some(lease)) = (deleted, self.yard.registry(), self.lease.take()) {
            let _ = lease.release(&registry);
        }
    }
}

impl MachineSource for WarmMachines {
    fn machine(
        &self,
        backend: Option<&BackendName>,
        image: Option<&ImageReference>,
    ) -> Result<(WarmMachine, Isolation), Problem> {
        let spec = self.spec(backend, image.unwrap_or(&ImageReference::Host));
        let name = shared_name(&spec)?;
        self.ensure(&name, &spec)?;
        let most = spec.backend.most_isolation();
        Ok((self.opened(&name), most))
    }

    fn own_machine(
        &self,
        backend: Option<&BackendName>,
        image: &ImageReference,
    ) -> Result<(WarmMachine, Box<dyn Send>), Problem> {
        let mut spec = self.spec(backend, image);
        if spec.backend == BackendName::host() {
            return Err(Problem::new(
                ProblemKind::Unsupported,
                "backend `host` has no machines of their own for tests",
            )
            .hint("see what is missing for backend namespace: testyard doctor"));
        }
        spec.ttl = Some(OWN_TTL);
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let name = named(&format!("own-{}-{number}", std::process::id()))?;
        let info = self.yard.machines().create(&name, &spec)?;
        let mut own = Own { yard: self.yard.clone(), name: name.clone(), lease: None };
        let request = LeaseRequest {
            kind: LeaseKind::Run,
            machine: Some(info.id),
            purpose: format!("a test's own machine, of process {}", std::process::id()),
            expires_ms: None,
        };
        own.lease = Some(Lease::acquire(&self.yard.registry()?, &request).map_err(|error| error.problem())?);
        Ok((self.opened(&name), Box::new(own)))
    }
}
