//! Frames that are sent exactly once over connections that break.
//!
//! Both sides count the frames of a link from 0. What was sent stays here until the other side says that it has it;
//! after a break each side says how many it has, and the other sends the rest again. No clock, no IO.

use std::collections::VecDeque;

use testyard_protocol::{FrameHeader, frame};

/// With so much that the other side has not acknowledged, in bytes, nothing more is taken from local sources.
const MOST_UNACKNOWLEDGED: usize = 8 << 20;
/// What is said on a channel's behalf waits for no room, and comes to far less than this where the other side
/// acknowledges what it gets.
const FLOOD: usize = 64 << 20;
/// What a frame costs beside its bytes.
const OVERHEAD: usize = 64;
/// What was received is acknowledged at the latest after so many bytes,
const BYTES_UNTOLD: usize = 256 << 10;
/// or so many frames.
const FRAMES_UNTOLD: u64 = 256;

/// The other side counts what nobody sent: it is not the one with which the link began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other side has {claimed} frames, of which {kept} to {sent} could be sent again")]
pub struct Mismatch {
    /// What it says it has.
    pub claimed: u64,
    /// The oldest that is still here.
    pub kept: u64,
    /// How many there ever were.
    pub sent: u64,
}

/// What was sent, or is to be, and is not acknowledged.
#[derive(Debug, Default)]
pub struct Outbox {
    /// The number of the first of `frames`.
    first: u64,
    frames: VecDeque<Vec<u8>>,
    /// How many of `frames` this connection was given.
    given: usize,
    /// How many any connection was given, of all there ever were: one that came late may have begun again before what
    /// an earlier one took was told.
    sent: u64,
    /// The number behind the last frame that is to be sent at once.
    hurried: u64,
    /// Of `frames`, in bytes.
    cost: usize,
}

impl Outbox {
    /// Adds a frame.
    pub fn push(&mut self, header: FrameHeader, payload: &[u8]) {
        self.push_hurried(header, payload, true);
    }

    /// Adds a frame, which may wait a moment for others where it is in no hurry.
    pub fn push_hurried(&mut self, header: FrameHeader, payload: &[u8], hurried: bool) {
        let mut bytes = Vec::with_capacity(frame::HEADER + payload.len());
        frame::encode(header, payload, &mut bytes);
        self.cost += bytes.len() + OVERHEAD;
        self.frames.push_back(bytes);
        if hurried {
            self.hurried = self.first + self.frames.len() as u64;
        }
    }

    /// Whether sources may add more.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.cost < MOST_UNACKNOWLEDGED
    }

    /// Whether more waits than any side has to say that keeps to [`Outbox::has_room`].
    #[must_use]
    pub fn is_flooded(&self) -> bool {
        self.cost > FLOOD
    }

    /// The next frame for the connection, once.
    pub fn give(&mut self) -> Option<&[u8]> {
        let frame = self.frames.get(self.given)?;
        self.given += 1;
        self.sent = self.sent.max(self.first + self.given as u64);
        Some(frame)
    }

    /// Whether a frame waits for a connection.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.given < self.frames.len()
    }

    /// Whether one that is to be sent at once waits for a connection.
    #[must_use]
    pub fn is_hurried(&self) -> bool {
        self.hurried > self.first + self.given as u64
    }

    /// The other side has all frames before this number.
    pub fn acknowledge(&mut self, received: u64) -> Result<(), Mismatch> {
        if received < self.first || received > self.sent {
            return Err(Mismatch { claimed: received, kept: self.first, sent: self.sent });
        }
        while self.first < received {
            let frame = self.frames.pop_front().expect("counted above");
            self.cost -= frame.len() + OVERHEAD;
            self.given = self.given.saturating_sub(1);
            self.first += 1;
        }
        Ok(())
    }

    /// A new connection, whose other side has all frames before this number: the rest is given again.
    pub fn resume(&mut self, received: u64) -> Result<(), Mismatch> {
        self.acknowledge(received)?;
        self.given = 0;
        Ok(())
    }
}

