//! What is said on a link, beside bytes.
//!
//! A link's frames are those of the protocol, whose `stream` is the channel. Channel 0 is the session itself, [`WIRE`]
//! is the connection that carries it: its messages are not numbered, and end with it.

use serde::{Deserialize, Serialize};
use testyard_model::{MachineSpec, Problem};

/// The version of the link. Both sides come from one delivery, so it is only ever compared.
pub const LINK_VERSION: u32 = 2;

/// The channel of the connection itself.
pub const WIRE: u32 = u32::MAX;

/// Said on [`WIRE`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WireMessage {
    /// The near side's first word.
    Hello(Box<Hello>),
    /// The far side's answer.
    Welcome {
        /// How many frames it has of this session.
        received: u64,
        /// Its program's name and version.
        server: String,
    },
    /// The far side cannot serve this session.
    Refused(Problem),
    /// So many frames have come; sent now and then, and as the answer to `ping`.
    Received(u64),
    /// Are you there?
    Ping,
}

/// Which session the near side wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`LINK_VERSION`].
    pub version: u32,
    /// The session, a random name: lower-case letters and digits.
    pub session: String,
    /// None begins the session. Else it is one that began before: so many frames of it have come.
    pub resume: Option<u64>,
    /// What the far side is to be.
    pub start: FarStart,
}

/// What the far side is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FarStart {
    /// The machine there.
    pub spec: MachineSpec,
    /// The machine's name here, which is its name there.
    pub name: String,
    /// How long everything there lives on without a link, in milliseconds.
    pub grace_ms: u64,
    /// How often something is heard at least, in milliseconds.
    pub alive_ms: u64,
}

/// Said on channel 0 and on those of clients, numbered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkMessage {
    /// Far: the machine is there (channel 0).
    Ready {
        /// What it cannot isolate or limit.
        limits: Vec<String>,
    },
    /// Far: the machine could not be made, or is no longer there (channel 0).
    Broken(Problem),
    /// Near: end everything and remove it (channel 0).
    End,
    /// Far: it is gone (channel 0). The last word.
    Ended,
    /// Near: a client has come; the channel is its connection.
    Connect,
    /// Near: the next frame of this client's connection carries descriptors; these channels are what they lead to.
    Attach {
        /// The frame's stream.
        stream: u32,
        /// In the order of the descriptors.
        flows: Vec<Flow>,
    },
    /// Nothing that is sent on this channel is wanted any more.
    Closed,
}

/// A descriptor that travels as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Its channel; one that was attached before in the same frame is the same pipe.
    pub channel: u32,
    /// Which way its bytes go.
    pub direction: Direction,
}

/// Which way a descriptor's bytes go, as the near side sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// They are read here and are input there.
    Out,
    /// They are output there and written here.
    In,
    /// Both: a socket.
    Both,
}
