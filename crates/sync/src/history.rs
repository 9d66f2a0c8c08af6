//! What git remembers of a working tree, as a tree of its own below `.git`: objects and references, and nothing that
//! could hold a secret or run a program.
//!
//! ```text
//! sent      HEAD, index, packed-refs, refs/, reftable/, shallow, objects/ (with those of alternates)
//! made      config: the format of the repository, and nothing else
//! not sent  config, hooks/, info/, logs/, FETCH_HEAD, modules/, worktrees/ and whatever else is there
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags};

use crate::content::{Found, Sort, file_clock_ns, in_parallel, look, read};
use crate::manifest::{Entry, EntryKind, Manifest, TreeHash};
use crate::memory::{Mark, Memory};
use crate::tree::SyncError;

/// Folders of alternates may name others; git follows five.
const DEEPEST: usize = 5;
/// Single files of the repository's own and common folder.
const FILES: [&str; 3] = ["packed-refs", "shallow", "sharedindex"];

/// Git's objects and references, as they were at one moment.
#[derive(Debug)]
pub struct History {
    manifest: Manifest,
    hash: TreeHash,
    /// Where each file is; none for the one that is made.
    places: BTreeMap<PathBuf, Option<PathBuf>>,
    config: Vec<u8>,
}

/// The folders of a repository.
struct Repository {
    /// Of this working tree.
    own: PathBuf,
    /// Of all working trees of it.
    common: PathBuf,
}

impl History {
    /// What it holds; every path begins with `.git`.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The hash of that.
    #[must_use]
    pub fn hash(&self) -> TreeHash {
        self.hash
    }

    /// Opens one of its files.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match self.places.get(path) {
            Some(Some(place)) => rustix::fs::open(place, flags, Mode::empty()),
            Some(None) => {
                let made = rustix::fs::memfd_create("config", MemfdFlags::CLOEXEC)?;
                rustix::io::pwrite(&made, &self.config, 0)?;
                Ok(made)
            }
            None => Err(rustix::io::Errno::NOENT),
        }
    }

    /// Looks at the repository that a working tree is the top of; none where it is none.
    ///
    /// `cache` is a file that remembers hashes between looks.
    ///
    /// # Errors
    /// Something could not be read.
    pub fn scan(top: &Path, cache: Option<&Path>) -> Result<Option<Self>, SyncError> {
        let failed = |path: &Path, source| SyncError::Read { path: path.to_owned(), source };
        let Some(repository) = Repository::find(top) else { return Ok(None) };
        let mut places = BTreeMap::new();
        repository.collect(&mut places).map_err(|error| failed(&repository.common, error))?;
        let config = repository.config();
        let config_path = Path::new(".git/config").to_path_buf();
        let looked_ns = file_clock_ns();
        let key = [7; 32];
        let old = cache.and_then(|cache| Memory::load(cache, &key)).unwrap_or_else(Memory::empty);
        let named: Vec<(&PathBuf, &PathBuf)> =
            places.iter().filter_map(|(path, place)| Some((path, place.as_ref()?))).collect();
        let outcomes = in_parallel(&named, |(path, place)| -> Result<Option<(EntryKind, Mark)>, rustix::io::Errno> {
            let Some(Found { stamp, sort: Sort::File { .. } }) = look(CWD, place)? else { return Ok(None) };
            if let Some(index) = old.manifest.place(path)
                && old.marks[index] == (Mark { stamp, settled: true })
            {
                return Ok(old.manifest.get(index).map(|entry| (entry.kind.owned(), old.marks[index])));
            }
            let mark = Mark { stamp, settled: stamp.is_settled(looked_ns) };
            Ok(read(CWD, place, Sort::File { executable: false })?.map(|kind| (kind, mark)))
        });
        let (mut entries, mut marks, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for ((path, place), outcome) in named.iter().zip(outcomes) {
            match outcome {
                Ok(Some((kind, mark))) => {
                    entries.push(Entry { path: (*path).clone(), kind });
                    marks.push(mark);
                }
                Ok(None) => gone.push((*path).clone()),
                Err(errno) => return Err(failed(place, errno.into())),
            }
        }
        // A BTreeMap's order of paths is by components; the list's is by bytes.
        let mut both: Vec<(Entry, Mark)> = entries.into_iter().zip(marks).collect();
        both.sort_by(|(a, _), (b, _)| crate::manifest::by_bytes(&a.path, &b.path));
        let (mut entries, marks): (Vec<Entry>, Vec<Mark>) = both.into_iter().unzip();
        if let Some(cache) = cache {
            let manifest = Arc::new(Manifest::new(entries.clone()));
            let memory = Memory { manifest, marks, ..Memory::empty() };
            if memory != old {
                // Without it the next look is slow, and right.
                let _ = fs::write(cache, memory.encode(&key));
            }
        }
        for path in gone {
            places.remove(&path);
        }
        let content = crate::manifest::ContentHash(*blake3::hash(&config).as_bytes());
        entries.push(Entry { path: config_path.clone(), kind: EntryKind::File { executable: false, content } });
        places.insert(config_path, None);
        entries.sort_by(|a, b| crate::manifest::by_bytes(&a.path, &b.path));
        let manifest = Manifest::new(entries);
        let hash = manifest.hash();
        Ok(Some(Self { manifest, hash, places, config }))
    }
}

