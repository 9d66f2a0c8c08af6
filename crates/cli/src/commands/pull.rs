//! `testyard pull`

use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use testyard_model::{Problem, ProblemKind};
use testyard_transfer::{Summary, TransferError, unpack_bytes};

use super::{DONE, Outcome};
use crate::moving::{self, Inside};
use crate::output::Output;

/// Copy a file or folder out of a machine.
///
/// As `cp -r`: into DST where that is a folder, else as DST, whose folder must exist. `SRC/.`
/// means SRC's contents; a DST of `-` writes a single file to standard output. The machine is
/// not trusted: nothing lands outside of DST, setuid bits are cleared, devices are left out,
/// and everything belongs to you.
///
/// Examples:
///     testyard pull m1 /var/log/app.log .
///     testyard pull m1 /opt/app/. ./copy
///     testyard pull m1 /etc/hosts -
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Pull {
    #[command(flatten)]
    inside: Inside,
    /// The file or folder in the machine; below the user's home unless absolute
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// Where it goes here, or `-`
    #[arg(value_name = "DST")]
    target: PathBuf,
}

impl Pull {
    pub(crate) fn run(self, output: Output) -> Outcome {
        if moving::is_stream(&self.target) {
            return self.bytes(output);
        }
        let (root, target) = moving::here(&self.target)?;
        let (mut machine, transfer) = self.inside.reach(&self.source)?;
        let options = moving::from_inside();
        let summary = moving::attended(output, |oversight| {
            machine.connection().pull_tree(transfer, root.as_fd(), &target, &options, oversight)
        })?;
        moving::report("pulled", &summary, output)
    }

    fn bytes(self, output: Output) -> Outcome {
        if output.json {
            let message = "standard output cannot hold both the file and JSON";
            return Err(Problem::new(ProblemKind::Usage, message).hint("leave out --json, or write to a file"));
        }
        let (mut machine, transfer) = self.inside.reach(&self.source)?;
        let (mut summary, mut folder) = (Summary::default(), None);
        let pulled = machine.connection().pull(transfer, |input| match unpack_bytes(input, &mut io::stdout().lock()) {
            Err(error @ TransferError::Single) => {
                // What the machine may find wrong in that folder does not matter any more.
                folder = Some(error.problem());
                Err(TransferError::Single)
            }
            outcome => outcome.map(|done| summary = done),
        });
        folder.map_or(Ok(()), Err)?;
        pulled.map_err(moving::told)?;
        // Beside the file itself, a remark only disturbs.
        if io::stdout().is_terminal() { DONE } else { moving::report("pulled", &summary, output) }
    }
}
