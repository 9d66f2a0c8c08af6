//! `--changed-since REF`: which files git says are others than at a commit.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::PlanError;

/// The changed files of the repositories that suites lie in, each repository asked once.
#[derive(Debug)]
pub(super) struct Changes<'a> {
    reference: &'a str,
    /// Absolute paths, by the repository's top.
    known: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
}

impl<'a> Changes<'a> {
    /// Since this commit, branch or tag; since the point where the working branch left it, where there is one.
    pub(super) fn since(reference: &'a str) -> Self {
        Self { reference, known: BTreeMap::new() }
    }

    /// The changed files around this folder, absolute; of tracked files those that differ, and all new ones that
    /// git does not ignore.
    pub(super) fn around(&mut self, folder: &Path) -> Result<&BTreeSet<PathBuf>, PlanError> {
        let top = self.git(folder, &["rev-parse", "--show-toplevel"])?;
        let top = PathBuf::from(OsStr::from_bytes(top.strip_suffix(b"\n").unwrap_or(&top)));
        if !self.known.contains_key(&top) {
            let changed = self.changed(&top)?;
            self.known.insert(top.clone(), changed);
        }
        Ok(&self.known[&top])
    }

    fn changed(&self, top: &Path) -> Result<BTreeSet<PathBuf>, PlanError> {
        let commit = format!("{}^{{commit}}", self.reference);
        let commit = self.git(top, &["rev-parse", "--verify", "--quiet", "--end-of-options", &commit])?;
        let commit = String::from_utf8_lossy(&commit).trim().to_owned();
        // What others did on the branch since ours left it is no change of ours. Unrelated histories have no such point.
        let base = self.git(top, &["merge-base", &commit, "HEAD"]).unwrap_or_default();
        let base = String::from_utf8_lossy(&base).trim().to_owned();
        let base = if base.is_empty() { &commit } else { &base };
        let differing = self.git(top, &["diff", "--name-only", "--no-renames", "--no-ext-diff", "-z", base, "--"])?;
        let new = self.git(top, &["ls-files", "--others", "--exclude-standard", "-z"])?;
        let names = differing.split(|byte| *byte == 0).chain(new.split(|byte| *byte == 0));
        Ok(names.filter(|name| !name.is_empty()).map(|name| top.join(OsStr::from_bytes(name))).collect())
    }

    /// What git prints, run in this folder.
    fn git(&self, folder: &Path, arguments: &[&str]) -> Result<Vec<u8>, PlanError> {
        let failed = |reason: String| PlanError::Changed {
            reference: self.reference.to_owned(),
            folder: folder.to_owned(),
            reason,
        };
        let output = Command::new("git")
            .arg("-C")
            .arg(folder)
            .args(arguments)
            .env("LC_ALL", "C")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| failed(format!("git cannot be run: {error}")))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or_default().trim_start_matches("fatal: ");
        Err(failed(if said.is_empty() { "git knows no such commit".to_owned() } else { said.to_owned() }))
    }
}
