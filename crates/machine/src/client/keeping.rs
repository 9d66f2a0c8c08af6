//! Environments that outlive their commands: keeping, looking into, forking and sealing them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::Shutdown;
use testyard_linux::socket::{self, Kind};
use testyard_model::{EnvironmentId, Problem, ProblemKind, milliseconds};
use testyard_protocol::changes::{ChangeLine, Fetch, FileChange};
use testyard_protocol::{Event, KEEPING_VERSION, RawText, Request};

use super::connection::word;
use super::transfer::TransferError;
use super::{ClientError, Connection};

/// What an environment's commands did to its files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChangeList {
    /// Each change, those of the source first.
    pub entries: Vec<FileChange>,
    /// Where the source is, if there is one.
    pub source: Option<PathBuf>,
    /// There were more.
    pub cut: bool,
}

impl Connection {
    /// Refuses agents that are too old to let environments linger: they would end them in silence.
    ///
    /// # Errors
    /// A refusal that says how to get another agent.
    pub fn check_keeping(&self) -> Result<(), ClientError> {
        if self.welcome().version >= KEEPING_VERSION {
            return Ok(());
        }
        let machine = self.machine();
        let message = format!("machine {machine} was started by an older testyard, which keeps no environments");
        let problem = Problem::new(ProblemKind::Unsupported, message).hint(format!("testyard restart {machine}"));
        Err(ClientError::Refused(Box::new(problem)))
    }

    /// Lets an environment live on without this connection, so long from now.
    ///
    /// # Errors
    /// It is not there, or too many are kept.
    pub fn keep(&mut self, environment: EnvironmentId, duration: Duration) -> Result<(), ClientError> {
        self.check_keeping()?;
        self.ask(&Request::Keep { environment, for_ms: milliseconds(duration) }, &[])
    }

    /// Another environment with the same files, kept so long.
    ///
    /// # Errors
    /// It is not there, or has no files of its own.
    pub fn fork(&mut self, environment: EnvironmentId, duration: Duration) -> Result<EnvironmentId, ClientError> {
        self.check_keeping()?;
        match self.request(&Request::Fork { environment, for_ms: milliseconds(duration) }, &[])?.event {
            Event::Environment { id, .. } => Ok(id),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Keeps what was changed in an environment as a layer of the machine.
    ///
    /// # Errors
    /// It is not there, or the layer does not fit.
    pub fn seal(&mut self, environment: EnvironmentId, layer: &str) -> Result<(), ClientError> {
        self.check_keeping()?;
        self.ask(&Request::Seal { environment, layer: layer.to_owned() }, &[])
    }

    /// What was added, changed and deleted in an environment: at most so many entries.
    ///
    /// # Errors
    /// It is not there, or keeps no record.
    pub fn changes(&mut self, environment: EnvironmentId, limit: u32) -> Result<ChangeList, ClientError> {
        self.check_keeping()?;
        let (ours, theirs) = pair()?;
        let stream = self.begin(&Request::Changes { environment, limit }, &[theirs.as_fd()])?;
        drop(theirs);
        let mut list = ChangeList::default();
        for line in BufReader::new(File::from(ours)).lines() {
            let line = line.map_err(|error| ClientError::local("read a list of changes", error))?;
            let read: ChangeLine = serde_json::from_str(&line)
                .map_err(|source| ClientError::Message { machine: self.machine().to_owned(), source })?;
            match read {
                ChangeLine::Entry(entry) => list.entries.push(entry),
                ChangeLine::Source(path) => list.source = Some(path.as_path().to_owned()),
                ChangeLine::Cut => list.cut = true,
            }
        }
        self.done(stream)?;
        Ok(list)
    }

    /// Fetches files of an environment: `unpack` reads them as a tree, to its end.
    ///
    /// # Errors
    /// At the machine, or of `unpack`.
    pub fn fetch<E>(
        &mut self,
        fetch: Fetch,
        paths: &BTreeSet<PathBuf>,
        unpack: impl FnOnce(&mut dyn Read) -> Result<(), E>,
    ) -> Result<(), TransferError<E>> {
        let machine = TransferError::Machine;
        self.check_keeping().map_err(machine)?;
        let (ours, theirs) = pair().map_err(machine)?;
        let stream = self.begin(&Request::Fetch(fetch), &[theirs.as_fd()]).map_err(machine)?;
        drop(theirs);
        testyard_transfer::widen(ours.as_fd());
        let mut socket = File::from(ours);
        let list: Vec<RawText> = paths.iter().map(|path| RawText::from(path.as_path())).collect();
        let list = serde_json::to_vec(&list)
            .map_err(|source| machine(ClientError::Message { machine: self.machine().to_owned(), source }))?;
        // A worker that refused reads nothing; its reason comes below.
        let sent = socket.write_all(&list).and_then(|()| Ok(rustix::net::shutdown(&socket, Shutdown::Write)?));
        let unpacked = if sent.is_ok() { Some(unpack(&mut socket)) } else { None };
        drop(socket);
        let done = self.done(stream);
        match (unpacked, done) {
            (Some(Ok(())), done) => done.map_err(machine),
            // Where our side broke off, the machine only complains of that.
            (Some(Err(error)), Ok(())) => Err(TransferError::Local(error)),
            (Some(Err(error)), Err(ClientError::Refused(problem)))
                if matches!(problem.kind, ProblemKind::Unavailable | ProblemKind::Protocol) =>
            {
                Err(TransferError::Local(error))
            }
            (_, Err(error)) => Err(machine(error)),
            (None, Ok(())) => Err(machine(ClientError::Lost {
                machine: self.machine().to_owned(),
                during: "files of an environment were asked for",
            })),
        }
    }

    fn done(&mut self, stream: u32) -> Result<(), ClientError> {
        let machine = self.machine().to_owned();
        match self.event(stream, "it looked into an environment", None)?.event {
            Event::Done => Ok(()),
            other => Err(ClientError::Unexpected { machine, event: word(&other) }),
        }
    }
}

fn pair() -> Result<(OwnedFd, OwnedFd), ClientError> {
    socket::pair(Kind::Stream).map_err(|error| ClientError::local("make a socket", error.source))
}
