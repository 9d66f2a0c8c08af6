//! `testyard list`

use super::{DONE, Outcome};
use crate::output::Output;
use crate::{describe, yard};

/// List the machines.
///
/// Examples:
///     testyard list
///     testyard list --json | jq -r '.machines[] | select(.state == "failed") | .name'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, visible_alias = "ls")]
pub(crate) struct List {
    /// Print names only, one a line
    #[arg(long)]
    names: bool,
}

impl List {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let machines = yard::open()?.machines().list()?;
        if output.json {
            output.json("machines", &machines)?;
        } else if self.names {
            output.data(&machines.iter().map(|machine| format!("{}\n", machine.name)).collect::<String>())?;
        } else if machines.is_empty() {
            output.say("no machines; make one: testyard create NAME");
        } else {
            output.data(&describe::machines(&machines, describe::now_ms()))?;
        }
        DONE
    }
}
