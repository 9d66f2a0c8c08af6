//! Files of tests that write into the working tree itself: nothing recorded what they changed, so it is looked for.

use std::fs::{self, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::changes::{ChangeKind, FileChange, FileKind, Part};

use super::journal::is_staging;
use super::patterns::Chosen;

/// The kernel stamps files with its last tick, which may have been so long before.
const TICK: Duration = Duration::from_millis(20);

/// What lies below `root` and changed at `since` or later, relative to `top`; and whether there was more than `most`
/// entries to look at. Links are told and not followed; git's own folder is passed over.
pub(in crate::run) fn written_since(
    root: &Path,
    top: &Path,
    since: SystemTime,
    most: usize,
) -> (Vec<FileChange>, bool) {
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(TICK);
    let mut changes = Vec::new();
    let mut looked_at = 0_usize;
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        // One that vanished or may not be read holds nothing that could be kept.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            looked_at += 1;
            if looked_at > most {
                return (changes, true);
            }
            let path = entry.path();
            let Ok(relative) = path.strip_prefix(top) else { continue };
            let Ok(facts) = entry.metadata() else { continue };
            if facts.is_dir() {
                if entry.file_name() != ".git" && !is_staging(relative) {
                    folders.push(path);
                }
            } else if changed_at(&facts) >= since {
                changes.push(change(relative, &path, &facts));
            }
        }
    }
    (changes, false)
}

fn changed_at(facts: &Metadata) -> Duration {
    let seconds = Duration::from_secs(u64::try_from(facts.ctime()).unwrap_or(0));
    seconds + Duration::from_nanos(u64::try_from(facts.ctime_nsec()).unwrap_or(0))
}

fn change(relative: &Path, path: &Path, facts: &Metadata) -> FileChange {
    let (file, target) = if facts.is_file() {
        (FileKind::File, None)
    } else if facts.is_symlink() {
        (FileKind::Link, fs::read_link(path).ok())
    } else {
        (FileKind::Special, None)
    };
    FileChange {
        part: Part::Source,
        path: relative.into(),
        // Whether it was there before, nobody knows.
        change: ChangeKind::Changed,
        file,
        size: facts.len(),
        target: target.map(|target| target.as_path().into()),
    }
}

/// Copies what was chosen in the tree at `top` to the same paths below `to`, at most `limit` bytes of each. What vanished
/// or became something else meanwhile is left out. Setuid bits do not come along.
///
/// # Errors
/// A file cannot be read, or the disk is full.
pub(in crate::run) fn copy_chosen(chosen: &Chosen, top: &Path, to: &Path, limit: u64) -> Result<(), Problem> {
    chosen.paths.iter().try_for_each(|path| match copy(&top.join(path), &to.join(path), limit) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let message = format!("cannot keep a copy of {}", top.join(path).display());
            Err(Problem::new(ProblemKind::System, message).because(error))
        }
        _ => Ok(()),
    })
}

fn copy(from: &Path, to: &Path, limit: u64) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    if fs::symlink_metadata(from)?.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(from)?, to);
    }
    // Somebody may put a link or a pipe in its place at this moment.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::File::from(rustix::fs::open(from, flags, Mode::empty())?);
    let facts = file.metadata()?;
    if !facts.is_file() {
        return Ok(());
    }
    let mode = facts.mode() & 0o777;
    let mut copied = fs::OpenOptions::new().write(true).create_new(true).mode(mode | 0o200).open(to)?;
    io::copy(&mut file.take(limit), &mut copied).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn what_was_written_since_is_found_and_copied() {
        let tree = tempfile::tempdir().expect("a folder");
        let top = tree.path();
        fs::create_dir_all(top.join("suite/logs/.git")).expect("folders");
        fs::write(top.join("suite/old"), "old").expect("a file");
        let (all, _) = written_since(top, top, SystemTime::UNIX_EPOCH, 100);
        assert_eq!(all.len(), 1);
        let future = SystemTime::now() + Duration::from_secs(3600);
        assert_eq!(written_since(top, top, future, 100), (Vec::new(), false));
        fs::write(top.join("suite/logs/new"), "new").expect("a file");
        fs::write(top.join("suite/logs/.git/no"), "no").expect("a file");
        std::os::unix::fs::symlink("new", top.join("suite/logs/link")).expect("a link");
        let (mut found, cut) = written_since(&top.join("suite/logs"), top, SystemTime::UNIX_EPOCH, 100);
        found.sort_by(|one, other| one.path.as_path().cmp(other.path.as_path()));
        let shown: Vec<_> = found.iter().map(|one| (one.path.as_path().to_owned(), one.file)).collect();
        let expected = [("suite/logs/link", FileKind::Link), ("suite/logs/new", FileKind::File)];
        assert_eq!(shown, expected.map(|(path, kind)| (PathBuf::from(path), kind)));
        assert!(!cut && written_since(top, top, SystemTime::UNIX_EPOCH, 3).1);
        let paths = found.iter().map(|one| one.path.as_path().to_owned()).chain(["gone".into()]).collect();
        let kept = tempfile::tempdir().expect("a folder");
        fs::set_permissions(top.join("suite/logs/new"), fs::Permissions::from_mode(0o4755)).expect("ours");
        copy_chosen(&Chosen { paths, bytes: 3 }, top, kept.path(), 2).expect("copied");
        assert_eq!(fs::read_to_string(kept.path().join("suite/logs/link")).expect("a link to a file"), "ne");
        let mode = fs::metadata(kept.path().join("suite/logs/new")).expect("copied").mode();
        assert_eq!(mode & 0o7700, 0o700, "setuid came along");
    }
}
