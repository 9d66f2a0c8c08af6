//! `testyard pull`

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use testyard_model::MachineName;
use testyard_transfer::{Summary, UnpackOptions, unpack};

use super::{Outcome, push};
use crate::output::Output;
use crate::values::User;
use crate::yard;

/// Copy a file or folder out of a machine.
///
/// As `cp -r`: into DST where that is a folder, else as DST, whose folder must exist. `SRC/.`
/// means SRC's contents. The machine is not trusted: nothing lands outside of DST, setuid bits
/// are cleared, devices are left out, and everything belongs to you.
///
/// Examples:
///     testyard pull m1 /var/log/app.log .
///     testyard pull m1 /opt/app/. ./copy
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Pull {
    /// The machine's name
    name: MachineName,
    /// The file or folder in the machine; below the user's home unless absolute
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// Where it goes here
    #[arg(value_name = "DST")]
    target: PathBuf,
    /// Whom it is read as there [default: the machine's user]
    #[arg(long, short)]
    user: Option<User>,
}

impl Pull {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let (root, target) = push::here(&self.target)?;
        let mut machine = yard::connect(&self.name)?;
        let transfer = push::transfer(&self.source, self.user);
        let options = UnpackOptions { hostile: true, ..UnpackOptions::default() };
        let mut summary = Summary::default();
        let pulled = machine.connection().pull(transfer, |input| {
            let mut input = input;
            summary = unpack(&mut input, root.as_fd(), &target, &options)?;
            Ok::<_, testyard_transfer::TransferError>(())
        });
        pulled.map_err(push::told)?;
        push::report("pulled", &summary, output)
    }
}
