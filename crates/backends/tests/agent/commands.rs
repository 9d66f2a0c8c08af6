//! Commands: streams, terminals, signals, deadlines, and clients that go away.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;

use testyard_machine::client::ClientError;
use testyard_model::{CommandStatus, Isolation, ProblemKind, UserSpec};
use testyard_protocol::{Exec, Place, RawText, StreamTarget, TerminalSize};

use crate::fixture::{
    Machine, assert_status, capture, eventually, exec, fresh, is_alive, isolated, ordinary, run, script, spec,
};

/// Where a command can run on each kind of machine.
fn places() -> Vec<(Machine, Place)> {
    let workspace = fresh(&spec(Isolation::Workspace, ordinary()));
    vec![
        (Machine::host(), Place::Machine),
        (Machine::host(), workspace.clone()),
        (Machine::namespace(), Place::Machine),
        (Machine::namespace(), workspace),
        (Machine::namespace(), fresh(&isolated(ordinary()))),
        (Machine::namespace(), fresh(&isolated(UserSpec::Root))),
    ]
}

#[test]
fn arguments_variables_and_codes_are_verbatim() {
    for (machine, place) in places() {
        let mut connection = machine.connect();
        let odd = "a  b\n'\"$x*";
        let said = capture(&mut connection, Exec { place: place.clone(), ..exec(&["printf", "%s", odd]) });
        assert_eq!(said.text, odd);
        let mut env = script(place.clone(), "echo \"$A|$HOME\"; exit 7");
        env.env = vec![("A".into(), "b c".into()), ("HOME".into(), "/nowhere".into())];
        let said = capture(&mut connection, env);
        assert_status(&said, CommandStatus::Exited(7));
        assert_eq!(said.text, "b c|/nowhere");
        assert_status(&run(&mut connection, place.clone(), "kill -SEGV $$"), CommandStatus::Signalled(11));
        let cwd = Exec { cwd: Some("/usr".into()), ..script(place.clone(), "pwd; echo err >&2") };
        let said = capture(&mut connection, cwd);
        assert_eq!((said.text.as_str(), said.captured.stderr.as_slice()), ("/usr", &b"err\n"[..]));
        for wrong in [exec(&["/no/such/program"]), exec(&["/etc/hostname"]), exec(&[])] {
            let failed = connection.capture(Exec { place: place.clone(), ..wrong }, &[]);
            assert!(matches!(failed, Err(ClientError::Refused(_))), "{failed:?}");
        }
        let nowhere = Exec { cwd: Some("/no/such".into()), ..script(place, "true") };
        assert!(matches!(connection.capture(nowhere, &[]), Err(ClientError::Refused(_))));
    }
}

/// An environment may still be being made when its command comes, and both its first and its last word be there at once.
#[test]
fn a_program_that_is_not_there_is_named_however_soon_it_is_asked_for() {
    let machine = Machine::namespace();
    let mut connection = machine.connect();
    let place = fresh(&isolated(UserSpec::Root));
    for round in 0..200 {
        let failed = connection.capture(Exec { place: place.clone(), ..exec(&["/no/such/program"]) }, &[]);
        assert!(matches!(failed, Err(ClientError::Refused(_))), "round {round}: {failed:?}");
    }
}

#[test]
fn frames_carry_much_both_ways() {
    for (machine, place) in places() {
        let session = machine.session();
        let frames = StreamTarget::Frames;
        let cat = Exec { stdin: frames, stdout: frames, stderr: frames, ..script(place, "cat; echo end >&2; exit 3") };
        let mut command = session.exec(cat, &[]).expect("started");
        let mut stdin = command.stdin.take().expect("framed");
        let sent: Vec<u8> = (0..5_000_000_u32).map(|number| ((number * 7) >> 3) as u8).collect();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&copy).expect("written"));
        let mut got = Vec::new();
        command.stdout.take().expect("framed").read_to_end(&mut got).expect("read");
        writer.join().expect("no panic");
        let mut error = String::new();
        command.stderr.take().expect("framed").read_to_string(&mut error).expect("read");
        assert!(got == sent && error == "end\n", "{} bytes, {error}", got.len());
        assert_eq!(command.wait().expect("it ended").status, CommandStatus::Exited(3));
    }
}

#[test]
fn a_slow_reader_blocks_no_other_stream() {
    for machine in Machine::each() {
        let session = machine.session();
        let flood = Exec { stdout: StreamTarget::Frames, ..script(Place::Machine, "head -c 30000000 /dev/zero") };
        let mut slow: Vec<_> = (0..8).map(|_| session.exec(flood.clone(), &[]).expect("started")).collect();
        for _ in 0..50 {
            let quick = Exec { stdout: StreamTarget::Frames, ..script(Place::Machine, "echo quick") };
            let mut quick = session.exec(quick, &[]).expect("started");
            let mut said = String::new();
            quick.stdout.take().expect("framed").read_to_string(&mut said).expect("read");
            assert_eq!(said, "quick\n");
            quick.wait().expect("it ended");
        }
        let mut first = slow.remove(0);
        let mut bytes = Vec::new();
        first.stdout.take().expect("framed").read_to_end(&mut bytes).expect("read");
        assert_eq!(bytes.len(), 30_000_000);
        assert!(first.wait().expect("it ended").status.success());
    }
}

