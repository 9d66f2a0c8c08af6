//! `testyard dev reset`

use serde_json::json;
use testyard_model::{Problem, ProblemKind};

use super::{Outcome, Whose, containers};
use crate::commands::DONE;
use crate::output::Output;
use crate::yard;

/// End and remove every container on the developer's machine. The machine stays, and its files.
///
/// Example:
///     testyard dev reset
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Reset {
    #[command(flatten)]
    whose: Whose,
}

impl Reset {
    pub(super) fn run(self, output: Output) -> Outcome {
        let yard = yard::open()?;
        let (mut machine, info) = self.whose.connect(&yard)?;
        let mut removed = 0;
        for environment in containers::running(&yard, &info).iter().filter_map(containers::environment_of) {
            match machine.release(environment) {
                Ok(()) => removed += 1,
                // It ended by itself just now.
                Err(Problem { kind: ProblemKind::NotFound, .. }) => {}
                Err(problem) => return Err(problem),
            }
        }
        let script = "ids=$(docker ps -aq) && for id in $ids; do docker rm -f \"$id\"; done";
        removed += containers::on_machine(&mut machine, &["sh", "-c", script])?.lines().count();
        if output.json {
            output.json_object(json!({ "removed": removed }))?;
        } else {
            output.say(format_args!("removed {removed} containers of {}", info.name));
        }
        DONE
    }
}
