//! `testyard push`

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use testyard_machine::client::TransferError;
use testyard_model::{MachineName, Problem, ProblemKind};
use testyard_protocol::{Carrier, RawText, Transfer};
use testyard_transfer::{Summary, pack};

use super::{DONE, Outcome};
use crate::output::{Output, printable};
use crate::values::User;
use crate::yard;

/// Copy a file or folder into a machine.
///
/// As `cp -r`: into DST where that is a folder, else as DST, whose folder must exist. `SRC/.`
/// means SRC's contents. Modes, times, links and hard links are kept and checksums verified;
/// what is new appears only when it is whole.
///
/// Examples:
///     testyard push m1 app.conf /etc/app.conf
///     testyard push m1 ./build/. /opt/app
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Push {
    /// The machine's name
    name: MachineName,
    /// The file or folder here
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// Where it goes in the machine; below the user's home unless absolute
    #[arg(value_name = "DST")]
    target: PathBuf,
    /// Whom the files belong to there [default: the machine's user]
    #[arg(long, short)]
    user: Option<User>,
}

impl Push {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let (root, source) = here(&self.source)?;
        // A missing source is told before a machine is asked for.
        source.symlink_metadata().map_err(|error| unreadable(&self.source, error))?;
        let mut machine = yard::connect(&self.name)?;
        let transfer = transfer(&self.target, self.user);
        let mut summary = Summary::default();
        let pushed = machine.connection().push(transfer, |out| {
            let mut out = out;
            summary = pack(root.as_fd(), &source, &mut out)?;
            Ok::<_, testyard_transfer::TransferError>(())
        });
        pushed.map_err(told)?;
        report("pushed", &summary, output)
    }
}

/// This host's root, and a path of the user's from there.
pub(super) fn here(path: &Path) -> Result<(File, PathBuf), Problem> {
    let failed = |error| Problem::new(ProblemKind::System, format!("cannot find {path:?}")).because(error);
    let root = File::open("/").map_err(failed)?;
    let absolute = std::path::absolute(path).map_err(failed)?;
    // What `absolute` drops means something: the contents of a folder, or that it must be one.
    let bytes = path.as_os_str().as_bytes();
    let absolute = if bytes == b"." || bytes.ends_with(b"/.") { absolute.join(".") } else { absolute };
    Ok((root, absolute))
}

/// A request for files at a path of the machine.
pub(super) fn transfer(path: &Path, user: Option<User>) -> Transfer {
    let user = user.map(|user| user.0);
    Transfer { path: RawText::from(path), user, carrier: Carrier::Attached, environment: None }
}

pub(super) fn told(error: TransferError<testyard_transfer::TransferError>) -> Problem {
    match error {
        TransferError::Machine(error) => error.problem(),
        TransferError::Local(error) => error.problem(),
    }
}

/// Says what was moved, and what was not.
pub(super) fn report(done: &str, summary: &Summary, output: Output) -> Outcome {
    for skipped in &summary.skipped {
        output.warn(format_args!("left out {}: not a file, folder or link", printable(&skipped.to_string_lossy())));
    }
    let unnamed = summary.skipped_count - summary.skipped.len() as u64;
    if unnamed > 0 {
        output.warn(format_args!("left out {unnamed} more"));
    }
    if output.json {
        output.json_object(json!({
            "entries": summary.entries,
            "bytes": summary.bytes,
            "outward_links": summary.outward_links,
            "skipped": summary.skipped_count,
        }))?;
    } else {
        let plural = if summary.entries == 1 { "entry" } else { "entries" };
        output.say(format_args!("{done} {} {plural}, {} bytes", summary.entries, summary.bytes));
    }
    DONE
}

fn unreadable(path: &Path, error: io::Error) -> Problem {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ProblemKind::NotFound,
        io::ErrorKind::PermissionDenied => ProblemKind::Denied,
        _ => ProblemKind::System,
    };
    Problem::new(kind, format!("cannot read {path:?}")).because(error)
}
