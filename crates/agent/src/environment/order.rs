//! What the agent and an environment's init say to each other: length-prefixed JSON, descriptors attached.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use testyard_linux::{Error, Result, socket};
use testyard_model::Problem;
use testyard_protocol::{Exec, RawText};

/// From the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The id maps are written: go on.
    Go,
    /// Run this. Attached: the source if there is a path for it, then three streams unless it has a terminal.
    Run { command: u32, exec: Box<Exec>, source: Option<RawText>, once: bool },
    /// Send a signal to a command (to its group if asked).
    Signal { command: u32, signal: i32, group: bool },
    /// End a command and everything it started.
    Kill { command: u32 },
    /// Say when something accepts connections on this port of the loopback.
    Listening { wait: u32, port: u16, patience_ms: u64 },
    /// Open your namespaces for somebody who wants in.
    Namespaces,
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
    /// Attached: the file system of its root's changes where there is one, then that of its source's changes
    /// where that was shown.
    Uppers { root: bool, source: bool },
    /// Something accepts connections, or nothing did in time.
    Listening { wait: u32, accepts: bool },
    /// A command was forked. Attached: the terminal's controlling side if it has one.
    Started { command: u32, pid: i32 },
    /// A command ended. Attached, if it was all that the environment was made for: its network, so that the agent
    /// decides when that goes.
    Exited { command: u32, status: i32, cpu_us: u64, memory_peak: u64, with_network: bool },
    /// A command could not be started.
    Failed { command: u32, problem: Problem },
}

/// Sends one message; blocks while the other side's buffer is full.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &impl Serialize, attached: &[BorrowedFd<'_>]) -> Result<()> {
    let body = serde_json::to_vec(message).map_err(|error| Error::new("write", "a message to an init", error))?;
    let head = (body.len() as u32).to_le_bytes();
    let mut sent = socket::send(socket, &[IoSlice::new(&head), IoSlice::new(&body)], attached)?;
    let whole = [head.as_slice(), body.as_slice()].concat();
    while sent < whole.len() {
        sent += socket::send(socket, &[IoSlice::new(&whole[sent..])], &[])?;
    }
    Ok(())
}

/// Collects messages from a stream socket.
#[derive(Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    /// Descriptors that came, oldest first.
    pub(crate) attached: std::collections::VecDeque<OwnedFd>,
}

impl Inbox {
    /// Reads what is there. False once the other side is gone.
    pub(crate) fn fill(&mut self, socket: &OwnedFd) -> Result<bool> {
        let mut buffer = [0; 16 * 1024];
        let mut descriptors = Vec::new();
        let length = socket::receive(socket.as_fd(), &mut buffer, &mut descriptors)?;
        self.attached.extend(descriptors);
        self.bytes.extend_from_slice(&buffer[..length]);
        Ok(length > 0)
    }

    /// The next whole message.
    pub(crate) fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let Some(head) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let end = 4 + u32::from_le_bytes(*head) as usize;
        let Some(body) = self.bytes.get(4..end) else { return Ok(None) };
        let message =
            serde_json::from_slice(body).map_err(|error| Error::new("read", "a message of an init", error))?;
        self.bytes.drain(..end);
        Ok(Some(message))
    }
}
