//! The near side's supervisor: its orders, what it is told, and the end.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use testyard_linux::socket;
use testyard_machine::wire::{FrameReader, Look, send_frame};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::{FrameHeader, Order, Report};

use super::{CLIENT_WAITS, Near, Phase};
use crate::connect;
use crate::message::LinkMessage;
use crate::plain;

impl Near {
    pub(super) fn hear_supervisor(&mut self) {
        loop {
            let Some((socket, reader)) = &mut self.supervisor else { return };
            match reader.look(&*socket) {
                Ok(Look::Frame(mut received)) => {
                    if let Ok(order) = serde_json::from_slice(&received.frame.payload) {
                        self.obey(order, received.descriptors.pop());
                    }
                }
                Ok(Look::Nothing) => return,
                // Dead: the machine lives on, and another one comes.
                Err(_) => self.supervisor = None,
            }
        }
    }

    fn obey(&mut self, order: Order, attached: Option<OwnedFd>) {
        match (order, attached) {
            (Order::Adopt { read }, Some(client)) => match &self.phase {
                Phase::Up { .. } => self.hub.adopt(client, &read.0),
                _ => self.waiting.push((client, read.0, Instant::now() + CLIENT_WAITS)),
            },
            (Order::Shutdown { grace_ms }, _) => self.end(Duration::from_millis(grace_ms)),
            // Numbers of environments are the far side's own, and so is its host name.
            _ => {}
        }
    }

    /// Asks the far side to end.
    pub(super) fn end(&mut self, grace: Duration) {
        if self.ending.is_some() {
            return;
        }
        // The supervisor kills what takes longer than this and a bit.
        self.ending = Some(Instant::now() + grace + Duration::from_millis(1500));
        if self.begun && matches!(self.phase, Phase::Up { .. }) {
            self.hub.say(&LinkMessage::End);
        } else {
            self.over = Some(Ok(()));
        }
    }

    pub(super) fn accept_supervisor(&mut self) {
        let Ok(socket) = socket::accept(&self.listener) else { return };
        let own = rustix::process::getuid().as_raw();
        if !socket::peer(&socket).is_ok_and(|peer| peer.uid == own) {
            return;
        }
        self.supervisor = Some((socket, FrameReader::new(4096)));
        if let Some(limits) = self.ready.clone() {
            self.report(&Report::Ready { limits });
        }
        self.reported = false;
    }

    pub(super) fn report(&mut self, report: &Report) {
        let Some((socket, _)) = &self.supervisor else { return };
        let payload = serde_json::to_vec(report).unwrap_or_default();
        // A supervisor that is gone is noticed by the next read.
        let _ = send_frame(socket, FrameHeader::message(0), &payload, &[]);
    }

    pub(super) fn report_activity(&mut self) {
        let open = self.hub.clients() + self.waiting.len();
        let busy = open > 0;
        if busy != self.reported {
            self.reported = busy;
            self.report(&Report::Activity { open: u32::try_from(open).unwrap_or(u32::MAX) });
        }
    }

    /// Becomes the agent of a machine that is reached over plain `ssh`; returns only what is against it.
    pub(super) fn do_without(&mut self, reason: Option<Problem>) -> Result<(), Problem> {
        match (&self.start.plain, &self.supervisor) {
            (Some(plain), Some((link, _))) => {
                Err(plain::become_agent(&self.start, plain, link, &self.listener, reason.as_ref()))
            }
            (None, _) => Err(reason.unwrap_or_else(|| Problem::new(ProblemKind::Bug, "nothing was said of plain ssh"))),
            (_, None) => Err(Problem::new(ProblemKind::Unavailable, "the machine's supervisor is gone")),
        }
    }

    /// Ends the transport's process.
    pub(super) fn hang_up(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Lost { again: Instant::now() }) {
            Phase::Up { child, wire, .. } => {
                drop(wire);
                connect::end(child);
            }
            Phase::Connecting { thread, handle, .. } => {
                let child = handle.lock().ok().and_then(|mut held| held.take());
                let _ = child.map(connect::end);
                // It notices that its process has ended.
                let _ = thread.join();
            }
            Phase::Lost { .. } => {}
        }
    }
}
