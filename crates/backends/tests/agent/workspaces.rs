//! Workspace isolation: folders and a process tree of one's own.

use testyard_machine::client::ClientError;
use testyard_model::{CommandStatus, EnvironmentSpec, Isolation, Network, ProblemKind, UserSpec};

use crate::fixture::{Machine, assert_status, capture, eventually, fresh, is_alive, ordinary, run, script, spec};

#[test]
fn it_has_its_own_folders_and_they_go() {
    for machine in Machine::each() {
        let workspace = spec(Isolation::Workspace, ordinary());
        let mut connection = machine.connect();
        let text = "pwd; echo $TESTYARD_WORKSPACE; echo $TMPDIR; echo a > a; echo b > $TMPDIR/b; cat a $TMPDIR/b";
        let said = run(&mut connection, fresh(&workspace), text).ok();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], lines[1]);
        assert!(lines[0].ends_with("/work") && lines[2].ends_with("/tmp"), "{said}");
        assert_eq!(lines[3..], ["a", "b"]);
        let folder = lines[0].trim_end_matches("/work").to_owned();
        let look = format!("test -e {folder} && echo there || echo gone");
        eventually("the workspace is removed", || {
            run(&mut connection, testyard_protocol::Place::Machine, &look).ok() == "gone"
        });
    }
}

#[test]
fn its_folders_belong_to_its_user_also_by_name() {
    if !testkit::user::is_host_root() {
        testkit::skip!("folders of a user by name", host: "only root's machines have other users");
    }
    for machine in Machine::each() {
        let workspace = spec(Isolation::Workspace, UserSpec::Named("daemon".to_owned()));
        let said = run(&mut machine.connect(), fresh(&workspace), "touch file && stat -c %U . file \"$TMPDIR\"").ok();
        assert_eq!(said, "daemon\ndaemon\ndaemon");
    }
}

#[test]
fn the_whole_tree_ends_daemons_too() {
    for machine in Machine::each() {
        let workspace = spec(Isolation::Workspace, ordinary());
        let mut connection = machine.connect();
        // Twice forked, a session of its own, no mark left, parents gone.
        let daemon = "(setsid setsid sh -c 'echo $$ > pid; exec sleep 1000.5' >/dev/null 2>&1 </dev/null &) ; \
                      while ! test -s pid; do sleep 0.01; done; cat pid";
        run(&mut connection, fresh(&workspace), daemon).ok();
        let left = || {
            let table = std::process::Command::new("ps").args(["-eo", "args"]).output().expect("ps");
            String::from_utf8_lossy(&table.stdout).lines().any(|line| line == "sleep 1000.5")
        };
        eventually("the daemon has ended", || !left());
    }
}

#[test]
fn killing_everything_it_sees_hurts_nobody_else_on_a_namespace_machine() {
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    let mine = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    let workspace = spec(Isolation::Workspace, ordinary());
    let said = capture(&mut connection, script(fresh(&workspace), "kill -9 -1; echo killed"));
    assert!(
        matches!(said.captured.finished.status, CommandStatus::Exited(_) | CommandStatus::Signalled(9)),
        "{said:?}"
    );
    let pid = mine.id().to_string();
    assert!(is_alive(&pid));
    let mut mine = mine;
    mine.kill().expect("killed");
    mine.wait().expect("reaped");
    assert_eq!(run(&mut connection, fresh(&workspace), "echo again").ok(), "again");
}

#[test]
fn a_timeout_ends_it() {
    for machine in Machine::each() {
        let mut connection = machine.connect();
        let workspace = spec(Isolation::Workspace, ordinary());
        let mut exec = script(fresh(&workspace), "sleep 1000");
        exec.timeout_ms = Some(50);
        assert_status(&capture(&mut connection, exec), CommandStatus::TimedOut);
    }
}

#[test]
fn a_network_that_there_is_not_is_refused_and_never_taken_for_the_machines() {
    for machine in Machine::each() {
        let mut connection = machine.connect();
        for isolation in [Isolation::None, Isolation::Workspace] {
            for network in [Network::Outbound, Network::None] {
                let wanted = EnvironmentSpec { network, ..spec(isolation, ordinary()) };
                let refused = connection.capture(script(fresh(&wanted), "true"), &[]);
                let Err(ClientError::Refused(problem)) = refused else { panic!("{refused:?}") };
                assert_eq!(problem.kind, ProblemKind::Usage);
                assert!(problem.message.contains(network.as_str()), "{problem:?}");
                assert!(connection.environment(&wanted).is_err() && connection.park(&wanted, 1).is_err());
            }
        }
        // What older clients say who leave it open.
        let open = EnvironmentSpec { network: Network::Private, ..spec(Isolation::Workspace, ordinary()) };
        assert_eq!(run(&mut connection, fresh(&open), "echo runs").ok(), "runs");
    }
}
