//! Any bytes, cut anywhere, as a stream of frames: never a panic, and the cuts change nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use testyard_protocol::frame::{Decoded, FrameDecoder, FrameError, MARKER};

const RESET: [u8; MARKER] = *b"a marker nobody can know";
/// Stands in the input for the whole marker, which random bytes would never hold.
const RESET_BYTE: u8 = 0xA7;

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (bytes, cuts) = input;
    let (at_once, cut) = (decode(FrameDecoder::new(), &bytes, &[]), decode(FrameDecoder::new(), &bytes, &cuts));
    assert_eq!(at_once, cut);

    let mut resumed = Vec::new();
    for byte in bytes {
        if byte == RESET_BYTE {
            resumed.extend_from_slice(&RESET);
        } else {
            resumed.push(byte);
        }
    }
    let at_once = decode(FrameDecoder::resettable(RESET), &resumed, &[]);
    let cut = decode(FrameDecoder::resettable(RESET), &resumed, &cuts);
    // What came before a reset may have been decoded or forgotten; what comes after the last is the same. Where
    // the pieces held what no frame looks like, the connection had ended before.
    if cut.1.is_none() {
        assert_eq!(last_session(&at_once.0), last_session(&cut.0));
        assert_eq!(at_once.1, None);
    }
});

/// Feeds pieces as long as the cuts say, over and over; all that came out, and what ended it.
fn decode(mut decoder: FrameDecoder, bytes: &[u8], cuts: &[u8]) -> (Vec<Decoded>, Option<FrameError>) {
    let mut decoded = Vec::new();
    let mut lengths = cuts.iter().map(|cut| usize::from(*cut) + 1).cycle();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(lengths.next().unwrap_or(rest.len()).min(rest.len()));
        rest = later;
        decoder.feed(piece);
        loop {
            match decoder.next() {
                Ok(Some(item)) => decoded.push(item),
                Ok(None) => break,
                Err(error) => return (decoded, Some(error)),
            }
        }
    }
    (decoded, None)
}

fn last_session(items: &[Decoded]) -> &[Decoded] {
    let reset = items.iter().rposition(|item| matches!(item, Decoded::Reset(_)));
    &items[reset.unwrap_or(0)..]
}
