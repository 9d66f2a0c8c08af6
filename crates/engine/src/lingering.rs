//! Environments that outlived their commands.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use testyard_machine::client::{ChangeList, ClientError, Connection, TransferError};
use testyard_model::{EnvironmentId, Problem};
use testyard_protocol::changes::Fetch;

use crate::warm::WarmMachine;

impl WarmMachine {
    /// Asks over a kept connection, which stays good after a refusal.
    fn ask<T>(&self, ask: impl FnOnce(&mut Connection) -> Result<T, ClientError>) -> Result<T, Problem> {
        let mut link = self.take()?;
        let answer = ask(&mut link.connection);
        if matches!(answer, Ok(_) | Err(ClientError::Refused(_))) {
            self.put(link);
        }
        answer.map_err(|error| error.problem())
    }

    /// What was added, changed and deleted in an environment; at most so many entries.
    ///
    /// # Errors
    /// It is gone, or the machine is.
    pub fn changes(&self, environment: EnvironmentId, limit: u32) -> Result<ChangeList, Problem> {
        self.ask(|connection| connection.changes(environment, limit))
    }

    /// Fetches files of an environment: `unpack` reads them as a tree.
    ///
    /// # Errors
    /// It is gone, the machine is, or `unpack` failed; then `told` makes a problem of its error.
    pub fn fetch<E>(
        &self,
        fetch: Fetch,
        paths: &BTreeSet<PathBuf>,
        unpack: impl FnOnce(&mut dyn Read) -> Result<(), E>,
        told: impl FnOnce(E) -> Problem,
    ) -> Result<(), Problem> {
        let mut link = self.take()?;
        match link.connection.fetch(fetch, paths, unpack) {
            Ok(()) => {
                self.put(link);
                Ok(())
            }
            Err(TransferError::Local(error)) => {
                self.put(link);
                Err(told(error))
            }
            Err(TransferError::Machine(error)) => {
                if matches!(error, ClientError::Refused(_)) {
                    self.put(link);
                }
                Err(error.problem())
            }
        }
    }

    /// Lets an environment live on by itself, so long.
    ///
    /// # Errors
    /// It is gone, too many are kept, or the machine is gone.
    pub fn keep(&self, environment: EnvironmentId, duration: Duration) -> Result<(), Problem> {
        self.ask(|connection| connection.keep(environment, duration))
    }

    /// Keeps what was changed in an environment as a layer of the machine.
    ///
    /// # Errors
    /// It is gone, the layer does not fit, or the machine is gone.
    pub fn seal(&self, environment: EnvironmentId, layer: &str) -> Result<(), Problem> {
        self.ask(|connection| connection.seal(environment, layer))
    }

    /// Whether the machine has a layer of this name.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn has_layer(&self, layer: &str) -> Result<bool, Problem> {
        self.ask(|connection| Ok(connection.status()?.layers.iter().any(|one| one == layer)))
    }

    /// Ends an environment.
    ///
    /// # Errors
    /// It is gone already, or the machine is.
    pub fn release(&self, environment: EnvironmentId) -> Result<(), Problem> {
        self.ask(|connection| connection.release(environment))
    }
}
