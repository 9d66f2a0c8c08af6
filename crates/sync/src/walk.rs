//! Who is in the tree: lists folders, and asks the rules about each name. Folders that have not changed since they
//! were remembered are not listed again.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::content::{Found, Sort, in_parallel, is_gone, look};
use crate::memory::{Child, ChildSort, Children, Folder, Mark};
use crate::rules::{Ground, RuleFile, load_rules};
use crate::tree::{SyncError, TreeOptions};

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// Parents before children; the root, whose path is empty, first.
    pub(crate) folders: Vec<Folder>,
    /// Rule files inside the tree and of nested repositories.
    pub(crate) rule_files: Vec<RuleFile>,
    /// Files and links to be hashed, in no order.
    pub(crate) files: Vec<PathBuf>,
    /// Ignored paths, unreadable folders and special files; top-most ones only.
    pub(crate) unhashed: Vec<PathBuf>,
    /// Folders that could not be listed.
    pub(crate) unreadable: Vec<PathBuf>,
    /// How many folders were listed anew.
    pub(crate) listed: usize,
}

/// Where and under what conditions to walk.
pub(crate) struct Walker<'a> {
    pub(crate) root: &'a Path,
    pub(crate) descriptor: BorrowedFd<'a>,
    pub(crate) options: &'a TreeOptions,
    /// Folders that are as they were when they were listed.
    pub(crate) known: HashMap<&'a Path, &'a Folder>,
    pub(crate) looked_ns: i64,
}

/// A folder to be walked.
struct Pending {
    path: PathBuf,
    ground: Ground,
    /// The folder is ignored, and only walked for what git tracks below it.
    ignored: bool,
}

/// What came out of one folder.
#[derive(Default)]
struct Visited {
    folder: Option<Folder>,
    rule_files: Vec<RuleFile>,
    files: Vec<PathBuf>,
    unhashed: Vec<PathBuf>,
    unreadable: bool,
    listed: bool,
    below: Vec<Pending>,
}

