//! Both sides of a link at once, over a connection that breaks.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::{AsFd as _, OwnedFd};

use proptest::prelude::*;
use rustix::event::{PollFd, Timespec};
use rustix::pipe::{PipeFlags, pipe_with};
use testyard_linux::socket::{self, Kind};
use testyard_protocol::frame::Decoded;
use testyard_protocol::{Exec, FrameDecoder, Request, StreamTarget};

use super::*;

/// A command, whose output goes through the link.
struct Command {
    /// How much it is to write, and how much it has.
    size: usize,
    written: usize,
    /// Where it writes, until it has ended.
    output: Option<OwnedFd>,
    /// Where its output is read, how much was, and whether anybody does.
    pipe: OwnedFd,
    read: usize,
    is_read: bool,
    /// Its end was told.
    ended: bool,
}

/// A client with commands, an agent that runs them, and the link between.
struct World {
    near: Hub,
    far: Hub,
    client: OwnedFd,
    agent: OwnedFd,
    heard: FrameDecoder,
    commands: BTreeMap<u32, Command>,
}

impl World {
    fn new(commands: &[(usize, bool)]) -> Self {
        let (ours, client) = socket::pair(Kind::Stream).expect("a pair");
        let (agent, theirs) = socket::pair(Kind::Stream).expect("a pair");
        let (mut near, far) = (Hub::new(Side::Near), Hub::new(Side::Far));
        near.adopt(ours, &[]);
        let commands = commands.iter().zip(1..).map(|((size, is_read), stream)| {
            let (pipe, write) = pipe_with(PipeFlags::NONBLOCK).expect("a pipe");
            let exec = Exec { argv: vec!["yes".into()], stdout: StreamTarget::Attached(0), ..Exec::default() };
            let payload = serde_json::to_vec(&Request::Exec(Box::new(exec))).expect("plain data");
            let mut bytes = Vec::new();
            encode(FrameHeader { attached: 1, ..FrameHeader::message(stream) }, &payload, &mut bytes);
            socket::send(&client, &[IoSlice::new(&bytes)], &[write.as_fd()]).expect("there is room");
            let (size, is_read) = (*size, *is_read);
            (stream, Command { size, written: 0, output: None, pipe, read: 0, is_read, ended: false })
        });
        let commands = commands.collect();
        let mut world = Self { near, far, client, agent, heard: FrameDecoder::new(), commands };
        // Until the agent has every request.
        turn(&mut world.near);
        let mut theirs = Some(theirs);
        for frame in given(&mut world.near, usize::MAX) {
            if let Some(Arrival::Client(id)) = world.far.receive(frame).expect("it keeps to the rules") {
                world.far.connected(id, Ok(theirs.take().expect("one client")));
            }
        }
        let mut outputs = Vec::new();
        for _ in 0..world.commands.len() {
            turn(&mut world.far);
            let mut buffer = [0; 64 * 1024];
            while let Ok(Some(1..)) = socket::try_receive(&world.agent, &mut buffer, &mut outputs) {}
        }
        assert_eq!(outputs.len(), world.commands.len());
        for (command, output) in world.commands.values_mut().zip(outputs) {
            rustix::io::ioctl_fionbio(&output, true).expect("it is ours");
            command.output = Some(output);
        }
        world
    }

