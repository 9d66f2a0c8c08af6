//! A running machine, connected.

use std::os::fd::BorrowedFd;
use std::path::Path;

use testyard_machine::client::{Captured, ClientError, Connection, Greeting, RunningCommand, Session};
use testyard_model::{EnvironmentId, EnvironmentSpec, MachineName, Problem};
use testyard_protocol::{AgentStatus, Exec, Role};

/// A connection to a running machine's agent. When it is dropped, its commands and environments end.
#[derive(Debug)]
pub struct Machine {
    name: MachineName,
    connection: Connection,
}

impl Machine {
    /// By its socket.
    pub(crate) fn open(socket: &Path, name: &MachineName) -> Result<Self, ClientError> {
        Self::greet(socket, name)?.answered().map(|connection| Self::over(connection, name))
    }

    /// As [`Machine::open`], without waiting for its answer.
    pub(crate) fn greet(socket: &Path, name: &MachineName) -> Result<Greeting, ClientError> {
        Connection::call(socket, Role::Agent, name.as_str())
    }

    /// Over a connection to its agent.
    pub(crate) fn over(connection: Connection, name: &MachineName) -> Self {
        Self { name: name.clone(), connection }
    }

    /// Its name when it was connected to.
    #[must_use]
    pub fn name(&self) -> &MachineName {
        &self.name
    }

    /// Runs a command to its end and collects what it writes.
    pub fn run(&mut self, argv: &[&str]) -> Result<Captured, Problem> {
        let argv = argv.iter().map(|word| (*word).into()).collect();
        self.capture(Exec { argv, ..Exec::default() })
    }

    /// As [`Machine::run`], with every choice.
    pub fn capture(&mut self, exec: Exec) -> Result<Captured, Problem> {
        self.connection.capture(exec, &[]).map_err(|error| error.problem())
    }

    /// Runs a command over these descriptors.
    pub fn exec(&mut self, exec: Exec, descriptors: &[BorrowedFd<'_>]) -> Result<RunningCommand<'_>, Problem> {
        self.connection.exec(exec, descriptors).map_err(|error| error.problem())
    }

    /// Makes or leases an environment, held until it is released or this is dropped.
    pub fn environment(&mut self, spec: &EnvironmentSpec) -> Result<EnvironmentId, Problem> {
        self.connection.environment(spec).map_err(|error| error.problem())
    }

    /// Ends an environment.
    pub fn release(&mut self, environment: EnvironmentId) -> Result<(), Problem> {
        self.connection.release(environment).map_err(|error| error.problem())
    }

    /// What its agent is doing.
    pub fn status(&mut self) -> Result<AgentStatus, Problem> {
        self.connection.status().map_err(|error| error.problem())
    }

    /// Everything else that a connection can do, trees among it.
    #[must_use]
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// For many streams at once, from many threads.
    pub fn into_session(self) -> Result<Session, Problem> {
        Session::over(self.connection).map_err(|error| error.problem())
    }
}
