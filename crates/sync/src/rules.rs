//! What is ignored: git's rule files, stacked from the outermost to the innermost folder, and git's tracked paths,
//! which no rule can ignore.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::content::look;
use crate::git_index::{GitIndex, TrackedPaths};
use crate::manifest::ContentHash;
use crate::memory::Mark;

/// A file whose content decides what is ignored; absent ones that would, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuleFile {
    /// Absolute.
    pub(crate) path: PathBuf,
    /// Its content; `None` where there is no such file.
    pub(crate) content: Option<ContentHash>,
}

impl RuleFile {
    /// Whether the file still holds the same.
    pub(crate) fn is_current(&self) -> bool {
        load_rules(&self.path).0 == *self
    }
}

/// Rules of one folder, above which others stand.
#[derive(Debug)]
pub(crate) struct Rules {
    matcher: Gitignore,
    above: Option<Arc<Self>>,
}

impl Rules {
    /// No rules at all.
    pub(crate) fn none() -> Arc<Self> {
        Arc::new(Self { matcher: Gitignore::empty(), above: None })
    }

    /// These rules of the folder `folder` (absolute), over the ones here.
    pub(crate) fn with(self: &Arc<Self>, folder: &Path, texts: &[Vec<u8>]) -> Arc<Self> {
        let mut builder = GitignoreBuilder::new(folder);
        for text in texts {
            let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
            for line in text.split(|byte| *byte == b'\n') {
                // As git does, a line that makes no sense (or is no text) is passed over.
                if let Ok(line) = str::from_utf8(line) {
                    let _ = builder.add_line(None, line.strip_suffix('\r').unwrap_or(line));
                }
            }
        }
        match builder.build() {
            Ok(matcher) if !matcher.is_empty() => Arc::new(Self { matcher, above: Some(self.clone()) }),
            _ => self.clone(),
        }
    }

    /// Whether this path (absolute), whose folder is not ignored, is. The innermost rule that says something decides.
    pub(crate) fn ignores(&self, path: &Path, is_folder: bool) -> bool {
        let mut rules = Some(self);
        while let Some(own) = rules {
            match own.matcher.matched(path, is_folder) {
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
                Match::None => rules = own.above.as_deref(),
            }
        }
        false
    }
}

/// A git repository, or for a folder without one, what stands in for it.
#[derive(Debug)]
pub(crate) struct Repository {
    /// Absolute.
    top: PathBuf,
    /// With git's own files; none where git knows nothing of it.
    folder: Option<PathBuf>,
    /// Read when it is asked for.
    tracked: OnceLock<TrackedPaths>,
}

impl Repository {
    /// A folder that git knows nothing of.
    pub(crate) fn absent(top: &Path) -> Arc<Self> {
        Arc::new(Self { top: top.to_owned(), folder: None, tracked: OnceLock::new() })
    }

    /// The names of rule files in its folders; of two in one folder the later prevails.
    pub(crate) fn rule_names(&self) -> &'static [&'static str] {
        if self.folder.is_some() { &[".gitignore"] } else { &[".gitignore", ".ignore"] }
    }

    /// Whether git tracks this path (absolute) or, for a folder, something below it.
    pub(crate) fn tracks(&self, path: &Path, is_folder: bool) -> bool {
        let Ok(path) = path.strip_prefix(&self.top) else { return false };
        let path = path.as_os_str().as_bytes();
        let tracked = self.tracked.get_or_init(|| self.folder.as_deref().map(load_tracked).unwrap_or_default());
        tracked.contains(path) || is_folder && tracked.any_below(path)
    }

    /// The index as it is now; to be taken before anybody asks what is tracked.
    pub(crate) fn index_mark(&self, looked_ns: i64) -> Mark {
        let found = self.folder.as_ref().and_then(|folder| look(rustix::fs::CWD, &folder.join("index")).ok()?);
        let mark = found.map(|found| Mark { stamp: found.stamp, settled: found.stamp.is_settled(looked_ns) });
        mark.unwrap_or_default()
    }
}

/// What holds at a folder before its own rule files are read.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    pub(crate) repository: Arc<Repository>,
    pub(crate) rules: Arc<Rules>,
}

impl Ground {
    /// The ground of a tree: the repository around it, its rules from the top down to above the tree's root, and the
    /// files those came from. A tree inside a repository that ignores it is on its own, as is one outside any.
    pub(crate) fn of_tree(root: &Path, global: Option<&Path>) -> (Self, Vec<RuleFile>) {
        let alone = || (Self { repository: Repository::absent(root), rules: Rules::none() }, Vec::new());
        let Some((ground, mut files)) = root.ancestors().find_map(|top| Self::of_repository(top, global)) else {
            return alone();
        };
        let Self { repository, mut rules } = ground;
        let inner = root.strip_prefix(&repository.top).unwrap_or(Path::new(""));
        let mut folder = repository.top.clone();
        for component in inner.components() {
            let (file, text) = load_rules(&folder.join(".gitignore"));
            files.push(file);
            rules = rules.with(&folder, text.as_slice());
            folder.push(component);
            if rules.ignores(&folder, true) && !repository.tracks(&folder, true) {
                return alone();
            }
        }
        (Self { repository, rules }, files)
    }

    /// The ground of the repository whose top is this folder (absolute), if it is one.
    pub(crate) fn of_repository(top: &Path, global: Option<&Path>) -> Option<(Self, Vec<RuleFile>)> {
        let folder = git_folder(top)?;
        let common = match fs::read_to_string(folder.join("commondir")) {
            Ok(text) => folder.join(text.trim_end()),
            Err(_) => folder.clone(),
        };
        let mut rules = Rules::none();
        let mut files = Vec::new();
        let exclude = common.join("info/exclude");
        for path in global.into_iter().chain([exclude.as_path()]) {
            let (file, text) = load_rules(path);
            files.push(file);
            rules = rules.with(top, text.as_slice());
        }
        let repository = Repository { top: top.to_owned(), folder: Some(folder), tracked: OnceLock::new() };
        Some((Self { repository: Arc::new(repository), rules }, files))
    }
}

/// One rule file, and its text in a list of none or one.
pub(crate) fn load_rules(path: &Path) -> (RuleFile, Vec<Vec<u8>>) {
    let text = fs::read(path).ok();
    let content = text.as_deref().map(|text| ContentHash(*blake3::hash(text).as_bytes()));
    (RuleFile { path: path.to_owned(), content }, text.into_iter().collect())
}

/// The folder with git's own files, if `top` is the top of a working tree. A submodule and a linked working tree have
/// a file there that says where.
fn git_folder(top: &Path) -> Option<PathBuf> {
    let entry = top.join(".git");
    let found = fs::symlink_metadata(&entry).ok()?;
    let folder = if found.is_file() {
        let text = fs::read_to_string(&entry).ok()?;
        top.join(text.strip_prefix("gitdir: ")?.trim_end_matches(['\n', '\r']))
    } else {
        entry
    };
    fs::exists(folder.join("HEAD")).ok()?.then_some(folder)
}

/// What git tracks; nothing where there is no readable index (a fresh repository has none).
fn load_tracked(folder: &Path) -> TrackedPaths {
    let parse = |name: &str| GitIndex::parse(&fs::read(folder.join(name)).ok()?);
    let Some(GitIndex { mut tracked, shared }) = parse("index") else { return TrackedPaths::default() };
    if let Some(base) = shared.and_then(|id| parse(&format!("sharedindex.{id}"))) {
        tracked.merge(&base.tracked);
    }
    tracked
}
