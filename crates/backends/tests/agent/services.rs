//! What services need of an agent: waiting for ports, and sharing a network.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use testyard_machine::client::{ClientError, Connection};
use testyard_model::{EnvironmentId, EnvironmentSpec, Network, ProblemKind};
use testyard_protocol::{Exec, Place};

use crate::fixture::{Machine, eventually, isolated, ordinary, run, script};

/// Serves on a port of the loopback until it is ended, once a file is there.
const SERVE: &str = "python3 -c '
import os, select, socket
while not os.path.exists(\"/tmp/go\"):
    select.select([], [], [], 0.01)
listener = socket.create_server((\"127.0.0.1\", 5432))
while True:
    connection, _ = listener.accept()
    connection.sendall(b\"hello\")
    connection.close()
'";
const ASK: &str = "python3 -c '
import socket
connection = socket.create_connection((\"127.0.0.1\", 5432), 5)
print(connection.recv(100).decode())
'";

fn awaited(connection: &mut Connection, id: EnvironmentId, patience: Duration) -> Result<(), ClientError> {
    let mut wait = connection.listening(id, 5432, patience)?;
    loop {
        if wait.look()? {
            return Ok(());
        }
        poll(&mut [PollFd::new(&wait, PollFlags::IN)], None).expect("a wait");
    }
}

fn serve(connection: &mut Connection, id: EnvironmentId) {
    let exec = Exec { detach: true, quiet: false, ..script(Place::Environment(id), SERVE) };
    connection.exec(exec, &[]).expect("sent").wait_started().expect("started");
}

fn kind_of(error: &ClientError) -> Option<ProblemKind> {
    if let ClientError::Refused(problem) = error { Some(problem.kind) } else { None }
}

#[test]
fn a_port_is_waited_for_where_it_is_asked_for() {
    let machine = Machine::namespace();
    let (mut connection, mut server, mut other) = (machine.connect(), machine.connect(), machine.connect());
    let id = connection.environment(&isolated(ordinary())).expect("an environment");
    let elsewhere = other.environment(&isolated(ordinary())).expect("an environment");
    let early = awaited(&mut connection, id, Duration::from_millis(30)).expect_err("nothing listens");
    assert_eq!(kind_of(&early), Some(ProblemKind::TimedOut), "{early}");
    serve(&mut server, id);
    run(&mut connection, Place::Environment(id), "touch /tmp/go").ok();
    awaited(&mut connection, id, Duration::from_secs(20)).expect("it listens");
    let apart = awaited(&mut other, elsewhere, Duration::ZERO).expect_err("another network");
    assert_eq!(kind_of(&apart), Some(ProblemKind::TimedOut), "{apart}");
    // One that waits is told when there is nothing left to wait for.
    let mut wait = other.listening(elsewhere, 5432, Duration::from_secs(600)).expect("asked");
    connection.release(elsewhere).expect("released");
    eventually("the wait is over", || {
        wait.look().is_err_and(|error| kind_of(&error) == Some(ProblemKind::Unavailable))
    });
    let gone = awaited(&mut other, elsewhere, Duration::ZERO).expect_err("it is gone");
    assert_eq!(kind_of(&gone), Some(ProblemKind::NotFound), "{gone}");
}

#[test]
fn an_environment_shares_the_network_of_another_and_nothing_else() {
    let machine = Machine::namespace();
    let (mut connection, mut server) = (machine.connect(), machine.connect());
    let id = connection.environment(&isolated(ordinary())).expect("an environment");
    serve(&mut server, id);
    run(&mut connection, Place::Environment(id), "touch /tmp/go; chmod 777 /tmp/go").ok();
    awaited(&mut connection, id, Duration::from_secs(20)).expect("it listens");
    let joined = EnvironmentSpec { joins: Some(id), ..isolated(ordinary()) };
    let guest = connection.environment(&joined).expect("an environment in that network");
    assert_eq!(run(&mut connection, Place::Environment(guest), ASK).ok(), "hello");
    run(&mut connection, Place::Environment(guest), "test ! -e /tmp/go; ! pgrep -x python3").ok();
    let stranger = connection.environment(&isolated(ordinary())).expect("an environment");
    let refused = run(&mut connection, Place::Environment(stranger), ASK);
    assert!(!refused.captured.finished.status.success(), "{refused:?}");
    connection.release(guest).expect("released");
    assert_eq!(run(&mut connection, Place::Environment(id), ASK).ok(), "hello", "the host of a guest stays");

    for wrong in [
        EnvironmentSpec { network: Network::Host, ..joined.clone() },
        EnvironmentSpec { joins: Some(EnvironmentId(999_999)), ..joined },
    ] {
        let error = connection.environment(&wrong).expect_err("it cannot be had");
        assert!(matches!(kind_of(&error), Some(ProblemKind::Usage | ProblemKind::NotFound)), "{error}");
    }
}
