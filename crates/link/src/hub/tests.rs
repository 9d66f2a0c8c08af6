use std::fs::File;
use std::io::IoSlice;
use std::os::fd::AsFd as _;

use testyard_linux::socket::{self, Kind};
use testyard_protocol::frame::Decoded;
use testyard_protocol::{FrameDecoder, Request};

use super::*;

/// A hub of the near side with one client, whose channel has the number 1.
fn with_client() -> (Hub, OwnedFd) {
    let (ours, theirs) = socket::pair(Kind::Stream).expect("a pair");
    let mut hub = Hub::new(Side::Near);
    hub.adopt(ours, &[]);
    (hub, theirs)
}

/// A request with a folder attached, which no other host can have.
fn attach_a_folder(client: &OwnedFd, stream: u32) {
    let payload = serde_json::to_vec(&Request::Status).expect("plain data");
    let mut bytes = Vec::new();
    encode(FrameHeader { attached: 1, ..FrameHeader::message(stream) }, &payload, &mut bytes);
    let folder = File::open("/").expect("a folder");
    let sent = socket::send(client, &[IoSlice::new(&bytes)], &[folder.as_fd()]).expect("sent");
    assert_eq!(sent, bytes.len());
}

fn from_far(hub: &mut Hub, piece: &[u8]) {
    assert!(hub.receive(Frame { header: data(1), payload: piece.to_vec() }).is_none());
}

/// The streams of the frames that the client has now, all of them whole.
fn heard(client: &OwnedFd) -> Vec<u32> {
    let mut decoder = FrameDecoder::new();
    let mut buffer = [0; 64 * 1024];
    while let Ok(Some(count)) = socket::try_receive(client, &mut buffer, &mut Vec::new()) {
        assert!(count > 0, "the hub let its client go");
        decoder.feed(&buffer[..count]);
    }
    let mut streams = Vec::new();
    while let Some(Decoded::Frame(frame)) = decoder.next().expect("whole frames") {
        streams.push(frame.header.stream);
    }
    assert!(decoder.pending().is_empty(), "a half frame");
    streams
}

#[test]
fn a_refusal_waits_for_the_end_of_the_frame_that_is_coming() {
    let (mut hub, client) = with_client();
    let mut coming = Vec::new();
    encode(FrameHeader::message(7), br#"{"done":null}"#, &mut coming);
    let (first, rest) = coming.split_at(15);
    from_far(&mut hub, first);
    attach_a_folder(&client, 9);
    hub.serve(1, PollFlags::IN);
    from_far(&mut hub, rest);
    hub.serve(1, PollFlags::OUT);
    assert_eq!(heard(&client), [7, 9]);
}

#[test]
fn refusals_take_nothing_of_the_other_sides_credit() {
    let (mut hub, client) = with_client();
    for stream in 1..=50 {
        attach_a_folder(&client, stream);
        hub.serve(1, PollFlags::IN);
        hub.serve(1, PollFlags::OUT);
    }
    let mut one = Vec::new();
    encode(FrameHeader::message(60), br#"{"done":null}"#, &mut one);
    from_far(&mut hub, &one);
    hub.serve(1, PollFlags::OUT);
    assert_eq!(heard(&client), (1..=50).chain([60]).collect::<Vec<_>>());
    assert_eq!(hub.clients(), 1);
}

#[test]
fn nothing_is_kept_of_pieces_without_bytes() {
    let (mut hub, client) = with_client();
    for _ in 0..10 {
        from_far(&mut hub, &[]);
    }
    assert!(hub.channels[&1].front().is_none());
    assert_eq!(heard(&client), Vec::<u32>::new());
}
