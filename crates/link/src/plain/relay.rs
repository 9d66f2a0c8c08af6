//! What the agent starts in a command's stead: it opens a session, passes bytes and signals on, and ends as the command
//! ended there. What takes its standard streams need not know.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use testyard_linux::process::inherited_descriptors;
use testyard_linux::signal::{Signal, SignalFd};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::start::relay;

use super::archive;
use super::keeper::Keeper;
use super::script::Wanted;
use super::session::{Said, Session, ssh, wait_for};

/// So long after a command's end its output is passed on that something else, which runs on there, holds open.
const HELD_OPEN: Duration = Duration::from_secs(1);
/// How a relay ends that has told its agent why.
const FAILED: u8 = 1;

/// Runs a relay in the machine's folder.
pub(super) fn run(folder: &Path, words: &[OsString]) -> Result<u8, Problem> {
    let failure = failure();
    let outcome = std::env::set_current_dir(folder)
        .map_err(|error| Problem::new(ProblemKind::NotFound, "the machine's folder is gone").because(error))
        .and_then(|()| serve(words));
    match (outcome, failure) {
        (Err(problem), Some(failure)) => {
            // An agent that is gone asks nothing.
            let _ = File::from(failure).write_all(&serde_json::to_vec(&problem).unwrap_or_default());
            Ok(FAILED)
        }
        (outcome, _) => outcome,
    }
}

/// Where the agent is told what went wrong.
fn failure() -> Option<OwnedFd> {
    let number = std::env::var(relay::FAILURE).ok()?.parse().ok()?;
    inherited_descriptors([number]).map(|[failure]| failure)
}

fn serve(words: &[OsString]) -> Result<u8, Problem> {
    let [verb, rest @ ..] = words else { return Err(wrong()) };
    match (verb.to_str(), rest) {
        (Some(relay::EXEC), [cwd, terminal, argv @ ..]) if !argv.is_empty() => {
            let mark = std::env::var(relay::MARK).unwrap_or_default();
            let wanted = Wanted { mark: &mark, cwd, env: &variables(), argv };
            if terminal == relay::TERMINAL { on_terminal(&wanted) } else { plainly(&wanted) }
        }
        (Some(relay::RECEIVE), [path]) => archive::receive(path).map(|()| 0),
        (Some(relay::SEND), [path]) => archive::send(path).map(|()| 0),
        _ => Err(wrong()),
    }
}

fn wrong() -> Problem {
    Problem::new(ProblemKind::Usage, "`plain` is started by testyard itself only")
}

/// The command's own variables.
fn variables() -> Vec<(Vec<u8>, Vec<u8>)> {
    let own = |(name, value): (OsString, OsString)| {
        let name = name.as_bytes().strip_prefix(relay::VARIABLE.as_bytes())?.to_vec();
        Some((name, value.into_vec()))
    };
    std::env::vars_os().filter_map(own).collect()
}

/// A command with streams of its own.
fn plainly(wanted: &Wanted<'_>) -> Result<u8, Problem> {
    // Before there are threads.
    let passed: Vec<Signal> = (1..=64).filter(|number| is_passed(*number)).filter_map(Signal::from_number).collect();
    let signals = SignalFd::new(&passed).map_err(|error| error.problem())?;
    let mut keeper = Keeper::reach(Some(wanted.mark))?;
    let wanted = Wanted { mark: &keeper.mark.clone(), ..*wanted };
    let input = || Some(Box::new(std::io::stdin()) as Box<dyn std::io::Read>);
    let mut session = Session::begin(|word| wanted.script(word), input, Stdio::inherit())?;
    let errors = rustix::stdio::stderr().try_clone_to_owned();
    let mut errors = File::from(errors.map_err(|error| Problem::from_error(ProblemKind::System, &error))?);
    let (mut process, mut early) = (None, Vec::new());
    let mut deadline = None;
    loop {
        let [signalled, said] = wait_for([signals.as_fd(), session.errors()], deadline)?;
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            session.cut();
            break;
        }
        while signalled && let Ok(Some(received)) = signals.read() {
            match process {
                Some(process) => keeper.signal(received.signal.number(), process),
                // It is about to be there.
                None => early.push(received.signal.number()),
            }
        }
        if !said {
            continue;
        }
        let Some(words) = session.hear(Some(&mut errors)) else { break };
        for word in words {
            match word {
                Said::Ready(number) => {
                    process = number.parse().ok();
                    if let Some(process) = process {
                        early.drain(..).for_each(|number| keeper.signal(number, process));
                    }
                }
                Said::Refused(why) if why == "program" => return Err(no_program(wanted.argv)),
                Said::Refused(_) => return Err(no_folder(wanted.cwd)),
            }
        }
        if session.has_ended() && deadline.is_none() {
            deadline = Some(Instant::now() + HELD_OPEN);
        }
    }
    let (code, _) = session.end(&keeper.host)?;
    keeper.over();
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Not those that only the kernel sends, and not those that are about this process's own children and terminal.
fn is_passed(number: i32) -> bool {
    !matches!(number, 4..=9 | 11 | 13 | 17 | 19 | 31 | 32 | 33)
}

fn no_folder(cwd: &OsStr) -> Problem {
    Problem::new(ProblemKind::Command, format!("cannot enter the working folder {}", cwd.to_string_lossy()))
        .hint("give an absolute path of a folder that is there and that the user may enter")
}

fn no_program(argv: &[OsString]) -> Problem {
    let program = argv.first().map_or("", |program| program.to_str().unwrap_or("the program"));
    Problem::new(ProblemKind::Command, format!("cannot run `{program}`"))
        .because("there is no such program on the other host, or it may not be run")
}

/// A command on a terminal: `ssh` makes one there, and passes on its size and every key.
fn on_terminal(wanted: &Wanted<'_>) -> Result<u8, Problem> {
    // Signals go to the whole group; the session's end is what is waited for.
    let _held =
        SignalFd::new(&[Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM]).map_err(|error| error.problem())?;
    let keeper = Keeper::reach(Some(wanted.mark))?;
    let mut command = ssh(true, &Wanted { mark: &keeper.mark, ..*wanted }.on_terminal());
    let terminal = wanted.env.iter().find(|(name, _)| name == b"TERM");
    command.envs(terminal.map(|(_, value)| ("TERM", OsStr::from_bytes(value))));
    let status = command.status();
    let status = status.map_err(|error| Problem::new(ProblemKind::System, "cannot start ssh").because(error))?;
    // Hung up, all that it started there ends as on any terminal; what does not is ended with its mark.
    if status.code().is_some() {
        keeper.over();
    }
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}
