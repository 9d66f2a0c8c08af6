//! Work on files that bear ids which the host grants to its user: nobody else could remove or copy them.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags};
use testyard_linux::files::{self, CopyOptions};
use testyard_linux::process::{self, CloneFlags, Credentials};
use testyard_linux::{Error, namespace};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::start::{COPY, IdRange, REMOVE};

use crate::network::user_namespace;

/// Does what the words of [`testyard_protocol::start::WITH_GRANTED`] ask for; what is wrong goes to standard output.
pub(crate) fn work(words: &[OsString]) -> ExitCode {
    match try_work(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            let text = [problem.message].into_iter().chain(problem.causes).collect::<Vec<_>>().join(": ");
            // Without its reason the backend still sees the exit code.
            let _ = rustix::io::write(rustix::stdio::stdout(), text.as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn try_work(words: &[OsString]) -> Result<(), Problem> {
    let unreadable = || Problem::new(ProblemKind::Bug, "work on granted ids was asked for in words that mean nothing");
    let [uids, gids, count, verb, from, to] = words else { return Err(unreadable()) };
    let number = |word: &OsString| word.to_str().and_then(|word| word.parse().ok()).ok_or_else(unreadable);
    let ids = IdRange::Granted { uids: number(uids)?, gids: number(gids)?, count: number(count)? };
    // Before the ids change: by whom the folders are.
    let parent = open(Path::new(from))?;
    let target = if verb == COPY { Some(open(Path::new(to))?) } else { None };
    let system = |error: Error| error.problem();
    namespace::enter(user_namespace(ids)?.as_fd(), CloneFlags::NEWUSER).map_err(system)?;
    process::become_user(&Credentials { uid: 0, gid: 0, groups: Vec::new() }, true).map_err(system)?;
    match target {
        Some(target) => {
            let options = CopyOptions { owners: true, attributes: true, ..CopyOptions::default() };
            files::copy_tree(parent.as_fd(), target.as_fd(), options).map(drop).map_err(system)
        }
        None if verb == REMOVE => {
            let removed = files::remove_tree(parent.as_fd(), to.as_os_str()).map_err(system)?;
            let left = removed.refused.into_iter().next();
            left.map_or(Ok(()), |left| Err(Error::new("remove", left.path.display(), left.reason).problem()))
        }
        None => Err(unreadable()),
    }
}

fn open(path: &Path) -> Result<OwnedFd, Problem> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| Error::new("open", path.display(), error).problem())
}
