//! The agent: the one program of Testyard inside a machine.
//!
//! It runs commands, moves files and makes environments, for as many clients as connect. It is one
//! process with one thread and one loop over epoll: nothing in it may block. What takes time is done by
//! forked children, which the loop only watches. A backend starts it on the host with the descriptors of
//! [`testyard_protocol::start`]; it then enters the machine's namespaces itself, without a second exec, and
//! stays in the host's pid namespace, so that nothing inside the machine can see, signal or trace it.
//! The machine's own commands run under an init of their own, as those of each environment do.
//!
//! It refuses to know names, images, registries and leases: those are its supervisor's.

mod account;
mod activity;
mod agent;
mod command;
mod connection;
mod early;
mod elsewhere;
mod environment;
mod generation;
mod granted;
mod launch;
mod network;
mod place;
mod relay;
mod request;
mod route;
mod source;
mod standard_streams;
mod start;
mod synced;
mod timers;
mod tree;
mod worker;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use testyard_linux::{signal, step};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::start::{AgentStart, CONFIGURATION, LINK, LISTENER, TRY_ROOT, WITH_GRANTED};

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| testyard_docker::is_called(&name)) {
        return ExitCode::from(testyard_docker::run(std::env::args_os().skip(1)));
    }
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(first) if first == TRY_ROOT => return try_root(&arguments.map(PathBuf::from).collect::<Vec<_>>()),
        Some(first) if first == WITH_GRANTED => return granted::work(&arguments.collect::<Vec<_>>()),
        _ => {}
    }
    step::prepare();
    // What whoever made the machine was told to ignore is nothing to its commands. A client that has gone is an error of
    // writing, not an end.
    if signal::reset_handlers().and_then(|()| signal::ignore(signal::Signal::PIPE)).is_err() {
        return ExitCode::from(testyard_model::ExitCode::Bug.code());
    }
    let Some((link, configuration, listener)) = inherited() else {
        return ExitCode::from(testyard_model::ExitCode::Usage.code());
    };
    match serve(&link, configuration, listener) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            connection::report_broken(link.as_fd(), &problem);
            ExitCode::from(testyard_model::ExitCode::of_problem(problem.kind).code())
        }
    }
}

/// The trial of [`TRY_ROOT`]; what is wrong goes to standard output, for the backend.
fn try_root(paths: &[PathBuf]) -> ExitCode {
    let Some((tree, data)) = paths.split_first() else {
        return ExitCode::from(testyard_model::ExitCode::Usage.code());
    };
    match start::trial::try_root(tree, data) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let problem = error.problem();
            let text = [problem.message].into_iter().chain(problem.causes).collect::<Vec<_>>().join(": ");
            // Without its reason the backend still sees the exit code.
            let _ = rustix::io::write(rustix::stdio::stdout(), text.as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// The three descriptors of [`testyard_protocol::start`], or none where this was started by hand.
fn inherited() -> Option<(OwnedFd, OwnedFd, OwnedFd)> {
    testyard_linux::process::inherited_descriptors([LINK, CONFIGURATION, LISTENER]).map(|[a, b, c]| (a, b, c))
}

fn serve(link: &OwnedFd, configuration: OwnedFd, listener: OwnedFd) -> Result<(), Problem> {
    let start: AgentStart = serde_json::from_reader(std::fs::File::from(configuration))
        .map_err(|error| Problem::from_error(ProblemKind::Protocol, &error))?;
    let signals = agent::watched_signals().map_err(|error| error.problem())?;
    // So that children of this need to set back only the one that is ignored here.
    signal::reset_handlers().map_err(|error| error.problem())?;
    signal::ignore(signal::Signal::PIPE).map_err(|error| error.problem())?;
    let place = start::enter(&start)?;
    let link = link.try_clone().map_err(|error| Problem::from_error(ProblemKind::System, &error))?;
    let mut agent = agent::Agent::new(start, place, link, listener, signals).map_err(|error| error.problem())?;
    agent.run().map_err(|error| error.problem())
}
