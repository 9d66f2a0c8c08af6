//! Frozen trees: an immutable copy of exactly what a tree hash covers, made once a hash.
//!
//! ```text
//! objects/CONTENT   one file each content, by reflink or copy, checked against its hash
//! HASH              a tree of hard links to them; appears whole, by a rename
//! HASH.new          one that is being made
//! HASH.lock         exclusive while it is made or removed, shared while it is used
//! ```
//!
//! A tree that changes costs what changed of it, and a link for each file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use testyard_linux::step::{Step, reach};
use testyard_model::{Problem, ProblemKind};
use testyard_sync::{ContentHash, KindRef, Manifest, Scan, Tree};

/// So many trees are kept for the next runs.
const KEPT: usize = 4;
/// How often a tree that changes while it is copied is looked at again.
const TRIES: usize = 4;
/// How often a lock is asked for that others take in between: each is a moment, but for a tree that is being made.
const LOCK_TRIES: usize = 1_000;
const OBJECTS: &str = "objects";

/// A frozen tree, for as long as this lives.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) path: PathBuf,
    _used: File,
}

/// Why a copy was not made.
enum Fault {
    /// A file is no longer what it was when the tree was looked at.
    Changed,
    System(PathBuf, io::Error),
}

fn at(path: &Path) -> impl Fn(io::Error) -> Fault + '_ {
    move |error| Fault::System(path.to_owned(), error)
}

fn system(path: &Path, error: &io::Error) -> Problem {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ProblemKind::Exhausted,
        io::ErrorKind::PermissionDenied => ProblemKind::Denied,
        _ => ProblemKind::System,
    };
    Problem::new(kind, "cannot freeze the working tree").because(format!("{}: {error}", path.display()))
}

/// Freezes a tree as it is now: its copy, and the scan that the copy is of.
///
/// `hidden` are absolute paths of secrets, which no environment may see: they stay out of the copy.
pub(super) fn freeze(folder: &Path, hidden: &[PathBuf], tree: &Tree, scan: Scan) -> Result<(Frozen, Scan), Problem> {
    let mut scan = scan;
    for _ in 0..TRIES {
        match make(folder, hidden, tree.root(), &scan) {
            Ok(frozen) => return Ok((frozen, scan)),
            Err(Fault::System(path, error)) => return Err(system(&path, &error)),
            Err(Fault::Changed) => scan = tree.scan_again(&scan).map_err(|error| error.problem())?,
        }
    }
    Err(Problem::new(
        ProblemKind::Unavailable,
        format!("{} changed all the time while it was copied", tree.root().display()),
    )
    .hint("run again once nothing writes there, or run with --source live"))
}

fn make(folder: &Path, hidden: &[PathBuf], root: &Path, scan: &Scan) -> Result<Frozen, Fault> {
    let hash = scan.hash.to_string();
    let path = folder.join(&hash);
    let lock_path = folder.join(format!("{hash}.lock"));
    for _ in 0..LOCK_TRIES {
        // Only who makes or removes it is waited for, never a run that uses it.
        let Some(lock) = locked(&lock_path, FlockOperation::LockShared)? else { continue };
        if path.is_dir() {
            // The time tells the pruner which ones were used last.
            let _ = lock.set_modified(std::time::SystemTime::now());
            return Ok(Frozen { path, _used: lock });
        }
        drop(lock);
        let Some(_making) = locked(&lock_path, FlockOperation::NonBlockingLockExclusive)? else { continue };
        if !path.is_dir() {
            let fresh = folder.join(format!("{hash}.new"));
            remove(folder, &format!("{hash}.new"));
            let made = fill(folder, hidden, root, &fresh, scan.manifest())
                .and_then(|()| fs::rename(&fresh, &path).map_err(at(&path)));
            if let Err(fault) = made {
                remove(folder, &format!("{hash}.new"));
                return Err(fault);
            }
        }
    }
    let busy = io::Error::new(io::ErrorKind::TimedOut, "others make and remove it again and again");
    Err(Fault::System(lock_path, busy))
}

/// Takes a lock file; none where somebody holds it against us, or it was removed meanwhile.
fn locked(path: &Path, how: FlockOperation) -> Result<Option<File>, Fault> {
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = opened.map_err(at(path))?;
    match rustix::fs::flock(&file, how) {
        Ok(()) => Ok((file.metadata().map_err(at(path))?.nlink() > 0).then_some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(at(path)(errno.into())),
    }
}

fn make_folders(path: &Path) -> Result<(), Fault> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(at(path))
}

