//! Frames on the wire.
//!
//! ```text
//!  0        4      5         6         7       8        12
//!  ├────────┼──────┼─────────┼─────────┼───────┼────────┼─────────────┐
//!  │ length │ kind │ channel │ attached│   0   │ stream │ payload …   │   integers little-endian
//!  └────────┴──────┴─────────┴─────────┴───────┴────────┴─────────────┘
//! ```
//!
//! A link that can be cut in the middle of a frame and resumed elsewhere (a forked virtual machine)
//! is decoded with [`FrameDecoder::resettable`]: a marker agreed on beforehand, followed by a
//! generation, may then come at any byte, and starts a new session.

/// Bytes before each payload.
pub const HEADER: usize = 12;
/// The largest payload of anything but a message.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// The largest message: a command with all the arguments and variables that the kernel takes, each byte of which JSON
/// may write as six.
pub const MAX_MESSAGE: usize = 16 << 20;
/// The most descriptors that travel with one frame.
pub const MAX_ATTACHED: usize = 32;
/// Bytes of a reset marker, before the generation's eight.
pub const MARKER: usize = 24;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A JSON message.
    Message,
    /// Bytes of a channel.
    Data,
    /// Credit for a channel: four bytes, how many more may be sent.
    Credit,
    /// No more data on this channel.
    End,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Message, Self::Data, Self::Credit, Self::End].into_iter().find(|kind| kind.byte() == byte)
    }

    /// The largest payload of this kind.
    #[must_use]
    pub fn most(self) -> usize {
        match self {
            Self::Message => MAX_MESSAGE,
            Self::Data | Self::Credit | Self::End => MAX_PAYLOAD,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Message => 1,
            Self::Data => 2,
            Self::Credit => 3,
            Self::End => 4,
        }
    }
}

/// A frame's first twelve bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What it carries.
    pub kind: FrameKind,
    /// For data, credit and end: 0 standard input or the only channel, 1 output, 2 error output.
    pub channel: u8,
    /// Descriptors that belong to it.
    pub attached: u8,
    /// The stream; 0 is the connection itself.
    pub stream: u32,
}

impl FrameHeader {
    /// A message on a stream.
    #[must_use]
    pub fn message(stream: u32) -> Self {
        Self { kind: FrameKind::Message, channel: 0, attached: 0, stream }
    }

    /// Reads a header, and how long the payload is that follows it.
    pub fn read(bytes: &[u8; HEADER]) -> Result<(Self, usize), FrameError> {
        parse_header(bytes)
    }

    /// The header's bytes for a payload of `length` bytes.
    #[must_use]
    pub fn bytes(self, length: usize) -> [u8; HEADER] {
        debug_assert!(length <= self.kind.most());
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
        bytes[4] = self.kind.byte();
        bytes[5] = self.channel;
        bytes[6] = self.attached;
        bytes[8..].copy_from_slice(&self.stream.to_le_bytes());
        bytes
    }
}

/// A whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its header.
    pub header: FrameHeader,
    /// Its payload, at most [`FrameKind::most`] bytes.
    pub payload: Vec<u8>,
}

/// Appends a frame's bytes. Payloads over [`FrameKind::most`] must be split by the caller.
pub fn encode(header: FrameHeader, payload: &[u8], into: &mut Vec<u8>) {
    into.extend_from_slice(&header.bytes(payload.len()));
    into.extend_from_slice(payload);
}

/// The other side sent what no frame looks like. The connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than allowed.
    #[error("a frame of {length} bytes is over the limit of {most}")]
    TooLong {
        /// How long it was to be.
        length: u32,
        /// What is allowed.
        most: usize,
    },
    /// An unknown kind.
    #[error("frame kind {0} is unknown")]
    Kind(u8),
    /// Too many descriptors.
    #[error("a frame announces {0} descriptors; at most {MAX_ATTACHED} are allowed")]
    Attached(u8),
    /// The reserved byte was not zero.
    #[error("a frame's reserved byte is {0}, not 0")]
    Reserved(u8),
    /// A credit frame without its four bytes, or an end frame with any.
    #[error("a {kind} frame cannot have {length} bytes")]
    Length {
        /// Which kind.
        kind: &'static str,
        /// How long it was.
        length: u32,
    },
}

/// What comes out of a decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// A frame.
    Frame(Frame),
    /// The link was resumed as this generation: forget all streams and begin with a hello.
    Reset(u64),
}

/// Turns bytes, however cut, into frames.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    start: usize,
    /// Up to where the buffer has been searched for the marker.
    searched: usize,
    marker: Option<[u8; MARKER]>,
}

impl FrameDecoder {
    /// For a link that is never cut.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// For a link that may be resumed in the middle of a frame. `marker` must be random and secret to
    /// the two ends, or data could forge it.
    #[must_use]
    pub fn resettable(marker: [u8; MARKER]) -> Self {
        Self { marker: Some(marker), ..Self::default() }
    }

