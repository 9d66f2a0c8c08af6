//! What is done with an environment's changes: telling them, sending files, keeping them as a layer. Runs in a forked
//! worker that is root of the machine; what it reads was made by tests, and is hostile.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use testyard_linux::files::changes::{Change, ChangeKind as Kind, changes};
use testyard_linux::files::{self, CopyOptions};
use testyard_linux::{Error, Result as LinuxResult};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::RawText;
use testyard_protocol::changes::{ChangeKind, ChangeLine, FileChange, FileKind, Part, When};

use super::keeping::{LAYERS, SEALED, Uppers, layer_folder};
use super::looking::{SOURCE, unfinished};
use super::root::{mount_below, open_folder, submount_name};

/// The longest list of paths that is read.
const LONGEST_LIST: u64 = 64 << 20;

/// What lies below an environment's changes, and what of them is not its commands' doing.
#[derive(Default)]
pub(super) struct Layers {
    pub(super) root: Vec<PathBuf>,
    pub(super) data: Vec<PathBuf>,
    pub(super) submounts: Vec<(PathBuf, Vec<PathBuf>)>,
    pub(super) source: Vec<PathBuf>,
    /// Absolute paths that were made for mounts.
    pub(super) made: Vec<PathBuf>,
    /// Absolute paths that are hidden in the source.
    pub(super) hidden: Vec<PathBuf>,
    /// Where the source is.
    pub(super) top: PathBuf,
}

fn system(error: Error) -> Problem {
    error.problem()
}

fn inner(folder: &OwnedFd, name: &str) -> LinuxResult<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::empty()).map_err(|error| Error::new("open", name, error))
}

/// The merged layers, to look up what was there before; none where there are none.
fn merged(layers: &[PathBuf], data: &[PathBuf]) -> LinuxResult<Option<OwnedFd>> {
    match layers {
        [] => Ok(None),
        [one] if data.is_empty() => open_folder(one).map(Some),
        several => mount_below(&several.iter().map(PathBuf::as_path).collect::<Vec<_>>(), data).map(Some),
    }
}

/// Writes a line for each change.
pub(super) fn tell(layers: &Layers, uppers: &Uppers, to: OwnedFd, limit: u32) -> Result<(), Problem> {
    let mut out = Teller { out: BufWriter::new(File::from(to)), left: limit, failed: None };
    if let Some(source) = &uppers.source {
        let upper = inner(source, SOURCE.1).map_err(system)?;
        let lower = merged(&layers.source, &[]).map_err(system)?;
        let top = ChangeLine::Source(layers.top.as_path().into());
        out.line(&top).map_err(|error| system(Error::new("write", "the list of changes", error)))?;
        let shown = |change: &Change| !layers.hidden.contains(&layers.top.join(&change.path));
        out.part(&upper, lower.as_ref(), Part::Source, Path::new(""), &shown)?;
    }
    if let Some(root) = &uppers.root {
        let upper = inner(root, "root").map_err(system)?;
        let lower = merged(&layers.root, &layers.data).map_err(system)?;
        let shown = |change: &Change| {
            let path = Path::new("/").join(&change.path);
            change.kind != Kind::Added || !layers.made.iter().any(|made| made.starts_with(&path))
        };
        out.part(&upper, lower.as_ref(), Part::Root, Path::new(""), &shown)?;
        for (index, (target, below)) in layers.submounts.iter().enumerate() {
            let upper = inner(root, &submount_name(index)).map_err(system)?;
            let lower = merged(below, &[]).map_err(system)?;
            let prefix = target.strip_prefix("/").unwrap_or(target);
            out.part(&upper, lower.as_ref(), Part::Root, prefix, &|_| true)?;
        }
    }
    out.out.flush().map_err(|error| system(Error::new("write", "the list of changes", error)))
}

struct Teller {
    out: BufWriter<File>,
    left: u32,
    failed: Option<std::io::Error>,
}

