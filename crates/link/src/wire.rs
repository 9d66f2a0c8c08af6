//! The connection that carries a link for now: two descriptors, frames in and out, never waiting.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use testyard_protocol::frame::{Decoded, encode};
use testyard_protocol::{Frame, FrameDecoder, FrameError, FrameHeader, FrameKind};

use crate::breach::Breach;
use crate::hub::{Arrival, Hub};
use crate::message::{WIRE, WireMessage};
use crate::numbered::Mismatch;

/// So much is put into one write where it is there.
const BATCH: usize = 128 * 1024;
/// One read takes at most so much.
const READ: usize = 128 * 1024;
/// Between two signs of life on a link that has nothing to say, at most this part of the time after which it counts
/// as dead.
const PINGS: u32 = 3;

/// After so long the other side is told that something came, where nothing else was to be said.
const ANSWER: Duration = Duration::from_millis(2);

/// So long what is in no hurry waits for something that is.
const COMPANY: Duration = Duration::from_millis(2);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Cut {
    /// It was closed.
    #[error("the connection was closed")]
    Closed,
    /// The kernel says why.
    #[error("the connection broke")]
    Broken(#[source] std::io::Error),
    /// Nothing was heard.
    #[error("nothing was heard for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// What came is no frame.
    #[error("what came is not of the link")]
    Frame(#[from] FrameError),
    /// Both sides count differently.
    #[error("the two sides do not agree on what was sent")]
    Mismatch(#[from] Mismatch),
    /// The other side does what none does.
    #[error("the other side does not keep to the link's rules")]
    Breach(#[from] Breach),
    /// The other side says that it does not go on.
    #[error("the other side refused to go on")]
    Refused,
}

/// A connection.
#[derive(Debug)]
pub struct Wire {
    input: OwnedFd,
    output: OwnedFd,
    decoder: FrameDecoder,
    out: Vec<u8>,
    at: usize,
    words: Vec<WireMessage>,
    /// The other side is to be told how much came: once, however often it asks.
    asked: bool,
    alive: Duration,
    heard: Instant,
    pinged: Instant,
    /// Whether what comes is answered at once, and until when it is to be.
    answers: bool,
    owed: Option<Instant>,
    /// Until when what there is to send waits for more.
    idles: Option<Instant>,
}

impl Wire {
    /// Over these, of which `read` was read already. It is dead when nothing was heard for `alive`.
    pub fn new(input: OwnedFd, output: OwnedFd, read: &[u8], alive: Duration) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&input, true)?;
        rustix::io::ioctl_fionbio(&output, true)?;
        let mut decoder = FrameDecoder::new();
        decoder.feed(read);
        let now = Instant::now();
        Ok(Self {
            input,
            output,
            decoder,
            out: Vec::new(),
            at: 0,
            words: Vec::new(),
            asked: false,
            alive,
            heard: now,
            pinged: now,
            answers: false,
            owed: None,
            idles: None,
        })
    }

    /// Answers whatever comes within a moment. Who carries the bytes over TCP and does not ask for `TCP_NODELAY`, as
    /// Slurm, else holds each small word back that follows another until the receiving kernel has acknowledged that,
    /// which it puts off for 40 ms where nothing goes the other way.
    #[must_use]
    pub fn answering(self) -> Self {
        Self { answers: true, ..self }
    }

    /// What to wait for.
    pub fn interests(&self, hub: &Hub) -> [(BorrowedFd<'_>, PollFlags); 2] {
        let waiting = self.idles.is_none() || hub.waiting().is_hurried();
        let writes = self.at < self.out.len() || self.has_words() || (hub.waiting().has_more() && waiting);
        let out = if writes { PollFlags::OUT } else { PollFlags::empty() };
        [(self.input.as_fd(), PollFlags::IN), (self.output.as_fd(), out)]
    }

    /// Whether all was sent that there was to say.
    #[must_use]
    pub fn is_done(&self, hub: &Hub) -> bool {
        self.at == self.out.len() && !self.has_words() && !hub.waiting().has_more()
    }

    fn has_words(&self) -> bool {
        self.asked || !self.words.is_empty()
    }

    /// When [`Wire::keep_alive`] has something to do next.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        let sign = (self.pinged + self.alive / PINGS).min(self.heard + self.alive);
        self.owed.into_iter().chain(self.idles).fold(sign, Instant::min)
    }

    /// Asks for a sign of life, or finds that none came.
    pub fn keep_alive(&mut self, now: Instant) -> Result<(), Cut> {
        if now >= self.heard + self.alive {
            return Err(Cut::Silent(self.alive));
        }
        if now >= self.pinged + self.alive / PINGS {
            self.pinged = now;
            self.words.push(WireMessage::Ping);
        }
        Ok(())
    }

    /// Says that what came has come, where that is due; to be called before [`Wire::send`].
    fn answer(&mut self, hub: &mut Hub) {
        self.asked |= self.owed.is_some_and(|owed| Instant::now() >= owed) || hub.inbox().is_due();
    }

    /// Says something outside of the numbered frames.
    pub fn say(&mut self, word: WireMessage) {
        self.words.push(word);
    }

    /// Sends what waits, as far as it goes.
    pub fn send(&mut self, hub: &mut Hub) -> Result<(), Cut> {
        loop {
            if self.at == self.out.len() {
                self.answer(hub);
                if self.waits_for_company(hub) {
                    return Ok(());
                }
                self.fill(hub);
            }
            if self.at == self.out.len() {
                return Ok(());
            }
            self.owed = None;
            match rustix::io::write(&self.output, &self.out[self.at..]) {
                Ok(count) => self.at += count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE) => return Err(Cut::Closed),
                Err(errno) => return Err(Cut::Broken(errno.into())),
            }
        }
    }

    /// Whether all that there is to send may wait a moment: each small word of its own is carried through several
    /// processes, and Slurm's sockets hold back the one after it.
    fn waits_for_company(&mut self, hub: &Hub) -> bool {
        if self.has_words() || hub.waiting().is_hurried() || !hub.waiting().has_more() {
            self.idles = None;
            return false;
        }
        let now = Instant::now();
        let until = *self.idles.get_or_insert(now + COMPANY);
        if now >= until {
            self.idles = None;
        }
        now < until
    }

    fn fill(&mut self, hub: &mut Hub) {
        self.out.clear();
        self.at = 0;
        if std::mem::take(&mut self.asked) {
            self.words.push(WireMessage::Received(hub.inbox().tell()));
        }
        for word in self.words.drain(..) {
            let payload = serde_json::to_vec(&word).unwrap_or_default();
            encode(FrameHeader::message(WIRE), &payload, &mut self.out);
        }
        while self.out.len() < BATCH {
            let Some(frame) = hub.outbox().give() else { return };
            self.out.extend_from_slice(frame);
        }
    }

    /// Reads once; what came for the hub's owner.
    pub fn receive(&mut self, hub: &mut Hub, mut arrived: impl FnMut(&mut Hub, Arrival)) -> Result<(), Cut> {
        let mut buffer = vec![0; READ];
        let count = match rustix::io::read(&self.input, &mut buffer) {
            Ok(0) => return Err(Cut::Closed),
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(errno) => return Err(Cut::Broken(errno.into())),
        };
        self.heard = Instant::now();
        self.decoder.feed(&buffer[..count]);
        self.decode(hub, &mut arrived)
    }

    /// Sees to what was read before.
    pub fn decode(&mut self, hub: &mut Hub, arrived: &mut impl FnMut(&mut Hub, Arrival)) -> Result<(), Cut> {
        while let Some(decoded) = self.decoder.next()? {
            let Decoded::Frame(frame) = decoded else { continue };
            if frame.header.stream == WIRE {
                self.word(hub, &frame)?;
                continue;
            }
            if self.answers {
                self.owed.get_or_insert_with(|| Instant::now() + ANSWER);
            }
            if let Some(arrival) = hub.receive(frame)? {
                arrived(hub, arrival);
            }
        }
        self.asked |= hub.inbox().is_due();
        Ok(())
    }

    fn word(&mut self, hub: &mut Hub, frame: &Frame) -> Result<(), Cut> {
        if frame.header.kind != FrameKind::Message {
            return Ok(());
        }
        match serde_json::from_slice(&frame.payload) {
            Ok(WireMessage::Received(count)) => hub.acknowledge(count)?,
            Ok(WireMessage::Ping) => self.asked = true,
            Ok(WireMessage::Refused(_)) => return Err(Cut::Refused),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Side;
    use crate::message::LinkMessage;

    /// A connection and its other end: what that is told, and what tells it.
    fn connection() -> (Wire, OwnedFd, OwnedFd) {
        let ((input, tells), (told, output)) =
            (rustix::pipe::pipe().expect("a pipe"), rustix::pipe::pipe().expect("a pipe"));
        rustix::io::ioctl_fionbio(&told, true).expect("it is ours");
        let wire = Wire::new(input, output, b"", Duration::from_secs(60)).expect("descriptors");
        (wire, told, tells)
    }

    /// What the other end was told in words.
    fn words(told: &OwnedFd) -> Vec<WireMessage> {
        let (mut decoder, mut buffer) = (FrameDecoder::new(), [0; 4096]);
        let count = rustix::io::read(told, &mut buffer).unwrap_or(0);
        decoder.feed(&buffer[..count]);
        let frames = std::iter::from_fn(|| match decoder.next().expect("frames") {
            Some(Decoded::Frame(frame)) => Some(frame),
            _ => None,
        });
        frames.filter_map(|frame| serde_json::from_slice(&frame.payload).ok()).collect()
    }

    #[test]
    fn what_comes_is_answered_once_where_that_is_asked_for() {
        for answers in [true, false] {
            let (wire, told, tells) = connection();
            let mut wire = if answers { wire.answering() } else { wire };
            let (mut hub, mut other) = (Hub::new(Side::Near), Hub::new(Side::Far));
            other.say(&LinkMessage::Ready { limits: Vec::new() });
            rustix::io::write(&tells, other.outbox().give().expect("it was said")).expect("a pipe has room");
            wire.receive(&mut hub, |_, _| ()).expect("it is there");
            let soon = Instant::now() + ANSWER;
            assert_eq!(wire.deadline() <= soon, answers);
            // As its owner does whenever there is something to do.
            while Instant::now() <= soon {
                wire.send(&mut hub).expect("a pipe has room");
            }
            wire.send(&mut hub).expect("a pipe has room");
            let said = words(&told);
            assert_eq!(said.len(), usize::from(answers), "{said:?}");
            assert!(wire.deadline() > soon, "nothing more is owed");
            // An answer is not answered.
            let mut bytes = Vec::new();
            encode(FrameHeader::message(WIRE), &serde_json::to_vec(&WireMessage::Ping).expect("JSON"), &mut bytes);
            rustix::io::write(&tells, &bytes).expect("a pipe has room");
            wire.receive(&mut hub, |_, _| ()).expect("it is there");
            assert!(wire.deadline() > soon + ANSWER);
        }
    }

    #[test]
    fn however_often_it_is_asked_it_answers_once() {
        let (mut wire, told, tells) = connection();
        let mut hub = Hub::new(Side::Near);
        let mut bytes = Vec::new();
        let ping = serde_json::to_vec(&WireMessage::Ping).expect("JSON");
        (0..1000).for_each(|_| encode(FrameHeader::message(WIRE), &ping, &mut bytes));
        rustix::io::write(&tells, &bytes).expect("a pipe has room");
        wire.receive(&mut hub, |_, _| ()).expect("it is there");
        assert!(!wire.is_done(&hub));
        wire.send(&mut hub).expect("a pipe has room");
        assert_eq!(words(&told), [WireMessage::Received(0)]);
        assert!(wire.is_done(&hub));
    }

    #[test]
    fn the_end_of_an_output_goes_with_what_follows_it_or_alone_after_a_moment() {
        let (mut wire, told, _tells) = connection();
        let mut hub = Hub::new(Side::Far);
        let frames = || {
            let mut buffer = [0; 4096];
            rustix::io::ioctl_fionbio(&told, true).expect("it is ours");
            rustix::io::read(&told, &mut buffer).unwrap_or(0)
        };
        let end = FrameHeader { kind: FrameKind::End, channel: 0, attached: 0, stream: 7 };
        hub.outbox().push_hurried(end, &[], false);
        wire.send(&mut hub).expect("a pipe has room");
        assert_eq!(frames(), 0, "it waits");
        let [_, (_, wanted)] = wire.interests(&hub);
        assert!(wanted.is_empty() && !wire.is_done(&hub) && wire.deadline() <= Instant::now() + COMPANY);
        hub.say(&LinkMessage::Ended);
        wire.send(&mut hub).expect("a pipe has room");
        assert!(frames() > 0 && wire.is_done(&hub), "both go at once");
        hub.outbox().push_hurried(end, &[], false);
        let sent = testkit::wait_until(Duration::from_secs(20), || {
            wire.send(&mut hub).expect("a pipe has room");
            wire.is_done(&hub)
        });
        assert!(sent && frames() > 0);
    }
}
