//! `testyard delete`

use std::fmt::Display;

use serde::Serialize;
use testyard_model::{MachineName, Problem};

use super::{DONE, Outcome};
use crate::output::Output;
use crate::yard;

/// Delete machines: their processes, files and records.
///
/// All of them are tried; the first error is the one that counts.
///
/// Examples:
///     testyard delete m1
///     testyard delete $(testyard list --names) --force
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, visible_alias = "rm")]
pub(crate) struct Delete {
    /// The machines' names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<MachineName>,
    /// Even while commands run in it
    #[arg(long, short)]
    force: bool,
}

impl Delete {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let yard = yard::open()?;
        delete_each("machine", &self.names, output, |name| yard.machines().delete(name, self.force))
    }
}

/// Deletes all of them, whatever becomes of one; the first error is the one that counts.
pub(super) fn delete_each<N: Display + Serialize>(
    kind: &str,
    names: &[N],
    output: Output,
    delete: impl Fn(&N) -> Result<(), Problem>,
) -> Outcome {
    let (mut deleted, mut first) = (Vec::new(), None);
    for name in names {
        match delete(name) {
            Ok(()) => {
                output.say(format_args!("deleted {kind} {name}"));
                deleted.push(name);
            }
            Err(problem) if first.is_none() => first = Some(problem),
            Err(problem) => output.problem(&problem),
        }
    }
    if output.json && first.is_none() {
        output.json("deleted", &deleted)?;
    }
    first.map_or(DONE, Err)
}