impl Repository {
    fn find(top: &Path) -> Option<Self> {
        let git = top.join(".git");
        let own = if git.is_dir() {
            git
        } else {
            let text = fs::read_to_string(&git).ok()?;
            top.join(text.strip_prefix("gitdir:")?.trim())
        };
        let common = match fs::read_to_string(own.join("commondir")) {
            Ok(text) => own.join(text.trim()),
            Err(_) => own.clone(),
        };
        common.join("objects").is_dir().then_some(Self { own, common })
    }

    fn collect(&self, places: &mut BTreeMap<PathBuf, Option<PathBuf>>) -> io::Result<()> {
        let mut add = |name: PathBuf, place: PathBuf| {
            places.entry(Path::new(".git").join(name)).or_insert(Some(place));
        };
        for name in ["HEAD", "index"] {
            if self.own.join(name).is_file() {
                add(name.into(), self.own.join(name));
            }
        }
        for entry in fs::read_dir(&self.own)?.chain(fs::read_dir(&self.common)?) {
            let entry = entry?;
            let name = entry.file_name();
            let text = name.to_string_lossy();
            // `sharedindex` is followed by its hash.
            let wanted = FILES.iter().any(|file| text == *file || text.starts_with(&format!("{file}.")));
            if wanted && !text.ends_with(".lock") && entry.file_type()?.is_file() {
                add(name.clone().into(), entry.path());
            }
        }
        for folder in ["refs", "reftable"] {
            walk(&self.common.join(folder), Path::new(folder), &mut add)?;
        }
        let mut objects = vec![self.common.join("objects")];
        for _ in 0..DEEPEST {
            let mut others = Vec::new();
            for folder in &objects {
                walk(folder, Path::new("objects"), &mut |name, place| {
                    if !name.starts_with("objects/info") || name.ends_with("commit-graph") {
                        add(name, place);
                    }
                })?;
                let text = fs::read_to_string(folder.join("info/alternates")).unwrap_or_default();
                others.extend(text.lines().filter(|line| !line.starts_with('#')).map(|line| folder.join(line)));
            }
            objects = others;
        }
        Ok(())
    }

    /// The format of the repository. Everything else in a configuration may be a secret, or a program to run.
    fn config(&self) -> Vec<u8> {
        let text = fs::read_to_string(self.common.join("config")).unwrap_or_default().to_lowercase();
        let value = |key: &str| {
            text.lines().find_map(|line| {
                let (name, value) = line.split_once('=')?;
                (name.trim() == key).then(|| value.trim().trim_matches('"').to_owned())
            })
        };
        let known = |key: &str, values: &[&str]| value(key).filter(|value| values.contains(&value.as_str()));
        let mut made = String::from("[core]\n\trepositoryformatversion = ");
        let extensions: Vec<(&str, String)> =
            [("objectformat", ["sha1", "sha256"]), ("refstorage", ["files", "reftable"])]
                .into_iter()
                .filter_map(|(key, values)| Some((key, known(key, &values)?)))
                .collect();
        made.push_str(if extensions.is_empty() { "0" } else { "1" });
        made.push_str("\n\tfilemode = true\n\tbare = false\n");
        if !extensions.is_empty() {
            made.push_str("[extensions]\n");
            for (key, value) in extensions {
                made.push_str(&format!("\t{key} = {value}\n"));
            }
        }
        made.into_bytes()
    }
}

/// Names every file below a folder, but those that git is just writing.
fn walk(folder: &Path, name: &Path, add: &mut dyn FnMut(PathBuf, PathBuf)) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let own = entry.file_name();
        let text = own.to_string_lossy();
        if text.ends_with(".lock") || text.starts_with("tmp_") {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(&entry.path(), &name.join(&own), add)?;
        } else if kind.is_file() {
            add(name.join(&own), entry.path());
        }
    }
    Ok(())
}
