//! What the agent and an environment's init say to each other: JSON with descriptors attached.
//!
//! ```text
//! length of the JSON (4 bytes, little-endian) │ how many descriptors are attached (1 byte) │ JSON
//! ```
//!
//! A stream glues messages, so where descriptors arrive does not say whose they are; the number does.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use testyard_linux::{Error, Result, socket};
use testyard_model::Problem;
use testyard_protocol::Exec;

use super::source::SourcePlace;

/// From the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The id maps are written: go on.
    Go,
    /// Run this. Attached: the source if there is a place for it, then three streams unless it has a terminal.
    Run { command: u32, exec: Box<Exec>, source: Option<SourcePlace>, once: bool },
    /// Send a signal to a command (to its group if asked).
    Signal { command: u32, signal: i32, group: bool },
    /// End a command and everything it started.
    Kill { command: u32 },
    /// Say when something accepts connections on this port of the loopback.
    Listening { wait: u32, port: u16, patience_ms: u64 },
    /// Open your namespaces for somebody who wants in.
    Namespaces,
    /// Show the attached source.
    Show(SourcePlace),
    /// Send where your changes are kept.
    Uppers,
    /// End every process and exit.
    End,
}

/// From the init.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It can run commands. Attached, from the machine's own: its mount namespace; from an environment with a network
    /// of its own: that.
    Ready,
    /// It cannot be what was asked; it exits.
    Broken(Problem),
    /// Attached: its namespaces, in the order of `Kind::ALL`.
    Namespaces,
    /// The source is shown, or why it is not. Attached: the folder of its changes where there is one.
    Shown { problem: Option<Problem> },
    /// Attached: the file system of its root's changes where there is one, then that of its source's changes
    /// where that was shown.
    Uppers { root: bool, source: bool },
    /// Something accepts connections, or nothing did in time.
    Listening { wait: u32, accepts: bool },
    /// A command was forked. Attached: the terminal's controlling side if it has one.
    Started { command: u32, pid: i32 },
    /// A command ended. Attached, if it was all that the environment was made for: its network, so that the agent
    /// decides when that goes.
    Exited { command: u32, status: i32, cpu_us: u64, memory_peak: u64 },
    /// A command could not be started.
    Failed { command: u32, problem: Problem },
}

/// Bytes before the JSON.
const HEAD: usize = 5;
/// An init that has left so much unread hangs.
const MOST_WAITING: usize = 64 << 20;

/// Sends one message; blocks while the other side's buffer is full. For who has nothing else to do: the agent itself
/// keeps an [`Outbox`].
pub(crate) fn send(socket: BorrowedFd<'_>, message: &impl Serialize, attached: &[BorrowedFd<'_>]) -> Result<()> {
    let whole = encoded(message, attached)?;
    let mut sent = socket::send(socket, &[IoSlice::new(&whole)], attached)?;
    while sent < whole.len() {
        sent += socket::send(socket, &[IoSlice::new(&whole[sent..])], &[])?;
    }
    Ok(())
}

fn encoded(message: &impl Serialize, attached: &[BorrowedFd<'_>]) -> Result<Vec<u8>> {
    let mut whole = vec![0; HEAD];
    serde_json::to_writer(&mut whole, message).map_err(|error| Error::new("write", "a message to an init", error))?;
    let length = (whole.len() - HEAD) as u32;
    whole[..4].copy_from_slice(&length.to_le_bytes());
    // The socket takes far fewer at once.
    whole[4] = attached.len() as u8;
    Ok(whole)
}

/// What an init has not read yet: nothing that happens in an environment may hold up the agent.
#[derive(Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<Outgoing>,
    bytes: usize,
}

struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    attached: Vec<OwnedFd>,
}

impl Outbox {
    /// Sends what the other side's buffer takes now, and keeps the rest.
    pub(crate) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        message: &impl Serialize,
        attached: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let bytes = encoded(message, attached)?;
        let sent = match self.waiting.is_empty() {
            true => socket::try_send(socket, &[IoSlice::new(&bytes)], attached)?.unwrap_or(0),
            false => 0,
        };
        if sent == bytes.len() {
            return Ok(());
        }
        if self.bytes + bytes.len() > MOST_WAITING {
            return Err(Error::new("give orders to", "an environment whose init reads none", Errno::AGAIN));
        }
        // Descriptors go with the first byte.
        let kept = if sent > 0 { &[] } else { attached };
        let kept: std::io::Result<Vec<OwnedFd>> = kept.iter().map(|fd| fd.try_clone_to_owned()).collect();
        let attached = kept.map_err(|error| Error::new("keep", "a descriptor for an init", error))?;
        self.bytes += bytes.len() - sent;
        self.waiting.push_back(Outgoing { bytes, sent, attached });
        Ok(())
    }

    /// Sends what was kept, as far as it fits now.
    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>) -> Result<()> {
        while let Some(next) = self.waiting.front_mut() {
            let attached: Vec<_> = next.attached.iter().map(|fd| fd.as_fd()).collect();
            let sent = socket::try_send(socket, &[IoSlice::new(&next.bytes[next.sent..])], &attached)?;
            let Some(sent) = sent else { return Ok(()) };
            next.attached.clear();
            next.sent += sent;
            self.bytes -= sent;
            if next.sent == next.bytes.len() {
                self.waiting.pop_front();
            }
        }
        Ok(())
    }

    /// Whether everything was sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Collects messages from a stream socket.
