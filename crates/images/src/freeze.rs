//! An image of this host as it is now: what a machine over `host` would see, masks and all, copied into the store.
//!
//! The list of what is seen goes to `tar`, whose archive is imported like any other; what is replaced by a mask comes
//! before it. Nothing is seen that the caller may not read.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::Access;
use testyard_linux::files::in_memory;
use testyard_model::{Problem, ProblemKind};

use crate::host::{HostView, MaskEffect};
use crate::import::{ImportError, ImportOptions};
use crate::store::{Image, Origin, Store};

/// Why the host was not frozen.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// A folder cannot be looked at.
    #[error("cannot look at {}", path.display())]
    Look {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `tar` cannot be run.
    #[error("cannot run tar")]
    Program(#[source] io::Error),
    /// `tar` failed.
    #[error("tar failed: {0}")]
    Tar(String),
    /// What it wrote cannot be stored.
    #[error(transparent)]
    Import(#[from] ImportError),
}

impl FreezeError {
    /// For people.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Import(error) => error.problem(),
            Self::Program(error) if error.kind() == io::ErrorKind::NotFound => {
                Problem::from_error(ProblemKind::Unsupported, self).hint("install it: apt-get install tar")
            }
            Self::Look { .. } | Self::Program(_) | Self::Tar(_) => Problem::from_error(ProblemKind::System, self),
        }
    }
}

impl Store {
    /// Stores what a view of the host shows now. What changes meanwhile is stored as it was met.
    ///
    /// # Errors
    /// Any [`FreezeError`].
    pub fn freeze(&self, view: &HostView, options: &ImportOptions) -> Result<Image, FreezeError> {
        let seen = Seen::of(view)?;
        let mut tar = seen.archive()?;
        let written = tar.stdout.take().ok_or_else(|| FreezeError::Tar("it has no output".to_owned()))?;
        let source = io::Cursor::new(seen.replaced()).chain(written);
        let origin = Origin::Frozen { view: view.identity.clone(), unread: seen.unread };
        let stored = self.import_as(source, options, |_| origin);
        // An import that failed reads no further, and that ends tar.
        let output = tar.wait_with_output().map_err(FreezeError::Program)?;
        // 1: a file changed while it was read. Whatever is worse cut the archive short.
        if output.status.code().is_some_and(|code| code > 1) {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("without a word").to_owned();
            return Err(FreezeError::Tar(last));
        }
        Ok(stored?)
    }
}

/// What of the host goes into the image.
struct Seen {
    root: PathBuf,
    /// Relative to the root, each followed by a zero byte.
    list: Vec<u8>,
    /// Files that have another content.
    files: Vec<(PathBuf, Vec<u8>, u32)>,
    /// How many the caller may not read.
    unread: u64,
}

impl Seen {
    fn of(view: &HostView) -> Result<Self, FreezeError> {
        let root = view.layers.first().map_or_else(|| PathBuf::from("/"), |layer| layer.path.clone());
        let masks: BTreeMap<&Path, &MaskEffect> =
            view.masks().map(|mask| (mask.path.as_path(), &mask.effect)).collect();
        let mut seen = Self { root, list: Vec::new(), files: Vec::new(), unread: 0 };
        for mask in view.masks() {
            if let MaskEffect::Replaced { content, mode } = &mask.effect {
                seen.files.push((mask.path.clone(), content.clone(), *mode));
            }
        }
        for layer in &view.layers {
            seen.add(&layer.path);
            seen.walk(&layer.path, &masks)?;
        }
        Ok(seen)
    }

    fn add(&mut self, path: &Path) {
        let relative = path.strip_prefix(&self.root).unwrap_or(path).as_os_str().as_bytes();
        self.list.extend_from_slice(b"./");
        self.list.extend_from_slice(relative);
        self.list.push(0);
    }

