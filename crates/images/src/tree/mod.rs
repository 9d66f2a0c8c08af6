//! The metadata tree: a root for ordinary users that they can really change.
//!
//! In a user namespace with one id, an overlay straight over `/usr` or `/etc` shows everybody's files as
//! nobody's, and over `/` it is refused. So the user builds, once, a tree of its own: every file of the host as an
//! empty sparse file with the attributes `user.overlay.metacopy` and `user.overlay.redirect`. Mounted as
//!
//! ```text
//! lowerdir=TREE::/usr::/etc::/var…,upperdir=…,workdir=…,userxattr
//! ```
//!
//! the tree gives names, modes and owner, and the folders behind `::` give the contents.
//!
//! What the kernel (6.16 and later) allows, as found by trying:
//! - A redirect is a path from the *root of a data layer*; the layers are tried in order and the first in which
//!   it is a regular file wins. Nothing in the tree can say which layer it means. Two layers with the same relative
//!   path of a file therefore collide; the later one's file is copied into the tree ([`TreeReport::copied`]), or,
//!   when it is larger than [`TreeOptions::copy_limit`], left out by name.
//! - A data layer cannot be `/` (its mounts are locked in a user namespace), nor a folder above any other mount;
//!   nor does a private folder with binds in it help, because the lookup refuses to cross mounts. Such a folder is
//!   split: its subfolders become layers, and plain files directly in it are copied.
//! - Prefixes made unique with `..` (`/share/../name`) would be accepted, but a scoped lookup with `..` fails with
//!   EAGAIN whenever anything is mounted or renamed at that moment: not used.
//! - `redirect_dir` cannot be on together with `userxattr`: rename(2) of a folder of the host says EXDEV, and `mv`
//!   copies it.
//!
//! Contents are live and sizes are not: a file that grew since the build shows its old size. The cache's key
//! covers what packages change; a new key builds a new tree.

mod build;
mod cache;
mod fingerprint;
mod layers;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use testyard_linux::Error as SystemError;
use testyard_linux::lock::FileLock;
use testyard_model::{ByteSize, Problem, ProblemKind};

pub(crate) use cache::available_memory;
pub use cache::{TreeCache, TreesPruned};

/// Why there is no metadata tree. A backend then composes a root instead.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The operating system refused.
    #[error(transparent)]
    System(#[from] SystemError),
    /// None of the folders can hold a tree.
    #[error("no folder can hold the metadata tree: {}", .0.join("; "))]
    NoRoom(Vec<String>),
    /// The host has more separate folders than an overlay takes layers.
    #[error("this host's mounts would need {0} data layers; an overlay takes {max}", max = layers::LAYER_LIMIT)]
    TooManyLayers(usize),
    /// More files than allowed.
    #[error("this host's root has more than {0} files and folders")]
    TooLarge(u64),
}

impl TreeError {
    /// As people and programs see it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::System(error) => crate::problem::of_system(error),
            Self::NoRoom(_) => Problem::from_error(ProblemKind::Exhausted, self)
                .hint("see what this host can give: testyard doctor")
                .hint("use a stored image instead of the host's root: testyard image build debian:12"),
            Self::TooManyLayers(_) | Self::TooLarge(_) => Problem::from_error(ProblemKind::Unsupported, self)
                .hint("use a stored image instead of the host's root: testyard image build debian:12"),
        }
    }
}

/// Bounds of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeOptions {
    /// How many threads build; none means one a processor.
    pub threads: Option<usize>,
    /// The largest file that is copied where it cannot be redirected to.
    pub copy_limit: ByteSize,
    /// The most files and folders.
    pub entry_limit: u64,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self { threads: None, copy_limit: ByteSize::mebibytes(8), entry_limit: 4_000_000 }
    }
}

/// What a build did; kept with the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeReport {
    /// Files, folders and links in the tree.
    pub entries: u64,
    /// Files that are empty here and redirected.
    pub redirected: u64,
    /// Files copied, because no redirect can name them.
    pub copied: u64,
    /// Bytes of those copies.
    pub copied_bytes: u64,
    /// Files and folders that this user may not read: absent, or empty folders.
    pub unreadable: u64,
    /// Sockets, devices and the like, which a machine has no use for.
    pub special: u64,
    /// Masked things that are not in it.
    pub masked: u64,
    /// Files that could neither be redirected to nor copied, by path; the first hundred.
    pub left_out: Vec<PathBuf>,
    /// How long it took.
    pub milliseconds: u64,
    /// What it takes, on tmpfs as counted in free inodes and blocks, on disk in blocks. Approximate.
    pub bytes: u64,
    /// The folders behind `::`, in this order.
    pub data_layers: Vec<PathBuf>,
}

/// A metadata tree to mount. As long as this lives, nobody prunes it.
#[derive(Debug)]
pub struct HostTree {
    /// The tree: the overlay's lowest ordinary layer.
    pub path: PathBuf,
    /// The data-only layers, in this order.
    pub data_layers: Vec<PathBuf>,
    /// What building it did.
    pub report: TreeReport,
    /// Whether this call built it; else it was there.
    pub built: bool,
    /// Names it: the host's state and the masks.
    pub key: String,
    /// A shared lock; to be kept, or handed to the process that keeps the overlay.
    pub lease: FileLock,
}
