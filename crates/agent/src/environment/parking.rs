//! Environments made ahead of need: which kinds, how many, and who waits for them.

use std::time::{Duration, Instant};

use testyard_model::{EnvironmentId, EnvironmentSpec, Problem, ProblemKind};
use testyard_protocol::Event;

use super::{Environment, State};
use crate::agent::Agent;

/// How many environments of one kind are kept parked after the first of that kind was asked for.
const PARKED: u32 = 2;
/// How many kinds are kept parked by themselves.
const KINDS: usize = 4;
/// The smallest commands are shorter than this. Nothing is made ahead of need while one may be about to end: its status
/// would wait for this process. Longer ones are best used for it: another processor is idle meanwhile.
pub(crate) const SHORT: Duration = Duration::from_micros(400);

/// A request for parked environments that is not yet met.
pub(crate) struct ParkRequest {
    pub(crate) connection: u64,
    pub(crate) stream: u32,
    pub(crate) spec: EnvironmentSpec,
    pub(crate) count: u32,
}

/// More parked environments than this of one kind are refused: each is memory that nobody uses.
const MOST_PARKED: u32 = 4096;

impl Agent {
    pub(crate) fn take_parked(&mut self, spec: &EnvironmentSpec) -> Option<EnvironmentId> {
        self.take(spec, State::Parked)
    }

    /// Takes one that is being made ahead of need: its command waits in its socket until it is ready, which is sooner
    /// than one that nobody has begun.
    pub(crate) fn take_preparing(&mut self, spec: &EnvironmentSpec) -> Option<EnvironmentId> {
        self.take(spec, State::Preparing)
    }

    fn take(&mut self, spec: &EnvironmentSpec, state: State) -> Option<EnvironmentId> {
        let current = self.generations.number;
        let free = |one: &Environment| one.state == state && one.holder.is_none() && !one.once && !one.kept;
        let mut environments = self.environments.values_mut();
        let found = environments.find(|one| free(one) && one.generation == current && one.spec == *spec)?;
        found.state = State::InUse;
        Some(found.id)
    }

    /// Keeps `count` environments of this kind parked from now on; answers once they are.
    pub(crate) fn park_on_request(
        &mut self,
        connection: u64,
        stream: u32,
        spec: EnvironmentSpec,
        count: u32,
    ) -> Result<(), Problem> {
        self.check(&spec)?;
        if count > MOST_PARKED {
            let message =
                format!("{count} parked environments were asked for; at most {MOST_PARKED} of one kind are kept");
            return Err(Problem::new(ProblemKind::Usage, message));
        }
        // Until files are current nothing is parked; the loop comes back to it.
        let _ = self.files_are_current()?;
        self.park.retain(|(kind, _)| *kind != spec);
        self.park.push((spec.clone(), count));
        self.park_requests.push(ParkRequest { connection, stream, spec, count });
        self.tell_parked();
        Ok(())
    }

    /// Answers those who waited for environments to be parked.
    pub(crate) fn tell_parked(&mut self) {
        let current = self.generations.number;
        let mut met = Vec::new();
        let environments = &self.environments;
        self.park_requests.retain(|request| {
            let there = environments
                .values()
                .filter(|one| one.state == State::Parked && one.generation == current && one.spec == request.spec)
                .count();
            let enough = there >= request.count as usize;
            if enough {
                met.push((request.connection, request.stream));
            }
            !enough
        });
        for (connection, stream) in met {
            self.answer(connection, stream, &Event::Done);
        }
    }

    /// Parking failed: nobody shall wait for it.
    pub(crate) fn fail_parks(&mut self, problem: &Problem) {
        for request in std::mem::take(&mut self.park_requests) {
            self.fail(request.connection, request.stream, problem.clone());
        }
    }

    /// Asks for environments of this kind to be there before they are needed.
    pub(crate) fn keep_parked(&mut self, spec: &EnvironmentSpec) {
        let limits = &spec.limits;
        // One that is parked would keep the network that it shares.
        if spec.joins.is_some() || limits.memory.is_some() || limits.pids.is_some() || limits.cpus.is_some() {
            return;
        }
        if let Some(place) = self.park.iter().position(|(kind, _)| kind == spec) {
            let entry = self.park.remove(place);
            self.park.push(entry);
            return;
        }
        self.park.push((spec.clone(), PARKED));
        if self.park.len() > KINDS {
            let (old, _) = self.park.remove(0);
            self.discard_parked(&old);
        }
    }

    fn discard_parked(&mut self, spec: &EnvironmentSpec) {
        let parked: Vec<EnvironmentId> = self
            .environments
            .values()
            .filter(|one| one.state == State::Parked && one.spec == *spec)
            .map(|one| one.id)
            .collect();
        for id in parked {
            self.end_environment(id);
        }
    }

    fn lacking(&self) -> Option<&EnvironmentSpec> {
        if self.ending.is_some() {
            return None;
        }
        let current = self.generations.number;
        let there = |spec: &EnvironmentSpec| {
            self.environments
                .values()
                .filter(|one| {
                    matches!(one.state, State::Parked | State::Preparing)
                        && one.holder.is_none()
                        && !one.once
                        && one.generation == current
                        && one.spec == *spec
                })
                .count() as u32
        };
        self.park.iter().find(|(spec, wanted)| there(spec) < *wanted).map(|(spec, _)| spec)
    }

    /// How soon something can be made ahead of need, if nothing else happens until then.
    pub(crate) fn idle_work_in(&self, now: Instant) -> Option<Duration> {
        self.lacking()?;
        let youngest = self.commands.values().map(|command| command.started).max();
        Some(youngest.map_or(Duration::ZERO, |started| SHORT.saturating_sub(now.saturating_duration_since(started))))
    }

    /// Makes one environment ahead of need.
    pub(crate) fn do_idle_work(&mut self) {
        let Some(spec) = self.lacking().cloned() else { return };
        if let Err(problem) = self.make_environment(&spec, None) {
            self.park.retain(|(kind, _)| *kind != spec);
            self.fail_parks(&problem);
        }
    }
}