fn fill(folder: &Path, hidden: &[PathBuf], root: &Path, fresh: &Path, manifest: &Manifest) -> Result<(), Fault> {
    make_folders(&folder.join(OBJECTS))?;
    make_folders(fresh)?;
    reach(Step::RunnerFreezing);
    let mut last = PathBuf::new();
    // Most trees hold none of them.
    let hidden: Vec<&PathBuf> = hidden.iter().filter(|path| path.starts_with(root)).collect();
    for entry in manifest.entries() {
        if hidden.iter().any(|path| root.join(entry.path).starts_with(path)) {
            continue;
        }
        let target = fresh.join(entry.path);
        if let Some(parent) = target.parent().filter(|parent| *parent != last) {
            make_folders(parent)?;
            last = parent.to_owned();
        }
        match entry.kind {
            KindRef::Link { target: to } => symlink(to, &target).map_err(at(&target))?,
            KindRef::File { executable, content } => {
                place(folder, &root.join(entry.path), &target, executable, &content)?;
            }
        }
    }
    Ok(())
}

/// Links a file's content to its place, and takes it into the store first if it is new.
fn place(folder: &Path, from: &Path, to: &Path, executable: bool, content: &ContentHash) -> Result<(), Fault> {
    let facts = fs::symlink_metadata(from).map_err(|error| vanished(from, error))?;
    let own = (facts.uid(), facts.gid()) == (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let owner = if own || !rustix::process::geteuid().is_root() { None } else { Some((facts.uid(), facts.gid())) };
    let hex: String = content.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let whose = owner.map_or_else(String::new, |(uid, gid)| format!(".{uid}.{gid}"));
    let object = folder.join(OBJECTS).join(format!("{hex}{}{whose}", if executable { ".x" } else { "" }));
    match fs::hard_link(&object, to) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // So many files hold the same that the object has no room for another name.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MLINK.raw_os_error()) => {
            return copy(from, to, executable, owner, content);
        }
        Err(error) => return Err(at(to)(error)),
    }
    copy(from, to, executable, owner, content)?;
    match fs::hard_link(to, &object) {
        // Another run had the same to take.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(&object)(error)),
        _ => Ok(()),
    }
}

fn vanished(path: &Path, error: io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Fault::Changed,
        _ => at(path)(error),
    }
}

fn copy(
    from: &Path,
    to: &Path,
    executable: bool,
    owner: Option<(u32, u32)>,
    content: &ContentHash,
) -> Result<(), Fault> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = match rustix::fs::open(from, flags, Mode::empty()) {
        Ok(source) => File::from(source),
        Err(rustix::io::Errno::LOOP) => return Err(Fault::Changed),
        Err(errno) => return Err(vanished(from, errno.into())),
    };
    let mut target = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(to).map_err(at(to))?;
    if rustix::fs::ioctl_ficlone(target.as_fd(), source.as_fd()).is_err() {
        io::copy(&mut &source, &mut target).map_err(at(to))?;
    }
    // The copy is what tests will see, so the copy is what is checked.
    let mut hasher = blake3::Hasher::new();
    io::Seek::rewind(&mut target).map_err(at(to))?;
    io::copy(&mut target, &mut hasher).map_err(at(to))?;
    if *hasher.finalize().as_bytes() != content.0 {
        return Err(Fault::Changed);
    }
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::fchown(&target, Some(uid), Some(gid)).map_err(at(to))?;
    }
    let mode = if executable { 0o755 } else { 0o644 };
    target.set_permissions(fs::Permissions::from_mode(mode)).map_err(at(to))?;
    let modified = source.metadata().and_then(|facts| facts.modified()).map_err(at(from))?;
    target.set_modified(modified).map_err(at(to))
}

fn remove(folder: &Path, name: &str) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(folder) = rustix::fs::open(folder, flags, Mode::empty()) {
        // What stays is found by the next pruning.
        let _ = testyard_linux::files::remove_tree(folder.as_fd(), Path::new(name));
    }
}

