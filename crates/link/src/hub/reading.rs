//! What is read of clients, agents and flows, and sent over the link.

use std::os::fd::OwnedFd;

use testyard_machine::wire::{Look, Received};
use testyard_model::Problem;
use testyard_protocol::frame::encode;
use testyard_protocol::{Event, FrameKind};

use super::{Hub, Side, data, end, failed};
use crate::attach;
use crate::channel::{Channel, Mark, Owner};
use crate::held::{Outgoing, Released};
use crate::message::{Direction, Flow, LinkMessage};

impl Hub {
    pub(super) fn read(&mut self, id: u32) {
        let room = self.outbox.has_room();
        let Some(channel) = self.channels.get_mut(&id).filter(|channel| channel.reads && room) else { return };
        if channel.is_connection() {
            return self.read_frames(id);
        }
        match channel.read() {
            None => {}
            Some(bytes) if bytes.is_empty() => {
                channel.stop_reading();
                // A command's outputs end just before it is told that it has ended: both go in one piece.
                self.outbox.push_hurried(end(id), &[], self.side == Side::Near);
            }
            Some(bytes) => self.outbox.push(data(id), &bytes),
        }
    }

    pub(super) fn read_frames(&mut self, id: u32) {
        loop {
            let Some(channel) = self.channels.get_mut(&id) else { return };
            if !channel.reads || !channel.is_connection() || channel.held.is_full() {
                return;
            }
            match channel.look() {
                Ok(Look::Frame(received)) => self.forward(id, received),
                Ok(Look::Nothing) => return,
                Err(_) => {
                    channel.stop_reading();
                    channel.held.push(Outgoing::End);
                    return self.pump(id);
                }
            }
        }
    }

    /// Sends a frame of a client or an agent on. Once the other side has let that connection go nobody wants it; it is read
    /// all the same, as whoever waits for that might not read what is still to be written.
    fn forward(&mut self, id: u32, received: Received) {
        if self.channels.get(&id).is_none_or(Channel::is_ending) {
            return;
        }
        let Received { frame, descriptors } = received;
        let stream = frame.header.stream;
        let mut message = None;
        let mut payload = frame.payload;
        if !descriptors.is_empty() {
            match attach::directions(self.side, &frame.header, &payload, &descriptors) {
                Ok(directions) => {
                    let owner = Owner { connection: id, stream };
                    message = Some(self.attach_message(owner, descriptors, &directions));
                }
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
            if attach::comes_after_output(&payload) {
                after = self.unread_of(Owner { connection: id, stream });
            }
            attach::mark_elsewhere(&header, &mut payload);
        }
        let mut bytes = Vec::with_capacity(12 + payload.len());
        encode(header, &payload, &mut bytes);
        if let Some(channel) = self.channels.get_mut(&id) {
            message.into_iter().for_each(|message| channel.held.push(Outgoing::Message(message)));
            channel.held.push(Outgoing::Frame { bytes, at: 0, stream, after });
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

    /// The flows of a message that was sent.
    fn make_known(&mut self, message: &LinkMessage) {
        let LinkMessage::Attach { flows, .. } = message else { return };
        for flow in flows {
            if let Some(channel) = self.channels.get_mut(&flow.channel) {
                channel.known = true;
            }
        }
    }

    /// Nothing of what waits of a connection is sent any more, so that nobody gets to know of its flows.
    pub(super) fn clear(&mut self, connection: u32) {
        if let Some(channel) = self.channels.get_mut(&connection) {
            channel.held.clear();
        }
        self.channels
            .retain(|_, channel| channel.known || channel.owner().is_none_or(|owner| owner.connection != connection));
    }

    fn attach_message(&mut self, owner: Owner, descriptors: Vec<OwnedFd>, directions: &[Direction]) -> LinkMessage {
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
            let mut channel = Channel::flow(descriptor, owner, direction);
            // Until this very message is sent.
            channel.known = false;
            let flow = Flow { channel: self.open(channel), direction };
            known.extend(identity.map(|identity| (identity, flow)));
            flows.push(flow);
        }
        LinkMessage::Attach { stream: owner.stream, flows }
    }

    /// How far the flows of a connection's stream are when all that is in them now was sent.
    fn unread_of(&self, owner: Owner) -> Vec<Mark> {
        let flows = self.channels.iter().filter(|(_, channel)| channel.owner() == Some(owner));
        flows
            .map(|(id, channel)| (*id, channel.sent, channel.unread()))
            .filter(|(_, _, unread)| *unread > 0)
            .map(|(id, sent, unread)| (id, sent + unread))
            .collect()
    }

    fn is_sent(&self, marks: &[Mark]) -> bool {
        marks
            .iter()
            .all(|(id, until)| self.channels.get(id).is_none_or(|channel| !channel.reads || channel.sent >= *until))
    }

    /// Sends what was read of a connection, as far as room, credit and flows allow.
    pub(super) fn pump(&mut self, id: u32) {
        while self.outbox.has_room() {
            let Some(channel) = self.channels.get(&id) else { return };
            let Some(next) = channel.held.next(channel.credit, |marks| self.is_sent(marks)) else { return };
            match self.channels.get_mut(&id).and_then(|channel| channel.release(next)) {
                Some(Released::Bytes(bytes)) => self.outbox.push(data(id), &bytes),
                Some(Released::Message(message)) => {
                    self.message(id, &message);
                    self.make_known(&message);
                }
                Some(Released::End) => {
                    self.outbox.push(end(id), &[]);
                    // The other side has no use for an answer.
                    self.forget(id);
                }
                None => return,
            }
        }
    }
}
