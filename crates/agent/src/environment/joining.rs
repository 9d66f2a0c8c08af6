//! Joining environments: for processes of clients that already run, and for the agent's own file workers.
//!
//! Nobody may look at an environment's init, not even to open its namespaces, so the init itself opens and sends
//! them, the first time that somebody wants in.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use testyard_linux::process;
use testyard_model::{EnvironmentId, Problem, ProblemKind};
use testyard_protocol::{Event, Transfer};

use super::book::mount_of;
use super::order::Order;
use super::source::SourceMount;
use super::{PooledGroup, State};
use crate::agent::Agent;
use crate::place::PlaceKind;

/// Who wants in.
pub(crate) enum Joining {
    /// A client.
    Client {
        /// Whose connection.
        connection: u64,
        /// Its stream.
        stream: u32,
        /// The folder of the changes to the source that was shown for it.
        changes: Option<OwnedFd>,
    },
    /// A file worker that is yet to be forked.
    Files(Box<Files>),
}

/// A transfer that is to begin.
pub(crate) struct Files {
    pub(crate) connection: u64,
    pub(crate) stream: u32,
    pub(crate) transfer: Transfer,
    pub(crate) attached: Vec<OwnedFd>,
    pub(crate) push: bool,
}

impl Joining {
    /// A client that wants no more than the environment.
    pub(crate) fn client(connection: u64, stream: u32) -> Self {
        Self::Client { connection, stream, changes: None }
    }

    fn stream(&self) -> (u64, u32) {
        match self {
            Self::Client { connection, stream, .. } => (*connection, *stream),
            Self::Files(files) => (files.connection, files.stream),
        }
    }
}

impl Agent {
    /// Lets somebody in, now or once the namespaces are known.
    pub(crate) fn join(&mut self, id: EnvironmentId, joining: Joining) -> Result<(), Problem> {
        let processes = matches!(self.place.kind, PlaceKind::Process { .. });
        let there = self.environments.get_mut(&id).filter(|one| one.state == State::InUse);
        let environment = there.ok_or_else(|| {
            Problem::new(ProblemKind::NotFound, format!("environment {id} is not there, or not ready"))
        })?;
        if processes || environment.namespaces.is_some() {
            return self.let_in(id, joining);
        }
        let first = environment.joining.is_empty();
        if let Joining::Files(files) = &joining {
            self.early.expect(files.connection, files.stream);
        }
        environment.joining.push(joining);
        if first && let Err(error) = self.order(id, &Order::Namespaces, &[]) {
            if let Some(environment) = self.environments.get_mut(&id) {
                environment.joining.clear();
            }
            return Err(error.problem());
        }
        Ok(())
    }

    /// Has a source shown, and lets a client in then.
    pub(crate) fn show_and_join(&mut self, client: (u64, u32), id: EnvironmentId, source: u32) -> Result<(), Problem> {
        let missing = || Problem::new(ProblemKind::NotFound, format!("environment {id} is not there, or not ready"));
        let no_source = || Problem::new(ProblemKind::Protocol, format!("source {source} is not on this connection"));
        let shown = Rc::clone(&self.sources.get(&source).ok_or_else(no_source)?.1);
        let there = self.environments.get_mut(&id).filter(|one| one.state == State::InUse);
        let environment = there.ok_or_else(missing)?;
        let mounted = mount_of(&shown, &environment.spec)?;
        environment.shown.get_or_insert(shown);
        let Some(SourceMount { tree, place }) = mounted else {
            return self.join(id, Joining::client(client.0, client.1));
        };
        let show = Order::Show(place);
        environment.showing.push_back(client);
        if let Err(error) = self.order(id, &show, &[tree.as_fd()]) {
            if let Some(environment) = self.environments.get_mut(&id) {
                environment.showing.pop_back();
            }
            return Err(error.problem());
        }
        Ok(())
    }

    /// An init has shown a source, or has not.
    pub(crate) fn source_shown(&mut self, id: EnvironmentId, problem: Option<Problem>) {
        let Some(environment) = self.environments.get_mut(&id) else { return };
        let changes = environment.inbox.attached.pop_front();
        let Some((connection, stream)) = environment.showing.pop_front() else { return };
        let joined = match problem {
            Some(problem) => Err(problem),
            None => self.join(id, Joining::Client { connection, stream, changes }),
        };
        if let Err(problem) = joined {
            self.fail(connection, stream, problem);
        }
    }

    /// An init has sent its namespaces.
    pub(crate) fn namespaces_came(&mut self, id: EnvironmentId) {
        let Some(environment) = self.environments.get_mut(&id) else { return };
        environment.namespaces = Some(std::mem::take(&mut environment.inbox.attached).into());
        for joining in std::mem::take(&mut environment.joining) {
            let (connection, stream) = joining.stream();
            if let Err(problem) = self.let_in(id, joining) {
                self.fail(connection, stream, problem);
            }
        }
    }

    /// A client that is gone wants in no more.
    pub(crate) fn forget_joining(&mut self, connection: u64) {
        for environment in self.environments.values_mut() {
            environment.joining.retain(|joining| joining.stream().0 != connection);
        }
    }

    /// Nobody gets in any more.
    pub(crate) fn fail_joining(&mut self, id: EnvironmentId, waiting: Vec<Joining>) {
        for joining in waiting {
            let (connection, stream) = joining.stream();
            let problem =
                Problem::new(ProblemKind::Unavailable, format!("environment {id} ended before it was joined"));
            self.fail(connection, stream, problem);
        }
    }

    fn let_in(&mut self, id: EnvironmentId, joining: Joining) -> Result<(), Problem> {
        match joining {
            Joining::Client { connection, stream, changes } => self.hand_out((connection, stream), id, changes),
            Joining::Files(files) => {
                let (connection, stream) = (files.connection, files.stream);
                self.transfer(*files)?;
                self.say_early(connection, stream);
                Ok(())
            }
        }
    }

    /// Hands an environment to a process that already runs: its init's pidfd, its namespaces, its cgroup's folders.
    fn hand_out(
        &mut self,
        (connection, stream): (u64, u32),
        id: EnvironmentId,
        changes: Option<OwnedFd>,
    ) -> Result<(), Problem> {
        let Some(environment) = self.environments.get(&id) else { return Ok(()) };
        let cloned = |fd: BorrowedFd<'_>| {
            fd.try_clone_to_owned().map_err(|error| Problem::from_error(ProblemKind::Exhausted, &error))
        };
        let mut attached: Vec<OwnedFd> = vec![process::pidfd_open(environment.pid).map_err(|error| error.problem())?];
        for namespace in environment.namespaces.iter().flatten() {
            attached.push(cloned(namespace.as_fd())?);
        }
        let namespaces = (attached.len() - 1) as u8;
        let shows = changes.is_some();
        attached.extend(changes);
        if let Some(group) = environment.group.as_ref().and_then(PooledGroup::group) {
            for (_, folder) in group.folders() {
                attached.push(cloned(folder)?);
            }
        }
        let event = Event::Entered { pid: environment.pid.as_raw_nonzero().get(), namespaces, changes: shows };
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.send(stream, &event, attached);
        }
        self.rewatch(connection);
        Ok(())
    }
}
