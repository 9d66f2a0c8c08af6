//! Commands: what runs, as whom, where, how it ends and what ends with it.

use std::time::{Duration, Instant};

use testyard_model::{CommandStatus, ProblemKind, UserSpec};
use testyard_protocol::{Exec, RawText};

use super::ground::{Broken, Ground, holds, refused, said, same, shell};
use super::{Ability, Case};
use crate::client::Awaited;

pub(super) const CASES: &[Case] = &[
    Case { name: "arguments arrive verbatim", needs: &[], run: arguments },
    Case { name: "variables arrive, and none of the client's own", needs: &[], run: variables },
    Case { name: "the working folder is the one asked for", needs: &[], run: working_folder },
    Case { name: "commands run as the caller unless told otherwise", needs: &[], run: default_user },
    Case { name: "commands run as root where asked", needs: &[Ability::Root], run: root },
    Case { name: "commands run as another user where asked", needs: &[Ability::OtherUsers], run: other_user },
    Case { name: "an unknown user is refused", needs: &[], run: unknown_user },
    Case { name: "a command runs as no other user than it was asked to", needs: &[], run: no_other_users },
    Case { name: "exit codes are the command's own", needs: &[], run: exit_codes },
    Case { name: "a signal that ends a command is told", needs: &[Ability::Signals], run: ending_signals },
    Case { name: "what cannot be run is refused, and says why", needs: &[], run: not_runnable },
    Case { name: "a signal reaches the command", needs: &[], run: signal },
    Case { name: "a deadline ends the whole tree", needs: &[], run: deadline },
    Case { name: "killing a command ends its whole tree", needs: &[], run: kill },
    Case { name: "a client's death takes its commands along", needs: &[], run: client_death },
    Case { name: "a detached command survives its client", needs: &[], run: detached },
    Case { name: "a background child does not hold the command up", needs: &[], run: background_child },
    Case { name: "many clients at once are served", needs: &[], run: many_clients },
    Case { name: "a connection runs one command after the other", needs: &[], run: in_a_row },
];