impl Teller {
    fn part(
        &mut self,
        upper: &OwnedFd,
        lower: Option<&OwnedFd>,
        part: Part,
        prefix: &Path,
        shown: &dyn Fn(&Change) -> bool,
    ) -> Result<(), Problem> {
        if self.left == 0 {
            return Ok(());
        }
        let lower = lower.map(|lower| lower.as_fd());
        let walked = changes(upper.as_fd(), lower, &mut |change| {
            if !shown(&change) {
                return ControlFlow::Continue(());
            }
            self.left -= 1;
            let line =
                if self.left == 0 { ChangeLine::Cut } else { ChangeLine::Entry(described(change, part, prefix)) };
            match self.line(&line) {
                Ok(()) if self.left > 0 => ControlFlow::Continue(()),
                Ok(()) => ControlFlow::Break(()),
                Err(error) => {
                    self.failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        walked.map_err(system)?;
        match self.failed.take() {
            Some(error) => Err(system(Error::new("write", "the list of changes", error))),
            None => Ok(()),
        }
    }

    fn line(&mut self, line: &ChangeLine) -> std::io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")
    }
}

fn described(change: Change, part: Part, prefix: &Path) -> FileChange {
    FileChange {
        part,
        path: prefix.join(change.path).into(),
        change: match change.kind {
            Kind::Added => ChangeKind::Added,
            Kind::Changed => ChangeKind::Changed,
            Kind::Deleted => ChangeKind::Deleted,
        },
        file: match change.file {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Folder,
            FileType::Symlink => FileKind::Link,
            _ => FileKind::Special,
        },
        size: change.size,
        target: change.target.map(|target| RawText(target.into_bytes())),
    }
}

/// Reads the list of paths that are wanted, and sends them as a tree.
pub(super) fn send(layers: &Layers, uppers: &Uppers, to: OwnedFd, part: Part, when: When) -> Result<(), Problem> {
    let mut socket = File::from(to);
    let mut list = Vec::new();
    let read = (&mut socket).take(LONGEST_LIST).read_to_end(&mut list);
    read.map_err(|error| system(Error::new("read", "the list of files", error)))?;
    let paths: Vec<RawText> =
        serde_json::from_slice(&list).map_err(|error| Problem::from_error(ProblemKind::Protocol, &error))?;
    let chosen: BTreeSet<PathBuf> = paths.iter().map(|path| path.as_path().to_owned()).collect();
    let nothing = || Problem::new(ProblemKind::NotFound, "the environment has no files of that part");
    let folder = match (part, when) {
        (Part::Source, When::Now) => inner(uppers.source.as_ref().ok_or_else(nothing)?, SOURCE.1),
        (Part::Root, When::Now) => inner(uppers.root.as_ref().ok_or_else(nothing)?, "root"),
        (Part::Source, When::Before) => merged(&layers.source, &[]).map_err(system)?.ok_or_else(nothing).map(Ok)?,
        (Part::Root, When::Before) => {
            merged(&layers.root, &layers.data).map_err(system)?.ok_or_else(nothing).map(Ok)?
        }
    };
    testyard_transfer::widen(socket.as_fd());
    // A mount that was just made cannot be listed by its own descriptor.
    let folder = folder.and_then(|folder| inner(&folder, ".")).map_err(system)?;
    let sent = testyard_transfer::pack_chosen(&folder, &chosen, &mut socket);
    sent.map(drop).map_err(|error| error.problem())
}

/// Copies the changes to a layer of this name.
pub(super) fn seal(uppers: &Uppers, name: &str, submounts: usize) -> Result<(), Problem> {
    let (fresh, layer) = (unfinished(name), layer_folder(name));
    remove(&fresh);
    let copied = || -> LinuxResult<()> {
        make(&fresh)?;
        if let Some(root) = &uppers.root {
            let names = std::iter::once("root".to_owned()).chain((0..submounts).map(submount_name));
            for name in names {
                copy(&inner(root, &name)?, &fresh.join(&name))?;
            }
        }
        if let Some(source) = &uppers.source {
            copy(&inner(source, SOURCE.1)?, &fresh.join(SOURCE.0))?;
        }
        remove(&layer);
        std::fs::rename(&fresh, &layer).map_err(|error| Error::new("name the layer", name, error))
    };
    copied().map_err(|error| {
        remove(&fresh);
        let mut problem = error.problem().because("while what was prepared was kept as a layer");
        if error.errno() == rustix::io::Errno::NOSPC {
            problem.kind = ProblemKind::Exhausted;
        }
        problem
    })
}

fn make(path: &Path) -> LinuxResult<()> {
    std::fs::create_dir(path).map_err(|error| Error::new("make folder", path.display(), error))
}

fn copy(from: &OwnedFd, to: &Path) -> LinuxResult<()> {
    make(to)?;
    files::copy_tree(from.as_fd(), open_folder(to)?.as_fd(), CopyOptions::default()).map(drop)
}

fn remove(layer: &Path) {
    if let (Ok(folder), Some(name)) = (open_folder(Path::new(LAYERS)), layer.file_name()) {
        // What cannot be removed now goes with the machine.
        let _ = files::remove_tree(folder.as_fd(), Path::new(name));
    }
}

/// Removes the oldest layers that nobody uses until at most `most` are left.
pub(super) fn prune(most: usize, newest: &str, used: &[&str]) {
    let entries = std::fs::read_dir(LAYERS).into_iter().flatten().flatten();
    let mut layers: Vec<_> = entries
        .filter(|entry| entry.file_name().as_bytes().starts_with(SEALED.as_bytes()))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.file_name())))
        .collect();
    layers.sort();
    let over = layers.len().saturating_sub(most);
    let is_used = |name: &OsStr| {
        let bare = name.to_str().and_then(|name| name.strip_prefix(SEALED)).unwrap_or_default();
        bare == newest || used.contains(&bare)
    };
    for (_, name) in layers.iter().filter(|(_, name)| !is_used(name)).take(over) {
        remove(&Path::new(LAYERS).join(name));
    }
}
