//! Environments with namespaces of their own: what they see, what they can change, what stays apart.

use testyard_machine::client::{ClientError, caller};
use testyard_model::{Isolation, Network, ProblemKind, UserSpec};
use testyard_protocol::Place;

use crate::fixture::{Machine, fresh, isolated, ordinary, run, spec};

#[test]
fn root_inside_really_changes_the_root_and_nobody_else_sees_it() {
    let machine = Machine::namespace();
    let root = isolated(UserSpec::Root);
    let script = "id -u; echo mallory:x:0:0::/:/bin/sh >> /etc/passwd && tail -n1 /etc/passwd; \
                  mkdir /new && echo new > /new/file && ln /new/file /new/link && cat /new/link; rm -rf /usr/share /usr/bin && ls -d /usr/bin 2>/dev/null || echo gone";
    let said = machine.run(fresh(&root), script);
    if machine.limits.iter().any(|limit| limit.starts_with("composed root")) {
        testkit::skip!("root changes the root", host: "this kernel takes no metadata tree");
    }
    // `ls` is gone by then.
    assert_eq!(said.text, "0\nmallory:x:0:0::/:/bin/sh\nnew\ngone", "{said:?}");
}

#[test]
fn changes_stay_in_their_environment() {
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    let root = isolated(UserSpec::Root);
    run(&mut connection, fresh(&root), "echo mine > /tmp/mine; echo x > /etc/x; rm /etc/passwd").ok();
    run(&mut connection, fresh(&root), "test ! -e /tmp/mine && test ! -e /etc/x && test -e /etc/passwd").ok();
    run(&mut connection, Place::Machine, "test ! -e /tmp/mine && test ! -e /etc/x && test -e /etc/passwd").ok();
    assert!(!std::path::Path::new("/tmp/mine").exists());
}

#[test]
fn the_caller_is_the_caller_without_capabilities() {
    let machine = Machine::namespace();
    let UserSpec::Numbered { uid, .. } = ordinary() else { unreachable!() };
    let said = machine.run(fresh(&isolated(ordinary())), "id -u; grep CapEff /proc/self/status; echo $TMPDIR").ok();
    assert_eq!(said, format!("{uid}\nCapEff:\t0000000000000000\n/tmp"));
    let said = machine.run(fresh(&isolated(ordinary())), "echo a > /tmp/a && cat /tmp/a && echo b > /dev/null").ok();
    assert_eq!(said, "a");
}

#[test]
fn plain_commands_run_as_the_caller() {
    for machine in Machine::each() {
        let UserSpec::Numbered { uid, gid, .. } = caller() else { unreachable!() };
        assert_eq!(machine.run(Place::Machine, "id -u; id -g").ok(), format!("{uid}\n{gid}"));
    }
}

#[test]
fn machines_have_a_root_that_root_inside_changes() {
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    let mut exec = crate::fixture::script(Place::Machine, "echo 1 > /etc/of-the-machine; id -u; hostname");
    exec.user = Some(UserSpec::Root);
    assert_eq!(crate::fixture::capture(&mut connection, exec).ok(), format!("0\n{}", machine.place.name));
    // Environments see the machine's files, sealed.
    assert_eq!(machine.run(fresh(&isolated(ordinary())), "cat /etc/of-the-machine").ok(), "1");
    assert!(!std::path::Path::new("/etc/of-the-machine").exists());
}

#[test]
fn processes_ipc_host_name_and_network_are_apart() {
    let machine = Machine::namespace();
    let said = machine.run(
        fresh(&isolated(UserSpec::Root)),
        "ls /proc | grep -c '^[0-9]'; hostname; ls /sys/class/net; cat /proc/sysvipc/msg | wc -l",
    );
    let text = said.ok();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].parse::<u32>().is_ok_and(|count| count < 8), "{text}");
    assert_eq!(lines[1..], ["e1", "lo", "1"], "{text}");
    let mut none = isolated(ordinary());
    none.network = Network::None;
    assert_eq!(machine.run(fresh(&none), "cat /sys/class/net/lo/flags").ok(), "0x8");
    let mut named = isolated(ordinary());
    named.host_name = Some("chosen".into());
    assert_eq!(machine.run(fresh(&named), "hostname").ok(), "chosen");
}

#[test]
fn the_same_port_is_free_in_each() {
    let machine = Machine::namespace();
    let mut connections = [machine.connect(), machine.connect()];
    let spec = isolated(ordinary());
    let listen = "python3 -c 'import socket; s=socket.socket(); s.bind((\"127.0.0.1\", 8080)); s.listen(); print(1)'";
    let ids = connections.each_mut().map(|connection| connection.environment(&spec).expect("an environment"));
    for (connection, id) in connections.iter_mut().zip(ids) {
        assert_eq!(run(connection, Place::Environment(id), listen).ok(), "1");
    }
}

#[test]
fn backend_host_refuses_namespaces() {
    let machine = Machine::host();
    for isolation in [Isolation::Namespace, Isolation::Machine] {
        let refused = machine.connect().environment(&spec(isolation, caller()));
        let Err(ClientError::Refused(problem)) = refused else { panic!("{refused:?}") };
        assert_eq!(problem.kind, ProblemKind::Unsupported);
    }
}

#[test]
fn a_new_file_of_the_machine_is_seen_after_the_parked_ones() {
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    let spec = isolated(ordinary());
    connection.park(&spec, 2).expect("parked");
    assert_eq!(connection.status().expect("status").parked, 2);
    for round in 1..4 {
        run(&mut connection, Place::Machine, &format!("echo {round} > /tmp/round")).ok();
        assert_eq!(run(&mut connection, fresh(&spec), "cat /tmp/round").ok(), round.to_string());
    }
}

#[test]
fn restart_keeps_files_and_a_clone_has_them() {
    let mut machine = Machine::namespace();
    let script = "mkdir -p /var/tmp/kept && echo 1 > /var/tmp/kept/file && ln -s file /var/tmp/kept/link && rm /etc/hosts.allow 2>/dev/null; \
                  echo done";
    let mut exec = crate::fixture::script(Place::Machine, script);
    exec.user = Some(UserSpec::Root);
    crate::fixture::capture(&mut machine.connect(), exec).ok();
    let mut clone = Machine::created(machine.place.spec.clone());
    machine.down();
    machine.up();
    let look = "cat /var/tmp/kept/link";
    assert_eq!(machine.run(Place::Machine, look).ok(), "1");
    assert_eq!(machine.run(fresh(&isolated(ordinary())), look).ok(), "1");
    machine.down();
    machine.copy_to(&mut clone);
    clone.up();
    assert_eq!(clone.run(fresh(&isolated(ordinary())), look).ok(), "1");
    // A crash in between leaves nothing that hinders the next start.
    machine.up();
    machine.crash();
    machine.up();
    assert_eq!(machine.run(Place::Machine, look).ok(), "1");
}