    /// Adds received bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start == self.buffer.len() {
            self.buffer.clear();
            self.searched = 0;
            self.start = 0;
        } else if self.start > MAX_PAYLOAD {
            self.buffer.drain(..self.start);
            self.searched = self.searched.saturating_sub(self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes received but not yet decoded: what a hand-over to another process must carry along.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// The next frame or reset, if it is complete.
    #[expect(clippy::should_implement_trait, reason = "an iterator's end is final; this goes on when more bytes came")]
    pub fn next(&mut self) -> Result<Option<Decoded>, FrameError> {
        if let Some(generation) = self.take_reset() {
            return Ok(Some(Decoded::Reset(generation)));
        }
        let pending = &self.buffer[self.start..self.decodable_end()];
        let Some(head) = pending.first_chunk::<HEADER>() else { return Ok(None) };
        let (header, length) = parse_header(head)?;
        let Some(payload) = pending.get(HEADER..HEADER + length) else { return Ok(None) };
        let frame = Frame { header, payload: payload.to_vec() };
        self.start += HEADER + length;
        Ok(Some(Decoded::Frame(frame)))
    }

    /// Where decoding must stop: a marker may just be arriving at the buffer's end.
    fn decodable_end(&self) -> usize {
        let Some(marker) = &self.marker else { return self.buffer.len() };
        let tail = self.start.max(self.buffer.len().saturating_sub(MARKER + 8 - 1));
        (tail..self.buffer.len())
            .find(|at| {
                let rest = &self.buffer[*at..];
                let compared = rest.len().min(MARKER);
                rest[..compared] == marker[..compared]
            })
            .unwrap_or(self.buffer.len())
    }

    fn take_reset(&mut self) -> Option<u64> {
        let marker = self.marker.as_ref()?;
        let from = self.searched.max(self.start);
        let found = self.buffer[from..].windows(MARKER).position(|window| window == marker);
        let Some(found) = found else {
            self.searched = self.buffer.len().saturating_sub(MARKER - 1);
            return None;
        };
        let after = from + found + MARKER;
        let generation = self.buffer.get(after..after + 8)?;
        let generation = u64::from_le_bytes(generation.try_into().expect("eight bytes were asked for"));
        self.start = after + 8;
        self.searched = self.start;
        Some(generation)
    }
}

fn parse_header(bytes: &[u8; HEADER]) -> Result<(FrameHeader, usize), FrameError> {
    let length = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let kind = FrameKind::from_byte(bytes[4]).ok_or(FrameError::Kind(bytes[4]))?;
    if length as usize > kind.most() {
        return Err(FrameError::TooLong { length, most: kind.most() });
    }
    if bytes[6] as usize > MAX_ATTACHED {
        return Err(FrameError::Attached(bytes[6]));
    }
    if bytes[7] != 0 {
        return Err(FrameError::Reserved(bytes[7]));
    }
    match (kind, length) {
        (FrameKind::Credit, length) if length != 4 => return Err(FrameError::Length { kind: "credit", length }),
        (FrameKind::End, length) if length != 0 => return Err(FrameError::Length { kind: "end", length }),
        _ => {}
    }
    let stream = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    Ok((FrameHeader { kind, channel: bytes[5], attached: bytes[6], stream }, length as usize))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(decoder: &mut FrameDecoder) -> Vec<Decoded> {
        let mut out = Vec::new();
        while let Ok(Some(item)) = decoder.next() {
            out.push(item);
        }
        out
    }

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let frame = (0_u32..9, prop::collection::vec(any::<u8>(), 0..200), any::<bool>()).prop_map(
            |(stream, payload, data)| {
                let kind = if data { FrameKind::Data } else { FrameKind::Message };
                Frame { header: FrameHeader { kind, channel: 1, attached: 0, stream }, payload }
            },
        );
        prop::collection::vec(frame, 0..20)
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(frames in frames(), cuts in prop::collection::vec(1_usize..64, 1..50)) {
            let mut bytes = Vec::new();
            for frame in &frames {
                encode(frame.header, &frame.payload, &mut bytes);
            }
            let mut decoder = FrameDecoder::new();
            let mut seen = Vec::new();
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle().take(100_000) {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                decoder.feed(now);
                seen.extend(drain(&mut decoder));
                rest = later;
            }
            prop_assert_eq!(seen, frames.into_iter().map(Decoded::Frame).collect::<Vec<_>>());
            prop_assert!(decoder.pending().is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let mut decoder = FrameDecoder::new();
            decoder.feed(&bytes);
            drain(&mut decoder);
        }

        #[test]
        fn a_reset_is_seen_at_any_byte(frames in frames(), at in any::<prop::sample::Index>(), piece in 1_usize..40) {
            let marker = *b"a marker nobody can know";
            let mut bytes = Vec::new();
            for frame in &frames {
                encode(frame.header, &frame.payload, &mut bytes);
            }
            bytes.truncate(at.index(bytes.len() + 1));
            bytes.extend_from_slice(&marker);
            bytes.extend_from_slice(&7_u64.to_le_bytes());
            let after = Frame { header: FrameHeader::message(1), payload: b"{}".to_vec() };
            encode(after.header, &after.payload, &mut bytes);
            let mut decoder = FrameDecoder::resettable(marker);
            let mut seen = Vec::new();
            for part in bytes.chunks(piece) {
                decoder.feed(part);
                seen.extend(drain(&mut decoder));
            }
            let reset = seen.iter().position(|item| *item == Decoded::Reset(7)).expect("the reset was sent");
            prop_assert_eq!(&seen[reset + 1..], &[Decoded::Frame(after)]);
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let mut decoder = FrameDecoder::new();
        decoder.feed(&[0xff; 12]);
        assert_eq!(decoder.next(), Err(FrameError::Kind(0xff)));
        // A message may be longer than a piece of data.
        for (kind, most) in [(1, MAX_MESSAGE), (2, MAX_PAYLOAD)] {
            let length = most as u32 + 1;
            let mut bytes = [0; 12];
            bytes[..4].copy_from_slice(&length.to_le_bytes());
            bytes[4] = kind;
            let mut decoder = FrameDecoder::new();
            decoder.feed(&bytes);
            assert_eq!(decoder.next(), Err(FrameError::TooLong { length, most }));
        }
        let mut decoder = FrameDecoder::new();
        decoder.feed(&[0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decoder.next(), Err(FrameError::Kind(9)));
    }
}
