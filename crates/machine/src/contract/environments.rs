//! Environments: that two of them share nothing, and that nothing of them stays.

use std::os::fd::AsFd as _;

use testyard_model::{ByteSize, CommandStatus, EnvironmentSpec, Isolation, Network, ProblemKind, UserSpec};
use testyard_protocol::{Exec, Place};

use super::ground::{Broken, Ground, environment, fresh, holds, refused, said, same, shell};
use super::{Ability, Case};
use crate::client::caller;

const ISOLATED: &[Ability] = &[Ability::Environments];

pub(super) const CASES: &[Case] = &[
    Case { name: "a fresh environment runs a command", needs: ISOLATED, run: runs },
    Case { name: "an environment's root is its own", needs: ISOLATED, run: own_root },
    Case { name: "an environment sees only its own processes", needs: ISOLATED, run: own_processes },
    Case { name: "an environment has its own host name", needs: ISOLATED, run: own_host_name },
    Case { name: "environments use the same port side by side", needs: ISOLATED, run: own_network },
    Case { name: "an environment may share the machine's network", needs: ISOLATED, run: shared_network },
    Case { name: "without a network there is none", needs: ISOLATED, run: no_network },
    Case { name: "environments share no IPC objects", needs: ISOLATED, run: own_ipc },
    Case { name: "a temporary folder is the environment's own", needs: ISOLATED, run: own_temporary_folder },
    Case { name: "what an environment leaves running ends with it", needs: ISOLATED, run: left_running },
    Case { name: "a full disk is full inside only", needs: ISOLATED, run: full_disk },
    Case { name: "a held environment keeps its files between commands", needs: ISOLATED, run: held },
    Case { name: "a released environment is gone", needs: ISOLATED, run: released },
    Case { name: "an environment ends with the connection that holds it", needs: ISOLATED, run: dropped },
    Case {
        name: "a joining process gets the environment's descriptors",
        needs: &[Ability::Environments, Ability::Joining],
        run: entered,
    },
    Case { name: "memory and processes are limited", needs: &[Ability::Environments, Ability::Limits], run: limits },
    Case { name: "usage is measured", needs: &[Ability::Environments, Ability::Limits], run: usage },
    Case { name: "a limit that cannot be set is named", needs: ISOLATED, run: unavailable_limits },
    Case { name: "a workspace is its own and goes with its command", needs: &[Ability::Workspaces], run: workspace },
    Case { name: "environments that cannot be had are refused, and say what to do", needs: &[], run: not_had },
];

fn isolated(ground: &Ground<'_>) -> EnvironmentSpec {
    let user = if ground.has(Ability::Root) { UserSpec::Root } else { caller() };
    environment(Isolation::Namespace, user)
}

fn runs(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut connection = ground.connect()?;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let finished = connection.exec(fresh("exit 7", &isolated(ground)), &[])?.wait()?;
        same("the status", finished.status, CommandStatus::Exited(7))?;
        seen.push(finished.environment);
    }
    holds(format!("{seen:?} are numbers"), seen.iter().all(Option::is_some))?;
    holds(format!("{seen:?} are three different numbers"), seen[0] != seen[1] && seen[1] != seen[2])
}

fn own_root(ground: &Ground<'_>) -> Result<(), Broken> {
    let mark = ground.mark();
    let script = format!("touch /tmp/c-{mark} /var/tmp/c-{mark} && ls /tmp/c-{mark} >/dev/null && echo made");
    same("inside", ground.told(fresh(&script, &isolated(ground)))?, "made".to_owned())?;
    let look = format!("ls -d /tmp/c-{mark} /var/tmp/c-{mark} 2>/dev/null; :");
    same("in another", ground.told(fresh(&look, &isolated(ground)))?, String::new())?;
    same("on the machine", ground.told(shell(&look))?, String::new())?;
    if ground.has(Ability::Root) {
        let script = "rm -rf /usr/bin/env /etc/hosts && echo bad > /etc/hosts && ! test -e /usr/bin/env && echo gone";
        same("inside", ground.told(fresh(script, &isolated(ground)))?, "gone".to_owned())?;
        let look = "test -e /usr/bin/env && ! grep -qx bad /etc/hosts && echo whole";
        same("in another", ground.told(fresh(look, &isolated(ground)))?, "whole".to_owned())?;
        same("on the machine", ground.told(shell(look))?, "whole".to_owned())?;
    }
    Ok(())
}

