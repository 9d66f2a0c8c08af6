//! Trees to and from a machine. What a tree looks like on the way is the `transfer` crate's business; here
//! are the bytes: a socket handed to the agent, or data frames.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use testyard_linux::socket::{self, Kind};
use testyard_protocol::{Carrier, Event, Request, Transfer};

use super::connection::word;
use super::session::OpenStream;
use super::{ClientError, Connection, Session};

/// A transfer failed: at the machine, or on our side of it.
#[derive(Debug)]
pub enum TransferError<E> {
    /// The machine could not do its part, or was lost.
    Machine(ClientError),
    /// Our own part failed.
    Local(E),
}

impl Connection {
    /// Sends a tree: `pack` writes it. The bytes go through a socket, directly to the machine.
    pub fn push<E>(
        &mut self,
        mut transfer: Transfer,
        pack: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<(), TransferError<E>> {
        transfer.carrier = Carrier::Attached;
        let (inside, outside) = link()?;
        let stream = self.begin(&Request::Push(transfer), &[inside.as_fd()]).map_err(TransferError::Machine)?;
        drop(inside);
        let mut outside = File::from(outside);
        let packed = pack(&mut outside);
        if packed.is_err() {
            // The machine must not take the half of a tree for the whole: there is no end marker in it.
            drop(outside);
            return match self.event(stream, "files were being sent", None) {
                Err(refused @ ClientError::Refused(_)) if !is_truncation(&refused) => {
                    Err(TransferError::Machine(refused))
                }
                _ => packed.map_err(TransferError::Local),
            };
        }
        drop(outside);
        let event = self.event(stream, "files were being sent", None).map_err(TransferError::Machine)?.event;
        done(self.machine(), &event)
    }

    /// Receives a tree: `unpack` reads it to its end.
    pub fn pull<E>(
        &mut self,
        mut transfer: Transfer,
        unpack: impl FnOnce(&mut dyn Read) -> Result<(), E>,
    ) -> Result<(), TransferError<E>> {
        transfer.carrier = Carrier::Attached;
        let (outside, inside) = link()?;
        let stream = self.begin(&Request::Pull(transfer), &[inside.as_fd()]).map_err(TransferError::Machine)?;
        drop(inside);
        let mut outside = File::from(outside);
        let unpacked = unpack(&mut outside);
        drop(outside);
        // The machine's own reason comes first: ours is then only that the tree stopped short.
        match self.event(stream, "files were being fetched", None) {
            Ok(reply) => {
                unpacked.map_err(TransferError::Local)?;
                done(self.machine(), &reply.event)
            }
            Err(refused @ ClientError::Refused(_)) if unpacked.is_ok() || !is_truncation(&refused) => {
                Err(TransferError::Machine(refused))
            }
            Err(error) => {
                unpacked.map_err(TransferError::Local)?;
                Err(TransferError::Machine(error))
            }
        }
    }
}

impl Session {
    /// As [`Connection::push`], with the bytes in data frames.
    pub fn push<E>(
        &self,
        mut transfer: Transfer,
        pack: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<(), TransferError<E>> {
        transfer.carrier = Carrier::Frames;
        let OpenStream { stream, events, mut writer, reader: _ } =
            self.open_stream(&Request::Push(transfer)).map_err(TransferError::Machine)?;
        let packed = pack(&mut writer);
        drop(writer);
        let finished = self.finish(stream, &events);
        match (packed, finished) {
            (Ok(()), Ok(event)) => done(self.machine(), &event),
            (Err(_), Err(refused)) if !is_truncation(&refused) => Err(TransferError::Machine(refused)),
            (Err(error), _) => Err(TransferError::Local(error)),
            (Ok(()), Err(error)) => Err(TransferError::Machine(error)),
        }
    }

    /// As [`Connection::pull`], with the bytes in data frames.
    pub fn pull<E>(
        &self,
        mut transfer: Transfer,
        unpack: impl FnOnce(&mut dyn Read) -> Result<(), E>,
    ) -> Result<(), TransferError<E>> {
        transfer.carrier = Carrier::Frames;
        let OpenStream { stream, events, writer: _writer, mut reader } =
            self.open_stream(&Request::Pull(transfer)).map_err(TransferError::Machine)?;
        let unpacked = unpack(&mut reader);
        if let Err(error) = unpacked {
            return match events.try_recv() {
                Ok(Ok(reply)) => match reply.event {
                    Event::Failed(problem) => Err(TransferError::Machine(ClientError::Refused(Box::new(problem)))),
                    _ => Err(TransferError::Local(error)),
                },
                _ => Err(TransferError::Local(error)),
            };
        }
        let event = self.finish(stream, &events).map_err(TransferError::Machine)?;
        done(self.machine(), &event)
    }
}

/// Whether the machine only complains that our tree stopped short.
fn is_truncation(error: &ClientError) -> bool {
    use testyard_model::ProblemKind::{Interrupted, Protocol, Unavailable};
    matches!(error, ClientError::Refused(problem) if matches!(problem.kind, Protocol | Interrupted | Unavailable))
}

/// Two ends, of which each transfer uses one direction. A socket: its two sides share no lock that is held while
/// bytes are copied, as those of a pipe do, so a large file costs less processor time.
fn link<E>() -> Result<(OwnedFd, OwnedFd), TransferError<E>> {
    let (one, other) = socket::pair(Kind::Stream)
        .map_err(|error| TransferError::Machine(ClientError::local("make a socket", error.source)))?;
    testyard_transfer::widen(one.as_fd());
    testyard_transfer::widen(other.as_fd());
    Ok((one, other))
}

fn done<E>(machine: &str, event: &Event) -> Result<(), TransferError<E>> {
    match event {
        Event::Done => Ok(()),
        other => {
            Err(TransferError::Machine(ClientError::Unexpected { machine: machine.to_owned(), event: word(other) }))
        }
    }
}
