//! Working trees that clients have handed over, kept in the staging area until their connection ends.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use testyard_linux::{Error, files, mount};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::start::IdRange;

use crate::place::PlaceKind;

/// A working tree on the machine.
pub(crate) struct Source {
    /// Where it is on the host.
    pub(crate) path: PathBuf,
    /// Where it is staged; none where the machine sees the host's own paths.
    staged: Option<PathBuf>,
}

impl Source {
    /// Takes the tree at `path` on the host: a detached mount, or, where that cannot be used, any descriptor that
    /// proves which folder is meant.
    pub(crate) fn take(kind: &PlaceKind, number: u32, path: &Path, tree: Option<&OwnedFd>) -> Result<Self, Problem> {
        let PlaceKind::Namespace(place) = kind else {
            return Ok(Self { path: path.to_owned(), staged: None });
        };
        let tree = tree.ok_or_else(|| Problem::new(ProblemKind::Protocol, "a source came without its descriptor"))?;
        let folder = Path::new("/scratch/sources").join(number.to_string());
        std::fs::create_dir(&folder).map_err(|error| Error::new("make folder", folder.display(), error).problem())?;
        let own = if place.ids == IdRange::Single { Some(clone_from_host(path, tree)?) } else { None };
        let mounted = mount::attach(own.as_ref().unwrap_or(tree).as_fd(), folder.as_path());
        mounted.map_err(|error| {
            let _ = std::fs::remove_dir(&folder);
            let problem =
                error.problem().because(format!("while the source {} was shown to the machine", path.display()));
            problem.hint(
                "a tree on a file system that maps no ids (a network's, an overlay) can be shown from a local disk",
            )
        })?;
        Ok(Self { path: path.to_owned(), staged: Some(folder) })
    }

    /// A detached mount of it, for one environment.
    pub(crate) fn mount(&self) -> Option<Result<OwnedFd, Error>> {
        self.staged.as_deref().map(|staged| mount::clone_tree(staged, false))
    }

    /// Where it is staged.
    pub(crate) fn staged(&self) -> Option<&Path> {
        self.staged.as_deref()
    }

    /// Lets go of it.
    pub(crate) fn detach(&self) {
        if let Some(staged) = &self.staged {
            // Environments have their own mounts of it; what fails here goes with the machine.
            let _ = mount::detach(staged);
            let _ = std::fs::remove_dir(staged);
        }
    }
}

/// The tree at `path` of the staged host, if that is the same folder as the client has open.
fn clone_from_host(path: &Path, proof: &OwnedFd) -> Result<OwnedFd, Problem> {
    let failed = |error: Error| error.problem().because(format!("while the source {} was looked for", path.display()));
    let host = rustix::fs::open("/host", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .map_err(|error| failed(Error::new("open", "the staged host", error)))?;
    let found = files::open_in_root(host.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY, 0).map_err(failed)?;
    let identity = |fd: &OwnedFd| {
        rustix::fs::fstat(fd)
            .map(|facts| (facts.st_dev, facts.st_ino))
            .map_err(|error| failed(Error::new("look at", path.display(), error)))
    };
    if identity(&found)? != identity(proof)? {
        let message = format!("{} is another folder for the machine than for the client", path.display());
        return Err(Problem::new(ProblemKind::Usage, message)
            .hint("something was mounted there after the machine was started: testyard restart NAME"));
    }
    mount::clone_tree(found.as_fd(), false).map_err(|error| {
        failed(error).hint("a working tree with other file systems mounted below it cannot be shown; unmount them")
    })
}
