//! Creating, listing and ending machines.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use testyard_images::store::{ImageHold, Store};
use testyard_linux::step::{self, Step};
use testyard_machine::client::{ClientError, Connection};
use testyard_machine::supervisor;
use testyard_model::{
    BackendName, ImageReference, MachineId, MachineInfo, MachineName, MachineSpec, MachineState, Problem, ProblemKind,
};
use testyard_protocol::{Request, Role};
use testyard_registry::{Lease, LeaseError, LeaseKind, LeaseRequest, MachineRow, NewMachine, Registry, ReserveError};

use crate::reap::Reaper;
use crate::records::{RegistryRecords, agent_of, info_of};
use crate::standing::{abandoned, has_just_ended, info_now, is_supervised, is_under_way};
use crate::yard::{Testyard, now_ms};
use crate::{keeper, networks};

/// A home's machines.
#[derive(Debug, Clone, Copy)]
pub struct Machines<'y> {
    pub(crate) yard: &'y Testyard,
}

/// How often a creation is tried again when a reaper was faster.
const TRIES: usize = 5;

/// So long a forced deletion waits for a machine that is coming up or going down.
const PATIENCE: Duration = Duration::from_secs(60);

impl Machines<'_> {
    /// Creates a machine and starts it. It exists and answers once this returns; otherwise nothing of it is left.
    ///
    /// Backend `auto` in `spec` becomes the strongest that this host can give.
    pub fn create(&self, name: &MachineName, spec: &MachineSpec) -> Result<MachineInfo, Problem> {
        self.create_and(name, spec, |_, _| Ok(())).map(|(info, ())| info)
    }

    /// As [`Machines::create`], and holds the machine from before any of it is made.
    pub(crate) fn create_held(
        &self,
        name: &MachineName,
        spec: &MachineSpec,
        purpose: &str,
    ) -> Result<(MachineInfo, Lease), Problem> {
        self.create_and(name, spec, |registry, id| {
            Lease::acquire(registry, &holding(id, purpose)).map_err(|error| error.problem())
        })
    }

    fn create_and<T>(
        &self,
        name: &MachineName,
        spec: &MachineSpec,
        with: impl FnOnce(&Registry, &MachineId) -> Result<T, Problem>,
    ) -> Result<(MachineInfo, T), Problem> {
        let (spec, reason) = self.resolve(spec)?;
        self.yard.backend(&spec.backend)?.check(&spec).map_err(|error| error.problem())?;
        let (spec, held) = self.with_image(&spec)?;
        let registry = self.yard.registry()?;
        let (spec, choosing) = networks::settle(&self.yard.options().home, &registry, &spec)?;
        let (id, lease) = self.reserve(&registry, name, &spec, reason)?;
        drop(choosing);
        // From here on its row keeps the image from being deleted.
        drop(held);
        // Where this fails, the row without a supervisor is removed by whoever looks next.
        let with = with(&registry, &id)?;
        let place = self.yard.place(&id, name, &spec);
        let info = self.bring_up(keeper::start(self.yard, &place, lease, None, false), &id)?;
        Ok((info, with))
    }

    /// The specification with its image as it is now, which is kept from being deleted meanwhile.
    pub(crate) fn with_image(&self, spec: &MachineSpec) -> Result<(MachineSpec, Option<ImageHold>), Problem> {
        let reference = match &spec.image {
            ImageReference::Host => return Ok((spec.clone(), None)),
            reference => reference,
        };
        let store = Store::open(&self.yard.options().home.images_folder()).map_err(|error| error.problem())?;
        let digest = store.find(reference).map_err(|error| error.problem())?.record.digest;
        let held = store.hold(&digest).map_err(|error| error.problem())?;
        Ok((MachineSpec { image_digest: Some(digest.as_str().to_owned()), ..spec.clone() }, Some(held)))
    }

    /// Every machine of this home, by name, those that are being created or deleted too.
    pub fn list(&self) -> Result<Vec<MachineInfo>, Problem> {
        let registry = self.yard.registry()?;
        let rows = registry.list().map_err(|error| error.problem())?;
        let here = registry.host().map_err(|error| error.problem())?;
        Ok(rows.into_iter().map(|row| info_now(row, here)).collect())
    }

    /// One machine.
    pub fn info(&self, name: &MachineName) -> Result<MachineInfo, Problem> {
        let registry = self.yard.registry()?;
        let row = self.row(&registry, name)?;
        Ok(info_now(row, registry.host().map_err(|error| error.problem())?))
    }

    /// Starts a machine that is stopped or failed; one that runs is left alone.
    pub fn start(&self, name: &MachineName) -> Result<MachineInfo, Problem> {
        let registry = self.yard.registry()?;
        let row = self.settled(&registry, name)?;
        match row.state {
            MachineState::Running => Ok(info_of(row)),
            MachineState::Stopped | MachineState::Failed => {
                let lease = self.lease(&registry, &row)?;
                let place = self.yard.place_of(&row);
                keeper::start(self.yard, &place, lease, None, false).map(|info| *info)
            }
            state => Err(wrong_state(name, state)),
        }
    }

    /// Ends a machine's processes; its files stay. Without `force` they get a moment to end by themselves.
    pub fn stop(&self, name: &MachineName, force: bool) -> Result<MachineInfo, Problem> {
        let registry = self.yard.registry()?;
        let row = self.settled(&registry, name)?;
        match row.state {
            MachineState::Stopped => return Ok(info_of(row)),
            MachineState::Running | MachineState::Stopping => {}
            state => return Err(wrong_state(name, state)),
        }
        if let Err(problem) = self.ask(&row, &Request::Stop { force }) {
            let finished = self.finish(&registry, &row.id)?;
            if finished.is_none_or(|row| row.state != MachineState::Stopped) {
                return Err(problem);
            }
        }
        self.info(name)
    }

    /// Stops and starts it.
    pub fn restart(&self, name: &MachineName, force: bool) -> Result<MachineInfo, Problem> {
        let row = self.settled(&self.yard.registry()?, name)?;
        if row.state == MachineState::Running {
            self.stop(name, force)?;
        }
        self.start(name)
    }

    /// A client that has just ended may still count as one for a moment: its connection closes after it said so.
    fn ask_to_delete(&self, row: &MachineRow, force: bool) -> Result<(), Problem> {
        for _ in 0..20 {
            match self.ask(row, &Request::Delete { force }) {
                Err(problem) if problem.kind == ProblemKind::WrongState && !force => {}
                outcome => return outcome,
            }
            testyard_linux::pause(Duration::from_millis(10));
        }
        self.ask(row, &Request::Delete { force })
    }

    /// Removes a machine and all that is in it. Without `force` not while something runs in it.
    pub fn delete(&self, name: &MachineName, force: bool) -> Result<(), Problem> {
        let registry = self.yard.registry()?;
        let row = self.settled(&registry, name)?;
        self.delete_row(&registry, row, force)
    }

    /// Removes this very machine, whatever runs in it and whatever its name is now; one that is gone is no error.
    pub(crate) fn delete_id(&self, id: &MachineId) -> Result<(), Problem> {
        let registry = self.yard.registry()?;
        let row = registry.load(id).map_err(|error| error.problem())?;
        let Some(row) = row else { return Ok(()) };
        let row = match self.settled(&registry, &row.name) {
            Err(problem) if problem.kind == ProblemKind::NotFound => return Ok(()),
            // Another has the name since.
            Ok(row) if row.id != *id => return Ok(()),
            settled => settled?,
        };
        match self.delete_row(&registry, row, true) {
            // Whoever was removing it was faster.
            Err(problem) if problem.kind == ProblemKind::NotFound => Ok(()),
            deleted => deleted,
        }
    }

    fn delete_row(&self, registry: &Registry, mut row: MachineRow, force: bool) -> Result<(), Problem> {
        let name = row.name.clone();
        if force && is_under_way(row.state) {
            row = match self.await_settled(registry, row)? {
                None => return Ok(()),
                Some(row) => row,
            };
        }
        if is_supervised(registry, &row)? {
            let problem = match self.ask_to_delete(&row, force) {
                Err(problem) if problem.kind == ProblemKind::Unavailable => problem,
                // It has begun to end since.
                Err(problem) if force && problem.kind == ProblemKind::WrongState => problem,
                outcome => return outcome,
            };
            row = match self.finish(registry, &row.id)? {
                None => return Ok(()),
                // Its supervisor died without it.
                Some(row) if matches!(row.state, MachineState::Failed | MachineState::Stopped) => row,
                Some(row) if row.state == MachineState::Running => return Err(problem),
                // Somebody is removing it already, which is what was asked for.
                Some(row) if row.state == MachineState::Deleting => match self.await_removal(registry, row)? {
                    None => return Ok(()),
                    Some(row) => row,
                },
                // It is coming up or going down just now.
                Some(row) => return Err(wrong_state(&name, row.state)),
            };
        }
        let lease = self.lease(registry, &row)?;
        self.remove(&row)?;
        drop(lease);
        Ok(())
    }

    /// Waits until a machine is neither coming up nor going down. `None`: it is gone.
    fn await_settled(&self, registry: &Registry, row: MachineRow) -> Result<Option<MachineRow>, Problem> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let Some(now) = self.finish(registry, &row.id)? else { return Ok(None) };
            if !is_under_way(now.state) {
                return Ok(Some(now));
            }
        }
        Err(wrong_state(&row.name, row.state))
    }

    /// Waits for whoever removes a machine; its row is left where that one died.
    fn await_removal(&self, registry: &Registry, row: MachineRow) -> Result<Option<MachineRow>, Problem> {
        // Each look is itself a wait of half a second.
        for _ in 0..20 {
            if let Some(left) = abandoned(registry, &row.id)? {
                return Ok(Some(left));
            }
            if registry.load(&row.id).map_err(|error| error.problem())?.is_none() {
                return Ok(None);
            }
        }
        Err(wrong_state(&row.name, row.state))
    }

    /// Gives a machine another name.
    pub fn rename(&self, from: &MachineName, to: &MachineName) -> Result<MachineInfo, Problem> {
        let registry = self.yard.registry()?;
        let row = self.settled(&registry, from)?;
        registry.rename(from, to).map_err(|error| error.problem())?;
        if row.state == MachineState::Running {
            // A supervisor that cannot be told learns it when the machine starts again; until then the registry
            // knows the new name, but a command does not find the machine by it: so the old one is kept.
            if let Err(problem) = self.ask_running(&row, &Request::Renamed(to.clone())) {
                registry.rename(to, from).map_err(|error| error.problem())?;
                return Err(problem);
            }
        }
        self.info(to)
    }

    /// Where a machine's supervisor and agent write about themselves.
    pub fn log(&self, name: &MachineName) -> Result<PathBuf, Problem> {
        let row = self.row(&self.yard.registry()?, name)?;
        Ok(self.yard.place_of(&row).log())
    }

    /// Backend `auto` is decided here, with the reason.
    /// Which backend a new machine would have that is asked for with this word.
    pub fn backend_for(&self, asked: &BackendName) -> Result<BackendName, Problem> {
        if asked.as_str() == "auto" { Ok(self.yard.tier()?.backend) } else { Ok(asked.clone()) }
    }

    fn resolve(&self, spec: &MachineSpec) -> Result<(MachineSpec, Option<String>), Problem> {
        if spec.backend.as_str() != "auto" {
            return Ok((spec.clone(), None));
        }
        let tier = self.yard.tier()?;
        let backend: BackendName = tier.backend;
        Ok((MachineSpec { backend, ..spec.clone() }, Some(tier.reason)))
    }

    /// Takes the name and the machine's lock. A name that only a dead creation or deletion holds is freed first.
    pub(crate) fn reserve(
        &self,
        registry: &Registry,
        name: &MachineName,
        spec: &MachineSpec,
        backend_reason: Option<String>,
    ) -> Result<(MachineId, Lease), Problem> {
        let created_ms = now_ms();
        let lifetime = spec.ttl.and_then(|ttl| i64::try_from(ttl.0.as_millis()).ok());
        let new = NewMachine {
            name: name.clone(),
            spec: spec.clone(),
            backend_reason,
            created_ms,
            expires_ms: lifetime.and_then(|lifetime| created_ms.checked_add(lifetime)),
        };
        let mut tries = 0..TRIES;
        loop {
            let last = tries.next().is_none();
            let id = match registry.reserve_name(&new) {
                Ok(id) => id,
                Err(ReserveError::AlreadyExists { state, .. })
                    if !last && matches!(state, MachineState::Creating | MachineState::Deleting) =>
                {
                    let row = registry.find(name).map_err(|error| error.problem())?;
                    let Some(row) = row else { continue };
                    if is_supervised(registry, &row)? || !Reaper::new(self.yard).recover(registry, &row)? {
                        return Err(taken(name, row.state));
                    }
                    continue;
                }
                Err(error) => return Err(error.problem()),
            };
            match Lease::acquire(registry, &request(&id, "keep the machine")) {
                Ok(lease) => {
                    step::reach(Step::CreateIntent);
                    return Ok((id, lease));
                }
                // A reaper saw the row before its lock, and is removing it.
                Err(LeaseError::Held { .. } | LeaseError::NotFound { .. }) if !last => {}
                Err(error) => return Err(error.problem()),
            }
        }
    }

    /// What became of a creation. One that was not announced does not exist: where its supervisor could not see to
    /// that itself, it is removed here.
    pub(crate) fn bring_up(
        &self,
        outcome: Result<Box<MachineInfo>, Problem>,
        id: &MachineId,
    ) -> Result<MachineInfo, Problem> {
        match outcome {
            Ok(info) => Ok(*info),
            Err(problem) => {
                let registry = self.yard.registry()?;
                if let Some(row) = abandoned(&registry, id)? {
                    let lease = self.lease(&registry, &row)?;
                    self.remove(&row)?;
                    drop(lease);
                }
                Err(problem)
            }
        }
    }

    /// Its supervisor died in the middle of what it was asked: finishes what is written down.
    fn finish(&self, registry: &Registry, id: &MachineId) -> Result<Option<MachineRow>, Problem> {
        if let Some(row) = abandoned(registry, id)? {
            Reaper::new(self.yard).recover(registry, &row)?;
        }
        registry.load(id).map_err(|error| error.problem())
    }

    /// A machine that has no supervisor goes, here and now. Its lease is held.
    pub(crate) fn remove(&self, row: &MachineRow) -> Result<(), Problem> {
        let backend = self.yard.backend(&row.spec.backend)?;
        let home = &self.yard.options().home;
        let mut records = RegistryRecords::open(home).map_err(|error| error.problem())?;
        let agent = agent_of(row).map(|agent| agent.process());
        let place = self.yard.place_of(row);
        supervisor::delete(&place, home.runtime(), &*backend, &mut records, agent.as_ref())
            .map_err(|error| error.problem())
    }

    pub(crate) fn lease(&self, registry: &Registry, row: &MachineRow) -> Result<Lease, Problem> {
        match Lease::acquire(registry, &request(&row.id, "keep the machine")) {
            Err(LeaseError::Held { .. }) => Err(Problem::new(
                ProblemKind::WrongState,
                format!("machine {} is being started, stopped or deleted by another command", row.name),
            )
            .hint(format!("testyard info {}", row.name))),
            outcome => outcome.map_err(|error| error.problem()),
        }
    }

    /// The machine's row, after what a dead supervisor left undone has been done.
    pub(crate) fn settled(&self, registry: &Registry, name: &MachineName) -> Result<MachineRow, Problem> {
        let row = self.row(registry, name)?;
        if matches!(row.state, MachineState::Stopped | MachineState::Failed) {
            return Ok(row);
        }
        let here = registry.host().map_err(|error| error.problem())?;
        if has_just_ended(&row, here) {
            // Its supervisor is about to write that down, and to end.
            self.finish(registry, &row.id)?;
            return self.row(registry, name);
        }
        if is_supervised(registry, &row)? {
            return Ok(row);
        }
        Reaper::new(self.yard).recover(registry, &row)?;
        self.row(registry, name)
    }

    fn row(&self, registry: &Registry, name: &MachineName) -> Result<MachineRow, Problem> {
        registry.find(name).map_err(|error| error.problem())?.ok_or_else(|| {
            Problem::new(ProblemKind::NotFound, format!("there is no machine {name}"))
                .hint("see those there are: testyard list")
                .hint(format!("make it: testyard create {name}"))
        })
    }

    /// A connection to a machine's agent, which ends when the machine does, and until then is a client: nothing is idle.
    pub(crate) fn watch(&self, id: &MachineId) -> Result<std::os::fd::OwnedFd, Problem> {
        let socket = self.yard.options().home.machine_socket(id);
        let connection = Connection::open(&socket, Role::Agent, id.as_str()).map_err(|error| error.problem())?;
        Ok(connection.into_socket())
    }

    pub(crate) fn supervisor(&self, row: &MachineRow) -> Result<Connection, Problem> {
        let socket = self.yard.options().home.machine_socket(&row.id);
        Connection::open(&socket, Role::Supervisor, row.name.as_str())
            .map_err(|error| self.why_silent(&row.name, &error))
    }

    fn ask_running(&self, row: &MachineRow, request: &Request) -> Result<(), Problem> {
        self.supervisor(row)?.ask(request, &[]).map_err(|error| error.problem())
    }

    /// Asks for the machine's end, and waits until its supervisor has let everything go.
    fn ask(&self, row: &MachineRow, request: &Request) -> Result<(), Problem> {
        let mut supervisor = self.supervisor(row)?;
        supervisor.ask(request, &[]).map_err(|error| error.problem())?;
        supervisor.await_end(Duration::from_secs(10)).map_err(|error| error.problem())
    }

    /// Whether a machine runs after what a dead supervisor left undone has been done.
    pub(crate) fn is_revived(&self, name: &MachineName) -> bool {
        let finished = self.yard.registry().and_then(|registry| {
            let row = self.row(&registry, name)?;
            self.finish(&registry, &row.id)
        });
        finished.is_ok_and(|row| row.is_some_and(|row| row.state == MachineState::Running))
    }

    /// Why a machine does not answer: there is none, it is stopped, or it broke.
    pub(crate) fn why_silent(&self, name: &MachineName, error: &ClientError) -> Problem {
        // A supervisor whose agent has just died lets its socket go a moment later.
        let (ClientError::NotThere { .. } | ClientError::Lost { .. }) = error else { return error.problem() };
        match self.info(name) {
            Ok(info) if info.state == MachineState::Running => error.problem(),
            Ok(info) => {
                let mut problem = wrong_state(name, info.state);
                if let Some(cause) = info.cause {
                    problem.causes.push(cause.message);
                    problem.causes.extend(cause.causes);
                }
                problem
            }
            Err(problem) => problem,
        }
    }
}

pub(crate) fn request(id: &MachineId, purpose: &str) -> LeaseRequest {
    LeaseRequest {
        kind: LeaseKind::Supervisor,
        machine: Some(id.clone()),
        purpose: purpose.to_owned(),
        expires_ms: None,
    }
}

pub(crate) fn holding(id: &MachineId, purpose: &str) -> LeaseRequest {
    LeaseRequest { kind: LeaseKind::Holder, ..request(id, purpose) }
}

pub(crate) fn wrong_state(name: &MachineName, state: MachineState) -> Problem {
    let problem = Problem::new(ProblemKind::WrongState, format!("machine {name} is {state}"));
    match state {
        MachineState::Stopped | MachineState::Failed => problem.hint(format!("start it: testyard start {name}")),
        _ => problem.hint(format!("wait a moment, then see: testyard info {name}")),
    }
}

fn taken(name: &MachineName, state: MachineState) -> Problem {
    Problem::new(ProblemKind::AlreadyExists, format!("machine {name} already exists and is {state}"))
        .hint("see it: testyard list")
}
