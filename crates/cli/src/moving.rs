//! What `push` and `pull` share: the machine's end, the way to it, what is shown meanwhile and said afterwards.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::json;
use testyard::Machine;
use testyard_linux::signal::{Signal, SignalFd};
use testyard_machine::client::TreeError;
use testyard_model::{MachineName, Problem, ProblemKind};
use testyard_protocol::{Carrier, RawText, Transfer};
use testyard_transfer::{Oversight, Summary, UnpackOptions};

use crate::attend::local;
use crate::commands::{DONE, Outcome};
use crate::output::{Output, printable};
use crate::values::User;
use crate::yard;

/// What stops a transfer; what was not finished is removed then.
const STOPPING: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];
/// A transfer is shown from then on, so often.
const SHOWN_AFTER: Duration = Duration::from_millis(500);

/// The machine's end of a transfer.
#[derive(Debug, clap::Args)]
pub(crate) struct Inside {
    /// The machine's name
    name: MachineName,
    /// Whom the files belong to and are read as there [default: the machine's user]
    #[arg(long, short)]
    user: Option<User>,
}

impl Inside {
    /// The machine, and a request for files at a path of it.
    pub(crate) fn reach(self, path: &Path) -> Result<(Machine, Transfer), Problem> {
        let machine = yard::connect(&self.name)?;
        let user = self.user.map(|user| user.0);
        Ok((machine, Transfer { path: RawText::from(path), user, carrier: Carrier::Attached, environment: None }))
    }
}

/// Whether a path means a standard stream.
pub(crate) fn is_stream(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// This host's root, and a path of the user's from there.
pub(crate) fn here(path: &Path) -> Result<(File, PathBuf), Problem> {
    let failed = |error| Problem::new(ProblemKind::System, format!("cannot find {path:?}")).because(error);
    let root = File::open("/").map_err(failed)?;
    let absolute = std::path::absolute(path).map_err(failed)?;
    // What `absolute` drops means something: the contents of a folder, or that it must be one.
    let bytes = path.as_os_str().as_bytes();
    let absolute = if bytes == b"." || bytes.ends_with(b"/.") { absolute.join(".") } else { absolute };
    Ok((root, absolute))
}

/// How what comes out of a machine is unpacked here: nothing of it is trusted, and this process's mask holds.
pub(crate) fn from_inside() -> UnpackOptions {
    let mask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(mask);
    UnpackOptions { hostile: true, mask: Some(mask.as_raw_mode()), ..UnpackOptions::default() }
}

/// Moves files, shows how far it is, and stops where a signal says so.
pub(crate) fn attended(
    output: Output,
    transfer: impl FnOnce(Oversight<'_>) -> Result<Summary, TreeError>,
) -> Result<Summary, Problem> {
    // Before any thread is started: all of them must leave these signals to the descriptor.
    let signals = SignalFd::new(&STOPPING).map_err(local)?;
    let moved = AtomicU64::new(0);
    let oversight = Oversight { stop: Some(signals.as_fd()), moved: Some(&moved) };
    let shown = io::stderr().is_terminal() && !output.quiet && !output.json;
    if !shown {
        return transfer(oversight).map_err(told);
    }
    std::thread::scope(|scope| {
        let (finished, waits) = channel::<()>();
        scope.spawn(|| {
            let start = Instant::now();
            let waits = waits;
            while waits.recv_timeout(SHOWN_AFTER) == Err(RecvTimeoutError::Timeout) {
                output.status(Some(&progress(moved.load(Ordering::Relaxed), start.elapsed())));
            }
            output.status(None);
        });
        let outcome = transfer(oversight);
        drop(finished);
        outcome.map_err(told)
    })
}

fn progress(bytes: u64, elapsed: Duration) -> String {
    let rate = (bytes as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
    format!("{}, {}/s", rounded(bytes), rounded(rate))
}

/// To a tenth of the unit that suits it.
fn rounded(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

/// As people see it.
pub(crate) fn told(error: TreeError) -> Problem {
    match error {
        TreeError::Machine(error) => error.problem(),
        TreeError::Local(error) => error.problem(),
    }
}

/// Says what was moved, and what was not.
pub(crate) fn report(done: &str, summary: &Summary, output: Output) -> Outcome {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_units_that_suit_it() {
        assert_eq!(progress(0, Duration::ZERO), "0.0 KiB, 0.0 KiB/s");
        assert_eq!(progress(3 << 30, Duration::from_secs(2)), "3.0 GiB, 1.5 GiB/s");
        assert_eq!(rounded(1536), "1.5 KiB");
    }
}
