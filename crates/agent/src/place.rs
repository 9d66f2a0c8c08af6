//! Where the agent's commands run: the handles that [`crate::start`] leaves behind.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use testyard_linux::cgroup::{Controller, Group, Hierarchy};
use testyard_linux::process::{OpenFiles, SingleThreaded};
use testyard_protocol::start::{IdRange, SubmountStart};

use crate::route::Router;

/// What the agent has become.
pub(crate) struct Place {
    /// Proof that forking is safe.
    pub(crate) token: SingleThreaded,
    /// The machine's cgroup, or none where this host gives no writable one.
    pub(crate) group: Option<Rc<Group>>,
    /// Where there is none: that of somebody else, in which the machine is.
    pub(crate) around: Option<Around>,
    /// The host's cgroup hierarchies, seen before the staging area hid them.
    pub(crate) hierarchy: Hierarchy,
    /// Container or plain processes.
    pub(crate) kind: PlaceKind,
    /// Who makes routes out of environments; for containers only.
    pub(crate) router: Option<Router>,
    /// Whether the machine has a network of its own.
    pub(crate) network: bool,
    /// The limit of open files that commands have; the agent itself needs some for each environment.
    pub(crate) open_files: Option<OpenFiles>,
    /// Where commands start that do not say, before their homes.
    pub(crate) folder: Option<PathBuf>,
}

/// Somebody else's control group, whose memory may be limited.
pub(crate) struct Around {
    group: Group,
    /// How many of its processes had been killed when it was looked at last.
    seen: Cell<u64>,
}

impl Around {
    /// The one in which this process is.
    pub(crate) fn find(hierarchy: &Hierarchy) -> Option<Self> {
        let group = Group::base(hierarchy).ok()?.narrowed(Controller::Memory);
        Some(Self { seen: Cell::new(group.oom_kills()?), group })
    }

    /// Whether a process was killed for want of memory since this was asked last.
    pub(crate) fn has_killed(&self) -> bool {
        let now = self.group.oom_kills().unwrap_or(0);
        now > self.seen.replace(now)
    }
}

impl Place {
    /// Whether the machine has a range of ids, none of which is its owner's.
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(&self.kind, PlaceKind::Namespace(place) if matches!(place.ids, IdRange::Range { .. }))
    }
}

/// Container or plain processes.
pub(crate) enum PlaceKind {
    /// Plain processes: workspaces below this folder.
    Process {
        /// Where workspaces are made.
        workspaces: PathBuf,
    },
    /// Namespaces. The agent itself is in the staging area, which holds the layers; the machine's root is elsewhere.
    Namespace(Box<NamespacePlace>),
}

/// A container's handles.
pub(crate) struct NamespacePlace {
    /// Which ids the machine has.
    pub(crate) ids: IdRange,
    /// The mount namespace with the machine's own root, once its init has made it.
    pub(crate) mounts: Option<OwnedFd>,
    /// The machine's user namespace; none where it shares the host's.
    pub(crate) user: Option<OwnedFd>,
    /// The user and group id that whoever made the machine has outside of it.
    pub(crate) maker: (u32, u32),
    /// How roots are put together.
    pub(crate) roots: Roots,
}

/// The flat list from which every root of the machine is mounted. Paths are those of the staging area.
#[derive(Debug, Clone)]
pub(crate) struct Roots {
    /// Layers, topmost first, without the machine's own upper.
    pub(crate) layers: Vec<PathBuf>,
    /// Data-only layers.
    pub(crate) data: Vec<PathBuf>,
    /// File systems below the root, each with its own layers.
    pub(crate) submounts: Vec<Submount>,
    /// Paths shown as they are: where they are staged, and where they belong.
    pub(crate) exposed: Vec<(PathBuf, PathBuf)>,
    /// Folders of the machine that are kept apart from its root: where they are staged, and where they belong.
    pub(crate) shared: Vec<(PathBuf, PathBuf)>,
    /// What a network of its own changes in the machine's root.
    pub(crate) names: Option<Names>,
    /// Where the program is staged that the machine knows as `docker`.
    pub(crate) docker: Option<PathBuf>,
    /// Paths of the host that a working tree must not show.
    pub(crate) hidden: Vec<PathBuf>,
}

/// How a machine with a network of its own knows others.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// Where the table of hosts is staged.
    pub(crate) hosts: PathBuf,
    /// What `/etc/resolv.conf` says; none leaves it as it is.
    pub(crate) resolvers: Option<String>,
}

/// A file system of the host below the root.
#[derive(Debug, Clone)]
pub(crate) struct Submount {
    /// Where it belongs.
    pub(crate) target: PathBuf,
    /// Its layers in the staging area, topmost first.
    pub(crate) layers: Vec<PathBuf>,
}

impl Submount {
    /// Where the `index`th submount is staged.
    pub(crate) fn staged(index: usize, submount: &SubmountStart) -> Self {
        let mut layers = Vec::new();
        if submount.mask.is_some() {
            layers.push(PathBuf::from(format!("/submounts/{index}/mask")));
        }
        layers.push(PathBuf::from(format!("/submounts/{index}/root")));
        Self { target: submount.path.clone(), layers }
    }
}
