use std::fs::File;
use std::io::IoSlice;
use std::os::fd::AsFd as _;

use testyard_linux::socket::{self, Kind};
use testyard_protocol::frame::Decoded;
use testyard_protocol::{Exec, FrameDecoder, Request, StreamTarget};

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
    let arrived = hub.receive(Frame { header: data(1), payload: piece.to_vec() });
    assert!(arrived.expect("it keeps to the rules").is_none());
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
    assert!(hub.channels[&1].is_written_out());
    assert_eq!(heard(&client), Vec::<u32>::new());
}

/// A message on a stream, as an agent says it.
fn word(stream: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(FrameHeader::message(stream), br#"{"done":null}"#, &mut bytes);
    bytes
}

/// A command on this stream with its output attached; the end of the pipe at which nobody has read yet. The channel of the
/// first has the number 2.
fn run_with_output(hub: &mut Hub, client: &OwnedFd, stream: u32) -> OwnedFd {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).expect("a pipe");
    let exec = Exec { argv: vec!["yes".into()], stdout: StreamTarget::Attached(0), ..Exec::default() };
    let payload = serde_json::to_vec(&Request::Exec(Box::new(exec))).expect("plain data");
    let mut bytes = Vec::new();
    encode(FrameHeader { attached: 1, ..FrameHeader::message(stream) }, &payload, &mut bytes);
    let sent = socket::send(client, &[IoSlice::new(&bytes)], &[write.as_fd()]).expect("sent");
    assert_eq!(sent, bytes.len());
    hub.serve(1, PollFlags::IN);
    read
}

fn read_all(pipe: &OwnedFd) -> usize {
    let mut buffer = [0; 64 * 1024];
    std::iter::from_fn(|| rustix::io::read(pipe, &mut buffer).ok()).take_while(|count| *count > 0).sum()
}

/// What a hub's other side gets: the frames since.
fn sent(hub: &mut Hub) -> Vec<Frame> {
    let mut decoder = FrameDecoder::new();
    while let Some(frame) = hub.outbox().give() {
        decoder.feed(frame);
    }
    std::iter::from_fn(|| match decoder.next().expect("frames") {
        Some(Decoded::Frame(frame)) => Some(frame),
        _ => None,
    })
    .collect()
}

#[test]
fn output_that_nobody_reads_holds_up_its_own_command_only() {
    let (mut hub, client) = with_client();
    let output = run_with_output(&mut hub, &client, 5);
    let coming = Frame { header: data(2), payload: vec![b'y'; 200_000] };
    hub.receive(coming).expect("it is within its window");
    // Its end, and another command's, which was asked for on the same connection.
    from_far(&mut hub, &[word(5), word(7), word(5)].concat());
    assert_eq!(heard(&client), [7]);
    let mut read = 0;
    while read < 200_000 {
        read += read_all(&output);
        hub.serve(2, PollFlags::OUT);
    }
    hub.serve(1, PollFlags::OUT);
    hub.serve(1, PollFlags::OUT);
    assert_eq!(heard(&client), [5, 5]);
}

#[test]
fn a_command_whose_output_is_stuck_lets_others_be_heard() {
    let (mut near, client) = with_client();
    let _output = run_with_output(&mut near, &client, 5);
    let (agents, theirs) = socket::pair(Kind::Stream).expect("a pair");
    let mut far = Hub::new(Side::Far);
    for frame in sent(&mut near) {
        match far.receive(frame).expect("it keeps to the rules") {
            Some(Arrival::Client(id)) => far.connected(id, Ok(theirs.try_clone().expect("a descriptor"))),
            other => assert!(other.is_none()),
        }
    }
    let mut descriptors = Vec::new();
    socket::receive(&agents, &mut [0; 4096], &mut descriptors).expect("the request");
    let pipe = descriptors.pop().expect("its output");
    rustix::io::ioctl_fionbio(&pipe, true).expect("it is ours");
    // As much as it may send without being given credit, and as much as the pipe takes then.
    while rustix::io::write(&pipe, &[b'y'; 4096]).is_ok() {
        far.serve(2, PollFlags::IN);
    }
    drop(sent(&mut far));
    for stream in [5, 7, 5, 9] {
        socket::send(&agents, &[IoSlice::new(&word(stream))], &[]).expect("sent");
    }
    far.serve(1, PollFlags::IN);
    let streams = |frames: Vec<Frame>| -> Vec<u32> {
        let of_client = frames.into_iter().filter(|frame| frame.header.stream == 1);
        of_client.map(|frame| u32::from_le_bytes(*frame.payload[8..].first_chunk().expect("a header"))).collect()
    };
    assert_eq!(streams(sent(&mut far)), [7, 9]);
    // Once it is read, all that waited goes, in its order.
    let grant = FrameHeader { kind: FrameKind::Credit, channel: 0, attached: 0, stream: 2 };
    far.receive(Frame { header: grant, payload: (1_u32 << 20).to_le_bytes().to_vec() }).expect("credit");
    while far.channels[&2].unread() > 0 {
        far.serve(2, PollFlags::IN);
    }
    assert_eq!(streams(sent(&mut far)), [5, 5]);
}

