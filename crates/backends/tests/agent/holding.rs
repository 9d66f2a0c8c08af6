//! Environments that clients hold, park, release and hand out.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;

use testyard_machine::client::ClientError;
use testyard_model::{EnvironmentId, Isolation, ProblemKind, UserSpec};
use testyard_protocol::Place;

use crate::fixture::{Machine, eventually, fresh, isolated, ordinary, run, spec};

#[test]
fn a_held_environment_keeps_its_files_until_released() {
    for (machine, isolation) in [(Machine::namespace(), Isolation::Namespace), (Machine::host(), Isolation::Workspace)]
    {
        let mut connection = machine.connect();
        let id = connection.environment(&spec(isolation, ordinary())).expect("an environment");
        run(&mut connection, Place::Environment(id), "echo 1 > $TMPDIR/a").ok();
        assert_eq!(run(&mut connection, Place::Environment(id), "cat $TMPDIR/a").ok(), "1");
        // Another client may use it as long as it is held.
        assert_eq!(machine.run(Place::Environment(id), "cat $TMPDIR/a").ok(), "1");
        connection.release(id).expect("released");
        for gone in [id, EnvironmentId(999_999)] {
            let refused = connection.release(gone);
            let Err(ClientError::Refused(problem)) = refused else { panic!("{refused:?}") };
            assert_eq!(problem.kind, ProblemKind::NotFound);
        }
    }
}

#[test]
fn a_lost_client_loses_its_environments() {
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    connection.environment(&isolated(ordinary())).expect("an environment");
    let mut other = machine.connect();
    assert_eq!(other.status().expect("status").environments, 1);
    drop(connection);
    eventually("it has ended", || other.status().expect("status").environments == 0);
}

#[test]
fn parked_environments_are_used_and_made_again() {
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    let spec = isolated(ordinary());
    connection.park(&spec, 3).expect("parked");
    for _ in 0..10 {
        run(&mut connection, fresh(&spec), "test ! -e /tmp/used && touch /tmp/used").ok();
    }
    connection.park(&spec, 3).expect("parked");
    eventually("those that were used have ended", || {
        let status = connection.status().expect("status");
        (status.parked, status.environments) == (3, 0)
    });
    assert!(connection.status().expect("status").made >= 13);
    let refused = connection.park(&spec, 1_000_000);
    assert!(matches!(refused, Err(ClientError::Refused(_))), "{refused:?}");
}

/// Joins one namespace after the other, as a warm interpreter's fork does.
const JOIN: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for namespace in sys.argv[1:]:
    if libc.setns(int(namespace), 0) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
libc.setresgid(0, 0, 0) or libc.setresuid(0, 0, 0)
child = os.fork()
if child == 0:
    os.chdir('/')
    os.execv('/bin/sh', ['sh', '-c', 'hostname; cat /tmp/inside; echo from-outside > /tmp/joined; ls /proc | grep -c \"^[0-9]\"'])
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
";

fn inheritable(fd: &OwnedFd) -> String {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).expect("an open descriptor");
    fd.as_raw_fd().to_string()
}

#[test]
fn a_running_process_joins_an_environment() {
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    for user in [ordinary(), UserSpec::Root] {
        let id = connection.environment(&isolated(user)).expect("an environment");
        run(&mut connection, Place::Environment(id), "echo here > /tmp/inside; chmod 777 /tmp/inside").ok();
        let (pid, descriptors) = connection.enter(id).expect("entered");
        assert!(pid > 0 && descriptors.len() >= 8);
        let output =
            Command::new("python3").args(["-c", JOIN]).args(descriptors[1..8].iter().map(inheritable)).output();
        let output = output.expect("python");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.first().copied(), Some(id.to_string().as_str()), "{output:?}");
        assert_eq!(lines.get(1).copied(), Some("here"), "{output:?}");
        assert!(lines.get(2).is_some_and(|count| count.parse::<u32>().is_ok_and(|count| count < 8)), "{output:?}");
        assert_eq!(run(&mut connection, Place::Environment(id), "cat /tmp/joined").ok(), "from-outside");
        connection.release(id).expect("released");
    }
}
