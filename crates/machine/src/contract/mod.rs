//! The contract that every backend passes: what a machine promises, tried from outside.
//!
//! A [`Fixture`] makes machines of one backend; [`run`] tries every case on them and reports. An ability that the
//! backend lacks makes its cases skips, each with its name and the fixture's reason; nothing is skipped silently.
//! The cases know no backend: they use the client, a shell and the usual small programs inside.

mod commands;
mod environments;
mod escapes;
mod files;
mod ground;
mod life;
mod streams;

use std::fmt;

use testyard_model::{MachineName, MachineSpec, Problem};

use crate::client::{ClientError, Connection};

pub use ground::Broken;
use ground::Ground;

/// What not every backend has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ability {
    /// Commands can run as root inside.
    Root,
    /// Commands can run as users other than root and the caller.
    OtherUsers,
    /// The machine's root can be changed without changing the host's.
    OwnRoot,
    /// Environments of isolation `namespace`.
    Environments,
    /// Environments of isolation `workspace`.
    Workspaces,
    /// Limits of memory and processes can be set and usage is measured.
    Limits,
    /// Trees travel in data frames, for a machine to which no descriptor can be passed.
    FramedTrees,
    /// A process of this host can join an environment: the machine is on this host.
    Joining,
    /// What a machine has of its own outlives a stop.
    Lasting,
    /// A command's whole tree ends with it even where a child forks twice and clears every mark.
    NoEscape,
    /// How a signal ended a command is told as such, not as a shell's exit code for it.
    Signals,
    /// Commands can have a terminal.
    Terminals,
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root inside",
            Self::OtherUsers => "other users inside",
            Self::OwnRoot => "a root of its own",
            Self::Environments => "isolated environments",
            Self::Workspaces => "workspaces",
            Self::Limits => "limits and measured usage",
            Self::Joining => "environments that a process of this host joins",
            Self::Lasting => "what outlives a stop",
            Self::FramedTrees => "trees in frames",
            Self::NoEscape => "the end of every process",
            Self::Signals => "the signal that ended a command",
            Self::Terminals => "terminals",
        })
    }
}

/// Makes machines of one backend for the contract's cases.
pub trait Fixture {
    /// Why this ability is not there; none when it is.
    fn lacks(&self, ability: Ability) -> Option<String>;
    /// A specification of its simplest machine.
    fn spec(&self) -> MachineSpec;
    /// Creates and starts a machine.
    fn create(&self, name: &MachineName, spec: &MachineSpec) -> Result<(), Problem>;
    /// Ends its processes; its files stay.
    fn stop(&self, name: &MachineName) -> Result<(), Problem>;
    /// Starts it again.
    fn start(&self, name: &MachineName) -> Result<(), Problem>;
    /// Removes it.
    fn delete(&self, name: &MachineName) -> Result<(), Problem>;
    /// A new connection to its agent.
    fn connect(&self, name: &MachineName) -> Result<Connection, ClientError>;
    /// Files, processes, mounts and cgroups that machines which were deleted have left.
    fn leftovers(&self) -> Vec<String>;
    /// Paths of the host that a machine with a root of its own must not show.
    fn secrets(&self) -> Vec<std::path::PathBuf>;
}

/// One promise, tried.
struct Case {
    name: &'static str,
    needs: &'static [Ability],
    run: fn(&Ground<'_>) -> Result<(), Broken>,
}

/// What came of the cases.
#[derive(Debug, Default)]
pub struct Report {
    /// Kept promises.
    pub passed: Vec<&'static str>,
    /// Not tried, with the missing ability and why it is missing.
    pub skipped: Vec<(&'static str, String)>,
    /// Broken promises, with what was seen.
    pub failed: Vec<(&'static str, Broken)>,
}

impl Report {
    /// Whether no promise was broken.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.failed.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, reason) in &self.skipped {
            writeln!(f, "SKIPPED {name}: {reason}")?;
        }
        for (name, broken) in &self.failed {
            writeln!(f, "BROKEN  {name}: {broken}")?;
        }
        let counts = (self.passed.len(), self.skipped.len(), self.failed.len());
        write!(f, "{} kept, {} skipped, {} broken", counts.0, counts.1, counts.2)
    }
}

/// Tries every case on machines of the fixture. The machines it makes have names that begin with `contract-`.
///
/// An error means that the machine on which most cases run could not be made or removed.
pub fn run(fixture: &dyn Fixture) -> Result<Report, Problem> {
    let machine: MachineName = "contract-main".parse().expect("a name");
    fixture.create(&machine, &fixture.spec())?;
    let ground = Ground::new(fixture, machine.clone());
    let mut report = Report::default();
    for case in cases() {
        let missing =
            case.needs.iter().find_map(|ability| fixture.lacks(*ability).map(|reason| format!("{ability}: {reason}")));
        match missing {
            Some(reason) => report.skipped.push((case.name, reason)),
            None => match (case.run)(&ground) {
                Ok(()) => report.passed.push(case.name),
                Err(broken) => report.failed.push((case.name, broken)),
            },
        }
    }
    fixture.delete(&machine)?;
    match fixture.leftovers().as_slice() {
        [] => report.passed.push("nothing is left"),
        left => report.failed.push(("nothing is left", Broken::new(left.join(", ")))),
    }
    Ok(report)
}

fn cases() -> impl Iterator<Item = &'static Case> {
    [commands::CASES, streams::CASES, files::CASES, environments::CASES, escapes::CASES, life::CASES]
        .into_iter()
        .flatten()
}
