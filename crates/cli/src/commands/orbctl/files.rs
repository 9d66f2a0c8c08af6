//! `push` and `pull`: files in and out, as the machine's default user.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use testyard::{Machine, Testyard};
use testyard_model::{MachineName, Problem, ProblemKind};
use testyard_protocol::{Carrier, RawText, Transfer};

use super::run::{changed_user, reach, user_spec};
use super::words::{Flag, Rest, Words};
use super::{only_name, parse_name};
use crate::commands::{DONE, Outcome};
use crate::moving;
use crate::output::Output;

const MACHINE: Flag = Flag::with_value("machine", Some('m'));

/// `push -m NAME SRC… DST`
pub(super) fn push(yard: &Testyard, words: Vec<OsString>, output: Output) -> Outcome {
    let end = End::of(yard, &Words::parse(&[MACHINE], Rest::Ours, words)?)?;
    let sources: Vec<_> = end.sources.iter().map(|source| moving::here(source)).collect::<Result<_, _>>()?;
    for ((_, path), given) in sources.iter().zip(&end.sources) {
        // A missing source is told before anything is asked of others.
        path.symlink_metadata().map_err(|error| unreadable(given, &error))?;
    }
    let mut machine = reach(yard, &end.name)?;
    for (root, path) in &sources {
        let transfer = end.transfer(yard, &end.target)?;
        let pushed = moving::attended(output, |oversight| {
            machine.connection().push_tree(transfer, root.as_fd(), path, oversight)
        });
        warn(&pushed?, output);
    }
    DONE
}

/// `pull -m NAME SRC… DST`
pub(super) fn pull(yard: &Testyard, words: Vec<OsString>, output: Output) -> Outcome {
    let end = End::of(yard, &Words::parse(&[MACHINE], Rest::Ours, words)?)?;
    let (root, target) = moving::here(&end.target)?;
    let mut machine: Machine = reach(yard, &end.name)?;
    for source in &end.sources {
        let transfer = end.transfer(yard, source)?;
        let pulled = moving::attended(output, |oversight| {
            machine.connection().pull_tree(transfer, root.as_fd(), &target, &moving::from_inside(), oversight)
        });
        warn(&pulled?, output);
    }
    DONE
}

/// What a line says of both ends.
struct End {
    name: MachineName,
    sources: Vec<PathBuf>,
    target: PathBuf,
}

impl End {
    fn of(yard: &Testyard, words: &Words) -> Result<Self, Problem> {
        let name = words.value("machine")?.map(parse_name).transpose()?;
        let paths: Vec<PathBuf> = words.positionals.iter().map(PathBuf::from).collect();
        let (sources, target) = match paths.as_slice() {
            [] => return Err(Problem::new(ProblemKind::Usage, "FROM and TO are missing")),
            // To the user's home there, or to this folder.
            [source] => (vec![source.clone()], PathBuf::from(".")),
            [sources @ .., target] => (sources.to_vec(), target.clone()),
        };
        if paths.iter().any(|path| path.as_os_str() == OsStr::new("")) {
            return Err(Problem::new(ProblemKind::Usage, "a path is empty"));
        }
        let name = name.map_or_else(|| only_name(yard), Ok)?;
        Ok(Self { name, sources, target })
    }

    fn transfer(&self, yard: &Testyard, path: &Path) -> Result<Transfer, Problem> {
        let user = changed_user(yard, &self.name)?.map(user_spec);
        Ok(Transfer { path: RawText::from(path), user, carrier: Carrier::Attached, environment: None })
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ProblemKind::NotFound,
        _ => ProblemKind::Denied,
    };
    Problem::new(kind, format!("cannot read {}", path.display())).because(error)
}

fn warn(summary: &testyard_transfer::Summary, output: Output) {
    if summary.skipped_count > 0 {
        output.warn(format_args!("left out {}: not files, folders or links", summary.skipped_count));
    }
}
