//! Many channels over one link: what both ends have in common.
//!
//! A hub owns the channels' descriptors and the frames that wait for the connection. It never waits: its owner polls
//! the descriptors that it names, says which are ready, and moves frames between it and the connection.
//!
//! A client's connection travels as frames, byte by byte the same, and each descriptor with them as a channel of its
//! own: on the far side a new pipe or socket takes its place. What an agent says after a command's output (that it
//! ended) waits on each side until that output has been passed on; what it says of other commands does not.
//!
//! What waits is bounded: each channel has a window, which its reader gives back as it reads ([`channel`](crate::channel)),
//! and whoever sends more, or lets this side talk without end, has broken the link: a [`Breach`].

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use testyard_model::Problem;
use testyard_protocol::frame::{Frame, encode};
use testyard_protocol::{Event, FrameHeader, FrameKind};

use crate::attach;
use crate::breach::Breach;
use crate::channel::{Channel, Mark, Owner, Written};
use crate::message::{Direction, Flow, LinkMessage};
use crate::numbered::{Inbox, Mismatch, Outbox};

#[cfg(test)]
mod joined;
mod reading;
#[cfg(test)]
mod tests;

/// Which end of the link this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where the clients are.
    Near,
    /// Where the machine is.
    Far,
}

/// What came that the hub's owner has to see to.
#[derive(Debug)]
pub enum Arrival {
    /// A client: connect it to the agent with [`Hub::connected`], or turn it away.
    Client(u32),
    /// A word on channel 0.
    Word(LinkMessage),
}

/// The channels of a link.
#[derive(Debug)]
pub struct Hub {
    side: Side,
    channels: BTreeMap<u32, Channel>,
    /// What flows are about to be attached to the next bytes of a connection, and bytes of clients that are not
    /// connected yet.
    attached: BTreeMap<u32, Vec<OwnedFd>>,
    next: u32,
    outbox: Outbox,
    inbox: Inbox,
}

impl Hub {
    /// Without channels.
    #[must_use]
    pub fn new(side: Side) -> Self {
        let (outbox, inbox) = (Outbox::default(), Inbox::default());
        Self { side, channels: BTreeMap::new(), attached: BTreeMap::new(), next: 1, outbox, inbox }
    }

    /// What waits for the connection.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// What waits for the connection, to be looked at.
    #[must_use]
    pub fn waiting(&self) -> &Outbox {
        &self.outbox
    }