/// Removes what killed runs had begun, and the trees that were not used lately and by nobody now, with the contents that
/// were theirs alone. With `spare`, only what was begun: something may still stand on the trees.
pub(crate) fn prune(folder: &Path, spare: bool) {
    let mut locks: Vec<(std::time::SystemTime, String)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?.strip_suffix(".lock")?.to_owned();
            Some((entry.metadata().ok()?.modified().ok()?, name))
        })
        .collect();
    locks.sort();
    let old = locks.len().saturating_sub(KEPT);
    let mut removed = false;
    for (index, (_, name)) in locks.iter().enumerate() {
        let path = folder.join(format!("{name}.lock"));
        let Ok(lock) = OpenOptions::new().write(true).open(&path) else { continue };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        remove(folder, &format!("{name}.new"));
        if (index < old && !spare) || !folder.join(name).is_dir() {
            remove(folder, name);
            removed = fs::remove_file(&path).is_ok() || removed;
        }
    }
    if removed {
        let objects = fs::read_dir(folder.join(OBJECTS)).into_iter().flatten().flatten();
        for object in objects.filter(|object| object.metadata().is_ok_and(|facts| facts.nlink() == 1)) {
            // One that a run is just taking into its tree is copied again.
            let _ = fs::remove_file(object.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use testyard_sync::TreeOptions;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_frozen_tree_is_what_was_hashed_and_stays_so() {
        let (store, work) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let at = |path: &str| work.path().join(path);
        fs::create_dir(at("sub")).expect("a folder");
        for (name, text) in
            [("a", "one"), ("sub/b", "one"), ("run.sh", "#!/bin/sh"), (".gitignore", "ignored\n"), ("ignored", "x")]
        {
            fs::write(at(name), text).expect("a file");
        }
        fs::set_permissions(at("run.sh"), fs::Permissions::from_mode(0o700)).expect("ours");
        symlink("a", at("link")).expect("a link");
        let tree = Tree::open(work.path(), TreeOptions::default()).expect("a tree");
        let (first, scan) = freeze(store.path(), &[], &tree, tree.scan().expect("a scan")).expect("frozen");
        fs::write(at("a"), "two").expect("a write");
        let read = |path: &Path| fs::read_to_string(path).expect("a file");
        assert_eq!(read(&first.path.join("a")), "one");
        assert_eq!(names(&first.path), [".gitignore", "a", "link", "run.sh", "sub"]);
        let copy = Tree::open(&first.path, TreeOptions::default()).expect("a tree").scan().expect("a scan");
        assert_eq!(copy.hash, scan.hash);

        // A scan that is no longer true is taken again, and what did not change is shared.
        let (second, again) =
            freeze(store.path(), &[], &tree, tree.scan_again(&scan).expect("a scan")).expect("frozen");
        assert_ne!(again.hash, scan.hash);
        assert_eq!(read(&second.path.join("a")), "two");
        let inode = |path: PathBuf| fs::metadata(path).expect("a file").ino();
        assert_eq!(inode(first.path.join("sub/b")), inode(second.path.join("sub/b")));
        fs::write(at("a"), "three").expect("a write");
        let (third, fresh) = freeze(store.path(), &[], &tree, again.clone()).expect("it is there already");
        // `second` is in use all the while: a run does not wait for another one's end.
        assert_eq!((third.path, fresh.hash), (second.path.clone(), again.hash));
    }

    #[test]
    fn secrets_stay_out_of_the_copy() {
        let (store, work) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let root = work.path().canonicalize().expect("a path");
        fs::create_dir(root.join(".ssh")).expect("a folder");
        for name in [".ssh/id", "file"] {
            fs::write(root.join(name), name).expect("a file");
        }
        let tree = Tree::open(&root, TreeOptions::default()).expect("a tree");
        let scan = tree.scan().expect("a scan");
        let (frozen, _) = freeze(store.path(), &[root.join(".ssh")], &tree, scan).expect("frozen");
        assert_eq!(names(&frozen.path), ["file"]);
    }

    #[test]
    fn pruning_keeps_what_is_used_and_what_is_new() {
        let (store, work) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let tree = Tree::open(work.path(), TreeOptions::default()).expect("a tree");
        let mut used = None;
        for number in 0..7 {
            fs::write(work.path().join("file"), format!("content {number}")).expect("a file");
            let (frozen, _) = freeze(store.path(), &[], &tree, tree.scan().expect("a scan")).expect("frozen");
            used.get_or_insert(frozen);
        }
        fs::create_dir(store.path().join("dead.new")).expect("a folder");
        fs::write(store.path().join("dead.lock"), "").expect("a lock");
        prune(store.path(), true);
        assert!(!store.path().join("dead.new").exists() && names(store.path()).len() == 7 * 2 + 1);
        prune(store.path(), false);
        assert_eq!(names(store.path()).len(), 5 * 2 + 1, "{:?}", names(store.path()));
        assert_eq!(names(&store.path().join(OBJECTS)).len(), 5);
        assert!(used.expect("the first").path.join("file").exists());
    }
}
