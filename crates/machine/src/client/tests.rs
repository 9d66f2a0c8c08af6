use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;

use testyard_model::ProblemKind;
use testyard_protocol::{Carrier, Credit, Exec, Role, StreamTarget, Transfer};

use super::*;
use crate::trial;

fn connection() -> Connection {
    Connection::over(trial::agent_connection(), Role::Agent, "web").expect("it welcomes")
}

fn echo() -> Exec {
    Exec { argv: vec!["cat".into()], stdin: StreamTarget::Frames, stdout: StreamTarget::Frames, ..Exec::default() }
}

#[test]
fn commands_follow_each_other_on_one_connection() {
    let mut connection = connection();
    for _ in 0..3 {
        let finished = connection.exec(Exec { argv: vec!["x".into()], ..Exec::default() }, &[]).expect("sent").wait();
        assert_eq!(finished.expect("it runs").pid, 42);
    }
}

#[test]
fn a_slow_reader_blocks_only_its_own_stream() {
    let session = Session::over(connection()).expect("threads are to be had");
    let mut slow = session.exec(echo(), &[]).expect("sent");
    let mut writer = slow.stdin.take().expect("frames were asked for");
    // More than the credit: the writer stops until somebody reads.
    let total = 4 * Credit::INITIAL as usize;
    let writing = std::thread::spawn(move || writer.write_all(&vec![b'x'; total]));
    for _ in 0..10 {
        let mut other = session.exec(echo(), &[]).expect("sent");
        let mut stdin = other.stdin.take().expect("frames were asked for");
        stdin.write_all(b"hello").expect("there is credit");
        drop(stdin);
        let mut out = String::new();
        other.stdout.take().expect("frames were asked for").read_to_string(&mut out).expect("text");
        assert_eq!(out, "hello");
        assert!(other.wait().expect("it ends").status.success());
    }
    let mut out = Vec::new();
    slow.stdout.take().expect("frames were asked for").read_to_end(&mut out).expect("bytes");
    assert_eq!(out.len(), total);
    writing.join().expect("no panic").expect("all was read");
    slow.wait().expect("it ends");
}

#[test]
fn a_lost_machine_is_named() {
    let (outside, inside) = testyard_linux::socket::pair(testyard_linux::socket::Kind::Stream).expect("sockets");
    let agent = std::thread::spawn(move || {
        let mut reader = crate::wire::FrameReader::new(512);
        reader.receive(&inside).expect("a hello");
        let welcome = br#"{"welcome":{"version":2,"server":"x","generation":0}}"#;
        let header = testyard_protocol::FrameHeader::message(0);
        crate::wire::send_frame(&inside, header, welcome, &[]).expect("it is read");
        reader.receive(&inside).expect("a request");
    });
    let mut connection = Connection::over(outside, Role::Agent, "web").expect("it welcomes");
    let problem = connection.status().expect_err("it dies").problem();
    agent.join().expect("no panic");
    assert_eq!(problem.kind, ProblemKind::Unavailable);
    assert!(problem.message.contains("machine web"), "{}", problem.message);
    assert!(!problem.hints.is_empty());
}

#[test]
fn trees_travel_through_a_pipe() {
    let transfer = || Transfer { path: "/x".into(), user: None, carrier: Carrier::Frames, environment: None };
    let mut connection = connection();
    connection.push(transfer(), |out| out.write_all(b"the end")).expect("it is whole");
    let mut seen = Vec::new();
    let pulled = connection.pull(transfer(), |bytes| bytes.read_to_end(&mut seen).map(|_| ()));
    pulled.expect("it is sent");
    assert_eq!(seen, b"tree");
    // Our own reason is told, not that the machine saw half a tree.
    let failed = connection.push(transfer(), |_| Err::<(), _>("disk on fire")).expect_err("it failed");
    assert!(matches!(failed, TransferError::Local("disk on fire")));
    connection.status().expect("the connection goes on");
}

#[test]
fn waiting_also_watches_other_descriptors() {
    let mut connection = connection();
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipes are to be had");
    drop(write);
    let mut exec = echo();
    exec.stdout = StreamTarget::Null;
    let mut running = connection.exec(exec, &[]).expect("sent");
    assert_eq!(running.wait_or(&[read.as_fd()], None).expect("no error"), Awaited::Readable(0));
    let past = std::time::Instant::now();
    assert_eq!(running.wait_or(&[], Some(past)).expect("no error"), Awaited::DeadlinePassed);
}
