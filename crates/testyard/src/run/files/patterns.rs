//! Which of the files that a test changed its patterns mean.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::changes::{ChangeKind, FileChange, FileKind, Part};

/// What a suite's test wants of its files, as patterns below the suite's folder.
#[derive(Debug)]
pub(in crate::run) struct Patterns<'a> {
    /// The word for it in messages: `output`, `artifact`.
    what: &'static str,
    /// The suite's folder, relative to the tree's top.
    base: PathBuf,
    /// The tree's top.
    top: &'a Path,
    globs: Vec<Glob>,
}

#[derive(Debug)]
struct Glob {
    text: String,
    whole: GlobMatcher,
    /// Each component but the last, to see where a pattern would go through a link.
    folders: Vec<GlobMatcher>,
    /// Whether it means hidden files, too.
    hidden: bool,
}

/// Files that are meant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::run) struct Chosen {
    /// Relative to the tree's top.
    pub(in crate::run) paths: BTreeSet<PathBuf>,
    /// Their bytes together.
    pub(in crate::run) bytes: u64,
}

fn matcher(text: &str) -> Option<GlobMatcher> {
    // The suite was refused where a pattern cannot be read.
    GlobBuilder::new(text).literal_separator(true).build().ok().map(|glob| glob.compile_matcher())
}

impl<'a> Patterns<'a> {
    /// Of a suite at `root` in the tree at `top`.
    pub(in crate::run) fn new(what: &'static str, patterns: &[String], root: &Path, top: &'a Path) -> Self {
        let globs = patterns.iter().filter_map(|text| {
            let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
            let text = parts.join("/");
            let folders = parts.split_last().map(|(_, folders)| folders).unwrap_or_default();
            Some(Glob {
                whole: matcher(&text)?,
                folders: folders.iter().map_while(|part| matcher(part).filter(|_| *part != "**")).collect(),
                hidden: text.starts_with('.') || text.contains("/."),
                text,
            })
        });
        let base = root.strip_prefix(top).unwrap_or(Path::new("")).to_owned();
        Self { what, base, top, globs: globs.collect() }
    }

    /// Those of the changes that are meant.
    ///
    /// # Errors
    /// One of them is a link that leads out of the tree, or no file, or a pattern would go through a link.
    pub(in crate::run) fn choose(&self, changes: &[FileChange]) -> Result<Chosen, Problem> {
        let mut chosen = Chosen::default();
        for change in changes {
            if change.part != Part::Source || change.change == ChangeKind::Deleted {
                continue;
            }
            let path = change.path.as_path();
            let Ok(own) = path.strip_prefix(&self.base) else { continue };
            if let (FileKind::Link, Some(glob)) = (change.file, self.through(own)) {
                return Err(self.through_link(own, &glob.text));
            }
            if !self.globs.iter().any(|glob| glob.means(own)) {
                continue;
            }
            match change.file {
                FileKind::Folder => continue,
                FileKind::File => {}
                FileKind::Special => {
                    let message = format!("{} `{}` is a device, pipe or socket", self.what, shown(own));
                    return Err(Problem::new(ProblemKind::Usage, message)
                        .hint("only files and links come out of an environment"));
                }
                FileKind::Link => {
                    let target = change.target.as_ref().map(|target| target.as_path().to_owned()).unwrap_or_default();
                    if self.leads_out(path, &target) {
                        let message = format!(
                            "{} `{}` is a link to {}, out of the working tree",
                            self.what,
                            shown(own),
                            shown(&target)
                        );
                        return Err(Problem::new(ProblemKind::Usage, message)
                            .hint("let the test copy the file instead of linking to it"));
                    }
                }
            }
            chosen.bytes = chosen.bytes.saturating_add(change.size);
            chosen.paths.insert(path.to_owned());
        }
        Ok(chosen)
    }

    /// The pattern that would go through this path as if it were a folder.
    fn through(&self, link: &Path) -> Option<&Glob> {
        let parts: Vec<&Path> = link.components().map(|part| Path::new(part.as_os_str())).collect();
        self.globs.iter().find(|glob| {
            glob.folders.len() >= parts.len()
                && glob.folders.iter().zip(&parts).all(|(folder, part)| folder.is_match(part))
        })
    }

    fn through_link(&self, link: &Path, pattern: &str) -> Problem {
        let message = format!("{} pattern `{pattern}` goes through the link `{}`", self.what, shown(link));
        Problem::new(ProblemKind::Usage, message)
            .hint("write the pattern for the folder itself, below the suite's folder")
    }

