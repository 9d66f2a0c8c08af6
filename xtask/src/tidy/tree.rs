//! The text files of the tree, found without git so that an unpacked archive can be checked too.

use std::path::Path;

use crate::fault::{Fault, Outcome};

/// Folders that hold what was made, not what was written.
const NOT_OURS: [&str; 9] =
    ["target", ".git", ".venv", "__pycache__", ".cache", ".pytest_cache", ".testyard", "node_modules", "corpus"];

/// Extensions of files that people write.
const TEXT: [&str; 9] = ["rs", "md", "toml", "sh", "py", "txt", "yml", "yaml", "json"];

/// A text file of the tree.
pub(super) struct TextFile {
    /// From the workspace's top folder.
    pub(super) path: String,
    pub(super) text: String,
}

/// Every text file, in the order of paths.
pub(super) fn text_files(root: &Path) -> Outcome<Vec<TextFile>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map_err(|error| Fault::file(&folder, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| Fault::file(&folder, &error))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().map_err(|error| Fault::file(&entry.path(), &error))?;
            if kind.is_dir() && !NOT_OURS.contains(&name.as_str()) {
                folders.push(entry.path());
            } else if kind.is_file() && is_text(&folder, &name) {
                files.push(read(root, &entry.path())?);
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn is_text(folder: &Path, name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| TEXT.contains(&extension)) || folder.file_name().is_some_and(|name| name == ".ci")
}

fn read(root: &Path, path: &Path) -> Outcome<TextFile> {
    let bytes = std::fs::read(path).map_err(|error| Fault::file(path, &error))?;
    let relative = path.strip_prefix(root).unwrap_or(path);
    Ok(TextFile { path: relative.display().to_string(), text: String::from_utf8_lossy(&bytes).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_file_is_found_and_what_was_built_is_not() {
        let files = text_files(&crate::cargo::workspace_root()).expect("the workspace can be read");
        assert!(files.iter().any(|file| file.path == "xtask/src/tidy/tree.rs"));
        assert!(files.iter().any(|file| file.path == ".ci/run"));
        assert!(!files.iter().any(|file| file.path.starts_with("target/")));
    }
}
