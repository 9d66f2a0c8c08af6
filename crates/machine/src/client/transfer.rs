//! Trees to and from a machine. What a tree looks like on the way is the `transfer` crate's business; here
//! are the bytes: a pipe or socket handed to the agent, or data frames.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use testyard_linux::socket::{self, Kind};
use testyard_protocol::{Carrier, Command, Event, PIPE_VERSION, Request, Transfer};
use testyard_transfer::{Oversight, Summary, UnpackOptions};

use super::connection::{wait_readable, word};
use super::session::OpenStream;
use super::{ClientError, Connection, Session};
use crate::wire::Look;

/// A transfer failed: at the machine, or on our side of it.
#[derive(Debug)]
pub enum TransferError<E> {
    /// The machine could not do its part, or was lost.
    Machine(ClientError),
    /// Our own part failed.
    Local(E),
}

/// A transfer of a tree failed.
pub type TreeError = TransferError<testyard_transfer::TransferError>;

/// How long a machine may take to say why a transfer failed.
const REASON: Duration = Duration::from_secs(10);

impl Connection {
    /// Sends the file or tree at `path`, resolved within `root`, by the fastest way that both sides know.
    pub fn push_tree(
        &mut self,
        mut transfer: Transfer,
        root: BorrowedFd<'_>,
        path: &Path,
        oversight: Oversight<'_>,
    ) -> Result<Summary, TreeError> {
        let local = self.welcome().version >= PIPE_VERSION;
        let (inside, outside) = if local { pipe()? } else { link()? };
        transfer.carrier = if local { Carrier::Pipe } else { Carrier::Attached };
        self.send_tree(transfer, (inside, outside), oversight.stop, |end| {
            if local {
                testyard_transfer::pack_into(root, path, end.as_fd(), oversight)
            } else {
                testyard_transfer::pack(root, path, &mut File::from(end))
            }
        })
    }

    /// Receives a file or tree as `path`, resolved within `root`, by the fastest way that both sides know.
    pub fn pull_tree(
        &mut self,
        mut transfer: Transfer,
        root: BorrowedFd<'_>,
        path: &Path,
        options: &UnpackOptions,
        oversight: Oversight<'_>,
    ) -> Result<Summary, TreeError> {
        let local = self.welcome().version >= PIPE_VERSION;
        let (outside, inside) = if local { pipe()? } else { link()? };
        transfer.carrier = if local { Carrier::Pipe } else { Carrier::Attached };
        self.receive_tree(transfer, (inside, outside), oversight.stop, |end| {
            testyard_transfer::unpack_from(end.as_fd(), root, path, options, oversight)
        })
    }

    /// Sends a tree: `pack` writes it. The bytes go through a socket, directly to the machine.
    pub fn push<E>(
        &mut self,
        mut transfer: Transfer,
        pack: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<(), TransferError<E>> {
        transfer.carrier = Carrier::Attached;
        self.send_tree(transfer, link()?, None, |end| pack(&mut File::from(end)))
    }

    /// Receives a tree: `unpack` reads it to its end.
    pub fn pull<E>(
        &mut self,
        mut transfer: Transfer,
        unpack: impl FnOnce(&mut dyn Read) -> Result<(), E>,
    ) -> Result<(), TransferError<E>> {
        transfer.carrier = Carrier::Attached;
        self.receive_tree(transfer, link()?, None, |end| unpack(&mut File::from(end)))
    }

    fn send_tree<T, E>(
        &mut self,
        transfer: Transfer,
        (inside, outside): (OwnedFd, OwnedFd),
        stop: Option<BorrowedFd<'_>>,
        pack: impl FnOnce(OwnedFd) -> Result<T, E>,
    ) -> Result<T, TransferError<E>> {
        let stream = self.begin(&Request::Push(transfer), &[inside.as_fd()]).map_err(TransferError::Machine)?;
        drop(inside);
        // It closes its end. After a failure the machine must not take the half of a tree for the whole: there is no
        // end marker in it.
        let packed = match pack(outside) {
            Ok(packed) => packed,
            Err(error) => {
                let deadline = Some(Instant::now() + REASON);
                return match self.event(stream, "files were being sent", deadline) {
                    Err(refused @ ClientError::Refused(_)) if !is_truncation(&refused) => {
                        Err(TransferError::Machine(refused))
                    }
                    _ => Err(TransferError::Local(error)),
                };
            }
        };
        let event = self.end_of_tree(stream, "files were being sent", stop).map_err(TransferError::Machine)?;
        done(self.machine(), &event).map(|()| packed)
    }

    fn receive_tree<T, E>(
        &mut self,
        transfer: Transfer,
        (inside, outside): (OwnedFd, OwnedFd),
        stop: Option<BorrowedFd<'_>>,
        unpack: impl FnOnce(OwnedFd) -> Result<T, E>,
    ) -> Result<T, TransferError<E>> {
        let stream = self.begin(&Request::Pull(transfer), &[inside.as_fd()]).map_err(TransferError::Machine)?;
        drop(inside);
        match unpack(outside) {
            Ok(unpacked) => {
                let event = self.end_of_tree(stream, "files were being fetched", stop);
                done(self.machine(), &event.map_err(TransferError::Machine)?).map(|()| unpacked)
            }
            // The machine's own reason comes first: ours is then only that the tree stopped short.
            Err(error) => match self.event(stream, "files were being fetched", Some(Instant::now() + REASON)) {
                Err(refused @ ClientError::Refused(_)) if !is_truncation(&refused) => {
                    Err(TransferError::Machine(refused))
                }
                _ => Err(TransferError::Local(error)),
            },
        }
    }

    /// The last event of a transfer whose bytes have all been moved; it is called off once `stop` can be read.
    fn end_of_tree(
        &mut self,
        stream: u32,
        during: &'static str,
        stop: Option<BorrowedFd<'_>>,
    ) -> Result<Event, ClientError> {
        let Some(stop) = stop else { return Ok(self.event(stream, during, None)?.event) };
        loop {
            while let Look::Frame(received) = self.look(during)? {
                if let Some(reply) = self.reply(stream, received)? {
                    return Ok(reply.event);
                }
            }
            let ready = wait_readable(&[self.socket.as_fd(), stop], None)?;
            if !ready[0] && ready[1] {
                self.send(stream, &Command::Kill, &[])?;
                return Ok(self.event(stream, during, Some(Instant::now() + REASON))?.event);
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
pub(super) fn is_truncation(error: &ClientError) -> bool {
    use testyard_model::ProblemKind::{Interrupted, Protocol, Unavailable};
    matches!(error, ClientError::Refused(problem) if matches!(problem.kind, Protocol | Interrupted | Unavailable))
}

/// The reading end and the writing end of a pipe, for trees that the kernel moves.
fn pipe<E>() -> Result<(OwnedFd, OwnedFd), TransferError<E>> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|errno| TransferError::Machine(ClientError::local("make a pipe", errno)))
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

pub(super) fn done<E>(machine: &str, event: &Event) -> Result<(), TransferError<E>> {
    match event {
        Event::Done => Ok(()),
        other => {
            Err(TransferError::Machine(ClientError::Unexpected { machine: machine.to_owned(), event: word(other) }))
        }
    }
}
