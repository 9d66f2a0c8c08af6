//! Where in a connection's frames bytes are that come over the link, however they were cut on the way.

use testyard_protocol::frame::HEADER;
use testyard_protocol::{FrameError, FrameHeader, FrameKind};

/// Which part of a frame some bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Which frame: they are counted.
    pub(crate) frame: u64,
    /// Its stream.
    pub(crate) stream: u32,
    /// It is a message.
    pub(crate) message: bool,
    /// Its first bytes are among them.
    pub(crate) begins: bool,
    /// Its last byte is among them.
    pub(crate) ends: bool,
    /// This side itself said it: it counts for no credit.
    pub(crate) own: bool,
}

impl Part {
    /// Bytes of no frame, each piece of which may be the last.
    pub(crate) const FLOW: Self = Self { frame: 0, stream: 0, message: false, begins: true, ends: true, own: false };
}

/// Cuts what comes into parts of frames.
#[derive(Debug, Default)]
pub(crate) struct Cutter {
    /// The beginning of a header that is not whole.
    head: Vec<u8>,
    /// The frame whose rest is to come, and how much that is.
    rest: Option<(Part, usize)>,
    frames: u64,
}

impl Cutter {
    /// A header that is not whole waits for its rest.
    pub(crate) fn cut(&mut self, bytes: Vec<u8>) -> Result<Vec<(Part, Vec<u8>)>, FrameError> {
        if let Some((part, left)) = &mut self.rest
            && *left > bytes.len()
        {
            *left -= bytes.len();
            return Ok(vec![(Part { begins: false, ..*part }, bytes)]);
        }
        let mut parts = Vec::new();
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() {
            let (part, head, length) = match self.rest.take() {
                Some((part, left)) => (Part { begins: false, ..part }, Vec::new(), left),
                None => {
                    let (head, more) = bytes.split_at(bytes.len().min(HEADER - self.head.len()));
                    self.head.extend_from_slice(head);
                    bytes = more;
                    let Some(head) = self.head.first_chunk::<HEADER>() else { return Ok(parts) };
                    let (header, length) = FrameHeader::read(head)?;
                    let message = header.kind == FrameKind::Message;
                    let part = Part { stream: header.stream, message, own: false, ..self.own() };
                    (part, std::mem::take(&mut self.head), length)
                }
            };
            let (now, more) = bytes.split_at(bytes.len().min(length));
            bytes = more;
            let left = length - now.len();
            self.rest = (left > 0).then_some((Part { ends: false, ..part }, left));
            parts.push((Part { ends: left == 0, ..part }, [&head, now].concat()));
        }
        Ok(parts)
    }

    /// A whole frame of this side's own. No stream of the other side's waits for it, nor it for one.
    pub(crate) fn own(&mut self) -> Part {
        self.frames += 1;
        Part { frame: self.frames, stream: u32::MAX, message: false, begins: true, ends: true, own: true }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use testyard_protocol::frame::encode;

    use super::*;

    proptest! {
        #[test]
        fn frames_are_found_however_they_are_cut(
            frames in prop::collection::vec((0_u32..4, 0_usize..40, any::<bool>()), 1..12),
            size in 1_usize..50,
        ) {
            let mut bytes = Vec::new();
            for (stream, length, message) in &frames {
                let kind = if *message { FrameKind::Message } else { FrameKind::Data };
                encode(FrameHeader { kind, channel: 0, attached: 0, stream: *stream }, &vec![b'x'; *length], &mut bytes);
            }
            let mut cutter = Cutter::default();
            let parts: Vec<(Part, Vec<u8>)> =
                bytes.chunks(size).flat_map(|piece| cutter.cut(piece.to_vec()).expect("frames")).collect();
            let whole: Vec<u8> = parts.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            prop_assert_eq!(whole, bytes);
            let begun: Vec<_> =
                parts.iter().filter(|(part, _)| part.begins).map(|(part, _)| (part.stream, part.message)).collect();
            let wanted: Vec<_> = frames.iter().map(|(stream, _, message)| (*stream, *message)).collect();
            prop_assert_eq!(begun, wanted);
            prop_assert_eq!(parts.iter().filter(|(part, _)| part.ends).count(), frames.len());
            for pair in parts.windows(2) {
                prop_assert!((pair[0].0.frame == pair[1].0.frame) != pair[1].0.begins);
            }
        }
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        assert!(Cutter::default().cut(vec![0xff; 12]).is_err());
    }
}
