//! `testyard rename`

use testyard_model::MachineName;

use super::{Outcome, create};
use crate::output::Output;
use crate::yard;

/// Give a machine another name. What runs in it goes on.
///
/// Example:
///     testyard rename m1 build
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Rename {
    /// Its name now
    from: MachineName,
    /// Its name from now on
    to: MachineName,
}

impl Rename {
    pub(crate) fn run(self, output: Output) -> Outcome {
        create::tell(
            &yard::open()?.machines().rename(&self.from, &self.to)?,
            &format!("renamed {} to", self.from),
            output,
        )
    }
}