    /// How much has come.
    pub fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }

    /// How many clients' connections there are.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.channels.values().filter(|channel| channel.is_connection()).count()
    }

    /// Says something on channel 0.
    pub fn say(&mut self, message: &LinkMessage) {
        self.message(0, message);
    }

    /// Takes a client's connection, of which `read` was read already.
    pub fn adopt(&mut self, socket: OwnedFd, read: &[u8]) {
        let id = self.open(Channel::connection(socket, read));
        self.message(id, &LinkMessage::Connect);
        // What was read already makes no descriptor ready.
        self.read_frames(id);
        self.settle();
    }

    /// The agent's end of a client's connection.
    pub fn connected(&mut self, id: u32, agent: Result<OwnedFd, Problem>) {
        match agent {
            Ok(socket) => {
                self.channels.insert(id, Channel::connection(socket, &[]));
            }
            Err(problem) => {
                let bytes = failed(0, &problem);
                self.outbox.push(data(id), &bytes);
                self.outbox.push(end(id), &[]);
            }
        }
    }

    /// Ends every channel; clients are told why.
    pub fn fail(&mut self, problem: &Problem) {
        let bytes = failed(0, problem);
        for channel in self.channels.values_mut().filter(|channel| channel.is_connection()) {
            // In the middle of a frame nothing can be said: the end of the connection says it.
            channel.say(bytes.clone());
            channel.write_all_now();
        }
        self.channels.clear();
        self.attached.clear();
        self.outbox = Outbox::default();
        self.inbox = Inbox::default();
    }

    /// What to wait for, with the channels' numbers.
    #[must_use]
    pub fn interests(&self) -> Vec<(u32, BorrowedFd<'_>, PollFlags)> {
        let room = self.outbox.has_room();
        let wanted = self.channels.iter().filter_map(|(id, channel)| {
            let ready = channel.next(|marks| self.is_written(marks)).is_some();
            Some((*id, channel.descriptor()?, channel.interest(room, ready)?))
        });
        wanted.collect()
    }

    /// Something happened on a channel's descriptor.
    pub fn serve(&mut self, id: u32, happened: PollFlags) {
        let gone = happened.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
        if happened.intersects(PollFlags::OUT) || gone {
            self.write(id, gone);
        }
        if happened.intersects(PollFlags::IN) || gone {
            self.read(id);
        }
        self.settle();
    }

    /// A numbered frame came over the link.
    pub fn receive(&mut self, frame: Frame) -> Result<Option<Arrival>, Breach> {
        self.inbox.count(frame.payload.len());
        let id = frame.header.stream;
        let arrival = match frame.header.kind {
            FrameKind::Data => {
                self.deliver(id, frame.payload)?;
                None
            }
            FrameKind::Credit => {
                let bytes = frame.payload.as_slice().try_into().map_or(0, u32::from_le_bytes);
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.credit = channel.credit.saturating_add(u64::from(bytes));
                }
                None
            }
            FrameKind::End => {
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.end();
                    if channel.is_connection() {
                        // The other side has let it go: see `forward`.
                        self.clear(id);
                    }
                }
                self.write(id, false);
                None
            }
            FrameKind::Message => self.obey(id, &frame.payload),
        };
        self.settle();
        if self.outbox.is_flooded() { Err(Breach::Deaf) } else { Ok(arrival) }
    }

    /// The other side has all frames before this number.
    pub fn acknowledge(&mut self, received: u64) -> Result<(), Mismatch> {
        self.outbox.acknowledge(received)?;
        // There is room again.
        self.settle();
        Ok(())
    }

    /// There is a new connection, whose other side has all frames before this number.
    pub fn resume(&mut self, received: u64) -> Result<(), Mismatch> {
        self.outbox.resume(received)?;
        self.settle();
        Ok(())
    }

    fn obey(&mut self, id: u32, payload: &[u8]) -> Option<Arrival> {
        match serde_json::from_slice(payload) {
            Ok(LinkMessage::Connect) if self.side == Side::Far => return Some(Arrival::Client(id)),
            Ok(LinkMessage::Attach { stream, flows }) if self.side == Side::Far => {
                self.attach(Owner { connection: id, stream }, &flows);
            }
            Ok(LinkMessage::Closed) => {
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.stop_reading();
                    if channel.is_connection() {
                        channel.stop_writing();
                    }
                    self.clear(id);
                }
            }
            Ok(word) if id == 0 => return Some(Arrival::Word(word)),
            // Both sides are of one build: what neither sends needs no answer.
            _ => {}
        }
        None
    }

    /// Makes what stands here for descriptors of the near side.
    fn attach(&mut self, owner: Owner, flows: &[Flow]) {
        let mut made: BTreeMap<u32, OwnedFd> = BTreeMap::new();
        let mut inside = Vec::new();
        for flow in flows {
            if let Some(same) = made.get(&flow.channel).and_then(|fd| fd.try_clone().ok()) {
                inside.push(same);
                continue;
            }
            let Ok((ours, theirs)) = attach::stand_in(flow.direction) else {
                // Nobody takes its bytes, and none will come.
                self.message(flow.channel, &LinkMessage::Closed);
                self.outbox.push(end(flow.channel), &[]);
                continue;
            };
            // Its bytes go the other way round here.
            let direction = match flow.direction {
                Direction::Out => Direction::In,
                Direction::In => Direction::Out,
                Direction::Both => Direction::Both,
            };
            self.channels.insert(flow.channel, Channel::flow(ours, owner, direction));
            if let Ok(copy) = theirs.try_clone() {
                made.insert(flow.channel, copy);
            }
            inside.push(theirs);
        }
        self.attached.entry(owner.connection).or_default().extend(inside);
    }

    fn deliver(&mut self, id: u32, bytes: Vec<u8>) -> Result<(), Breach> {
        let attached = self.attached.remove(&id).unwrap_or_default();
        let unwritten = match self.channels.get(&id) {
            Some(channel) if channel.is_connection() && self.side == Side::Near => self.unwritten_of(id),
            Some(_) => Vec::new(),
            // The other side knows already, or is about to: it was on its way.
            None => return Ok(()),
        };
        let Some(channel) = self.channels.get_mut(&id) else { return Ok(()) };
        channel.take(bytes, attached, &unwritten)?;
        self.write(id, false);
        Ok(())
    }

    /// How much has come for the flows of a connection of which something is not written, and of which streams they are.
    fn unwritten_of(&self, connection: u32) -> Vec<(u32, Mark)> {
        let flows = self.channels.iter().filter(|(_, channel)| channel.writes && channel.received > channel.written);
        let of_owner = flows.filter_map(|(id, channel)| Some((channel.owner()?, (*id, channel.received))));
        of_owner.filter(|(owner, _)| owner.connection == connection).map(|(owner, mark)| (owner.stream, mark)).collect()
    }

    fn is_written(&self, marks: &[Mark]) -> bool {
        marks
            .iter()
            .all(|(id, until)| self.channels.get(id).is_none_or(|channel| !channel.writes || channel.written >= *until))
    }

    fn write(&mut self, id: u32, gone: bool) {
        let Some(channel) = self.channels.get(&id).filter(|channel| channel.writes) else { return };
        let next = channel.next(|marks| self.is_written(marks));
        if next.is_none() && !channel.is_written_out() {
            return;
        }
        let Some(channel) = self.channels.get_mut(&id) else { return };
        match channel.write(next) {
            Written::Refused => self.refuse(id),
            Written::Open if gone && next.is_none() && !channel.reads => self.refuse(id),
            Written::Ended if channel.is_connection() => self.forget(id),
            Written::Ended => channel.stop_writing(),
            Written::Open => {
                if let Some(grant) = channel.grant() {
                    let header = FrameHeader { kind: FrameKind::Credit, channel: 0, attached: 0, stream: id };
                    self.outbox.push(header, &grant.to_le_bytes());
                }
            }
        }
    }

    /// Nobody takes what comes on this channel.
    fn refuse(&mut self, id: u32) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        channel.stop_writing();
        let connection = channel.is_connection();
        self.message(id, &LinkMessage::Closed);
        if connection {
            self.forget(id);
        }
    }

    /// A connection is over: what was attached to it lives on as long as somebody has it open.
    fn forget(&mut self, id: u32) {
        self.clear(id);
        self.channels.remove(&id);
        self.attached.remove(&id);
    }

    /// What one channel's progress lets others do, and what is over.
    fn settle(&mut self) {
        let holding = self.channels.iter().filter(|(_, channel)| !channel.held.is_empty());
        let waiting: Vec<(u32, bool)> = holding.map(|(id, channel)| (*id, channel.held.is_full())).collect();
        for (id, full) in waiting {
            self.pump(id);
            if full {
                // Frames that were received together with what waited.
                self.read_frames(id);
            }
        }
        self.channels.retain(|_, channel| !channel.is_over());
    }

    fn open(&mut self, channel: Channel) -> u32 {
        let id = self.next;
        // A link that has had four billion channels begins again; those of the beginning are long gone.
        self.next = if id >= u32::MAX - 1 { 1 } else { id + 1 };
        self.channels.insert(id, channel);
        id
    }

    fn message(&mut self, id: u32, message: &LinkMessage) {
        let payload = serde_json::to_vec(message).unwrap_or_default();
        self.outbox.push(FrameHeader::message(id), &payload);
    }
}

fn data(id: u32) -> FrameHeader {
    FrameHeader { kind: FrameKind::Data, channel: 0, attached: 0, stream: id }
}

fn end(id: u32) -> FrameHeader {
    FrameHeader { kind: FrameKind::End, channel: 0, attached: 0, stream: id }
}

/// A frame that ends a stream with a problem.
fn failed(stream: u32, problem: &Problem) -> Vec<u8> {
    let payload = serde_json::to_vec(&Event::Failed(problem.clone())).unwrap_or_default();
    let mut bytes = Vec::with_capacity(12 + payload.len());
    encode(FrameHeader::message(stream), &payload, &mut bytes);
    bytes
}
