//! Many channels over one link: what both ends have in common.
//!
//! A hub owns the channels' descriptors and the frames that wait for the connection. It never waits: its owner polls
//! the descriptors that it names, says which are ready, and moves frames between it and the connection.
//!
//! A client's connection travels as frames, byte by byte the same, and each descriptor with them as a channel of its
//! own: on the far side a new pipe or socket takes its place. What an agent says after a command's output (that it
//! ended) waits on each side until that output has been passed on.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use testyard_machine::wire::{Look, Received};
use testyard_model::Problem;
use testyard_protocol::frame::{Frame, encode};
use testyard_protocol::{Event, FrameHeader, FrameKind};

use crate::attach;
use crate::channel::{Channel, Incoming, Mark, Outgoing, PIECE, Role, Written};
use crate::message::{Direction, Flow, LinkMessage};
use crate::numbered::{Inbox, Mismatch, Outbox};

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
        self.serve(id, PollFlags::IN);
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
            let ready = channel.front().is_none_or(|front| self.is_written(&front.after));
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
    pub fn receive(&mut self, frame: Frame) -> Option<Arrival> {
        self.inbox.count(frame.payload.len());
        let id = frame.header.stream;
        let arrival = match frame.header.kind {
            FrameKind::Data => {
                self.deliver(id, frame.payload);
                None
            }
            FrameKind::Credit => {
                let bytes = frame.payload.as_slice().try_into().map_or(0, u32::from_le_bytes);
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.credit += u64::from(bytes);
                }
                None
            }
            FrameKind::End => {
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.end();
                }
                self.write(id, false);
                None
            }
            FrameKind::Message => self.obey(id, &frame.payload),
        };
        self.settle();
        arrival
    }

    /// The other side has all frames before this number.
    pub fn acknowledge(&mut self, received: u64) -> Result<(), Mismatch> {
        self.outbox.acknowledge(received)
    }

    fn obey(&mut self, id: u32, payload: &[u8]) -> Option<Arrival> {
        match serde_json::from_slice(payload) {
            Ok(LinkMessage::Connect) if self.side == Side::Far => return Some(Arrival::Client(id)),
            Ok(LinkMessage::Attach(flows)) if self.side == Side::Far => self.attach(id, &flows),
            Ok(LinkMessage::Closed) => {
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.stop_reading();
                    channel.held.clear();
                    if channel.is_connection() {
                        channel.stop_writing();
                    }
                }
            }
            Ok(word) if id == 0 => return Some(Arrival::Word(word)),
            // Both sides are of one build: what neither sends needs no answer.
            _ => {}
        }
        None
    }

    /// Makes what stands here for descriptors of the near side.
    fn attach(&mut self, owner: u32, flows: &[Flow]) {
        let mut made: BTreeMap<u32, OwnedFd> = BTreeMap::new();
        let mut inside = Vec::new();
        for flow in flows {
            if let Some(same) = made.get(&flow.channel).and_then(|fd| fd.try_clone().ok()) {
                inside.push(same);
                continue;
            }
            let Ok((ours, theirs)) = attach::stand_in(flow.direction) else { continue };
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
        self.attached.entry(owner).or_default().extend(inside);
    }

    fn deliver(&mut self, id: u32, bytes: Vec<u8>) {
        let attached = self.attached.remove(&id).unwrap_or_default();
        let after = match self.channels.get(&id) {
            Some(channel) if channel.is_connection() && self.side == Side::Near => self.outputs_of(id),
            Some(_) => Vec::new(),
            None => return self.message(id, &LinkMessage::Closed),
        };
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if !channel.take(bytes, attached, after) {
            return self.refuse(id);
        }
        self.write(id, false);
    }

    /// How much has come for each flow of a connection.
    fn outputs_of(&self, owner: u32) -> Vec<Mark> {
        let flows =
            self.channels.iter().filter(|(_, channel)| matches!(channel.role, Role::Flow { owner: of } if of == owner));
        flows
            .filter(|(_, channel)| channel.writes && channel.received > channel.written)
            .map(|(id, channel)| (*id, channel.received))
            .collect()
    }

    fn is_written(&self, marks: &[Mark]) -> bool {
        marks
            .iter()
            .all(|(id, until)| self.channels.get(id).is_none_or(|channel| !channel.writes || channel.written >= *until))
    }

    fn is_sent(&self, marks: &[Mark]) -> bool {
        marks
            .iter()
            .all(|(id, until)| self.channels.get(id).is_none_or(|channel| !channel.reads || channel.sent >= *until))
    }

    fn write(&mut self, id: u32, gone: bool) {
        let ready = self
            .channels
            .get(&id)
            .is_some_and(|channel| channel.front().is_none_or(|front: &Incoming| self.is_written(&front.after)));
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if !channel.writes || !ready {
            return;
        }
        let idle = channel.front().is_none();
        match channel.write() {
            Written::Refused => self.refuse(id),
            Written::Open if gone && idle && !channel.reads => self.refuse(id),
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
        self.channels.remove(&id);
        self.attached.remove(&id);
    }

    fn read(&mut self, id: u32) {
        let room = self.outbox.has_room();
        let Some(channel) = self.channels.get_mut(&id).filter(|channel| channel.reads && room) else { return };
        if channel.is_connection() {
            return self.read_frames(id);
        }
        let most = usize::try_from(channel.credit).unwrap_or(PIECE);
        if most == 0 {
            return;
        }
        match channel.read(most) {
            None => {}
            Some(bytes) if bytes.is_empty() => {
                channel.stop_reading();
                // A command's outputs end just before it is told that it has ended: both go in one piece.
                self.outbox.push_hurried(end(id), &[], self.side == Side::Near);
            }
            Some(bytes) => {
                channel.credit -= bytes.len() as u64;
                channel.sent += bytes.len() as u64;
                self.outbox.push(data(id), &bytes);
            }
        }
    }

    fn read_frames(&mut self, id: u32) {
        loop {
            let Some(channel) = self.channels.get_mut(&id) else { return };
            if !channel.reads || !channel.is_connection() || !channel.held.is_empty() {
                return;
            }
            match channel.look() {
                Ok(Look::Frame(received)) => self.forward(id, received),
                Ok(Look::Nothing) => return,
                Err(_) => {
                    channel.stop_reading();
                    channel.held.push_back(Outgoing::End);
                    return self.pump(id);
                }
            }
        }
    }

    /// Sends a frame of a client or an agent on.
    fn forward(&mut self, id: u32, received: Received) {
        let Received { frame, descriptors } = received;
        let stream = frame.header.stream;
        let mut held = Vec::new();
        let mut payload = frame.payload;
        if !descriptors.is_empty() {
            match attach::directions(self.side, &frame.header, &payload, &descriptors) {
                Ok(directions) => held.push(Outgoing::Message(self.attach_message(id, descriptors, &directions))),
                Err(problem) if self.side == Side::Near => return self.turn_away(id, stream, &problem),
                Err(problem) => {
                    payload = serde_json::to_vec(&Event::Failed(problem)).unwrap_or_default();
                }
            }
        }
        if self.side == Side::Near && frame.header.kind == FrameKind::Message && stream != 0 {
            attach::as_who_logged_in(&mut payload);
        }
        let mut header = frame.header;
        let mut after = Vec::new();
        if self.side == Side::Far && header.kind == FrameKind::Message {
            header.attached = 0;
            after = self.unread_of(id);
            attach::mark_elsewhere(&header, &mut payload);
        }
        let mut bytes = Vec::with_capacity(12 + payload.len());
        encode(header, &payload, &mut bytes);
        held.push(Outgoing::Bytes(bytes, after));
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.held.extend(held);
        }
        self.pump(id);
    }

    /// Tells a client that what it attached cannot travel. The far side never sees that request.
    fn turn_away(&mut self, id: u32, stream: u32, problem: &Problem) {
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.say(failed(stream, problem));
        }
        self.write(id, false);
    }

    fn attach_message(&mut self, owner: u32, descriptors: Vec<OwnedFd>, directions: &[Direction]) -> LinkMessage {
        let mut flows: Vec<Flow> = Vec::new();
        let mut known: Vec<((u64, u64), Flow)> = Vec::new();
        for (descriptor, direction) in descriptors.into_iter().zip(directions.iter().copied()) {
            let identity = rustix::fs::fstat(&descriptor).map(|facts| (facts.st_dev, facts.st_ino)).ok();
            // Output and error output that lead to one place stay in order.
            let same = known.iter().find(|(of, flow)| {
                Some(*of) == identity && direction == Direction::In && flow.direction == Direction::In
            });
            if let Some((_, flow)) = same {
                flows.push(*flow);
                continue;
            }
            let flow = Flow { channel: self.open(Channel::flow(descriptor, owner, direction)), direction };
            known.extend(identity.map(|identity| (identity, flow)));
            flows.push(flow);
        }
        LinkMessage::Attach(flows)
    }

    /// How far the flows of a connection are when all that is in them now was sent.
    fn unread_of(&self, owner: u32) -> Vec<Mark> {
        let flows =
            self.channels.iter().filter(|(_, channel)| matches!(channel.role, Role::Flow { owner: of } if of == owner));
        flows
            .map(|(id, channel)| (*id, channel.sent, channel.unread()))
            .filter(|(_, _, unread)| *unread > 0)
            .map(|(id, sent, unread)| (id, sent + unread))
            .collect()
    }

    /// Sends what was read of a connection, as far as credit and flows allow.
    fn pump(&mut self, id: u32) {
        loop {
            let Some(channel) = self.channels.get(&id) else { return };
            let ready = match channel.held.front() {
                None => return,
                Some(Outgoing::Bytes(_, after)) => channel.credit > 0 && self.is_sent(after),
                Some(_) => true,
            };
            let Some(channel) = self.channels.get_mut(&id).filter(|_| ready) else { return };
            match channel.held.pop_front() {
                Some(Outgoing::Bytes(mut bytes, _)) => {
                    let most = usize::try_from(channel.credit).unwrap_or(PIECE).min(PIECE);
                    let rest = bytes.split_off(bytes.len().min(most));
                    channel.credit -= bytes.len() as u64;
                    channel.sent += bytes.len() as u64;
                    if !rest.is_empty() {
                        channel.held.push_front(Outgoing::Bytes(rest, Vec::new()));
                    }
                    self.outbox.push(data(id), &bytes);
                }
                Some(Outgoing::Message(message)) => self.message(id, &message),
                Some(Outgoing::End) => {
                    self.outbox.push(end(id), &[]);
                    // The other side has no use for an answer.
                    self.forget(id);
                }
                None => return,
            }
        }
    }

    /// What one channel's progress lets others do, and what is over.
    fn settle(&mut self) {
        let waiting: Vec<u32> =
            self.channels.iter().filter(|(_, channel)| !channel.held.is_empty()).map(|(id, _)| *id).collect();
        for id in waiting {
            self.pump(id);
            // Frames that were received together with what waited.
            self.read_frames(id);
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