#[derive(Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    /// Descriptors that came, of messages that were not taken yet.
    descriptors: VecDeque<OwnedFd>,
    /// Those of the message that was taken last.
    pub(crate) attached: VecDeque<OwnedFd>,
}

impl Inbox {
    /// Reads what is there. False once the other side is gone.
    pub(crate) fn fill(&mut self, socket: &OwnedFd) -> Result<bool> {
        let mut buffer = [0; 16 * 1024];
        let mut descriptors = Vec::new();
        let length = socket::receive(socket.as_fd(), &mut buffer, &mut descriptors)?;
        self.descriptors.extend(descriptors);
        self.bytes.extend_from_slice(&buffer[..length]);
        Ok(length > 0)
    }

    /// Reads what is there of a side that has ended. What came with descriptors is read by itself, so once is not enough.
    pub(crate) fn fill_with_the_rest(&mut self, socket: &OwnedFd) {
        let mut buffer = [0; 16 * 1024];
        let mut descriptors = Vec::new();
        // Without waiting: something that it started may hold the other end a moment longer.
        while let Ok(Some(length @ 1..)) = socket::try_receive(socket.as_fd(), &mut buffer, &mut descriptors) {
            self.bytes.extend_from_slice(&buffer[..length]);
        }
        self.descriptors.extend(descriptors);
    }

    /// The next whole message, whose descriptors are the attached ones then.
    pub(crate) fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let Some([length @ .., attached]) = self.bytes.first_chunk::<HEAD>() else { return Ok(None) };
        let (end, attached) = (HEAD + u32::from_le_bytes(*length) as usize, usize::from(*attached));
        let Some(body) = self.bytes.get(HEAD..end) else { return Ok(None) };
        let message =
            serde_json::from_slice(body).map_err(|error| Error::new("read", "a message of an init", error))?;
        self.bytes.drain(..end);
        // They come with its first byte.
        self.attached = self.descriptors.drain(..attached.min(self.descriptors.len())).collect();
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use testyard_linux::socket::{Kind, pair};

    use testyard_protocol::RawText;

    use super::*;

    #[test]
    fn nobody_waits_for_an_init_that_reads_nothing_and_nothing_is_lost() {
        let (agent, init) = pair(Kind::Stream).expect("sockets are to be had");
        let (marker, _kept) = pair(Kind::Stream).expect("sockets are to be had");
        let mut outbox = Outbox::default();
        let long = |number: u32| Order::Run {
            command: number,
            exec: Box::new(Exec { argv: vec![RawText(vec![b'x'; 300_000])], ..Exec::default() }),
            source: None,
            once: false,
        };
        // Far more than a socket's buffer; on a blocking send this would never return.
        for number in 0..20 {
            outbox.send(agent.as_fd(), &long(number), &[marker.as_fd()]).expect("it is kept");
        }
        assert!(!outbox.is_empty());
        let mut inbox = Inbox::default();
        let mut seen = Vec::new();
        while seen.len() < 20 {
            outbox.flush(agent.as_fd()).expect("the init is there");
            assert!(inbox.fill(&init).expect("it is there"));
            while let Some(order) = inbox.take::<Order>().expect("an order") {
                assert_eq!(inbox.attached.len(), 1);
                let Order::Run { command, exec, .. } = order else { panic!("{order:?}") };
                assert_eq!(exec.argv[0].0.len(), 300_000);
                seen.push(command);
            }
        }
        assert_eq!(seen, (0..20).collect::<Vec<_>>());
        assert!(outbox.is_empty());

        for _ in 0..300 {
            if let Err(error) = outbox.send(agent.as_fd(), &long(0), &[]) {
                assert_eq!(error.errno(), Errno::AGAIN);
                return;
            }
        }
        panic!("it keeps everything for ever");
    }

    #[test]
    fn every_word_of_an_init_that_has_ended_is_heard_with_its_own_descriptors() {
        let (agent, init) = pair(Kind::Stream).expect("sockets are to be had");
        let (marker, _kept) = pair(Kind::Stream).expect("sockets are to be had");
        let started = |command| Answer::Started { command, pid: 2 };
        let failed = Problem::new(testyard_model::ProblemKind::Command, "x".repeat(40_000));
        let answers = [
            (Answer::Ready, 0),
            (started(1), 1),
            (Answer::Ready, 2),
            (started(2), 0),
            (Answer::Failed { command: 1, problem: failed }, 0),
        ];
        for (answer, attached) in &answers {
            send(init.as_fd(), answer, &vec![marker.as_fd(); *attached]).expect("sent");
        }
        let mut inbox = Inbox::default();
        // The other end is still open, which keeps nobody waiting.
        inbox.fill_with_the_rest(&agent);
        for (answer, attached) in &answers {
            let heard: Answer = inbox.take().expect("an answer").expect("it was sent");
            assert_eq!((format!("{heard:?}"), inbox.attached.len()), (format!("{answer:?}"), *attached));
        }
        assert!(inbox.take::<Answer>().expect("nothing wrong").is_none());
    }
}
