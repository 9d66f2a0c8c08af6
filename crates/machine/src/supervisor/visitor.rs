//! Those who connect to a machine's socket: greeted here, then handed to the agent or served.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::Serialize;
use testyard_linux::socket;
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::frame::HEADER;
use testyard_protocol::{
    Event, FrameDecoder, FrameHeader, FrameKind, Hello, OLDEST_VERSION, Request, Role, VERSION, Welcome, agree, frame,
};

use crate::wire::{FrameReader, Look};

/// How long a client may take to say hello.
pub(super) const GREETING: Duration = Duration::from_secs(10);
/// A hello is short; a longer first frame is no hello.
const LONGEST_HELLO: usize = 4096;
const SERVER: &str = concat!("testyard supervisor ", env!("CARGO_PKG_VERSION"));

/// A connected client, until it is handed over or gone.
#[derive(Debug)]
pub(super) struct Visitor {
    pub(super) socket: OwnedFd,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Its hello is being read, and not a byte more: what follows may be the agent's.
    Greeting { read: Vec<u8>, until: Instant },
    /// It talks to the supervisor.
    Served { reader: FrameReader },
}

/// What a visitor wants.
#[derive(Debug)]
pub(super) enum Wish {
    /// Nothing yet.
    Nothing,
    /// To be handed to the agent, with what was read of it.
    Agent(Vec<u8>),
    /// To have this request served, on this stream.
    Request(u32, Box<Request>),
    /// To leave, or it has to.
    Leave,
}

impl Visitor {
    pub(super) fn new(socket: OwnedFd, now: Instant) -> Self {
        Self { socket, stage: Stage::Greeting { read: Vec::with_capacity(256), until: now + GREETING } }
    }

    /// Until when it must have said hello.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Greeting { until, .. } => Some(*until),
            Stage::Served { .. } => None,
        }
    }

    /// Reads what is there, without waiting.
    pub(super) fn wish(&mut self) -> Wish {
        match &mut self.stage {
            Stage::Greeting { read, .. } => match read_greeting(&self.socket, read) {
                Greeting::Partial => Wish::Nothing,
                Greeting::Wrong => Wish::Leave,
                Greeting::Whole(hello) => self.greeted(&hello),
            },
            Stage::Served { reader } => loop {
                match reader.look(&self.socket) {
                    Ok(Look::Nothing) => return Wish::Nothing,
                    Ok(Look::Frame(received)) if received.frame.header.kind == FrameKind::Message => {
                        let stream = received.frame.header.stream;
                        match serde_json::from_slice::<Request>(&received.frame.payload) {
                            Ok(request) => return Wish::Request(stream, Box::new(request)),
                            Err(error) => {
                                let problem =
                                    Problem::from_error(ProblemKind::Protocol, &error).because("unreadable request");
                                if !self.answer(stream, &Event::Failed(problem)) {
                                    return Wish::Leave;
                                }
                                return Wish::Nothing;
                            }
                        }
                    }
                    Ok(Look::Frame(_)) => {}
                    Err(_) => return Wish::Leave,
                }
            },
        }
    }

    fn greeted(&mut self, hello: &Hello) -> Wish {
        let Stage::Greeting { read, .. } = &mut self.stage else { return Wish::Nothing };
        if hello.role == Role::Agent {
            return Wish::Agent(std::mem::take(read));
        }
        let Some(version) = agree(hello.oldest, hello.newest) else {
            let problem = Problem::new(
                ProblemKind::Unsupported,
                format!(
                    "this machine's supervisor speaks protocol {OLDEST_VERSION} to {VERSION}, not {} to {}",
                    hello.oldest, hello.newest
                ),
            );
            self.answer(
                0,
                &Event::Failed(problem.hint("restart the machine with this version: testyard restart NAME")),
            );
            return Wish::Leave;
        };
        self.stage = Stage::Served { reader: FrameReader::new(1024) };
        let welcome = Welcome { version, server: SERVER.to_owned(), generation: 0, elsewhere: false };
        if self.answer(0, &Event::Welcome(welcome)) { self.wish() } else { Wish::Leave }
    }

    /// Answers without waiting; false when the visitor does not take its answer.
    pub(super) fn answer(&self, stream: u32, event: &Event) -> bool {
        send_now(&self.socket, stream, event)
    }
}

impl AsFd for Visitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends one message without waiting; false when it does not fit whole.
pub(super) fn send_now(socket: &OwnedFd, stream: u32, message: &impl Serialize) -> bool {
    let Ok(payload) = serde_json::to_vec(message) else { return false };
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    frame::encode(FrameHeader::message(stream), &payload, &mut bytes);
    matches!(socket::try_send(socket, &[std::io::IoSlice::new(&bytes)], &[]), Ok(Some(sent)) if sent == bytes.len())
}