fn own_processes(ground: &Ground<'_>) -> Result<(), Broken> {
    let mark = ground.mark();
    let mut connection = ground.connect()?;
    let mut other = connection.exec(shell(&format!("exec sleep {mark}")), &[])?;
    other.wait_started()?;
    ground.await_marked(&mark, 1)?;
    let count = ground.told(fresh("ls -d /proc/[0-9]* | wc -l", &isolated(ground)))?;
    let count: u32 = count.parse().map_err(|_| Broken::new(format!("{count:?} processes")))?;
    holds(format!("it sees {count} processes, at most its own handful"), count <= 6)?;
    // Every process that it can see or name, and the machine's is still there.
    ground.run(fresh("kill -9 -1; for p in $(seq 2 200); do kill -9 $p 2>/dev/null; done; :", &isolated(ground)))?;
    same("the machine's process", ground.marked(&mark)?, 1)?;
    other.kill()?;
    other.wait()?;
    Ok(())
}

fn own_host_name(ground: &Ground<'_>) -> Result<(), Broken> {
    let machine = ground.told(shell("uname -n"))?;
    let mut spec = isolated(ground);
    spec.host_name = Some("contract-host".to_owned());
    same("the name asked for", ground.told(fresh("uname -n", &spec))?, "contract-host".to_owned())?;
    let other = ground.told(fresh("uname -n", &isolated(ground)))?;
    holds(format!("{other} is not the machine's name {machine}"), other != machine)?;
    same("the machine's name", ground.told(shell("uname -n"))?, machine)
}

/// Listens on a port of every address, and says so; then waits.
const LISTEN: &str = "exec 2>&1; perl -e 'use IO::Socket::INET; \
    $s = IO::Socket::INET->new(LocalPort => 18080, Listen => 1, Proto => \"tcp\") or die \"taken: $!\"; \
    $c = IO::Socket::INET->new(PeerAddr => \"127.0.0.1:18080\") or die \"no loopback: $!\"; \
    $| = 1; print \"listening\\n\"; <STDIN>'";

fn own_network(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut first = ground.connect()?;
    let (held, release) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (told, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut exec = fresh(LISTEN, &isolated(ground));
    exec.stdin = testyard_protocol::StreamTarget::Attached(0);
    exec.stdout = testyard_protocol::StreamTarget::Attached(1);
    let running = first.exec(exec, &[held.as_fd(), tell.as_fd()])?;
    drop((held, tell));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(std::fs::File::from(told)), &mut line)?;
    same("the first", line.as_str(), "listening\n")?;
    same("the second", ground.told(fresh(LISTEN, &isolated(ground)))?, "listening".to_owned())?;
    drop(release);
    same("the first one's status", running.wait()?.status, CommandStatus::Exited(0))
}

fn shared_network(ground: &Ground<'_>) -> Result<(), Broken> {
    let look = "readlink /proc/self/ns/net";
    let machine = ground.told(shell(look))?;
    let mut spec = isolated(ground);
    holds("a private network is another", ground.told(fresh(look, &spec))? != machine)?;
    spec.network = Network::Host;
    same("the network", ground.told(fresh(look, &spec))?, machine)
}

fn no_network(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut spec = isolated(ground);
    spec.network = Network::None;
    let seen = ground.told(fresh(
        "tail -n +3 /proc/net/dev | grep -vc '^ *lo:'; cat /sys/class/net/lo/flags 2>/dev/null || echo 0x8",
        &spec,
    ))?;
    same("interfaces and loopback's flags", seen, "0\n0x8".to_owned())
}

fn own_ipc(ground: &Ground<'_>) -> Result<(), Broken> {
    let make = "perl -e 'use IPC::SysV qw(IPC_CREAT IPC_EXCL); shmget(4711, 4096, IPC_CREAT | IPC_EXCL | 0666) // exit 1' && \
        tail -n +2 /proc/sysvipc/shm | wc -l && touch /dev/shm/contract && ls /dev/shm | wc -l";
    for _ in 0..2 {
        same("objects inside", ground.told(fresh(make, &isolated(ground)))?, "1\n1".to_owned())?;
    }
    Ok(())
}