    /// Each command writes as much as it can; one that has written all ends, which the agent says.
    fn run(&mut self) {
        for (stream, command) in &mut self.commands {
            let Some(output) = &command.output else { continue };
            let rest = vec![b'y'; (command.size - command.written).min(100_000)];
            command.written += rustix::io::write(output, &rest).unwrap_or(0);
            if command.written == command.size {
                command.output = None;
                let mut bytes = Vec::new();
                encode(FrameHeader::message(*stream), br#"{"done":null}"#, &mut bytes);
                socket::send(&self.agent, &[IoSlice::new(&bytes)], &[]).expect("there is room");
            }
        }
    }

    /// What is read is read, and what the client is told is checked.
    fn hear(&mut self) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(Some(count @ 1..)) = socket::try_receive(&self.client, &mut buffer, &mut Vec::new()) {
            self.heard.feed(&buffer[..count]);
        }
        while let Some(Decoded::Frame(frame)) = self.heard.next().expect("frames") {
            let command = self.commands.get_mut(&frame.header.stream).expect("one that was asked for");
            assert!(!std::mem::replace(&mut command.ended, true), "it is told once");
            let there = rustix::io::ioctl_fionread(&command.pipe).expect("a pipe");
            assert_eq!(command.read + usize::try_from(there).expect("little"), command.size, "its output is before it");
        }
        for command in self.commands.values_mut().filter(|command| command.is_read) {
            while let Ok(count @ 1..) = rustix::io::read(&command.pipe, &mut buffer) {
                command.read += count;
            }
        }
    }

    /// All that can happen in a moment; so many frames get over each way.
    fn go_on(&mut self, frames: usize) {
        self.run();
        turn(&mut self.far);
        pass(&mut self.far, &mut self.near, frames);
        turn(&mut self.near);
        self.hear();
        turn(&mut self.near);
        pass(&mut self.near, &mut self.far, frames);
    }

    /// What was on its way is lost, and sent again.
    fn cut(&mut self) {
        drop((given(&mut self.near, usize::MAX), given(&mut self.far, usize::MAX)));
        let (near, far) = (self.near.inbox().tell(), self.far.inbox().tell());
        self.near.resume(far).expect("both count alike");
        self.far.resume(near).expect("both count alike");
    }

    /// Whether the ends of all were told, of which somebody reads.
    fn is_over(&self) -> bool {
        self.commands.values().all(|command| command.ended || !command.is_read)
    }
}

/// Serves what is ready.
fn turn(hub: &mut Hub) {
    let interests = hub.interests();
    let mut polled: Vec<_> = interests.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("descriptors");
    let ready = interests.iter().zip(&polled).map(|((id, ..), fd)| (*id, fd.revents()));
    let ready: Vec<_> = ready.filter(|(_, flags)| !flags.is_empty()).collect();
    ready.into_iter().for_each(|(id, flags)| hub.serve(id, flags));
}

/// At most so many frames that a hub gives its connection.
fn given(hub: &mut Hub, most: usize) -> Vec<Frame> {
    let mut decoder = FrameDecoder::new();
    let frame = || {
        decoder.feed(hub.outbox().give()?);
        match decoder.next().expect("frames") {
            Some(Decoded::Frame(frame)) => Some(frame),
            _ => None,
        }
    };
    std::iter::from_fn(frame).take(most).collect()
}

fn pass(from: &mut Hub, to: &mut Hub, most: usize) {
    for frame in given(from, most) {
        assert!(to.receive(frame).expect("it keeps to the rules").is_none());
    }
    from.acknowledge(to.inbox().tell()).expect("both count alike");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn commands_end_whose_output_is_read_and_the_others_once_it_is(
        commands in prop::collection::vec((0_usize..3_000_000, any::<bool>()), 1..6),
        moments in prop::collection::vec((0_usize..40, any::<bool>()), 0..40),
    ) {
        let mut world = World::new(&commands);
        for (frames, cut) in moments {
            world.go_on(frames);
            if cut {
                world.cut();
            }
        }
        (0..2_000).take_while(|_| { world.go_on(1_000); !world.is_over() }).for_each(drop);
        prop_assert!(world.is_over(), "somebody's output holds up another command");
        // What nobody reads stands where its window ends.
        for command in world.commands.values().filter(|command| !command.is_read) {
            prop_assert!(command.written <= 1_400_000, "{}", command.written);
        }
        world.commands.values_mut().for_each(|command| command.is_read = true);
        (0..2_000).take_while(|_| { world.go_on(1_000); !world.is_over() }).for_each(drop);
        prop_assert!(world.is_over(), "what was not read stays stuck");
        world.hear();
        prop_assert!(world.commands.values().all(|command| command.read == command.size));
    }
}