enum Greeting {
    Partial,
    Whole(Hello),
    Wrong,
}

fn read_greeting(socket: &OwnedFd, read: &mut Vec<u8>) -> Greeting {
    let mut buffer = [0; LONGEST_HELLO];
    loop {
        let missing = match read.first_chunk::<4>() {
            None => HEADER - read.len(),
            Some(length) => match (u32::from_le_bytes(*length) as usize).checked_add(HEADER) {
                Some(whole) if whole <= LONGEST_HELLO && read.len() >= HEADER => whole - read.len(),
                Some(whole) if whole <= LONGEST_HELLO => HEADER - read.len(),
                _ => return Greeting::Wrong,
            },
        };
        if missing == 0 {
            return parse_greeting(read);
        }
        let mut descriptors = Vec::new();
        match socket::try_receive(socket, &mut buffer[..missing], &mut descriptors) {
            Ok(None) => return Greeting::Partial,
            // A hello carries no descriptors.
            Ok(Some(count)) if count > 0 && descriptors.is_empty() => read.extend_from_slice(&buffer[..count]),
            _ => return Greeting::Wrong,
        }
    }
}

fn parse_greeting(read: &[u8]) -> Greeting {
    let mut decoder = FrameDecoder::new();
    decoder.feed(read);
    let Ok(Some(frame::Decoded::Frame(frame))) = decoder.next() else { return Greeting::Wrong };
    if frame.header.kind != FrameKind::Message || frame.header.stream != 0 {
        return Greeting::Wrong;
    }
    match serde_json::from_slice(&frame.payload) {
        Ok(Request::Hello(hello)) => Greeting::Whole(hello),
        _ => Greeting::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use testyard_linux::socket::{Kind, pair};

    use super::*;

    fn hello(role: Role) -> Vec<u8> {
        let request = Request::Hello(Hello { oldest: 1, newest: 9, role, client: "test".to_owned() });
        let mut bytes = Vec::new();
        let payload = serde_json::to_vec(&request).expect("plain data");
        frame::encode(FrameHeader::message(0), &payload, &mut bytes);
        bytes
    }

    #[test]
    fn a_greeting_is_read_to_its_last_byte_and_no_further() {
        let (outside, inside) = pair(Kind::Stream).expect("sockets are to be had");
        let mut visitor = Visitor::new(inside, Instant::now());
        let bytes = hello(Role::Agent);
        for byte in &bytes {
            assert!(matches!(visitor.wish(), Wish::Nothing));
            socket::send(&outside, &[IoSlice::new(&[*byte])], &[]).expect("it fits");
        }
        socket::send(&outside, &[IoSlice::new(b"for the agent")], &[outside.as_fd()]).expect("it fits");
        let Wish::Agent(read) = visitor.wish() else { panic!("it asked for the agent") };
        assert_eq!(read, bytes);
        let mut rest = [0; 64];
        let mut descriptors = Vec::new();
        let count = socket::try_receive(&visitor.socket, &mut rest, &mut descriptors).expect("no error");
        assert_eq!((&rest[..count.expect("it was left")], descriptors.len()), (&b"for the agent"[..], 1));
    }

    #[test]
    fn a_supervisor_client_is_welcomed_and_served() {
        let (outside, inside) = pair(Kind::Stream).expect("sockets are to be had");
        let mut visitor = Visitor::new(inside, Instant::now());
        let mut bytes = hello(Role::Supervisor);
        frame::encode(FrameHeader::message(7), br#""info""#, &mut bytes);
        socket::send(&outside, &[IoSlice::new(&bytes)], &[]).expect("it fits");
        assert!(matches!(visitor.wish(), Wish::Request(7, request) if *request == Request::Info));
        let mut reader = FrameReader::new(256);
        let Ok(Look::Frame(received)) = reader.look(&outside) else { panic!("it was welcomed") };
        let event: Event = serde_json::from_slice(&received.frame.payload).expect("an event");
        assert!(matches!(event, Event::Welcome(welcome) if welcome.version == VERSION));
    }

    #[test]
    fn what_is_no_greeting_is_sent_away() {
        for bytes in [&[0xff; 12][..], b"GET / HTTP/1.1\r\n\r\n", &[1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, b'x']] {
            let (outside, inside) = pair(Kind::Stream).expect("sockets are to be had");
            let mut visitor = Visitor::new(inside, Instant::now());
            socket::send(&outside, &[IoSlice::new(bytes)], &[]).expect("it fits");
            assert!(matches!(visitor.wish(), Wish::Leave), "{bytes:?}");
        }
    }
}
