//! Putting a tree together: what is remembered where that holds, else what is read now.

use std::cmp::Ordering;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::content::{Found, Moved, in_parallel, look, read};
use crate::manifest::{EntryKind, Manifest, by_bytes};
use crate::memory::{Mark, Memory};
use crate::rules::RuleFile;
use crate::tree::{ScanCost, SyncError};
use crate::walk::Walked;

/// Where a tree is, and what is known of it.
pub(crate) struct Gathering<'a> {
    pub(crate) root: BorrowedFd<'a>,
    /// The root's, for errors.
    pub(crate) path: &'a Path,
    pub(crate) looked_ns: i64,
    pub(crate) old: Option<(&'a Memory, &'a Moved)>,
}

/// What came of one path of a walk.
enum Taken {
    /// The entry of this number, as it was remembered.
    Same(usize),
    Read(EntryKind, Mark),
    Gone,
}

impl Moved {
    /// What is at the place of the file of this number, if that is not what was remembered.
    fn file(&self, number: usize) -> Option<&Result<Option<Found>, Errno>> {
        let at = self.files.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(&self.files[at].1)
    }
}

impl Gathering<'_> {
    /// The tree that a walk found.
    pub(crate) fn gather(
        &self,
        mut rule_files: Vec<RuleFile>,
        walked: Walked,
        index: Mark,
    ) -> Result<(Arc<Memory>, ScanCost), SyncError> {
        let mut files = walked.files;
        files.sort_unstable_by(|a, b| by_bytes(a, b));
        let outcomes = self.take(&files);
        let (mut unhashed, mut unreadable) = (walked.unhashed, walked.unreadable);
        let mut cost = ScanCost { listed: walked.listed, folders: walked.folders.len(), ..ScanCost::default() };
        let (mut manifest, mut marks) = (Manifest::with_room(files.len()), Vec::with_capacity(files.len()));
        for (path, outcome) in files.into_iter().zip(outcomes) {
            match outcome {
                // The paths were sorted above and are each there once.
                Ok(Taken::Read(kind, mark)) => {
                    cost.read += 1;
                    if manifest.push(&path, kind.borrowed()) {
                        marks.push(mark);
                    }
                }
                Ok(Taken::Same(number)) => {
                    if let Some((old, _)) = self.old
                        && let Some(before) = old.manifest.get(number)
                        && manifest.push(&path, before.kind)
                    {
                        marks.push(old.marks[number]);
                    }
                }
                Ok(Taken::Gone) => {}
                Err(Errno::ACCESS | Errno::PERM) => {
                    unhashed.push(path.clone());
                    unreadable.push(path);
                }
                Err(errno) => return Err(SyncError::Read { path: self.path.join(path), source: errno.into() }),
            }
        }
        cost.files = manifest.len();
        rule_files.extend(walked.rule_files);
        let (hash, folders, manifest) = (manifest.hash(), Arc::new(walked.folders), Arc::new(manifest));
        let memory = Memory { rule_files, folders, index, manifest, hash, marks, unhashed, unreadable };
        Ok((Arc::new(memory), cost))
    }

    /// What is at each path; they are sorted.
    fn take(&self, files: &[PathBuf]) -> Vec<Result<Taken, Errno>> {
        let numbers = self.old.map(|(old, _)| places_of(files, &old.manifest)).unwrap_or_default();
        let all: Vec<usize> = (0..files.len()).collect();
        in_parallel(&all, |at| {
            let path = files[*at].as_path();
            let now = match self.old.zip(numbers.get(*at).copied().flatten()) {
                Some(((_, moved), number)) => match moved.file(number) {
                    None => return Ok(Taken::Same(number)),
                    Some(Ok(now)) => *now,
                    Some(Err(_)) => look(self.root, path)?,
                },
                None => look(self.root, path)?,
            };
            let Some(Found { stamp, sort }) = now else { return Ok(Taken::Gone) };
            let mark = Mark { stamp, settled: stamp.is_settled(self.looked_ns) };
            Ok(read(self.root, path, sort)?.map_or(Taken::Gone, |kind| Taken::Read(kind, mark)))
        })
    }
}

/// The place of each path, which are sorted, in a list.
fn places_of(paths: &[PathBuf], manifest: &Manifest) -> Vec<Option<usize>> {
    let mut entries = manifest.entries().enumerate().peekable();
    let place = |path: &PathBuf| {
        while entries.next_if(|(_, entry)| by_bytes(entry.path, path) == Ordering::Less).is_some() {}
        entries.next_if(|(_, entry)| by_bytes(entry.path, path) == Ordering::Equal).map(|(number, _)| number)
    };
    paths.iter().map(place).collect()
}
