//! Generations: the machine's own changes, sealed, so that environments see them without stacking on a live overlay.
//!
//! The kernel lets nobody else use a mounted overlay's upper layer. Before the first environment after a
//! change, the upper layer is copied (by reflink where the file system can) into a new, immutable generation,
//! which goes on top of the image's layers. Parked environments of an older one are discarded.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use testyard_linux::process::{self, CloneFlags, CloneOptions, Forked, Pid, SingleThreaded};
use testyard_linux::{Error, Result, files};

use testyard_model::EnvironmentSpec;
use testyard_protocol::Exec;

use crate::place::{Place, PlaceKind};
use crate::standard_streams::StandardStreams;
use crate::worker;

const UPPER: &str = "/store/upper";
const FOLDER: &str = "/store/generations";

/// Which generation is current.
pub(crate) struct Generations {
    /// Whether the machine has files of its own at all.
    has_root: bool,
    /// Something ran on the machine since the last look.
    touched: bool,
    seen: Option<u64>,
    /// Counts up with each one made.
    pub(crate) number: u64,
    current: Option<PathBuf>,
    copying: Option<(Pid, u64)>,
    /// Commands that wait for the copy.
    pub(crate) delayed: Vec<(u64, u32, EnvironmentSpec, Exec, StandardStreams)>,
    /// Environments that wait for the copy.
    pub(crate) delayed_opens: Vec<(u64, u32, EnvironmentSpec)>,
}

impl Generations {
    /// For a machine that starts. What it kept from before is looked at with the first environment.
    pub(crate) fn new(place: &Place) -> Self {
        let has_root = matches!(place.kind, PlaceKind::Namespace(_));
        Self {
            has_root,
            touched: has_root,
            seen: None,
            number: 0,
            current: None,
            copying: None,
            delayed: Vec::new(),
            delayed_opens: Vec::new(),
        }
    }

    /// Something may have been written.
    pub(crate) fn touch(&mut self) {
        self.touched = self.has_root;
    }

    /// Layers above the image's.
    pub(crate) fn layers(&self) -> &[PathBuf] {
        self.current.as_slice()
    }

    /// Looks whether a new generation is needed, and starts to make it: the copying child, or none when all is current.
    pub(crate) fn refresh(&mut self, token: SingleThreaded, still_running: bool) -> Result<Option<Pid>> {
        if let Some((pid, _)) = self.copying {
            return Ok(Some(pid));
        }
        if !self.touched {
            return Ok(None);
        }
        let now = fingerprint(Path::new(UPPER))?;
        self.touched = still_running;
        if self.seen == Some(now.value) || now.entries == 0 {
            return Ok(None);
        }
        let next = self.number + 1;
        let target = PathBuf::from(FOLDER).join(next.to_string());
        let agent = rustix::process::getpid();
        match process::clone3(token, CloneFlags::NONE, CloneOptions::default())? {
            Forked::Parent(child) => {
                self.copying = Some((child.pid, now.value));
                Ok(Some(child.pid))
            }
            Forked::Child => {
                // What it holds open of the agent's, others wait to see closed.
                let apart = process::close_range_from(3, &[]).is_ok() && worker::tie_to(agent).is_ok();
                process::exit_immediately(i32::from(!apart || copy(&target).is_err()))
            }
        }
    }

    /// The copy has ended. False when it failed: the disk is full, say.
    pub(crate) fn made(&mut self, status: i32) -> bool {
        let Some((_, seen)) = self.copying.take() else { return true };
        if status != 0 {
            return false;
        }
        // The old one stays until the machine stops: environments over it still look files up in it.
        self.number += 1;
        self.seen = Some(seen);
        self.current = Some(PathBuf::from(FOLDER).join(self.number.to_string()));
        true
    }
}

fn copy(target: &Path) -> Result<()> {
    let open = |path: &Path| {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::new("open", path.display(), error))
    };
    // What an earlier run of this machine left is not trusted.
    if let Ok(folder) = open(Path::new(FOLDER)) {
        let _ = files::remove_tree(folder.as_fd(), Path::new(target.file_name().unwrap_or_default()));
    }
    rustix::fs::mkdirat(CWD, target, Mode::from_raw_mode(0o755))
        .map_err(|error| Error::new("make folder", target.display(), error))?;
    let (from, to) = (open(Path::new(UPPER))?, open(target)?);
    files::copy_tree(from.as_fd(), to.as_fd(), files::CopyOptions::default()).map(drop)
}

/// A tree's shape: changes with every entry's name, kind, size or time of change.
struct Fingerprint {
    value: u64,
    entries: u64,
}

fn fingerprint(root: &Path) -> Result<Fingerprint> {
    use std::hash::{Hash as _, Hasher as _};
    use std::os::unix::fs::MetadataExt as _;

    let mut sum = Fingerprint { value: 0, entries: 0 };
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let failed = |error| Error::new("look at", folder.display(), error);
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // It may be removed meanwhile: then the next look sees that.
            let Ok(facts) = entry.metadata() else { continue };
            let mut hasher = std::hash::DefaultHasher::new();
            entry.path().hash(&mut hasher);
            (facts.mode(), facts.size(), facts.ino(), facts.ctime(), facts.ctime_nsec()).hash(&mut hasher);
            // Order does not matter.
            sum.value = sum.value.wrapping_add(hasher.finish());
            sum.entries += 1;
            if facts.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(sum)
}
