//! From the paths of a command line to suite files, and to the part of each that is meant.

use std::path::{Path, PathBuf};

use super::error::PlanError;
use super::{PlannedSuite, PlannedTest};
use crate::suite::FILE_NAME;

/// Folders deeper than this below a path are not searched for suites.
const DEEPEST: usize = 12;

/// A suite file, and where in its suite to look.
#[derive(Debug)]
pub(super) struct Found {
    /// The suite file, absolute.
    pub(super) file: PathBuf,
    /// Absolute paths inside the suite, each with what was typed; none means the whole suite.
    pub(super) within: Vec<(PathBuf, PathBuf)>,
}

/// The suites at these paths, each once, in the order of the paths.
pub(super) fn suites(paths: &[PathBuf], current: &Path) -> Result<Vec<Found>, PlanError> {
    let mut all: Vec<Found> = Vec::new();
    for typed in paths {
        let Ok(path) = current.join(typed).canonicalize() else {
            return Err(PlanError::NoSuchPath { path: typed.clone() });
        };
        let mut add = |file: PathBuf, within: Option<PathBuf>| {
            let within = within.map(|path| (path, typed.clone()));
            match all.iter_mut().find(|found| found.file == file) {
                Some(found) if found.within.is_empty() => {}
                Some(found) => match within {
                    Some(within) => found.within.push(within),
                    None => found.within.clear(),
                },
                None => all.push(Found { file, within: within.into_iter().collect() }),
            }
        };
        if path.is_file() && path.file_name().is_some_and(|name| name == FILE_NAME) {
            add(path, None);
        } else if path.join(FILE_NAME).is_file() {
            add(path.join(FILE_NAME), None);
        } else if let Some(file) = path.ancestors().skip(1).map(|up| up.join(FILE_NAME)).find(|file| file.is_file()) {
            add(file, Some(path));
        } else {
            let mut below = Vec::new();
            search(&path, 0, &mut below);
            if below.is_empty() {
                return Err(PlanError::NoSuite { path: typed.clone() });
            }
            below.into_iter().for_each(|file| add(file, None));
        }
    }
    Ok(all)
}

/// Suite files below a folder, sorted. What cannot be read is passed over: nobody asked for it by name.
fn search(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut folders = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !hidden && name != "target" && name != "node_modules" {
            folders.push(entry.path());
        }
    }
    folders.sort();
    for folder in folders {
        if folder.join(FILE_NAME).is_file() {
            found.push(folder.join(FILE_NAME));
        } else if depth < DEEPEST {
            search(&folder, depth + 1, found);
        }
    }
}

/// The tests of a suite that lie at the paths that are meant.
pub(super) fn narrow(
    found: &Found,
    suite: &PlannedSuite,
    tests: Vec<PlannedTest>,
) -> Result<Vec<PlannedTest>, PlanError> {
    if found.within.is_empty() {
        return Ok(tests);
    }
    let at = |test: &PlannedTest, path: &Path| {
        // A file reached through a link was typed by one name and found by another.
        test.file.as_ref().is_some_and(|file| file.starts_with(path) || file.canonicalize().is_ok_and(|f| f == *path))
    };
    for (path, typed) in &found.within {
        if !tests.iter().any(|test| at(test, path)) {
            return Err(PlanError::NotATest { path: typed.clone(), suite: suite.name.clone() });
        }
    }
    Ok(tests.into_iter().filter(|test| found.within.iter().any(|(path, _)| at(test, path))).collect())
}
