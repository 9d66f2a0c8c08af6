//! `kill -9` from outside while nothing in particular happens: of the client, the supervisor and the agent.

use std::process::{Child, Stdio};

use crate::apart;
use crate::yard::{self, Yard};
use rustix::process::{Pid, Signal, kill_process};
use testkit::{Ability, User};

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::KILL).expect("it lives");
}

/// A command and an environment that would run for ever, once both are up.
fn busy(yard: &Yard) -> [Child; 2] {
    let forever = ["sh", "-c", "setsid sleep 1000 & echo up; exec sleep 1000"];
    [["exec", "m"].as_slice(), ["env", "run", "m"].as_slice()].map(|verb| {
        let mut command = yard.cli(&[verb, &["--"], &forever].concat());
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the client starts");
        let mut said = [0; 3];
        let out = child.stdout.as_mut().expect("piped");
        std::io::Read::read_exact(out, &mut said).expect("its command runs");
        child
    })
}

fn killed(user: User) {
    let yard = Yard::new(user);
    for victim in ["clients", "supervisor", "agent", "supervisor and agent"] {
        yard.must_run(&["create", "m"]);
        let mut clients = busy(&yard);
        let (supervisor, agent) = yard.processes("m");
        match victim {
            "clients" => clients.iter().for_each(|client| kill(client.id())),
            "supervisor" => kill(supervisor),
            "agent" => kill(agent),
            _ => [supervisor, agent].into_iter().for_each(kill),
        }
        if victim == "supervisor" {
            // What runs goes on: the agent serves without it, and the reaper gives it a new one.
            yard.must_run(&["reap"]);
            assert_eq!(yard.must_run(&["exec", "m", "--", "echo", "still"]), "still\n");
            clients.iter().for_each(|client| kill(client.id()));
        }
        for client in &mut clients {
            client.wait().expect("our child");
        }
        let left = yard.left();
        yard::say(&format!("{victim} killed: {left:?}"));
        assert_eq!(left, [""; 0], "{victim} killed");
    }
}

#[test]
fn whoever_is_killed_nothing_is_left() {
    testkit::require!(Ability::Root);
    if apart::is_apart("killed_outside::whoever_is_killed_nothing_is_left") {
        killed(User::current());
    }
}

#[test]
fn whoever_is_killed_nothing_is_left_for_an_ordinary_user() {
    testkit::require!(Ability::Root);
    testkit::require!(Ability::OrdinaryUser);
    if apart::is_apart("killed_outside::whoever_is_killed_nothing_is_left_for_an_ordinary_user") {
        killed(User::ordinary().expect("just required"));
    }
}