/// A world whose connection has no credit left and something that waits, so that what comes then waits, too.
fn without_credit() -> World {
    let mut world = World::new(&[]);
    let mut upload = Vec::new();
    encode(FrameHeader { stream: 3, ..data(3) }, &[b'u'; 4096], &mut upload);
    for _ in 0..2_000 {
        socket::send(&world.client, &[IoSlice::new(&upload)], &[]).expect("it is read");
        world.go_on(1_000);
        let client = &world.near.channels[&1];
        if !client.held.is_empty() {
            assert!(!client.held.is_full() && client.reads);
            return world;
        }
    }
    panic!("the agent reads nothing, and the client's credit has no end");
}

/// Asks for a command with these as its input and output.
fn ask_for(client: &OwnedFd, input: &OwnedFd, output: &OwnedFd) {
    let (stdin, stdout) = (StreamTarget::Attached(0), StreamTarget::Attached(1));
    let exec = Exec { argv: vec!["cat".into()], stdin, stdout, ..Exec::default() };
    let payload = serde_json::to_vec(&Request::Exec(Box::new(exec))).expect("plain data");
    let mut bytes = Vec::new();
    encode(FrameHeader { attached: 2, ..FrameHeader::message(5) }, &payload, &mut bytes);
    let sent = socket::send(client, &[IoSlice::new(&bytes)], &[input.as_fd(), output.as_fd()]);
    assert_eq!(sent.expect("it is read"), bytes.len());
}

#[test]
fn input_is_sent_once_the_other_side_knows_whose_it_is() {
    let mut world = without_credit();
    let (input, ours) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let (nobody_reads, output) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    drop(nobody_reads);
    ask_for(&world.client, &input, &output);
    drop((input, output));
    rustix::io::write(&ours, b"all of it").expect("a pipe has room");
    drop(ours);
    (0..20).for_each(|_| world.go_on(1_000));
    assert!(!world.near.channels[&1].held.is_empty(), "it waits for credit");
    // The agent reads what was before it, and then the request.
    let (mut streams, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    for _ in 0..2_000 {
        while let Ok(Some(1..)) = socket::try_receive(&world.agent, &mut buffer, &mut streams) {}
        world.go_on(1_000);
    }
    let [input, output] = streams.try_into().expect("what was attached");
    rustix::io::ioctl_fionbio(&input, true).expect("it is ours");
    let (mut read, mut ended) = (Vec::new(), false);
    for _ in 0..2_000 {
        match rustix::io::read(&input, &mut buffer) {
            Ok(0) => ended = true,
            Ok(count) => read.extend_from_slice(&buffer[..count]),
            Err(_) => {}
        }
        world.go_on(1_000);
    }
    assert_eq!((String::from_utf8_lossy(&read).as_ref(), ended), ("all of it", true));
    // What happened meanwhile to its output is told, too.
    assert_eq!(rustix::io::write(&output, b"y"), Err(rustix::io::Errno::PIPE));
}

#[test]
fn what_was_attached_to_a_request_that_never_went_is_let_go() {
    let mut world = without_credit();
    let (input, ours) = pipe_with(PipeFlags::NONBLOCK).expect("a pipe");
    let (theirs, output) = pipe_with(PipeFlags::NONBLOCK).expect("a pipe");
    ask_for(&world.client, &input, &output);
    drop((input, output));
    world.go_on(1_000);
    assert_eq!(world.near.channels.len(), 3);
    // The agent is gone.
    let World { near, mut far, agent, .. } = world;
    let mut near = near;
    drop(agent);
    for _ in 0..20 {
        turn(&mut far);
        pass(&mut far, &mut near, 1_000);
        turn(&mut near);
        pass(&mut near, &mut far, 1_000);
    }
    assert!(near.channels.is_empty() && far.channels.is_empty());
    assert_eq!(rustix::io::write(&ours, b"more"), Err(rustix::io::Errno::PIPE));
    assert_eq!(rustix::io::read(&theirs, &mut [0; 1]), Ok(0));
}
