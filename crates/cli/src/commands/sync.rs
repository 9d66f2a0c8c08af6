//! `testyard sync`

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use testyard::{SyncReport, SyncRequest};
use testyard_linux::signal::{Signal, SignalFd};
use testyard_model::{MachineName, Problem, ProblemKind};

use super::{DONE, Outcome};
use crate::attend::local;
use crate::output::Output;
use crate::values::User;
use crate::yard;

/// What ends a watch.
const STOPPING: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];

/// Keep a copy of a working tree on a machine, at the tree's own path.
///
/// Only what changed travels. What git ignores stays here, as do `.git`, special files and empty
/// folders. The machine's copy is exactly the tree at one moment: a command that starts before
/// the switch sees the old one, one after it the new one. What commands write there is seen on
/// the machine until the next sync, and never comes back.
///
/// Examples:
///     testyard sync m1
///     testyard sync m1 ~/src/project --watch
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Sync {
    /// The machine's name
    name: MachineName,
    /// The tree's top folder [default: the top of the git repository around this folder, else this folder]
    tree: Option<PathBuf>,
    /// Stay, and sync again whenever the tree changes, until interrupted
    #[arg(long, short)]
    watch: bool,
    /// Send git's objects and references too, without configuration, hooks and credentials
    #[arg(long)]
    git_history: bool,
    /// Whom the files belong to there: root or a number [default: the machine's user]
    #[arg(long, short)]
    user: Option<User>,
}

impl Sync {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let tree = match self.tree {
            Some(tree) => tree,
            None => {
                let here = std::env::current_dir().map_err(|error| {
                    Problem::new(ProblemKind::NotFound, "cannot find the current folder").because(error)
                })?;
                testyard::run::top_of(&here)
            }
        };
        let home = yard::open()?;
        let request = SyncRequest { user: self.user.map(|user| user.0), present: true, history: self.git_history };
        let connecting = home.begin_to_connect(&self.name)?;
        let mut tree = home.tree_sync(&tree, request)?;
        tree.look_ahead()?;
        let mut machine = connecting.finish()?;
        let signals = if self.watch { Some(SignalFd::new(&STOPPING).map_err(local)?) } else { None };
        report(&tree.sync(&mut machine)?, output)?;
        let Some(signals) = signals else {
            // What is known of many files takes its time to let go of, and this process ends here.
            std::mem::forget(tree);
            return DONE;
        };
        while tree.await_change(signals.as_fd())? {
            report(&tree.sync(&mut machine)?, output)?;
        }
        DONE
    }
}

fn report(synced: &SyncReport, output: Output) -> Result<(), Problem> {
    if output.json {
        return output.json("sync", synced);
    }
    let hash = &synced.hash.to_string()[..12];
    let path = synced.path.display();
    if synced.known {
        output.say(format_args!("{path}: {} files, tree {hash}, nothing to send", synced.files));
    } else {
        let plural = if synced.sent_files == 1 { "" } else { "s" };
        output.say(format_args!(
            "{path}: {} files, tree {hash}, sent {} file{plural}, {} bytes",
            synced.files, synced.sent_files, synced.sent_bytes
        ));
    }
    Ok(())
}
