//! A folder to scan, with a cache beside it, and git without anybody's configuration.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use testyard_sync::{Scan, Tree, TreeOptions};

pub(crate) struct Yard {
    folder: TempDir,
}

impl Yard {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        for name in ["tree", "cache", "home"] {
            fs::create_dir(folder.path().join(name)).expect("a new folder");
        }
        Self { folder }
    }

    pub(crate) fn with_git() -> Self {
        let yard = Self::new();
        yard.git(&["init", "--quiet"]);
        yard
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("tree")
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    pub(crate) fn options(&self) -> TreeOptions {
        TreeOptions { cache_folder: Some(self.cache()), ..TreeOptions::default() }
    }

    pub(crate) fn tree(&self) -> Tree {
        Tree::open(&self.root(), self.options()).expect("the tree is there")
    }

    pub(crate) fn scan(&self) -> Scan {
        let scan = self.tree().scan().expect("a readable tree");
        assert!(scan.cache_failure.is_none(), "{:?}", scan.cache_failure);
        scan
    }

    /// A scan that knows nothing of earlier ones.
    pub(crate) fn scan_afresh(&self) -> Scan {
        Tree::open(&self.root(), TreeOptions::default()).expect("the tree is there").scan().expect("a readable tree")
    }

    pub(crate) fn write(&self, path: &str, content: &str) -> PathBuf {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        fs::write(&path, content).expect("a file");
        path
    }

    pub(crate) fn link(&self, path: &str, target: &str) {
        symlink(target, self.root().join(path)).expect("a link");
    }

    pub(crate) fn set_mode(&self, path: &str, mode: u32) {
        fs::set_permissions(self.root().join(path), fs::Permissions::from_mode(mode)).expect("a mode");
    }

    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        self.git_in(&self.root(), arguments)
    }

    pub(crate) fn git_in(&self, folder: &Path, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path().join("home"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .args(["-c", "user.name=x", "-c", "user.email=x@example", "-c", "protocol.file.allow=always"])
            .args(arguments)
            .output()
            .expect("git is installed");
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Scans until nothing is too recent to be trusted: some ticks of the clock that stamps files.
    pub(crate) fn settle(&self) -> Scan {
        for _ in 0..10_000 {
            let scan = self.scan();
            if scan.cost.read == 0 && scan.cost.listed == 0 {
                return scan;
            }
            std::thread::yield_now();
        }
        panic!("the tree never settles: {:?}", self.scan().cost);
    }
}

pub(crate) fn paths(scan: &Scan) -> Vec<String> {
    scan.manifest().entries().map(|entry| entry.path.display().to_string()).collect()
}

pub(crate) fn shown(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}

/// Sets a file's modification time long ago, as tools that unpack archives do.
pub(crate) fn set_old(path: &Path) {
    let file = fs::File::options().append(true).open(path).expect("the file");
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).expect("a time");
}
