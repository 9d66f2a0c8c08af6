//! `testyard start`

use testyard_model::MachineName;

use super::{Outcome, create};
use crate::output::Output;
use crate::yard;

/// Start a stopped or failed machine from its files.
///
/// Example:
///     testyard start m1
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Start {
    /// The machine's name
    name: MachineName,
}

impl Start {
    pub(crate) fn run(self, output: Output) -> Outcome {
        create::tell(&yard::open_to_start()?.machines().start(&self.name)?, "started", output)
    }
}
