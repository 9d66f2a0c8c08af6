//! `testyard push`

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use testyard_model::{Problem, ProblemKind};
use testyard_transfer::{Summary, pack_bytes};

use super::Outcome;
use crate::moving::{self, Inside};
use crate::output::Output;

/// Copy a file or folder into a machine.
///
/// As `cp -r`: into DST where that is a folder, else as DST, whose folder must exist. `SRC/.`
/// means SRC's contents, `-` standard input. Modes, times, links and hard links are kept; what
/// is new appears only when it is whole.
///
/// Examples:
///     testyard push m1 app.conf /etc/app.conf
///     testyard push m1 ./build/. /opt/app
///     echo hello | testyard push m1 - /tmp/hello
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Push {
    #[command(flatten)]
    inside: Inside,
    /// The file or folder here, or `-`
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// Where it goes in the machine; below the user's home unless absolute
    #[arg(value_name = "DST")]
    target: PathBuf,
}

impl Push {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let summary = if moving::is_stream(&self.source) { self.bytes()? } else { self.tree(output)? };
        moving::report("pushed", &summary, output)
    }

    fn tree(self, output: Output) -> Result<Summary, Problem> {
        let (root, source) = moving::here(&self.source)?;
        // A missing source is told before a machine is asked for.
        source.symlink_metadata().map_err(|error| unreadable(&self.source, error))?;
        let (mut machine, transfer) = self.inside.reach(&self.target)?;
        moving::attended(output, |oversight| machine.connection().push_tree(transfer, root.as_fd(), &source, oversight))
    }

    fn bytes(self) -> Result<Summary, Problem> {
        let (mut machine, transfer) = self.inside.reach(&self.target)?;
        let mut summary = Summary::default();
        let pushed = machine.connection().push(transfer, |out| {
            summary = pack_bytes(&mut io::stdin().lock(), 0o644, out)?;
            Ok(())
        });
        pushed.map(|()| summary).map_err(moving::told)
    }
}

fn unreadable(path: &Path, error: io::Error) -> Problem {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ProblemKind::NotFound,
        io::ErrorKind::PermissionDenied => ProblemKind::Denied,
        _ => ProblemKind::System,
    };
    Problem::new(kind, format!("cannot read {path:?}")).because(error)
}