impl Walker<'_> {
    /// Walks the whole tree, one depth after another.
    pub(crate) fn walk(&self, ground: &Ground) -> Result<Walked, SyncError> {
        let mut walked = Walked::default();
        let mut level = vec![Pending { path: PathBuf::new(), ground: ground.clone(), ignored: false }];
        // A path holds at most 4,096 bytes, so that the depth is bounded.
        while !level.is_empty() {
            let visits = in_parallel(&level, |pending| self.visit(pending));
            let mut next = Vec::new();
            for (visited, pending) in visits.into_iter().zip(level) {
                let visited = visited?;
                walked.folders.extend(visited.folder);
                walked.rule_files.extend(visited.rule_files);
                walked.files.extend(visited.files);
                walked.unhashed.extend(visited.unhashed);
                walked.listed += usize::from(visited.listed);
                if visited.unreadable {
                    walked.unhashed.push(pending.path.clone());
                    walked.unreadable.push(pending.path);
                }
                next.extend(visited.below);
            }
            level = next;
        }
        Ok(walked)
    }

    fn visit(&self, pending: &Pending) -> Result<Visited, SyncError> {
        let absolute = self.root.join(&pending.path);
        let failed = |errno: Errno| SyncError::Read { path: absolute.clone(), source: errno.into() };
        let mut visited = Visited::default();
        let known = self.known.get(pending.path.as_path());
        let folder = match known {
            Some(known) => Folder::clone(known),
            None => match self.list(&pending.path) {
                Ok(Some(folder)) => {
                    visited.listed = true;
                    folder
                }
                Ok(None) => return Ok(visited),
                Err(Errno::ACCESS | Errno::PERM) => {
                    visited.unreadable = true;
                    return Ok(visited);
                }
                Err(errno) => return Err(failed(errno)),
            },
        };
        let (ground, ignored) = self.ground_of(pending, &folder, &absolute, &mut visited);
        let mut children = Children::default();
        for mut child in folder.children.iter() {
            let path = pending.path.join(child.name);
            let absolute = absolute.join(child.name);
            let is_folder = child.sort == ChildSort::Folder;
            if visited.listed {
                child.ignored = ignored || ground.rules.ignores(&absolute, is_folder);
            }
            child.tracked = child.ignored && ground.repository.tracks(&absolute, is_folder);
            children.push(child);
            if child.ignored && !child.tracked || child.sort == ChildSort::Other {
                visited.unhashed.push(path);
            } else if is_folder {
                visited.below.push(Pending { path, ground: ground.clone(), ignored: child.ignored });
            } else {
                visited.files.push(path);
            }
        }
        visited.folder = Some(Folder { children, ..folder });
        Ok(visited)
    }

    /// The rules for what is in a folder: those above it, or those of the repository that begins here; then its own.
    fn ground_of(&self, pending: &Pending, folder: &Folder, absolute: &Path, visited: &mut Visited) -> (Ground, bool) {
        let global = self.options.global_ignore_file.as_deref();
        // The root's own repository was found before.
        let nested = folder.repository && !pending.path.as_os_str().is_empty();
        let (mut ground, ignored) = match nested.then(|| Ground::of_repository(absolute, global)).flatten() {
            Some((ground, files)) => {
                visited.rule_files.extend(files);
                (ground, false)
            }
            None => (pending.ground.clone(), pending.ignored),
        };
        if !ignored {
            let mut texts = Vec::new();
            for name in ground.repository.rule_names() {
                if folder.children.has(name) {
                    let (file, text) = load_rules(&absolute.join(name));
                    visited.rule_files.push(file);
                    texts.extend(text);
                }
            }
            ground.rules = ground.rules.with(absolute, &texts);
        }
        (ground, ignored)
    }

    /// Lists one folder, by name; `None` if it has gone.
    pub(crate) fn list(&self, path: &Path) -> Result<Option<Folder>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let descriptor = match rustix::fs::openat(self.descriptor, name, flags, Mode::empty()) {
            Ok(descriptor) => descriptor,
            Err(errno) if is_gone(errno) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        // Before the listing: a change after it then shows in the stamp, or leaves it unsettled.
        let stamp = Found::from_stat(&rustix::fs::fstat(&descriptor)?).stamp;
        let mut repository = false;
        let mut named: Vec<(OsString, ChildSort)> = Vec::new();
        for entry in Dir::new(descriptor)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            match name {
                b"." | b".." => continue,
                b".git" => {
                    repository = true;
                    continue;
                }
                _ => {}
            }
            let name = OsString::from_vec(name.to_vec());
            if self.is_excluded(path, &name) {
                continue;
            }
            let Some(sort) = self.sort_of(entry.file_type(), path, &name)? else { continue };
            named.push((name, sort));
        }
        named.sort_unstable_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
        let mut children = Children::default();
        for (name, sort) in &named {
            children.push(Child { name, sort: *sort, ignored: false, tracked: false });
        }
        let mark = Mark { stamp, settled: stamp.is_settled(self.looked_ns) };
        Ok(Some(Folder { path: path.to_owned(), mark, repository, children }))
    }

    /// Some file systems do not say what an entry is.
    fn sort_of(&self, listed: FileType, folder: &Path, name: &OsStr) -> Result<Option<ChildSort>, Errno> {
        Ok(Some(match listed {
            FileType::RegularFile | FileType::Symlink => ChildSort::File,
            FileType::Directory => ChildSort::Folder,
            FileType::Unknown => match look(self.descriptor, &folder.join(name))? {
                Some(Found { sort: Sort::File { .. } | Sort::Link, .. }) => ChildSort::File,
                Some(Found { sort: Sort::Folder, .. }) => ChildSort::Folder,
                Some(_) => ChildSort::Other,
                None => return Ok(None),
            },
            _ => ChildSort::Other,
        }))
    }

    fn is_excluded(&self, folder: &Path, name: &OsStr) -> bool {
        !self.options.exclude.is_empty() && self.options.exclude.contains(&self.root.join(folder).join(name))
    }
}
