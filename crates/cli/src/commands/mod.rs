//! The commands, one file each. A command's doc comment is its help text.

mod bench;
mod clone;
mod cluster;
mod completions;
mod create;
mod delete;
mod dev;
mod doctor;
mod elsewhere;
mod env;
mod exec;
mod history;
mod hold;
mod image;
mod info;
mod init;
mod list;
mod logs;
mod man;
mod network;
mod network_arguments;
mod orbctl;
mod pull;
mod push;
mod reap;
mod rename;
mod report;
mod restart;
mod run;
mod schema;
mod shell;
mod slurm;
mod start;
mod stop;
mod sync;

pub(crate) use exec::Exec;
pub(crate) use orbctl::{addressed as orbctl_words, speak as orbctl};
use testyard_model::{ExitCode, Problem, ProblemKind};

use crate::output::Output;

/// How a command ends: the process's exit code, or why not.
pub(crate) type Outcome = Result<u8, Problem>;

/// Everything was done.
pub(crate) const DONE: Outcome = Ok(0);

/// What a command that could not be started is reported as, like a shell does.
const NOT_STARTED: u8 = 127;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Doctor(doctor::Doctor),
    Create(Box<create::Create>),
    List(list::List),
    Info(info::Info),
    Start(start::Start),
    Stop(stop::Stop),
    Restart(restart::Restart),
    Delete(delete::Delete),
    Rename(rename::Rename),
    Clone(clone::Clone),
    Network(network::Network),
    Logs(logs::Logs),
    Exec(Exec),
    Shell(shell::Shell),
    Push(push::Push),
    Pull(pull::Pull),
    Sync(sync::Sync),
    Env(env::Env),
    Dev(dev::Dev),
    Run(Box<run::Run>),
    Report(report::Report),
    History(history::History),
    Schema(schema::Schema),
    Image(image::Image),
    Cluster(cluster::Cluster),
    Hold(hold::Hold),
    Orbctl(orbctl::Orbctl),
    Reap(reap::Reap),
    Bench(bench::Bench),
    Init(init::Init),
    Completions(completions::Completions),
    Man(man::ManPages),
}

impl Command {
    pub(crate) fn run(self, output: Output) -> Outcome {
        match self {
            Self::Doctor(command) => command.run(output),
            Self::Create(command) => command.run(output),
            Self::List(command) => command.run(output),
            Self::Info(command) => command.run(output),
            Self::Start(command) => command.run(output),
            Self::Stop(command) => command.run(output),
            Self::Restart(command) => command.run(output),
            Self::Delete(command) => command.run(output),
            Self::Rename(command) => command.run(output),
            Self::Clone(command) => command.run(output),
            Self::Network(command) => command.run(output),
            Self::Logs(command) => command.run(output),
            Self::Exec(command) => command.run(output),
            Self::Shell(command) => command.run(output),
            Self::Push(command) => command.run(output),
            Self::Pull(command) => command.run(output),
            Self::Sync(command) => command.run(output),
            Self::Env(command) => command.run(output),
            Self::Dev(command) => command.run(output),
            Self::Run(command) => command.run(output),
            Self::Report(command) => command.run(output),
            Self::History(command) => command.run(output),
            Self::Schema(command) => command.run(output),
            Self::Image(command) => command.run(output),
            Self::Cluster(command) => command.run(output),
            Self::Hold(command) => command.run(output),
            Self::Orbctl(command) => command.run(),
            Self::Reap(command) => command.run(output),
            Self::Bench(command) => command.run(output),
            Self::Init(command) => command.run(output),
            Self::Completions(command) => command.run(output),
            Self::Man(command) => command.run(output),
        }
    }
}

/// The exit code of an error. Only `exec` and its kind meet a command that cannot be started.
pub(crate) fn code_of(problem: &Problem) -> u8 {
    match problem.kind {
        ProblemKind::Command => NOT_STARTED,
        kind => ExitCode::of_problem(kind).code(),
    }
}
