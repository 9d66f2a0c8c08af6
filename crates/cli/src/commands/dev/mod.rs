//! `testyard dev`: one machine per developer, and each command in a fresh container on it.

mod containers;
mod exec;
mod machine;
mod reset;
mod status;
mod stop;

use testyard_model::MachineName;

use super::Outcome;
use crate::output::Output;

/// The developer's machine: one that persists, each command in a fresh container on it.
///
/// /tmp and /root belong to the machine and outlive a command; whatever else a command writes
/// goes with its container.
///
/// Example:
///     testyard dev ensure-started && testyard dev exec 'make test' && testyard dev stop
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Dev {
    #[command(subcommand)]
    command: DevCommand,
}

#[derive(Debug, clap::Subcommand)]
enum DevCommand {
    EnsureStarted(machine::EnsureStarted),
    Exec(exec::Exec),
    Status(status::Status),
    Reset(reset::Reset),
    Stop(stop::Stop),
}

/// Which machine is meant.
#[derive(Debug, clap::Args)]
struct Whose {
    /// The machine's name [default: dev- and your user name]
    #[arg(long, env = "TESTYARD_DEV_MACHINE")]
    name: Option<MachineName>,
}

impl Dev {
    pub(crate) fn run(self, output: Output) -> Outcome {
        match self.command {
            DevCommand::EnsureStarted(command) => command.run(output),
            DevCommand::Exec(command) => command.run(output),
            DevCommand::Status(command) => command.run(output),
            DevCommand::Reset(command) => command.run(output),
            DevCommand::Stop(command) => command.run(output),
        }
    }
}
