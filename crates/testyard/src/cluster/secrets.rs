//! What makes a cluster one's own: keys and passwords, fresh for each, kept in a folder that only its owner reads.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustix::fs::{Mode, OFlags};
use testyard_cluster::files::{ControlGroups, Secrets};
use testyard_cluster::setup::{Account, KeyPair, NodeSetup};
use testyard_cluster::{ClusterName, ClusterSpec, key, password, text};
use testyard_linux::cgroup::Hierarchy;
use testyard_linux::{files, random};
use testyard_model::{Problem, ProblemKind};

/// The file with everything, for nodes that come later.
const SETUP: &str = "setup.json";
/// The first user's private key, for `ssh -i`.
pub(super) const IDENTITY: &str = "identity";

/// New keys for a cluster.
pub(super) fn fresh(name: &ClusterName, spec: &ClusterSpec) -> Result<NodeSetup, Problem> {
    let accounts = spec.users.iter().map(|user| {
        let hash = match &user.password {
            Some(password) => password::hash(password, u64::from_le_bytes(random())),
            None => "*".to_owned(),
        };
        Ok(Account { name: user.name.clone(), hash, key: ssh_key(&format!("{}@{name}", user.name))?, former: None })
    });
    Ok(NodeSetup {
        accounts: accounts.collect::<Result<_, Problem>>()?,
        host_key: ssh_key(name.as_str())?,
        secrets: Secrets {
            munge_key: text::hexadecimal(&random::<64>()),
            token_key: text::hexadecimal(&random::<32>()),
        },
        groups: groups(),
        forget: false,
    })
}

/// Nodes see the host's control groups, of the version that it has.
fn groups() -> ControlGroups {
    match Hierarchy::detect() {
        Ok(Hierarchy::V2(_)) => ControlGroups::V2,
        _ => ControlGroups::V1,
    }
}

fn ssh_key(comment: &str) -> Result<KeyPair, Problem> {
    let seed: [u8; 32] = random();
    let failed = || Problem::new(ProblemKind::Bug, "cannot make an SSH key");
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| failed())?;
    let public = pair.public_key().as_ref().try_into().map_err(|_| failed())?;
    Ok(key::pair(&seed, &public, comment))
}

/// A cluster's folder on the host.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    clusters: PathBuf,
    id: String,
}

impl Folder {
    pub(super) fn new(clusters: PathBuf, id: &str) -> Self {
        Self { clusters, id: id.to_owned() }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.clusters.join(&self.id)
    }

    pub(super) fn identity(&self) -> PathBuf {
        self.path().join(IDENTITY)
    }

    /// Keeps the keys for nodes that come later, and the first user's for logging in.
    pub(super) fn save(&self, setup: &NodeSetup) -> Result<(), Problem> {
        let folder = self.path();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|error| failed(&folder, error))?;
        let json = serde_json::to_string(setup)
            .map_err(|error| Problem::new(ProblemKind::Bug, "cannot write a cluster's keys").because(error))?;
        write(&folder.join(SETUP), &json)?;
        let first = setup.accounts.first().map(|account| account.key.private.as_str());
        write(&self.identity(), first.unwrap_or_default())
    }

    pub(super) fn load(&self) -> Result<NodeSetup, Problem> {
        let file = self.path().join(SETUP);
        let text = std::fs::read_to_string(&file).map_err(|error| failed(&file, error))?;
        serde_json::from_str(&text)
            .map_err(|error| Problem::new(ProblemKind::System, format!("{} is damaged", file.display())).because(error))
    }

    /// Copies the homes of another network's members, where there are some; this one has no members yet. An ordinary
    /// user has no right over files of several users: the first node's machine copies them inside the ids that it has.
    pub(super) fn copy_homes(&self, from: &Self) -> Result<(), Problem> {
        let (source, target) = (from.path().join("share"), self.path().join("share"));
        if !source.is_dir() || !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&target);
        made.map_err(|error| failed(&target, error))?;
        let open = |path: &Path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(path, error.into()))
        };
        let options = files::CopyOptions { owners: true, attributes: true, ..files::CopyOptions::default() };
        let copied = files::copy_tree(open(&source)?.as_fd(), open(&target)?.as_fd(), options);
        copied.map(drop).map_err(|error| error.problem())
    }

    /// Removes everything. A folder that is gone is no error.
    pub(super) fn remove(&self) -> Result<(), Problem> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = match rustix::fs::open(&self.clusters, flags, Mode::empty()) {
            Ok(parent) => parent,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(failed(&self.clusters, error.into())),
        };
        files::remove_tree(parent.as_fd(), &self.id).map(drop).map_err(|error| error.problem())
    }
}

fn write(path: &Path, text: &str) -> Result<(), Problem> {
    let mut options = std::fs::OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    opened.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| failed(path, error))
}

fn failed(path: &Path, error: std::io::Error) -> Problem {
    Problem::new(ProblemKind::System, format!("cannot keep a cluster's keys in {}", path.display())).because(error)
}
