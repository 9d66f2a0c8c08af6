//! `testyard info`

use testyard_model::MachineName;

use super::{DONE, Outcome};
use crate::output::Output;
use crate::{describe, yard};

/// Show all there is to know about a machine.
///
/// Examples:
///     testyard info m1
///     testyard info m1 --json | jq .machine.limits
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Info {
    /// The machine's name
    name: MachineName,
}

impl Info {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let machine = yard::open()?.machines().info(&self.name)?;
        if output.json {
            output.json("machine", &yard::with_socket(&machine)?)?;
        } else {
            output.data(&describe::machine(&machine, describe::now_ms()))?;
        }
        DONE
    }
}
