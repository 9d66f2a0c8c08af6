//! A machine on a host on which no program of ours may run: the same verbs over plain `ssh`.
//!
//! ```text
//! client ─ supervisor ─ agent (here) ─ a relay for each command ══ a session of one ssh ══► sh ─► command
//!                            └ keeper ═ the connection, and a shell there for orders ════► sh
//! ```
//!
//! The agent is that of any machine of plain processes on this host; in a command's stead it starts a [`relay`], which
//! opens a session over the connection that the [`keeper`] has, and says there how the command is to be started.
//! Files travel as archives of `tar`. What a command started there is found by the mark in its environment.

mod archive;
mod filter;
mod keeper;
mod relay;
mod script;
mod session;

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use testyard_linux::files::in_memory;
use testyard_linux::{Error, process, socket};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::RawText;
use testyard_protocol::start::{AgentStart, CONFIGURATION, HELD, LINK, LISTENER};

use crate::near::NearStart;

/// The socket on which the keeper listens for relays, in the machine's folder.
const KEEPER: &str = "keeper.sock";
/// That of the connection itself, which belongs to `ssh`.
const CONTROL: &str = "./control.sock";
/// What `testyard plain` is told to be.
const KEEP: &str = "keep";

/// What a machine is where no programs of ours may run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlainStart {
    /// Its agent, which is on this host.
    pub agent: AgentStart,
    /// Its folder on this host.
    pub folder: PathBuf,
}

/// `testyard plain`: the keeper, or a relay; with the code that a relay's command ended with.
pub fn run(words: Vec<OsString>) -> Result<u8, Problem> {
    match words.as_slice() {
        [word] if word == KEEP => keeper::run().map(|()| 0),
        [folder, words @ ..] => relay::run(folder.as_ref(), words),
        [] => Err(Problem::new(ProblemKind::Usage, "`plain` is started by testyard itself only")),
    }
}

/// Connects, and becomes the machine's agent; returns only what is against it.
pub(crate) fn become_agent(
    start: &NearStart,
    plain: &PlainStart,
    link: &OwnedFd,
    listener: &OwnedFd,
    reason: Option<&Problem>,
) -> Problem {
    match try_become_agent(start, plain, link, listener, reason) {
        Ok(never) => match never {},
        Err(problem) => problem,
    }
}

fn try_become_agent(
    start: &NearStart,
    plain: &PlainStart,
    link: &OwnedFd,
    listener: &OwnedFd,
    reason: Option<&Problem>,
) -> Result<Infallible, Problem> {
    let system = |error: Error| error.problem();
    let keeper = start_keeper(start, plain)?;
    let mut agent = plain.agent.clone();
    agent.relay = [start.programs.testyard.clone(), "plain".into(), plain.folder.clone()].map(RawText::from).to_vec();
    agent.limits = [start.notes.clone(), limits(reason)].concat();
    let configuration = document(&agent)?;
    let mut command = Command::new(&start.programs.agent);
    command.arg0("testyard").env_clear();
    command.envs(["TESTYARD_KILL_AT", "TESTYARD_STEP_LOG"].into_iter().filter_map(|name| {
        let value = std::env::var_os(name)?;
        Some((name, value))
    }));
    let descriptors = [
        (link.as_fd(), LINK),
        (configuration.as_fd(), CONFIGURATION),
        (listener.as_fd(), LISTENER),
        (keeper.as_fd(), HELD),
    ];
    Err(system(process::execute_with_descriptors(&mut command, &descriptors)))
}

/// Starts the process that has the connection; it ends with whoever has what is returned.
fn start_keeper(start: &NearStart, plain: &PlainStart) -> Result<OwnedFd, Problem> {
    let system = |error: Error| error.problem();
    let (ours, theirs) = socket::pair(socket::Kind::Stream).map_err(system)?;
    let configuration = document(start)?;
    for name in [KEEPER, CONTROL] {
        // Of one that was killed.
        let _ = std::fs::remove_file(plain.folder.join(name));
    }
    let mut command = Command::new(&start.programs.testyard);
    command.args(["plain", KEEP]).current_dir(&plain.folder).stdin(Stdio::null()).stdout(Stdio::null());
    let descriptors = [(theirs.as_fd(), LINK), (configuration.as_fd(), CONFIGURATION)];
    process::spawn_with_descriptors(&mut command, &descriptors).map_err(system)?;
    drop(theirs);
    let mut line = String::new();
    let told = ours.try_clone().map_err(|error| Problem::from_error(ProblemKind::System, &error))?;
    BufReader::new(File::from(told))
        .read_line(&mut line)
        .map_err(|error| Problem::from_error(ProblemKind::System, &error))?;
    match serde_json::from_str::<Result<(), Problem>>(&line) {
        Ok(outcome) => outcome.map(|()| ours),
        Err(_) => Err(Problem::new(ProblemKind::System, "the keeper of the connection ended without a word")),
    }
}

fn limits(reason: Option<&Problem>) -> Vec<String> {
    let limit =
        "commands run over plain ssh, without Testyard's agent there: no environments, no limits, no synced trees";
    let mut limits = vec![limit.to_owned()];
    limits.extend(reason.map(|problem| {
        let why = [std::slice::from_ref(&problem.message), &problem.causes].concat().join(": ");
        format!("its agent does not run there because {why}")
    }));
    limits
}

fn document(value: &impl Serialize) -> Result<OwnedFd, Problem> {
    let failed = |error: std::io::Error| Error::new("write", "a configuration", error).problem();
    let text = serde_json::to_vec(value).map_err(|error| failed(error.into()))?;
    in_memory("testyard-plain", &text).map_err(failed)
}
