//! Kept environments: listing, forking and ending them, and what the reaper does about them.
//!
//! A row is written before an environment is kept, and removed after it has ended. The environment lives in its machine's
//! agent, which ends it when its time is over: nothing here is needed for that, only the row stays for the reaper.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use testyard_model::{EnvironmentId, MachineId, MachineName, MachineState, Problem, ProblemKind, milliseconds};
use testyard_registry::{KeptRow, Registry};

use crate::yard::{Testyard, now_ms};

/// A kept environment's name: `MACHINE/eNUMBER`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeptName {
    /// Its machine.
    pub machine: MachineName,
    /// Its number there.
    pub environment: EnvironmentId,
}

/// The text is not the name of a kept environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a kept environment: MACHINE/eNUMBER is, as `testyard env list` shows it")]
pub struct KeptNameError(String);

impl fmt::Display for KeptName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.machine, self.environment)
    }
}

impl FromStr for KeptName {
    type Err = KeptNameError;

    fn from_str(text: &str) -> Result<Self, KeptNameError> {
        let parse = || {
            let (machine, environment) = text.rsplit_once('/')?;
            let number = environment.strip_prefix('e').unwrap_or(environment).parse().ok()?;
            Some(Self { machine: machine.parse().ok()?, environment: EnvironmentId(number) })
        };
        parse().ok_or_else(|| KeptNameError(text.to_owned()))
    }
}

/// An environment that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptEnvironment {
    /// Its name, `MACHINE/eNUMBER`.
    pub name: String,
    /// The run that left it.
    pub run: String,
    /// The suite of its test.
    pub suite: String,
    /// The test that ran in it.
    pub test: String,
    /// Since when, in milliseconds since 1970-01-01 UTC.
    pub created_ms: i64,
    /// Until when, likewise.
    pub expires_ms: i64,
}

impl Testyard {
    /// The environments that are kept, oldest first.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub fn kept(&self) -> Result<Vec<KeptEnvironment>, Problem> {
        if !self.options().home.registry_file().exists() {
            return Ok(Vec::new());
        }
        let registry = self.registry()?;
        reap(self, &registry, false, Thoroughness::Full)?;
        let rows = registry.list_kept().map_err(|error| error.problem())?;
        let mut kept = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(machine) = registry.load(&row.machine).map_err(|error| error.problem())? else { continue };
            kept.push(KeptEnvironment {
                name: KeptName { machine: machine.name, environment: row.environment }.to_string(),
                run: row.run,
                suite: row.suite,
                test: row.test,
                created_ms: row.created_ms,
                expires_ms: row.expires_ms,
            });
        }
        Ok(kept)
    }

    /// The row of a kept environment.
    fn kept_row(&self, registry: &Registry, name: &KeptName) -> Result<KeptRow, Problem> {
        let missing =
            || Problem::new(ProblemKind::NotFound, format!("environment {name} is not kept")).hint("testyard env list");
        let machine = registry.find(&name.machine).map_err(|error| error.problem())?.ok_or_else(missing)?;
        let rows = registry.list_kept().map_err(|error| error.problem())?;
        rows.into_iter()
            .find(|row| row.machine == machine.id && row.environment == name.environment)
            .ok_or_else(missing)
    }

    /// Makes sure that an environment is kept.
    ///
    /// # Errors
    /// It is not.
    pub fn check_kept(&self, name: &KeptName) -> Result<(), Problem> {
        self.kept_row(&self.registry()?, name).map(drop)
    }

    /// Writes down that an environment is about to be kept so long; whoever holds it then tells its agent.
    ///
    /// # Errors
    /// There is no such machine, or the registry failed.
    pub fn record_kept(&self, name: &KeptName, run: &str, test: &str, duration: Duration) -> Result<(), Problem> {
        let registry = self.registry()?;
        let machine = registry.find(&name.machine).map_err(|error| error.problem())?;
        let machine = machine
            .ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("there is no machine {}", name.machine)))?;
        let created_ms = now_ms();
        let row = KeptRow {
            machine: machine.id,
            environment: name.environment,
            run: run.to_owned(),
            suite: "pytest".to_owned(),
            test: test.to_owned(),
            created_ms,
            expires_ms: created_ms.saturating_add_unsigned(milliseconds(duration)),
        };
        registry.record_kept(&row).map_err(|error| error.problem())
    }

    /// Makes another environment with the same files, kept so long; its name.
    ///
    /// # Errors
    /// It is gone, or has no files of its own.
    pub fn fork_kept(&self, name: &KeptName, duration: Duration) -> Result<KeptName, Problem> {
        let registry = self.registry()?;
        let row = self.kept_row(&registry, name)?;
        let mut machine = self.connect(&name.machine)?;
        let environment = machine.connection().fork(name.environment, duration).map_err(|error| error.problem())?;
        let created_ms = now_ms();
        let expires_ms = created_ms.saturating_add_unsigned(milliseconds(duration));
        // Its number is known only now; until then the agent's own clock is what ends it.
        let fork = KeptRow { environment, created_ms, expires_ms, ..row };
        registry.record_kept(&fork).map_err(|error| error.problem())?;
        Ok(KeptName { machine: name.machine.clone(), environment })
    }

    /// Ends a kept environment.
    ///
    /// # Errors
    /// It is not kept, or its machine does not answer.
    pub fn delete_kept(&self, name: &KeptName) -> Result<(), Problem> {
        let registry = self.registry()?;
        let row = self.kept_row(&registry, name)?;
        match self.connect(&name.machine)?.release(name.environment) {
            Err(problem) if problem.kind != ProblemKind::NotFound => return Err(problem),
            _ => {}
        }
        registry.forget_kept(&row.machine, row.environment).map_err(|error| error.problem())
    }
}

