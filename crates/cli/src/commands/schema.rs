//! `testyard schema`

use super::{DONE, Outcome};
use crate::output::Output;

/// Print the JSON schema of testyard.toml, for editors.
///
/// Examples:
///     testyard schema > testyard.schema.json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Schema {}

impl Schema {
    #[expect(clippy::unused_self, reason = "as every command")]
    pub(crate) fn run(self, output: Output) -> Outcome {
        // It is a JSON document of a form of its own, with --json and without.
        output.data(&format!("{:#}\n", testyard_runner::suite::schema()))?;
        DONE
    }
}