#[test]
fn a_client_that_does_not_read_keeps_its_connection() {
    let machine = Machine::namespace();
    let session = machine.session();
    // One byte a frame, far more frames than are ever queued.
    let text = "i=0; while [ $i -lt 9000 ]; do echo; i=$((i+1)); done";
    let mut command =
        session.exec(Exec { stdout: StreamTarget::Frames, ..script(Place::Machine, text) }, &[]).expect("started");
    assert!(command.wait().expect("it ended").status.success());
    let mut bytes = Vec::new();
    command.stdout.take().expect("framed").read_to_end(&mut bytes).expect("read");
    assert_eq!(bytes.len(), 9000);
}

#[test]
fn terminals_have_a_size_that_changes_and_a_session() {
    for (machine, place) in places() {
        let session = machine.session();
        let text = "test -t 0 && test -t 1 && tty && stty size && trap 'stty size; exit 5' WINCH && echo ready && \
                    while :; do sleep 0.05; done";
        let terminal = Exec { terminal: Some(TerminalSize { rows: 33, columns: 77 }), ..script(place, text) };
        let mut command = session.exec(terminal, &[]).expect("started");
        let mut stdout = command.stdout.take().expect("framed");
        let mut said = String::new();
        let mut buffer = [0; 1024];
        while !said.contains("ready") {
            let length = stdout.read(&mut buffer).expect("read");
            assert!(length > 0, "{said} {:?} on {}", command.wait(), machine.backend.name());
            said.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        assert!(said.contains("/dev/pts/") && said.contains("33 77"), "{said}");
        command.handle().resize(TerminalSize { rows: 10, columns: 20 }).expect("said");
        stdout.read_to_string(&mut said).expect("read");
        assert!(said.ends_with("10 20\r\n"), "{said}");
        assert_eq!(command.wait().expect("it ended").status, CommandStatus::Exited(5));
    }
}

#[test]
fn typed_characters_interrupt() {
    for (machine, place) in places() {
        let session = machine.session();
        let size = TerminalSize { rows: 24, columns: 80 };
        // Not the shell: dash that is just about to start something loses an interrupt.
        // Nor Python's own handler, which is lost when it runs just before the sleep.
        let text =
            "import signal, time; signal.signal(2, signal.SIG_DFL); print('ready', flush=True); time.sleep(1000)";
        let terminal = Exec { terminal: Some(size), place, ..exec(&["python3", "-c", text]) };
        let mut command = session.exec(terminal, &[]).expect("started");
        let mut stdout = command.stdout.take().expect("framed");
        let mut buffer = [0; 1024];
        assert!(stdout.read(&mut buffer).expect("read") > 0);
        command.stdin.take().expect("framed").write_all(&[3]).expect("typed");
        assert_eq!(command.wait().expect("it ended").status, CommandStatus::Signalled(2));
    }
}

#[test]
fn signals_reach_the_command() {
    for (machine, place) in places() {
        let session = machine.session();
        let text = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.02; done";
        let mut command =
            session.exec(Exec { stdout: StreamTarget::Frames, ..script(place, text) }, &[]).expect("started");
        let mut buffer = [0; 16];
        let mut stdout = command.stdout.take().expect("framed");
        assert!(stdout.read(&mut buffer).expect("read") > 0);
        command.handle().signal(10).expect("said");
        assert_eq!(command.wait().expect("it ended").status, CommandStatus::Exited(9));
    }
}

/// Starts something that leaves a process behind which has left its parents; the command goes on.
const BRANCHING: &str = "(setsid sh -c 'exec sleep 4321.25' &) ; sleep 4321.25";

fn sleepers() -> usize {
    let table = std::process::Command::new("ps").args(["-eo", "args"]).output().expect("ps");
    String::from_utf8_lossy(&table.stdout).lines().filter(|line| line.ends_with("sleep 4321.25")).count()
}

#[test]
fn deadlines_kills_and_lost_clients_end_the_whole_tree() {
    for (machine, place) in places() {
        let mut connection = machine.connect();
        let timed = Exec { timeout_ms: Some(150), ..script(place.clone(), BRANCHING) };
        assert_status(&capture(&mut connection, timed), CommandStatus::TimedOut);
        eventually("a timeout ends the tree", || sleepers() == 0);

        let null = std::fs::File::open("/dev/null").expect("null");
        let quiet = Exec { stdin: StreamTarget::Attached(0), quiet: false, ..script(place.clone(), BRANCHING) };
        let mut running = connection.exec(quiet.clone(), &[null.as_fd()]).expect("started");
        running.wait_started().expect("started");
        eventually("it runs", || sleepers() >= 2);
        running.kill().expect("said");
        assert_eq!(running.wait().expect("it ended").status, CommandStatus::Signalled(9));
        eventually("a kill ends the tree", || sleepers() == 0);

        let mut running = connection.exec(quiet, &[null.as_fd()]).expect("started");
        running.wait_started().expect("started");
        eventually("it runs", || sleepers() >= 2);
        drop(connection);
        eventually("a lost client ends the tree", || sleepers() == 0);
    }
}

#[test]
fn detached_commands_live_on() {
    for (machine, place) in places() {
        let mut connection = machine.connect();
        let text = "echo $$; exec 1>&-; while ! test -e /tmp/ty-detached-end; do sleep 0.05; done";
        let detached = Exec { detach: true, quiet: false, stdout: StreamTarget::Frames, ..script(place.clone(), text) };
        let session = testyard_machine::client::Session::over(connection).expect("a thread");
        let mut command = session.exec(detached, &[]).expect("started");
        command.wait_started().expect("started");
        // In this order: a command that is dropped while its session lives is ended.
        drop(session);
        drop(command);
        connection = machine.connect();
        eventually("the first client is gone", || connection.status().expect("status").clients == 1);
        assert_eq!(connection.status().expect("status").commands, 1, "{place:?} {}", machine.backend.name());
    }
}

#[test]
fn many_streams_at_once() {
    for machine in Machine::each() {
        let session = machine.session();
        let commands: Vec<_> = (0..100)
            .map(|number| {
                let echo = script(Place::Machine, &format!("echo {number}"));
                session.exec(Exec { stdout: StreamTarget::Frames, ..echo }, &[]).expect("started")
            })
            .collect();
        for (number, mut command) in commands.into_iter().enumerate() {
            let mut said = String::new();
            command.stdout.take().expect("framed").read_to_string(&mut said).expect("read");
            assert_eq!(said, format!("{number}\n"));
            assert!(command.wait().expect("it ended").status.success());
        }
    }
}

#[test]
fn the_agents_death_ends_everything() {
    for mut machine in Machine::each() {
        let mut connection = machine.connect();
        let null = std::fs::File::open("/dev/null").expect("null");
        let sleep = Exec { stdin: StreamTarget::Attached(0), quiet: false, ..exec(&["sleep", "4321.75"]) };
        let mut running = connection.exec(sleep, &[null.as_fd()]).expect("started");
        let pid = running.wait_started().expect("started").to_string();
        if machine.is_host() {
            assert!(is_alive(&pid));
        }
        machine.crash();
        let left = || {
            let table = std::process::Command::new("ps").args(["-eo", "args"]).output().expect("ps");
            String::from_utf8_lossy(&table.stdout).lines().any(|line| line == "sleep 4321.75")
        };
        eventually("all has ended", || !left());
    }
}

#[test]
fn arguments_go_up_to_the_kernels_own_limit() {
    for machine in Machine::each() {
        let long = |count: usize, each: usize| {
            let mut exec = exec(&["/bin/true"]);
            exec.argv.extend((0..count).map(|_| RawText(vec![b'"'; each])));
            machine.connect().capture(exec, &[])
        };
        let ended = long(19, 100_000).expect("the kernel takes 1.9 MB");
        assert!(ended.finished.status.success(), "{ended:?}");
        for (count, each) in [(30, 100_000), (1, 140_000)] {
            let Err(ClientError::Refused(problem)) = long(count, each) else { panic!("{count} times {each}") };
            assert_eq!(problem.kind, ProblemKind::Command, "{problem:?}");
            assert!(problem.hints.iter().any(|hint| hint.contains("standard input")), "{problem:?}");
        }
        let Err(error) = long(1, 20 << 20) else { panic!("longer than any message") };
        assert_eq!(error.problem().kind, ProblemKind::Usage, "{error:?}");
    }
}

#[test]
fn what_is_said_before_a_command_is_there_reaches_it() {
    let machine = Machine::namespace();
    let place = fresh(&isolated(ordinary()));
    let session = machine.session();
    let frames = StreamTarget::Frames;
    for round in 0..6 {
        // The next environment waits for a copy of what was written.
        machine.run(Place::Machine, &format!("head -c 4000000 /dev/zero > /var/tmp/{round}")).ok();
        let cat = Exec { stdin: frames, stdout: frames, ..script(place.clone(), "cat") };
        let mut command = session.exec(cat, &[]).expect("started");
        let mut stdin = command.stdin.take().expect("framed");
        stdin.write_all(b"early").expect("written");
        if round % 2 == 0 {
            drop(stdin);
            let mut got = String::new();
            command.stdout.take().expect("framed").read_to_string(&mut got).expect("read");
            assert_eq!((got.as_str(), command.wait().expect("it ended").status), ("early", CommandStatus::Exited(0)));
        } else {
            command.handle().signal(9).expect("sent");
            assert_eq!(command.wait().expect("it ended").status, CommandStatus::Signalled(9));
        }
    }
}