/// How much was received.
#[derive(Debug, Default)]
pub struct Inbox {
    received: u64,
    told: u64,
    bytes: usize,
}

impl Inbox {
    /// A numbered frame came.
    pub fn count(&mut self, bytes: usize) {
        self.received += 1;
        self.bytes += bytes;
    }

    /// How many there were, to be told; it counts as told.
    pub fn tell(&mut self) -> u64 {
        self.told = self.received;
        self.bytes = 0;
        self.received
    }

    /// Whether it is time to tell.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.bytes >= BYTES_UNTOLD || self.received - self.told >= FRAMES_UNTOLD
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use testyard_protocol::FrameDecoder;
    use testyard_protocol::frame::Decoded;

    use super::*;

    #[test]
    fn an_acknowledgement_of_what_nobody_sent_is_refused() {
        let mut outbox = Outbox::default();
        outbox.push(FrameHeader::message(1), b"{}");
        assert_eq!(outbox.acknowledge(1), Err(Mismatch { claimed: 1, kept: 0, sent: 0 }));
        assert!(outbox.give().is_some() && outbox.give().is_none());
        outbox.acknowledge(1).expect("it was given");
        assert_eq!(outbox.resume(0), Err(Mismatch { claimed: 0, kept: 1, sent: 1 }));
    }

    #[test]
    fn what_an_earlier_connection_took_counts_after_a_late_one_began_again() {
        let mut outbox = Outbox::default();
        for number in 0..3 {
            outbox.push(FrameHeader::message(number), b"{}");
        }
        while outbox.give().is_some() {}
        outbox.resume(1).expect("a hello that was on its way for long");
        assert!(outbox.give().is_some());
        outbox.resume(3).expect("all were given once");
        assert!(!outbox.has_more());
        outbox.push(FrameHeader::message(3), b"{}");
        assert!(outbox.give().is_some());
        outbox.acknowledge(4).expect("it was given");
    }

    #[test]
    fn what_is_in_no_hurry_hurries_nobody() {
        let mut outbox = Outbox::default();
        outbox.push_hurried(FrameHeader::message(0), b"{}", false);
        assert!(outbox.has_more() && !outbox.is_hurried());
        outbox.push(FrameHeader::message(1), b"{}");
        outbox.push_hurried(FrameHeader::message(2), b"{}", false);
        assert!(outbox.is_hurried());
        while outbox.give().is_some() {}
        assert!(!outbox.is_hurried());
        outbox.resume(0).expect("nothing was acknowledged");
        assert!(outbox.is_hurried());
        outbox.resume(2).expect("both were given");
        assert!(outbox.has_more() && !outbox.is_hurried());
    }

    proptest! {
        /// Connections break after any number of bytes; everything arrives once, in order.
        #[test]
        fn frames_arrive_once_over_broken_connections(
            count in 1_u32..60,
            breaks in prop::collection::vec(0_usize..300, 0..20),
            acknowledged in any::<prop::sample::Index>(),
        ) {
            let mut outbox = Outbox::default();
            for number in 0..count {
                outbox.push(FrameHeader::message(number), format!("frame {number}").as_bytes());
            }
            let (mut inbox, mut seen) = (Inbox::default(), Vec::new());
            for length in breaks.iter().copied().chain([usize::MAX]) {
                outbox.resume(inbox.tell()).expect("both count the same");
                let mut decoder = FrameDecoder::new();
                let mut left = length;
                while let Some(frame) = outbox.give() {
                    let part = &frame[..frame.len().min(left)];
                    left -= part.len();
                    decoder.feed(part);
                    while let Ok(Some(Decoded::Frame(frame))) = decoder.next() {
                        inbox.count(frame.payload.len());
                        seen.push(frame.header.stream);
                    }
                    if left == 0 { break; }
                }
                if acknowledged.index(2) == 1 {
                    outbox.acknowledge(inbox.tell()).expect("it was given");
                }
            }
            prop_assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }
    }
}