fn own_temporary_folder(ground: &Ground<'_>) -> Result<(), Broken> {
    let look = r#"test -n "$TMPDIR" && test -d "$TMPDIR" && touch "$TMPDIR/x" && ls -A "$TMPDIR""#;
    for _ in 0..2 {
        same("what is in it", ground.told(fresh(look, &isolated(ground)))?, "x".to_owned())?;
    }
    Ok(())
}

fn left_running(ground: &Ground<'_>) -> Result<(), Broken> {
    let mark = ground.mark();
    // Forked twice, in a session of its own, with nothing of the environment left that could mark it.
    let script = format!(
        "(setsid env -i sh -c 'cd /; exec sleep {mark}' </dev/null >/dev/null 2>&1 &) ; sleep {mark} & echo left"
    );
    same("inside", ground.told(fresh(&script, &isolated(ground)))?, "left".to_owned())?;
    ground.await_marked(&mark, 0)
}

fn full_disk(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut spec = isolated(ground);
    spec.limits.disk = Some(ByteSize::mebibytes(8));
    let script = "{ cat /dev/zero > /var/tmp/full; } 2>&1; stat -c %s /var/tmp/full";
    let seen = ground.told(fresh(script, &spec))?;
    let bytes: u64 = seen.lines().last().unwrap_or_default().parse().map_err(|_| Broken::new(seen.clone()))?;
    holds(format!("{bytes} bytes fit into 8 MiB"), bytes <= 8 << 20)?;
    holds("and it said why", seen.contains("No space left"))?;
    said(&ground.sh("echo fits > /tmp/contract-fits && rm /tmp/contract-fits")?).map(|_| ())
}

fn held(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut connection = ground.connect()?;
    let id = connection.environment(&isolated(ground))?;
    let within = |script: &str| Exec { place: Place::Environment(id), ..shell(script) };
    said(&connection.capture(within("echo kept > /var/tmp/file"), &[])?)?;
    same("the file", said(&connection.capture(within("cat /var/tmp/file"), &[])?)?, "kept".to_owned())?;
    connection.release(id)?;
    Ok(())
}

fn released(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut connection = ground.connect()?;
    let id = connection.environment(&isolated(ground))?;
    connection.release(id)?;
    let exec = Exec { place: Place::Environment(id), ..shell("true") };
    refused("a command in it", connection.capture(exec, &[]), &[ProblemKind::NotFound, ProblemKind::WrongState])?;
    refused("releasing it again", connection.release(id), &[ProblemKind::NotFound, ProblemKind::WrongState])?;
    Ok(())
}

fn dropped(ground: &Ground<'_>) -> Result<(), Broken> {
    let mark = ground.mark();
    let mut connection = ground.connect()?;
    let id = connection.environment(&isolated(ground))?;
    let exec = Exec { place: Place::Environment(id), ..shell(&format!("setsid sleep {mark} & echo begun")) };
    said(&connection.capture(exec, &[])?)?;
    drop(connection);
    ground.await_marked(&mark, 0)?;
    let exec = Exec { place: Place::Environment(id), ..shell("true") };
    let kinds = [ProblemKind::NotFound, ProblemKind::WrongState];
    refused("a command in it", ground.connect()?.capture(exec, &[]), &kinds).map(|_| ())
}

fn entered(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut connection = ground.connect()?;
    let id = connection.environment(&isolated(ground))?;
    let (pid, descriptors) = connection.enter(id)?;
    holds(format!("{pid} is a process"), pid > 0)?;
    let pidfd = descriptors.first().ok_or_else(|| Broken::new("no descriptor came"))?;
    // A pidfd becomes readable when its process has ended: this one lives.
    let mut polled = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    same("what the living init's pidfd says", rustix::event::poll(&mut polled, Some(&now))?, 0)?;
    connection.release(id)?;
    Ok(())
}

