//! What was read of a connection and waits: for room, for credit, or until a command's output was sent.
//!
//! Frames of one stream stay in order, and a frame of which a part was sent goes on before any other; else one that waits
//! for output holds up no other stream.

use std::collections::{BTreeSet, VecDeque};

use crate::channel::{Mark, PIECE};
use crate::message::LinkMessage;

/// With so much that waits, in bytes, nothing more is read.
const MOST: usize = 256 * 1024;
/// The first piece of a frame has at least so much of it, so that it shows which message it is.
const FIRST: usize = 64;

/// What waits.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// A frame, once those flows have sent so much.
    Frame {
        /// Its bytes.
        bytes: Vec<u8>,
        /// How many of them were sent.
        at: usize,
        /// Its stream.
        stream: u32,
        /// How far which flows must be.
        after: Vec<Mark>,
    },
    /// A message, which takes no credit, about the frame behind it.
    Message(LinkMessage),
    /// There is no more.
    End,
}

/// What may be sent.
#[derive(Debug)]
pub(crate) enum Released {
    /// Bytes, which took their credit.
    Bytes(Vec<u8>),
    /// A message.
    Message(LinkMessage),
    /// There is no more.
    End,
}

/// All that waits, in the order in which it was read.
#[derive(Debug, Default)]
pub(crate) struct Held {
    waiting: VecDeque<Outgoing>,
    bytes: usize,
}

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether nothing more is to be read.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= MOST
    }

    pub(crate) fn push(&mut self, outgoing: Outgoing) {
        if let Outgoing::Frame { bytes, .. } = &outgoing {
            self.bytes += bytes.len();
        }
        self.waiting.push_back(outgoing);
    }

    /// Nothing of it is wanted any more.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// What may be sent next with so much credit.
    pub(crate) fn next(&self, credit: u64, is_sent: impl Fn(&[Mark]) -> bool) -> Option<usize> {
        let begun = |outgoing: &Outgoing| matches!(outgoing, Outgoing::Frame { at: 1.., .. });
        if let Some(begun) = self.waiting.iter().position(begun) {
            return Some(begun).filter(|_| credit > 0);
        }
        let mut behind = BTreeSet::new();
        for (index, outgoing) in self.waiting.iter().enumerate() {
            match outgoing {
                Outgoing::Frame { bytes, stream, after, .. } => {
                    let enough = credit >= bytes.len().min(FIRST) as u64;
                    if enough && !behind.contains(stream) && is_sent(after) {
                        return Some(index);
                    }
                    behind.insert(*stream);
                }
                // The end is behind everything, and a message about a frame is sent just before that.
                Outgoing::Message(_) | Outgoing::End => return (index == 0).then_some(0),
            }
        }
        None
    }

    /// Takes what is [`Held::next`], of a frame as much as there is credit for.
    pub(crate) fn release(&mut self, index: usize, credit: u64) -> Option<Released> {
        let most = usize::try_from(credit).unwrap_or(PIECE).min(PIECE);
        if let Some(Outgoing::Frame { bytes, at, .. }) = self.waiting.get_mut(index)
            && bytes.len() - *at > most
        {
            let piece = bytes[*at..*at + most].to_vec();
            *at += most;
            return Some(Released::Bytes(piece));
        }
        Some(match self.waiting.remove(index)? {
            Outgoing::Frame { bytes, at, .. } => {
                self.bytes -= bytes.len();
                Released::Bytes(if at == 0 { bytes } else { bytes[at..].to_vec() })
            }
            Outgoing::Message(message) => Released::Message(message),
            Outgoing::End => Released::End,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All that goes with this credit, once what those frames wait for was sent.
    fn go(held: &mut Held, credit: &mut u64, sent: bool) -> Vec<Vec<u8>> {
        let mut gone = Vec::new();
        while let Some(next) = held.next(*credit, |after| after.is_empty() || sent) {
            let Some(Released::Bytes(bytes)) = held.release(next, *credit) else { panic!("these are frames") };
            *credit -= bytes.len() as u64;
            gone.push(bytes);
        }
        gone
    }

    proptest! {
        #[test]
        fn frames_stay_whole_and_in_order_of_their_stream(
            frames in prop::collection::vec((0_u32..3, 1_usize..300, any::<bool>()), 1..20),
            credits in prop::collection::vec(0_u64..200, 0..20),
        ) {
            let mut held = Held::default();
            for (index, (stream, length, waits)) in frames.iter().enumerate() {
                let bytes = vec![u8::try_from(index).expect("few"); *length];
                let after = if *waits { vec![(1, 1)] } else { Vec::new() };
                held.push(Outgoing::Frame { bytes, at: 0, stream: *stream, after });
            }
            let (mut gone, mut credit) = (Vec::new(), 0);
            for more in credits {
                credit += more;
                gone.extend(go(&mut held, &mut credit, false));
            }
            // Who waits, and nobody behind them, is still there.
            for (index, (stream, ..)) in frames.iter().enumerate() {
                let stuck = frames[..=index].iter().any(|(of, _, waits)| of == stream && *waits);
                prop_assert!(!stuck || !gone.iter().any(|bytes| usize::from(bytes[0]) == index));
            }
            credit += 10_000;
            gone.extend(go(&mut held, &mut credit, true));
            prop_assert!(held.is_empty() && held.bytes == 0);
            let mut seen: Vec<(usize, usize)> = Vec::new();
            for bytes in &gone {
                let index = usize::from(bytes[0]);
                match seen.last_mut() {
                    Some((last, length)) if *last == index => *length += bytes.len(),
                    _ => {
                        prop_assert!(bytes.len() >= FIRST.min(frames[index].1));
                        seen.push((index, bytes.len()));
                    }
                }
            }
            prop_assert_eq!(seen.len(), frames.len());
            prop_assert!(seen.iter().all(|(index, length)| frames[*index].1 == *length));
            for stream in 0..3 {
                let of_stream = seen.iter().map(|(index, _)| *index).filter(|index| frames[*index].0 == stream);
                prop_assert!(of_stream.is_sorted());
            }
        }
    }

    #[test]
    fn a_message_goes_just_before_its_frame_and_the_end_last() {
        let mut held = Held::default();
        let frame = |after| Outgoing::Frame { bytes: vec![1; 100], at: 0, stream: 1, after };
        held.push(frame(vec![(7, 1)]));
        held.push(Outgoing::Message(LinkMessage::Closed));
        held.push(frame(Vec::new()));
        held.push(Outgoing::End);
        assert_eq!(held.next(1000, <[Mark]>::is_empty), None);
        assert_eq!(held.next(1000, |_| true), Some(0));
        assert!(matches!(held.release(0, 1000), Some(Released::Bytes(_))));
        assert!(matches!(held.release(0, 0), Some(Released::Message(_))));
        assert_eq!(held.next(FIRST as u64 - 1, |_| true), None, "its first piece would say too little");
        assert!(matches!(held.release(0, 100), Some(Released::Bytes(_))));
        assert_eq!(held.next(0, |_| true), Some(0));
        assert!(matches!(held.release(0, 0), Some(Released::End)));
    }
}