    /// Everything of one file system below a folder, less what is masked.
    fn walk(&mut self, top: &Path, masks: &BTreeMap<&Path, &MaskEffect>) -> Result<(), FreezeError> {
        let look = |path: &Path, source| FreezeError::Look { path: path.to_owned(), source };
        let device = std::fs::metadata(top).map_err(|error| look(top, error))?.dev();
        let mut folders = vec![top.to_owned()];
        while let Some(folder) = folders.pop() {
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.unread += 1;
                    continue;
                }
                // It went while we looked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(look(&folder, error)),
            };
            for entry in entries.filter_map(Result::ok) {
                let path = entry.path();
                let Ok(facts) = entry.metadata() else { continue };
                let effect = masks.get(path.as_path());
                match effect {
                    Some(MaskEffect::Hidden | MaskEffect::Replaced { .. }) => continue,
                    Some(MaskEffect::Empty { .. } | MaskEffect::MountPoint) | None => {}
                }
                let kind = facts.file_type();
                if kind.is_dir() {
                    self.add(&path);
                    let entered = !matches!(effect, Some(MaskEffect::Empty { .. })) && facts.dev() == device;
                    folders.extend(entered.then_some(path));
                } else if kind.is_symlink() {
                    self.add(&path);
                } else if kind.is_file() {
                    if rustix::fs::access(&path, Access::READ_OK).is_ok() {
                        self.add(&path);
                    } else {
                        self.unread += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// Starts the archive of all of it.
    fn archive(&self) -> Result<std::process::Child, FreezeError> {
        let list = in_memory("testyard-list", &self.list).map_err(FreezeError::Program)?;
        let mut command = Command::new("tar");
        command
            .args(["--create", "--file=-", "--format=pax", "--no-recursion", "--numeric-owner"])
            .args(["--xattrs", "--xattrs-include=security.capability", "--xattrs-include=user.*"])
            .args(["--ignore-failed-read", "--warning=no-file-changed", "--warning=no-file-removed"])
            .args(["--null", "--verbatim-files-from", "--files-from=-"])
            .env("LC_ALL", "C")
            .current_dir(&self.root)
            .stdin(Stdio::from(list))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().map_err(FreezeError::Program)
    }

    /// The beginning of an archive: files with another content than the host's.
    fn replaced(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (path, content, mode) in &self.files {
            let relative = path.strip_prefix(&self.root).unwrap_or(path).as_os_str().as_bytes();
            // Those that are replaced have short names: `/etc/shadow` and its kind.
            if relative.len() <= 100 {
                bytes.extend_from_slice(&header(relative, content.len(), *mode));
                bytes.extend_from_slice(content);
                bytes.resize(bytes.len().next_multiple_of(512), 0);
            }
        }
        bytes
    }
}

/// The header of a plain file of root's, as POSIX.1-1988 has it.
fn header(path: &[u8], size: usize, mode: u32) -> [u8; 512] {
    let mut block = [0_u8; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, path);
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{size:011o}").as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::host::{HostLayer, MaskEntry};
    use crate::store::Ownership;

    fn mask(root: &Path, path: &str, effect: MaskEffect) -> MaskEntry {
        MaskEntry { path: root.join(path), effect }
    }

    /// A small host with a secret of each kind.
    fn host(root: &Path) -> HostView {
        for folder in ["etc/ssh", "home/ann", "usr/bin"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        for file in ["etc/hosts", "etc/shadow", "etc/ssh/host_key", "home/ann/diary", "usr/bin/sh"] {
            fs::write(root.join(file), format!("real {file}")).expect("a file");
        }
        fs::set_permissions(root.join("usr/bin/sh"), fs::Permissions::from_mode(0o755)).expect("a mode");
        symlink("usr/bin", root.join("bin")).expect("a link");
        let masks = vec![
            mask(root, "etc/shadow", MaskEffect::Replaced { content: b"root:*::::::\n".to_vec(), mode: 0o600 }),
            mask(root, "etc/ssh/host_key", MaskEffect::Hidden),
            mask(root, "home", MaskEffect::Empty { mode: 0o755 }),
        ];
        HostView {
            layers: vec![HostLayer { path: root.to_owned(), fs_type: "ext4".to_owned(), masks }],
            identity: "0".repeat(64),
            hidden: Vec::new(),
            skipped: Vec::new(),
        }
    }

    #[test]
    fn what_is_frozen_has_no_secrets_and_changes_no_more() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (root, state) = (folder.path().join("host"), folder.path().join("images"));
        let view = host(&root);
        let store = Store::open(&state).expect("a new folder");
        let options = ImportOptions { name: Some(("frozen".into(), "1".into())), ..ImportOptions::new(7) };
        let image = store.freeze(&view, &options).expect("it is small");
        fs::write(root.join("etc/hosts"), "later").expect("a file");

        let read = |path: &str| fs::read_to_string(image.root.join(path)).ok();
        assert_eq!(read("etc/hosts").as_deref(), Some("real etc/hosts"));
        assert_eq!(read("bin/sh").as_deref(), Some("real usr/bin/sh"));
        assert_eq!(read("etc/shadow").as_deref(), Some("root:*::::::\n"));
        assert_eq!(read("etc/ssh/host_key"), None);
        assert!(image.root.join("etc/ssh").is_dir());
        assert_eq!(fs::read_dir(image.root.join("home")).expect("it is there, empty").count(), 0);
        assert!(matches!(image.record.origin, Origin::Frozen { unread: 0, .. }), "{:?}", image.record.origin);
        let kept = image.record.ownership == Ownership::Kept;
        assert_eq!(kept, testkit::user::is_host_root());

        fs::write(root.join("etc/hosts"), "real etc/hosts").expect("a file");
        let again = store.freeze(&view, &options).expect("it is small");
        assert_eq!(again.record.digest, image.record.digest, "equal content is one image");
    }

    #[test]
    fn a_name_that_is_the_live_view_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let view = host(&folder.path().join("host"));
        let store = Store::open(&folder.path().join("images")).expect("a new folder");
        let options = ImportOptions { name: Some(("host".into(), "1".into())), ..ImportOptions::new(7) };
        let problem = store.freeze(&view, &options).expect_err("it is taken").problem();
        assert_eq!(problem.kind, ProblemKind::Usage, "{problem:?}");
        assert_eq!(store.list().expect("readable"), []);
    }
}
