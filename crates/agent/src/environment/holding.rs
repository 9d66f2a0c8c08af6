//! Environments that clients hold: opening, releasing, handing out, parking on request, and ending with a client.

use std::os::fd::OwnedFd;

use testyard_linux::namespace::{self, Kind};
use testyard_model::{EnvironmentId, EnvironmentSpec, Isolation, Problem, ProblemKind};
use testyard_protocol::Event;

use super::Waiting;
use crate::agent::Agent;
use crate::place::PlaceKind;

impl Agent {
    /// Leases a parked environment, or makes one.
    pub(crate) fn open_environment(
        &mut self,
        connection: u64,
        stream: u32,
        spec: &EnvironmentSpec,
    ) -> Result<(), Problem> {
        self.check(spec)?;
        if spec.isolation == Isolation::None {
            return Err(Problem::new(ProblemKind::Usage, "isolation `none` has no environment to open")
                .hint("run the command on the machine"));
        }
        if !self.files_are_current()? {
            self.generations.delayed_opens.push((connection, stream, spec.clone()));
            return Ok(());
        }
        if let Some(id) = self.take_parked(spec) {
            if let Some(environment) = self.environments.get_mut(&id) {
                environment.holder = Some(connection);
            }
            self.answer(connection, stream, &Event::Environment { id, parked: true });
            return Ok(());
        }
        let id = self.make_environment(spec, None)?;
        if let Some(environment) = self.environments.get_mut(&id) {
            environment.holder = Some(connection);
        }
        self.wait_for(id, Waiting::Ready { connection, stream, parked: false });
        Ok(())
    }

    /// Ends an environment, and answers when it is gone.
    pub(crate) fn release(&mut self, connection: u64, stream: u32, id: EnvironmentId) -> Result<(), Problem> {
        if !self.environments.contains_key(&id) {
            return Err(Problem::new(ProblemKind::NotFound, format!("environment {id} is not there")));
        }
        self.wait_for(id, Waiting::Gone { connection, stream });
        self.end_environment(id);
        Ok(())
    }

    /// Hands out the machine's own namespaces: user, then mount.
    pub(crate) fn hand_out_machine(&mut self, connection: u64, stream: u32) -> Result<(), Problem> {
        let PlaceKind::Namespace(place) = &self.place.kind else {
            return Err(Problem::new(ProblemKind::Unsupported, "a machine of backend `host` has no namespaces"));
        };
        let cloned = |fd: &OwnedFd| fd.try_clone().map_err(|error| Problem::from_error(ProblemKind::Exhausted, &error));
        let user = match &place.user {
            Some(user) => cloned(user)?,
            None => namespace::open(None, Kind::User).map_err(|error| error.problem())?,
        };
        let mounts = place.mounts.as_ref().map(cloned).transpose()?;
        let attached: Vec<OwnedFd> = [user].into_iter().chain(mounts).collect();
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.send(stream, &Event::Done, attached);
        }
        self.rewatch(connection);
        Ok(())
    }
}
