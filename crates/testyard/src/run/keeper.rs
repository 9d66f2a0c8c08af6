//! Keeping the environments of failed tests: written down first, then kept, with the command that enters them.

use std::time::Duration;

use testyard_engine::WarmMachine;
use testyard_linux::step::{Step, reach};
use testyard_model::{EnvironmentId, Problem, ProblemKind, milliseconds};
use testyard_registry::KeptRow;
use testyard_runner::job::Job;
use testyard_runner::result::KeptEnvironment;

use crate::yard::{Testyard, now_ms};

/// Keeps environments of this home's machines.
#[derive(Debug)]
pub(super) struct Keeper {
    yard: Testyard,
}

impl Keeper {
    pub(super) fn new(yard: Testyard) -> Self {
        Self { yard }
    }

    /// Keeps an environment so long.
    pub(super) fn keep(
        &self,
        machine: &WarmMachine,
        environment: EnvironmentId,
        job: &Job,
        duration: Duration,
    ) -> Result<KeptEnvironment, Problem> {
        let registry = self.yard.registry()?;
        let name = machine.name().parse().map_err(|error| Problem::from_error(ProblemKind::Bug, &error))?;
        let found = registry.find(&name).map_err(|error| error.problem())?;
        let row = found.ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("machine {name} is gone")))?;
        let created_ms = now_ms();
        let until_ms = created_ms.saturating_add_unsigned(milliseconds(duration));
        let kept = KeptRow {
            machine: row.id.clone(),
            environment,
            run: job.run.clone(),
            suite: job.suite.clone(),
            test: job.test.clone(),
            created_ms,
            expires_ms: until_ms,
        };
        registry.record_kept(&kept).map_err(|error| error.problem())?;
        reach(Step::RunnerKeepIntent);
        if let Err(problem) = machine.keep(environment, duration) {
            // A row without an environment is removed by the reaper, too.
            let _ = registry.forget_kept(&row.id, environment);
            return Err(problem.because("while the failed test's environment was to be kept"));
        }
        let name = format!("{name}/{environment}");
        let enter = format!("testyard env enter {name}");
        Ok(KeptEnvironment { environment: name, until_ms, enter })
    }
}