#[test]
fn more_than_was_allowed_ends_the_session() {
    let (mut hub, client) = with_client();
    let _output = run_with_output(&mut hub, &client, 5);
    let piece = |length| Frame { header: data(2), payload: vec![b'y'; length] };
    for _ in 0..16 {
        hub.receive(piece(64 * 1024)).expect("it is within its window");
    }
    // The pipe has taken some of it: no more than this.
    assert_eq!(hub.receive(piece(512 * 1024)).expect_err("nobody allowed it"), Breach::Window);
    // Nor may what is for a client be anything but frames.
    let nonsense = Frame { header: data(1), payload: vec![0xff; 12] };
    assert!(matches!(hub.receive(nonsense).expect_err("no frame"), Breach::Frame(_)));
}

#[test]
fn what_waits_takes_no_more_room_than_its_bytes() {
    let (mut hub, client) = with_client();
    let _output = run_with_output(&mut hub, &client, 5);
    for _ in 0..200_000 {
        hub.receive(Frame { header: data(2), payload: vec![b'y'] }).expect("it is within its window");
    }
    assert!(hub.channels[&2].pieces() <= 4, "{}", hub.channels[&2].pieces());
}

#[test]
fn a_side_that_acknowledges_nothing_cannot_make_the_other_talk_without_end() {
    let (mut hub, _client) = with_client();
    let word = LinkMessage::Broken(Problem::new(testyard_model::ProblemKind::Bug, "x".repeat(1 << 20)));
    let credit = FrameHeader { kind: FrameKind::Credit, channel: 0, attached: 0, stream: 1 };
    let frame = || Frame { header: credit, payload: 1_u32.to_le_bytes().to_vec() };
    hub.receive(frame()).expect("little was said");
    (0..64).for_each(|_| hub.say(&word));
    assert_eq!(hub.receive(frame()).expect_err("nothing of it was acknowledged"), Breach::Deaf);
}

#[test]
fn what_found_no_room_goes_once_there_is_some() {
    let mut hub = Hub::new(Side::Near);
    let word = LinkMessage::Broken(Problem::new(testyard_model::ProblemKind::Bug, "x".repeat(1 << 20)));
    (0..9).for_each(|_| hub.say(&word));
    // All that this client has to say for now was read with it.
    let (ours, _theirs) = socket::pair(Kind::Stream).expect("a pair");
    hub.adopt(ours, &self::word(5));
    let frames = sent(&mut hub);
    assert!(frames.iter().all(|frame| frame.header.kind == FrameKind::Message));
    hub.acknowledge(frames.len() as u64).expect("all were given");
    assert_eq!(sent(&mut hub).iter().map(|frame| frame.header).collect::<Vec<_>>(), [data(1)]);
}

#[test]
fn an_agent_whose_client_is_gone_is_heard_until_it_has_been_told_all() {
    let (agents, theirs) = socket::pair(Kind::Stream).expect("a pair");
    let mut far = Hub::new(Side::Far);
    let connect = serde_json::to_vec(&LinkMessage::Connect).expect("plain data");
    let arrived =
        far.receive(Frame { header: FrameHeader::message(1), payload: connect }).expect("it keeps to the rules");
    assert!(matches!(arrived, Some(Arrival::Client(1))));
    far.connected(1, Ok(theirs));
    let mut told = Vec::new();
    encode(FrameHeader { stream: 3, ..data(1) }, &vec![b'x'; 1_000_000], &mut told);
    for piece in told.chunks(64 * 1024) {
        far.receive(Frame { header: data(1), payload: piece.to_vec() }).expect("it is within its window");
    }
    far.receive(Frame { header: end(1), payload: Vec::new() }).expect("it keeps to the rules");
    assert_eq!(far.clients(), 1, "its socket has not taken all");
    // More than may be sent to a client that gives no credit any more.
    let mut said = Vec::new();
    (0..64).for_each(|_| encode(FrameHeader { stream: 3, ..data(1) }, &[b'y'; 64 * 1024], &mut said));
    let mut at = 0;
    for _ in 0..10_000 {
        at += socket::try_send(&agents, &[IoSlice::new(&said[at..])], &[]).expect("it is open").unwrap_or(0);
        far.serve(1, PollFlags::IN);
    }
    assert_eq!(at, said.len());
    let (mut heard, mut buffer) = (0, vec![0; 64 * 1024]);
    while let Some(count) = socket::try_receive(&agents, &mut buffer, &mut Vec::new()).expect("it is open") {
        heard += count;
        far.serve(1, PollFlags::OUT);
        if count == 0 {
            break;
        }
    }
    assert_eq!((heard, far.clients()), (told.len(), 0));
}
