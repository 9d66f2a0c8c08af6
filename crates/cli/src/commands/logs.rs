//! `testyard logs`

use testyard_model::MachineName;

use super::{DONE, Outcome};
use crate::follow::Followed;
use crate::output::Output;
use crate::yard;

/// Print what a machine's supervisor and agent have logged.
///
/// Examples:
///     testyard logs m1
///     testyard logs m1 --follow
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Logs {
    /// The machine's name
    name: MachineName,
    /// Go on as more is logged, until the machine is deleted or Ctrl-C
    #[arg(long, conflicts_with = "json")]
    follow: bool,
}

impl Logs {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let path = yard::open()?.machines().log(&self.name)?;
        let mut log = Followed::open(&path)?;
        let logged = log.rest()?;
        if output.json {
            output.json("log", &String::from_utf8_lossy(&logged))?;
            return DONE;
        }
        output.bytes(&logged)?;
        while self.follow && log.wait() {
            output.bytes(&log.rest()?)?;
        }
        DONE
    }
}