    /// Refuses patterns whose folders are links in the working tree itself.
    pub(in crate::run) fn check_tree(&self) -> Result<(), Problem> {
        for glob in &self.globs {
            let mut way = self.top.join(&self.base);
            for part in glob.text.split('/').take(glob.folders.len()) {
                if part.contains(['*', '?', '[', '{', '\\']) {
                    break;
                }
                way.push(part);
                if std::fs::symlink_metadata(&way).is_ok_and(|facts| facts.is_symlink()) {
                    let link = way.strip_prefix(self.top.join(&self.base)).unwrap_or(&way).to_owned();
                    return Err(self.through_link(&link, &glob.text));
                }
            }
        }
        Ok(())
    }

    /// Whether a link at `path` (relative to the top) leads out of the tree.
    fn leads_out(&self, path: &Path, target: &Path) -> bool {
        if target.is_absolute() {
            return true;
        }
        let mut depth = path.components().count().saturating_sub(1);
        for part in target.components() {
            match part {
                Component::ParentDir if depth == 0 => return true,
                Component::ParentDir => depth -= 1,
                Component::Normal(_) => depth += 1,
                _ => {}
            }
        }
        false
    }
}

impl Glob {
    fn means(&self, path: &Path) -> bool {
        let is_hidden = |part: Component<'_>| part.as_os_str().as_bytes().starts_with(b".");
        (self.hidden || !path.components().any(is_hidden)) && self.whole.is_match(path)
    }
}

/// A path that a test chose, as it is safe to show.
fn shown(path: &Path) -> String {
    path.to_string_lossy().chars().map(|one| if one.is_control() { '?' } else { one }).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &str, file: FileKind, target: Option<&str>) -> FileChange {
        FileChange {
            part: Part::Source,
            path: Path::new(path).into(),
            change: ChangeKind::Added,
            file,
            size: 3,
            target: target.map(Into::into),
        }
    }

    fn file(path: &str) -> FileChange {
        change(path, FileKind::File, None)
    }

    fn choose(patterns: &[&str], changes: &[FileChange]) -> Result<Vec<String>, String> {
        let patterns: Vec<String> = patterns.iter().map(|text| (*text).to_owned()).collect();
        let patterns = Patterns::new("output", &patterns, Path::new("/tree/suite"), Path::new("/tree"));
        let chosen = patterns.choose(changes).map_err(|problem| problem.message)?;
        assert_eq!(chosen.bytes, 3 * chosen.paths.len() as u64);
        Ok(chosen.paths.iter().map(|path| path.display().to_string()).collect())
    }

    #[test]
    fn files_of_the_suite_that_match_are_chosen() {
        let changes =
            [file("suite/cov/a.xml"), file("suite/cov/b.txt"), file("other/cov/a.xml"), file("suite/cov/.x.xml")];
        assert_eq!(choose(&["cov/*.xml"], &changes), Ok(vec!["suite/cov/a.xml".to_owned()]));
        assert_eq!(choose(&["./cov//.*.xml"], &changes), Ok(vec!["suite/cov/.x.xml".to_owned()]));
        assert_eq!(choose(&["**"], &changes).map(|all| all.len()), Ok(2));
        let deleted = FileChange { change: ChangeKind::Deleted, ..file("suite/cov/a.xml") };
        let elsewhere = FileChange { part: Part::Root, ..file("suite/cov/a.xml") };
        assert_eq!(choose(&["cov/*.xml"], &[deleted, elsewhere]), Ok(Vec::new()));
    }

    #[test]
    fn what_leads_out_is_refused_by_name() {
        let link = |path: &str, target: &str| change(path, FileKind::Link, Some(target));
        assert_eq!(choose(&["out/*"], &[link("suite/out/l", "../../file")]).map(|all| all.len()), Ok(1));
        for target in ["/etc/passwd", "../../../x", "a/../../../../x"] {
            let refused = choose(&["out/*"], &[link("suite/out/l", target)]).expect_err(target);
            assert!(refused.contains("output `out/l` is a link to") && refused.contains(target), "{refused}");
        }
        let refused = choose(&["out/*.xml"], &[link("suite/out", "/tmp")]).expect_err("through a link");
        assert_eq!(refused, "output pattern `out/*.xml` goes through the link `out`");
        let refused = choose(&["*"], &[change("suite/pipe", FileKind::Special, None)]).expect_err("a pipe");
        assert_eq!(refused, "output `pipe` is a device, pipe or socket");
        // Links beside the patterns are the test's own business.
        assert_eq!(choose(&["out/*.xml"], &[link("suite/other", "/tmp")]), Ok(Vec::new()));
    }

    #[test]
    fn a_pattern_through_a_link_of_the_tree_is_refused() {
        let tree = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink("/tmp", tree.path().join("out")).expect("a link");
        let check = |pattern: &str| {
            Patterns::new("output", &[pattern.to_owned()], tree.path(), tree.path()).check_tree().is_ok()
        };
        assert!(!check("out/*.xml") && !check("out/deep/file"));
        assert!(check("*.xml") && check("other/*.xml") && check("out"));
    }
}
