//! `testyard restart`

use testyard_model::MachineName;

use super::{Outcome, create};
use crate::output::Output;
use crate::yard;

/// Stop a machine and start it again. Its files stay.
///
/// Example:
///     testyard restart m1
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Restart {
    /// The machine's name
    name: MachineName,
    /// Kill its processes at once
    #[arg(long, short)]
    force: bool,
}

impl Restart {
    pub(crate) fn run(self, output: Output) -> Outcome {
        create::tell(&yard::open_to_start()?.machines().restart(&self.name, self.force)?, "restarted", output)
    }
}
