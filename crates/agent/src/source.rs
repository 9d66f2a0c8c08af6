//! Working trees that clients have handed over, kept in the staging area until their connection ends.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use testyard_linux::mount::{self, Attributes};
use testyard_linux::{Error, files};
use testyard_model::{Problem, ProblemKind};

use crate::place::PlaceKind;
use crate::start::staging::is_of_user;

/// Where they are staged.
const SOURCES: &str = "/scratch/sources";

/// A working tree on the machine.
pub(crate) struct Source {
    /// Where it is on the host.
    pub(crate) path: PathBuf,
    /// Where it is staged; none where the machine sees the host's own paths.
    staged: Option<PathBuf>,
    /// Of a synced tree: how many layers are staged there, each in a folder of its number, topmost first.
    layers: u8,
    /// The synced trees that it is made of, by what they are called in the store.
    pub(crate) trees: Vec<String>,
}

impl Source {
    /// Takes the tree at `path` on the host: a detached mount, or, where that cannot be used, any descriptor that
    /// proves which folder is meant.
    pub(crate) fn take(kind: &PlaceKind, number: u32, path: &Path, tree: Option<&OwnedFd>) -> Result<Self, Problem> {
        let PlaceKind::Namespace(place) = kind else {
            return Ok(Self { path: path.to_owned(), staged: None, layers: 0, trees: Vec::new() });
        };
        let tree = tree.ok_or_else(|| Problem::new(ProblemKind::Protocol, "a source came without its descriptor"))?;
        let folder = Path::new(SOURCES).join(number.to_string());
        std::fs::create_dir(&folder).map_err(|error| Error::new("make folder", folder.display(), error).problem())?;
        let own = if is_of_user(place.ids) { Some(clone_from_host(path, tree)?) } else { None };
        let mounted = mount::attach(own.as_ref().unwrap_or(tree).as_fd(), folder.as_path());
        mounted.map_err(|error| {
            let _ = std::fs::remove_dir(&folder);
            let problem =
                error.problem().because(format!("while the source {} was shown to the machine", path.display()));
            problem.hint(
                "a tree on a file system that maps no ids (a network's, an overlay) can be shown from a local disk",
            )
        })?;
        Ok(Self { path: path.to_owned(), staged: Some(folder), layers: 0, trees: Vec::new() })
    }

    /// Takes a synced tree, made of these layers, topmost first; `trees` are its names in the store.
    pub(crate) fn of_layers(number: u32, path: &Path, layers: &[PathBuf], trees: Vec<String>) -> Result<Self, Problem> {
        let folder = Path::new(SOURCES).join(number.to_string());
        let make = |path: &Path| {
            std::fs::create_dir(path).map_err(|error| Error::new("make folder", path.display(), error).problem())
        };
        make(&folder)?;
        let mut source = Self { path: path.to_owned(), staged: Some(folder.clone()), layers: 0, trees };
        for layer in layers {
            let at = folder.join(source.layers.to_string());
            let staged = make(&at).and_then(|()| {
                let attributes =
                    Attributes { read_only: true, no_suid: true, no_devices: true, ..Attributes::default() };
                mount::clone_tree(layer.as_path(), false)
                    .and_then(|clone| mount::set_attributes(clone.as_fd(), &attributes, false).map(|()| clone))
                    .and_then(|clone| mount::attach(clone.as_fd(), at.as_path()))
                    .map_err(|error| error.problem())
            });
            source.layers += 1;
            if let Err(problem) = staged {
                source.detach();
                return Err(problem);
            }
        }
        Ok(source)
    }

    /// A detached mount of it, for one environment: of the tree, or of a folder with its layers.
    pub(crate) fn mount(&self) -> Option<Result<OwnedFd, Error>> {
        self.staged.as_deref().map(|staged| mount::clone_tree(staged, self.layers > 0))
    }

    /// Detached mounts of its layers, topmost first.
    pub(crate) fn layer_mounts(&self) -> Result<Vec<OwnedFd>, Error> {
        self.staged().iter().map(|staged| mount::clone_tree(staged.as_path(), false)).collect()
    }

    /// How many layers [`Source::mount`] shows in folders of their numbers; 0 where it shows the tree itself.
    pub(crate) fn layers(&self) -> u8 {
        self.layers
    }

    /// Where its layers are staged, topmost first; none where the machine sees the host's own paths.
    pub(crate) fn staged(&self) -> Vec<PathBuf> {
        match &self.staged {
            Some(staged) if self.layers > 0 => (0..self.layers).map(|layer| staged.join(layer.to_string())).collect(),
            staged => staged.iter().cloned().collect(),
        }
    }

    /// Lets go of it.
    pub(crate) fn detach(&self) {
        // Environments have their own mounts of it; what fails here goes with the machine.
        for staged in self.staged() {
            let _ = mount::detach(&staged);
            let _ = std::fs::remove_dir(staged);
        }
        if let Some(staged) = self.staged.as_ref().filter(|_| self.layers > 0) {
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
