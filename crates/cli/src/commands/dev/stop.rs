//! `testyard dev stop`

use serde_json::json;
use testyard_model::{MachineState, ProblemKind};

use super::{Outcome, Whose, containers};
use crate::commands::DONE;
use crate::output::Output;
use crate::yard;

/// Stop the developer's machine, with all that runs on it. Its files stay, unless it is deleted.
///
/// Examples:
///     testyard dev stop
///     testyard dev stop --delete
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Stop {
    #[command(flatten)]
    whose: Whose,
    /// Delete it, with its files
    #[arg(long)]
    delete: bool,
}

impl Stop {
    pub(super) fn run(self, output: Output) -> Outcome {
        let yard = yard::open()?;
        let name = self.whose.name()?;
        let machines = yard.machines();
        let stopped = match machines.info(&name) {
            Err(problem) if problem.kind == ProblemKind::NotFound => false,
            Err(problem) => return Err(problem),
            Ok(machine) => {
                let ran = machine.state == MachineState::Running;
                if self.delete {
                    containers::forget(&yard, &name)?;
                    machines.delete(&name, true)?;
                } else if ran {
                    machines.stop(&name, true)?;
                }
                ran
            }
        };
        if output.json {
            output.json_object(json!({ "stopped": stopped }))?;
        } else {
            output.say(if stopped { format!("stopped {name}") } else { format!("{name} was not running") });
        }
        DONE
    }
}