fn arguments(ground: &Ground<'_>) -> Result<(), Broken> {
    let odd: [&[u8]; 8] = [b"a b", b"", b"--", b"'\"\\$(x)`*", b"line\nline", b"\xff\xfe", "ünï".as_bytes(), b"-e"];
    let mut argv: Vec<RawText> = vec!["sh".into(), "-c".into(), r#"for a in "$@"; do printf '%s|' "$a"; done"#.into()];
    argv.push("sh".into());
    argv.extend(odd.iter().map(|argument| RawText(argument.to_vec())));
    let captured = ground.run(Exec { argv, ..Exec::default() })?;
    let wanted: Vec<u8> = odd.iter().flat_map(|argument| [*argument, b"|"].concat()).collect();
    same("what arrived", captured.stdout, wanted)
}

fn variables(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut exec = shell(r#"printf '%s|%s|%s' "$A" "$EMPTY" "$PATH"; env"#);
    exec.env = vec![("A".into(), "1 = 2".into()), ("EMPTY".into(), "".into())];
    let seen = ground.told(exec)?;
    holds(format!("{seen:?} begins with what was given"), seen.starts_with("1 = 2||/"))?;
    // Cargo gives every test this one.
    holds("the client's own variables stay out", !seen.contains("CARGO_MANIFEST_DIR="))
}

fn working_folder(ground: &Ground<'_>) -> Result<(), Broken> {
    let at = |cwd: &str| Exec { cwd: Some(cwd.into()), ..shell("pwd") };
    same("the folder", ground.told(at("/usr/bin"))?, "/usr/bin".to_owned())?;
    let outcome = ground.connect()?.capture(at("/nonexistent/folder"), &[]);
    let problem = refused("a missing folder", outcome, &[ProblemKind::Command, ProblemKind::NotFound])?;
    holds("the problem names the folder", format!("{problem} {:?}", problem.causes).contains("/nonexistent/folder"))
}

fn default_user(ground: &Ground<'_>) -> Result<(), Broken> {
    let own = rustix::process::getuid().as_raw();
    same("the user", ground.told(shell("id -u"))?, own.to_string())
}

fn root(ground: &Ground<'_>) -> Result<(), Broken> {
    let exec = Exec { user: Some(UserSpec::Root), ..shell("id -u; id -g") };
    same("user and group", ground.told(exec)?, "0\n0".to_owned())
}

fn other_user(ground: &Ground<'_>) -> Result<(), Broken> {
    let named = Exec { user: Some(UserSpec::Named("nobody".to_owned())), ..shell("id -un") };
    same("the user", ground.told(named)?, "nobody".to_owned())?;
    let user = UserSpec::Numbered { uid: 4321, gid: 4322, groups: vec![4323] };
    let numbered = Exec { user: Some(user), ..shell("id -u; id -g; id -G; grep CapEff /proc/self/status") };
    let seen = ground.told(numbered)?;
    let words: Vec<_> = seen.split_whitespace().collect();
    same("ids and capabilities", words, vec!["4321", "4322", "4322", "4323", "CapEff:", "0000000000000000"])
}

fn unknown_user(ground: &Ground<'_>) -> Result<(), Broken> {
    let exec = Exec { user: Some(UserSpec::Named("nobody-knows-this-one".to_owned())), ..shell("id") };
    let kinds = [ProblemKind::NotFound, ProblemKind::Usage, ProblemKind::Command, ProblemKind::Unsupported];
    let problem = refused("an unknown user", ground.connect()?.capture(exec, &[]), &kinds)?;
    holds("the problem names the user", problem.to_string().contains("nobody-knows-this-one"))
}

/// Where others are not to be had, a command may see itself as one; it never runs as somebody else without a word.
fn no_other_users(ground: &Ground<'_>) -> Result<(), Broken> {
    let numbered = UserSpec::Numbered { uid: 4321, gid: 4322, groups: Vec::new() };
    let users = [(Ability::Root, UserSpec::Root, "0"), (Ability::OtherUsers, numbered, "4321")];
    for (_, user, number) in users.into_iter().filter(|(ability, ..)| !ground.has(*ability)) {
        let exec = Exec { user: Some(user.clone()), ..shell("id -u") };
        match ground.connect()?.capture(exec, &[]) {
            Ok(captured) => same("the command's user", said(&captured)?, number.to_owned())?,
            refusal => {
                let kinds = [ProblemKind::Unsupported, ProblemKind::Denied, ProblemKind::Command];
                refused(&format!("{user:?}"), refusal, &kinds)?;
            }
        }
    }
    Ok(())
}

fn exit_codes(ground: &Ground<'_>) -> Result<(), Broken> {
    for code in [0, 1, 3, 126, 255] {
        let captured = ground.sh(&format!("exit {code}"))?;
        same("the status", captured.finished.status, CommandStatus::Exited(code))?;
    }
    for (signal, code) in [(9, 137), (15, 143)] {
        let captured = ground.sh(&format!("kill -{signal} $$"))?;
        same("the shell's code", captured.finished.status.shell_code(), code)?;
    }
    Ok(())
}

fn ending_signals(ground: &Ground<'_>) -> Result<(), Broken> {
    for signal in [9, 15] {
        let captured = ground.sh(&format!("kill -{signal} $$"))?;
        same("the status", captured.finished.status, CommandStatus::Signalled(signal))?;
    }
    Ok(())
}

fn not_runnable(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut connection = ground.connect()?;
    let command = |argv: &[&str]| Exec { argv: argv.iter().map(|word| (*word).into()).collect(), ..Exec::default() };
    for program in ["no-such-program-anywhere", "/nonexistent/program", "/etc/passwd", "/usr"] {
        let problem = refused(program, connection.capture(command(&[program]), &[]), &[ProblemKind::Command])?;
        holds(format!("the problem names {program}: {problem}"), problem.to_string().contains(program))?;
    }
    let nothing = connection.capture(command(&[]), &[]);
    refused("no program", nothing, &[ProblemKind::Usage, ProblemKind::Command, ProblemKind::Protocol])?;
    // And the connection goes on.
    said(&connection.capture(shell("true"), &[])?).map(|_| ())
}

fn signal(ground: &Ground<'_>) -> Result<(), Broken> {
    let mark = ground.mark();
    let mut connection = ground.connect()?;
    let script = format!("trap 'kill $!; exit 42' TERM; sleep {mark} & wait");
    let mut running = connection.exec(shell(&script), &[])?;
    running.wait_started()?;
    ground.await_marked(&mark, 1)?;
    running.signal(15)?;
    same("the status", running.wait()?.status, CommandStatus::Exited(42))?;
    ground.end_marked(&mark)
}

fn deadline(ground: &Ground<'_>) -> Result<(), Broken> {
    let mark = ground.mark();
    let script = format!("sleep {mark} & (trap '' TERM INT HUP; sleep {mark}) & setsid sleep {mark} & wait");
    let exec = Exec { timeout_ms: Some(300), ..shell(&script) };
    let captured = ground.run(exec)?;
    same("the status", captured.finished.status, CommandStatus::TimedOut)?;
    ground.await_marked(&mark, 0)
}

fn kill(ground: &Ground<'_>) -> Result<(), Broken> {
    let mark = ground.mark();
    let mut connection = ground.connect()?;
    let script = format!("trap '' TERM; sleep {mark} & setsid sleep {mark} & wait");
    let mut running = connection.exec(shell(&script), &[])?;
    ground.await_marked(&mark, 2)?;
    running.kill()?;
    let deadline = Some(Instant::now() + Duration::from_secs(10));
    let Awaited::Finished(finished) = running.wait_or(&[], deadline)? else {
        return Err(Broken::new("it was still running after 10 s"));
    };
    same("the status", finished.status, CommandStatus::Signalled(9))?;
    ground.await_marked(&mark, 0)
}

fn client_death(ground: &Ground<'_>) -> Result<(), Broken> {
    let mark = ground.mark();
    let mut connection = ground.connect()?;
    connection.exec(shell(&format!("sleep {mark} & setsid sleep {mark} & wait")), &[])?.wait_started()?;
    ground.await_marked(&mark, 2)?;
    drop(connection);
    ground.await_marked(&mark, 0)
}

fn detached(ground: &Ground<'_>) -> Result<(), Broken> {
    let mark = ground.mark();
    let mut connection = ground.connect()?;
    let exec = Exec { detach: true, ..shell(&format!("exec sleep {mark}")) };
    connection.exec(exec, &[])?.wait_started()?;
    ground.await_marked(&mark, 1)?;
    drop(connection);
    // Long enough for a connection's end to be noticed: another command has come and gone.
    said(&ground.sh("true")?)?;
    let survived = ground.marked(&mark)?;
    ground.end_marked(&mark)?;
    same("what survived", survived, 1)?;
    ground.await_marked(&mark, 0)
}

fn background_child(ground: &Ground<'_>) -> Result<(), Broken> {
    let mark = ground.mark();
    let begun = Instant::now();
    let captured = ground.sh(&format!("sleep {mark} & echo out"))?;
    same("what was printed", said(&captured)?, "out".to_owned())?;
    ground.end_marked(&mark)?;
    holds("the command's end was told at once", begun.elapsed() < Duration::from_secs(20))
}

fn many_clients(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut connections = (0..50).map(|_| ground.connect()).collect::<Result<Vec<_>, _>>()?;
    let mut commands = Vec::new();
    for (number, connection) in connections.iter_mut().enumerate() {
        commands.push((number, connection.exec(shell(&format!("exit {number}")), &[])?));
    }
    for (number, command) in commands {
        same("the status", command.wait()?.status, CommandStatus::Exited(number as u8))?;
    }
    Ok(())
}

fn in_a_row(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut connection = ground.connect()?;
    for number in 0..100_u8 {
        let finished = connection.exec(shell(&format!("exit {number}")), &[])?.wait()?;
        same("the status", finished.status, CommandStatus::Exited(number))?;
    }
    Ok(())
}