/// How closely the reaper looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thoroughness {
    /// At rows and clocks only.
    Quick,
    /// Also whether each environment is still there.
    Full,
}

/// Ends what is kept longer than it should be, and forgets what is gone; how many there were.
pub(crate) fn reap(
    yard: &Testyard,
    registry: &Registry,
    dry_run: bool,
    thoroughness: Thoroughness,
) -> Result<usize, Problem> {
    let mut reaped = 0;
    for row in registry.list_kept().map_err(|error| error.problem())? {
        let machine = registry.load(&row.machine).map_err(|error| error.problem())?;
        let running = machine.filter(|machine| machine.state == MachineState::Running);
        let over = row.expires_ms <= now_ms();
        let gone = match &running {
            None => true,
            Some(_) if over => false,
            Some(machine) if thoroughness == Thoroughness::Full => match yard.connect(&machine.name) {
                Ok(mut connected) => connected.status().is_ok_and(|status| !status.lasting.contains(&row.environment)),
                // Whether it is there is for the next pass.
                Err(_) => false,
            },
            Some(_) => false,
        };
        if !over && !gone {
            continue;
        }
        reaped += 1;
        if dry_run {
            continue;
        }
        if let Some(machine) = running.filter(|_| over)
            && let Ok(mut connected) = yard.connect(&machine.name)
        {
            // Its agent has most likely ended it already.
            let _ = connected.release(row.environment);
        }
        registry.forget_kept(&row.machine, row.environment).map_err(|error| error.problem())?;
    }
    Ok(reaped)
}

/// Whether any environment of a machine is kept, and its time not over.
pub(crate) fn is_any_in(registry: &Registry, machine: &MachineId) -> Result<bool, Problem> {
    let rows = registry.list_kept().map_err(|error| error.problem())?;
    Ok(rows.iter().any(|row| row.machine == *machine && row.expires_ms > now_ms()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_machine_and_a_number() {
        let name: KeptName = "run-namespace-host-ab12/e17".parse().expect("a name");
        assert_eq!((name.machine.as_str(), name.environment), ("run-namespace-host-ab12", EnvironmentId(17)));
        assert_eq!(name.to_string(), "run-namespace-host-ab12/e17");
        for bad in ["", "e17", "m/", "m/x", "/e1", "m/e-1"] {
            assert!(bad.parse::<KeptName>().is_err(), "{bad}");
        }
    }
}
