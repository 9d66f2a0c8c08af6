//! `testyard stop`

use testyard_model::MachineName;

use super::{Outcome, create};
use crate::output::Output;
use crate::yard;

/// Stop a machine: its files stay, its processes are ended.
///
/// Its processes get SIGTERM and a few seconds; with --force they are killed at once.
///
/// Example:
///     testyard stop m1
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Stop {
    /// The machine's name
    name: MachineName,
    /// Kill at once
    #[arg(long, short)]
    force: bool,
}

impl Stop {
    pub(crate) fn run(self, output: Output) -> Outcome {
        create::tell(&yard::open()?.machines().stop(&self.name, self.force)?, "stopped", output)
    }
}
