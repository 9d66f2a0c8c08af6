//! What the hash does not cover, said shortly.

use std::path::PathBuf;

use crate::manifest::{Manifest, by_bytes};

/// The paths not hashed, each replaced by the top-most folder that holds nothing hashed; sorted, each once.
pub(crate) fn collapse(manifest: &Manifest, unhashed: &[PathBuf]) -> Vec<PathBuf> {
    let mut shown: Vec<PathBuf> = Vec::new();
    for path in unhashed {
        let mut top = path.as_path();
        while let Some(folder) = top.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            if manifest.any_below(folder) {
                break;
            }
            top = folder;
        }
        if shown.last().is_none_or(|last| last != top) {
            shown.push(top.to_owned());
        }
    }
    shown.sort_by(|a, b| by_bytes(a, b));
    shown.dedup();
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{ContentHash, Entry, EntryKind};

    #[test]
    fn folders_without_hashed_files_are_named_once() {
        let kind = EntryKind::File { executable: false, content: ContentHash([0; 32]) };
        let entries = ["a/b.py", "src/x/y.rs"].map(|path| Entry { path: path.into(), kind: kind.clone() });
        let manifest = Manifest::new(entries.to_vec());
        let unhashed = ["a/__pycache__/b.pyc", "a/__pycache__/c.pyc", "src/x/y.o", "src/z/deep/t.o", ".venv", "log"];
        let shown = collapse(&manifest, &unhashed.map(PathBuf::from));
        assert_eq!(shown, [".venv", "a/__pycache__", "log", "src/x/y.o", "src/z"].map(PathBuf::from));
    }
}
