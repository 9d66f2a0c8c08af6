//! Routes out of environments.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use testyard_machine::client::ClientError;
use testyard_model::{Network, ProblemKind, UserSpec};
use testyard_protocol::Place;

use crate::fixture::{Machine, capture, eventually, fresh, isolated, ordinary, run, script};

/// Why there can be no route here, if so.
fn lacking() -> Option<&'static str> {
    if !std::process::Command::new("pasta").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Some("pasta is not installed (package passt)");
    }
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    if !routes.lines().any(|line| line.split_whitespace().nth(1) == Some("00000000")) {
        return Some("this host has no default route");
    }
    if std::fs::File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        return Some("this user cannot open /dev/net/tun");
    }
    None
}

/// Asks the host through the gateway, which pasta maps to the host's own loopback.
const ASK: &str = "python3 -c '
import socket, struct
for line in open(\"/proc/net/route\"):
    fields = line.split()
    if fields[1] == \"00000000\":
        gateway = socket.inet_ntoa(struct.pack(\"<L\", int(fields[2], 16)))
connection = socket.create_connection((gateway, PORT), 5)
connection.sendall(b\"ask\")
print(connection.recv(100).decode())
'";

fn pastas() -> usize {
    let table = std::process::Command::new("ps").args(["-eo", "comm"]).output().expect("ps");
    String::from_utf8_lossy(&table.stdout).lines().filter(|line| line.starts_with("pas")).count()
}

#[test]
fn an_environment_reaches_out_and_its_route_ends_with_it() {
    if let Some(lack) = lacking() {
        testkit::skip!("an environment reaches out", host: lack);
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut asked = [0; 3];
            if client.read_exact(&mut asked).is_ok() {
                let _ = client.write_all(b"the host answers");
            }
        }
    });
    let before = pastas();
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    let ask = ASK.replace("PORT", &port.to_string());
    for user in [ordinary(), UserSpec::Root] {
        let mut spec = isolated(user);
        spec.network = Network::Outbound;
        assert_eq!(run(&mut connection, fresh(&spec), &ask).ok(), "the host answers");
        let id = connection.environment(&spec).expect("an environment");
        assert_eq!(run(&mut connection, Place::Environment(id), &ask).ok(), "the host answers");
        assert!(pastas() > before);
        connection.release(id).expect("released");
        eventually("the route has ended", || pastas() <= before);
    }
    // Its own loopback is not the host's.
    let own = ask.replace("(gateway,", "(\"127.0.0.1\",");
    let mut spec = isolated(ordinary());
    spec.network = Network::Outbound;
    assert!(!run(&mut connection, fresh(&spec), &own).captured.finished.status.success());
}

#[test]
fn a_route_that_cannot_be_is_said() {
    if lacking().is_none() {
        testkit::skip!("a route that cannot be is said", host: "this host can make routes");
    }
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    let mut spec = isolated(ordinary());
    spec.network = Network::Outbound;
    let refused = connection.environment(&spec);
    let Err(ClientError::Refused(problem)) = refused else { panic!("{refused:?}") };
    assert_eq!(problem.kind, ProblemKind::Unsupported);
    assert!(!problem.hints.is_empty());
    if lacking().is_some_and(|lack| lack.contains("/dev/net/tun")) {
        assert!(problem.message.contains("/dev/net/tun"), "{problem:?}");
    }
    let refused = connection.capture(script(fresh(&spec), "true"), &[]);
    assert!(matches!(refused, Err(ClientError::Refused(_))), "{refused:?}");
    assert_eq!(capture(&mut connection, script(Place::Machine, "echo fine")).ok(), "fine");
}

#[test]
fn a_private_network_reaches_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let machine = Machine::namespace();
    let text =
        format!("python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}), 2)' 2>&1 | tail -n1");
    let said = machine.run(fresh(&isolated(ordinary())), &text).ok();
    assert!(said.contains("refused"), "{said}");
    let mut host = isolated(ordinary());
    host.network = Network::Host;
    assert_eq!(machine.run(fresh(&host), &text).ok(), "");
}