fn limits(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut spec = isolated(ground);
    spec.strict_limits = true;
    spec.limits.memory = Some(ByteSize::mebibytes(64));
    let captured = ground.run(fresh("head -c 300M /dev/zero | tail -c 250M | wc -c", &spec))?;
    holds("more memory than allowed is not had", captured.stdout != b"262144000\n")?;
    holds("the result says so", captured.finished.usage.out_of_memory)?;
    let mut spec = isolated(ground);
    spec.strict_limits = true;
    spec.limits.pids = Some(20);
    let script = "for i in $(seq 100); do sleep 5 & done 2>&1; ls -d /proc/[0-9]* | wc -l";
    let captured = ground.run(fresh(script, &spec))?;
    let text = String::from_utf8_lossy(&captured.stdout).into_owned();
    holds(format!("a hundred processes are refused: {text:.200}"), !text.trim().ends_with("102"))?;
    said(&ground.sh("true")?).map(|_| ())
}

fn usage(ground: &Ground<'_>) -> Result<(), Broken> {
    let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; head -c 20M /dev/zero | tail -c 20M > /dev/null";
    let usage = ground.run(fresh(script, &isolated(ground)))?.finished.usage;
    holds(format!("processor time was used: {usage:?}"), usage.cpu_us > 10_000)?;
    holds(format!("time passed: {usage:?}"), usage.wall_us > 10_000)?;
    holds(format!("memory was used: {usage:?}"), usage.memory_peak.is_some_and(|peak| peak > 15 << 20))
}

fn unavailable_limits(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut spec = isolated(ground);
    spec.limits.memory = Some(ByteSize::mebibytes(256));
    let usage = ground.run(fresh("true", &spec))?.finished.usage;
    let named = usage.unavailable.iter().any(|name| name == "memory");
    same("whether the memory limit is named as unavailable", named, !ground.has(Ability::Limits))?;
    spec.strict_limits = true;
    let outcome = ground.connect()?.capture(fresh("true", &spec), &[]);
    match (outcome, named) {
        (Ok(_), false) => Ok(()),
        (outcome, true) => refused("a limit that cannot be set", outcome, &[ProblemKind::Unsupported]).map(|_| ()),
        (Err(error), false) => Err(error.into()),
    }
}

fn workspace(ground: &Ground<'_>) -> Result<(), Broken> {
    let spec = environment(Isolation::Workspace, caller());
    let mark = ground.mark();
    let mut exec = fresh(&format!("setsid sleep {mark} & sleep {mark}"), &spec);
    exec.timeout_ms = Some(500);
    same("the status", ground.run(exec)?.finished.status, CommandStatus::TimedOut)?;
    ground.await_marked(&mark, 0)?;
    let look = r#"test -n "$TMPDIR" && touch "$TMPDIR/x" && ls -A "$TMPDIR" && echo "$TMPDIR""#;
    let mut folders = Vec::new();
    for _ in 0..2 {
        let seen = ground.told(fresh(look, &spec))?;
        let (files, folder) = seen.split_once('\n').ok_or_else(|| Broken::new(seen.clone()))?;
        same("what is in it", files, "x")?;
        ground.await_gone(folder)?;
        folders.push(folder.to_owned());
    }
    holds(format!("{folders:?} are two"), folders[0] != folders[1])
}

/// Nothing that is to be isolated runs on the bare machine.
fn not_had(ground: &Ground<'_>) -> Result<(), Broken> {
    let levels = [(Ability::Environments, Isolation::Namespace), (Ability::Workspaces, Isolation::Workspace)];
    for (_, isolation) in levels.into_iter().filter(|(ability, _)| !ground.has(*ability)) {
        let spec = environment(isolation, caller());
        let kinds = [ProblemKind::Unsupported, ProblemKind::Usage];
        let seen = ground.connect()?.capture(fresh("true", &spec), &[]);
        let fresh_one = refused("a command in a fresh one", seen, &kinds)?;
        let held = refused("one that is held", ground.connect()?.environment(&spec), &kinds)?;
        for problem in [fresh_one, held] {
            holds(format!("{problem} says what to do"), !problem.hints.is_empty())?;
        }
    }
    Ok(())
}
