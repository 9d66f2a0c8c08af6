//! Transfers end with what they belong to: their agent, environment, client, or the wish for them.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use testyard_linux::socket;
use testyard_machine::client::{ClientError, Connection, Reply, caller};
use testyard_model::{EnvironmentId, ProblemKind};
use testyard_protocol::{Carrier, Place, Request, Transfer};
use testyard_transfer::Oversight;

use crate::fixture::{Machine, isolated, ordinary, run};

fn transfer(path: &str, environment: Option<EnvironmentId>) -> Transfer {
    let user = Some(if environment.is_some() { ordinary() } else { caller() });
    Transfer { path: path.into(), user, carrier: Carrier::Attached, environment }
}

/// A file that is more than any socket holds.
fn make_large(connection: &mut Connection, place: Place) -> String {
    run(connection, place, "large=$(mktemp); head -c 20000000 /dev/zero | tr '\\0' x > $large; echo $large").ok()
}

/// A pull that has begun, and that nobody reads.
struct Stuck {
    end: OwnedFd,
    request: JoinHandle<(Connection, Result<Reply, ClientError>)>,
}

impl Stuck {
    fn begin(mut connection: Connection, path: &str, environment: Option<EnvironmentId>) -> Self {
        let (end, inside) = socket::pair(socket::Kind::Stream).expect("a pair");
        let pull = Request::Pull(transfer(path, environment));
        let request = std::thread::spawn(move || {
            let reply = connection.request(&pull, &[inside.as_fd()]);
            (connection, reply)
        });
        let stuck = Self { end, request };
        stuck.wait_for(PollFlags::IN, "the transfer begins");
        stuck
    }

    /// Waits until the worker, and our own copy of its end, are gone.
    fn ends(&self) {
        self.wait_for(PollFlags::HUP, "the worker ends");
    }

    fn wait_for(&self, what: PollFlags, shown: &str) {
        let patience = Duration::from_secs(20).try_into().expect("a short time");
        let mut watched = [PollFd::new(&self.end, what)];
        assert_eq!(poll(&mut watched, Some(&patience)), Ok(1), "{shown}");
    }
}

#[test]
fn a_transfer_ends_with_its_agent() {
    for mut machine in Machine::each() {
        let large = make_large(&mut machine.connect(), Place::Machine);
        let stuck = Stuck::begin(machine.connect(), &large, None);
        machine.crash();
        stuck.ends();
        assert!(stuck.request.join().expect("no panic").1.is_err());
        if machine.is_host() {
            fs::remove_file(&large).expect("it was made there");
        }
    }
}

#[test]
fn a_transfer_ends_with_its_environment() {
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    let id = connection.environment(&isolated(ordinary())).expect("an environment");
    let large = make_large(&mut connection, Place::Environment(id));
    let stuck = Stuck::begin(machine.connect(), &large, Some(id));
    connection.release(id).expect("released");
    let (_, reply) = stuck.request.join().expect("no panic");
    let problem = reply.expect_err("it ended early").problem();
    assert_eq!(problem.kind, ProblemKind::Unavailable, "{problem}");
    assert!(problem.message.contains(&id.to_string()), "{problem}");
}

#[test]
fn a_transfer_ends_with_its_client() {
    let machine = Machine::namespace();
    let large = make_large(&mut machine.connect(), Place::Machine);
    // The socket of the client is all that it has; its end of the transfer stays open in another process.
    let client = machine.connect();
    let socket = client.as_fd().try_clone_to_owned().expect("a descriptor");
    let stuck = Stuck::begin(client, &large, None);
    rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).expect("it is open");
    stuck.ends();
    assert!(stuck.request.join().expect("no panic").1.is_err());
}

#[test]
fn a_transfer_ends_with_its_machine() {
    for mut machine in Machine::each() {
        let large = make_large(&mut machine.connect(), Place::Machine);
        let stuck = Stuck::begin(machine.connect(), &large, None);
        machine.down();
        stuck.ends();
        if machine.is_host() {
            fs::remove_file(&large).expect("it was made there");
        }
    }
}

#[test]
fn a_stopped_push_leaves_nothing() {
    for machine in Machine::each() {
        let mut connection = machine.connect();
        let tree = tempfile::tempdir().expect("a folder");
        fs::write(tree.path().join("file"), vec![7; 3_000_000]).expect("a file");
        let root = fs::File::open(tree.path()).expect("a folder");
        let base = format!("/tmp/ty-stopped-{}-{}", std::process::id(), machine.place.name);
        run(&mut connection, Place::Machine, &format!("mkdir {base}")).ok();
        // A closed pipe can be read, at once.
        let (stop, _) = std::io::pipe().expect("a pipe");
        let oversight = Oversight { stop: Some(stop.as_fd()), moved: None };
        let target = transfer(&format!("{base}/file"), None);
        let stopped = connection.push_tree(target, root.as_fd(), Path::new("file"), oversight);
        assert!(stopped.is_err());
        assert_eq!(run(&mut connection, Place::Machine, &format!("ls -A {base}; rmdir {base}")).ok(), "");
    }
}
