//! `testyard clone`

use testyard_model::MachineName;

use super::{Outcome, create};
use crate::output::Output;
use crate::yard;

/// Make a new machine with the files of another as they are now.
///
/// Example:
///     testyard clone m1 m2
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Clone {
    /// The machine to copy
    from: MachineName,
    /// The new machine's name
    to: MachineName,
}

impl Clone {
    pub(crate) fn run(self, output: Output) -> Outcome {
        create::tell(
            &yard::open_to_start()?.machines().clone_from(&self.from, &self.to)?,
            &format!("cloned {} to", self.from),
            output,
        )
    }
}
