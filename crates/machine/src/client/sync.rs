//! Trees that a machine keeps: sent as what changed, then shown by their hash.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use testyard_linux::socket::{self, Kind};
use testyard_model::{ProblemKind, UserSpec};
use testyard_protocol::{Carrier, Event, Request, SYNC_VERSION, Sync, Synced};
use testyard_trees::{Offer, SendError, Sent, TreeHash};

use super::session::OpenStream;
use super::transfer::{TransferError, done, is_truncation};
use super::{ClientError, Connection, Session};

/// What is asked of a machine about trees that it has.
#[must_use]
pub fn synced(trees: &[TreeHash], path: &Path, user: Option<&UserSpec>) -> Synced {
    Synced { trees: trees.iter().map(ToString::to_string).collect(), path: path.into(), user: user.cloned() }
}

impl Connection {
    /// Refuses a machine whose agent is too old to keep trees.
    fn check_sync(&self) -> Result<(), ClientError> {
        if self.welcome().version >= SYNC_VERSION {
            return Ok(());
        }
        Err(ClientError::Version { machine: self.machine().to_owned(), version: self.welcome().version })
    }

    /// Makes sure that the machine keeps this tree. The bytes go through a socket, directly to the machine.
    ///
    /// # Errors
    /// A file that changed is [`SendError::Changed`]: look at the tree again.
    pub fn sync_tree(&mut self, user: Option<&UserSpec>, offer: Offer<'_>) -> Result<Sent, TransferError<SendError>> {
        self.check_sync().map_err(TransferError::Machine)?;
        let local =
            |error: testyard_linux::Error| TransferError::Machine(ClientError::local("make a socket", error.source));
        let (inside, outside) = socket::pair(Kind::Stream).map_err(local)?;
        testyard_transfer::widen(outside.as_fd());
        testyard_transfer::widen(inside.as_fd());
        let request = Request::Sync(Sync { user: user.cloned(), carrier: Carrier::Attached });
        let stream = self.begin(&request, &[inside.as_fd()]).map_err(TransferError::Machine)?;
        drop(inside);
        let failed = |error| TransferError::Machine(ClientError::local("copy a socket", error));
        let (mut input, mut output) = (File::from(outside.try_clone().map_err(failed)?), File::from(outside));
        let sent = testyard_trees::send(offer, &mut input, &mut output);
        drop((input, output));
        // Where it was sent, the machine has said that it is there. That who received it has ended is passed over when it
        // comes.
        sent.map_err(|error| reason(error, self.event(stream, "a tree was being sent", None).map(|reply| reply.event)))
    }

    /// Lets commands of this connection show trees that the machine keeps; none where it has not got one of them.
    ///
    /// # Errors
    /// The machine cannot show any, or the connection broke.
    pub fn synced_source(&mut self, synced: Synced) -> Result<Option<u32>, ClientError> {
        self.check_sync()?;
        match self.request(&Request::Synced(synced), &[]) {
            Ok(reply) => match reply.event {
                Event::Source(number) => Ok(Some(number)),
                other => Err(self.unexpected(&other)),
            },
            Err(error) => missing(error),
        }
    }

    /// Shows trees that the machine keeps on the machine itself, copy-on-write; false where it has not got one of them.
    ///
    /// # Errors
    /// As [`Connection::synced_source`].
    pub fn present_synced(&mut self, synced: Synced) -> Result<bool, ClientError> {
        self.check_sync()?;
        match self.ask(&Request::Present(synced), &[]) {
            Ok(()) => Ok(true),
            Err(error) => missing::<()>(error).map(|_| false),
        }
    }
}

impl Session {
    /// As [`Connection::sync_tree`], with the bytes in data frames.
    ///
    /// # Errors
    /// As there.
    pub fn sync_tree(&self, user: Option<&UserSpec>, offer: Offer<'_>) -> Result<Sent, TransferError<SendError>> {
        let request = Request::Sync(Sync { user: user.cloned(), carrier: Carrier::Frames });
        let OpenStream { stream, events, mut writer, mut reader } =
            self.open_stream(&request).map_err(TransferError::Machine)?;
        let sent = testyard_trees::send(offer, &mut reader, &mut writer);
        drop((writer, reader));
        let ended = self.finish(stream, &events);
        match sent {
            Ok(sent) => done(self.machine(), &ended.map_err(TransferError::Machine)?).map(|()| sent),
            Err(error) => Err(reason(error, ended)),
        }
    }
}

/// That the machine has not got it is an answer, too.
fn missing<T>(error: ClientError) -> Result<Option<T>, ClientError> {
    match error {
        ClientError::Refused(problem) if problem.kind == ProblemKind::NotFound => Ok(None),
        error => Err(error),
    }
}

/// The machine's own reason comes before ours where ours is only that the stream broke.
fn reason(error: SendError, ended: Result<Event, ClientError>) -> TransferError<SendError> {
    match (error, ended) {
        (SendError::Wire(wire), Err(refused)) if !is_truncation(&refused) || wire.is_gone() => {
            TransferError::Machine(refused)
        }
        (error, _) => TransferError::Local(error),
    }
}
