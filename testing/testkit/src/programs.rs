//! The real programs under test, and where the examples stand.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Both programs: the second is started by the first, from the folder they share.
const NAMES: [&str; 2] = ["testyard", "testyard-agent"];

/// The folder with `testyard` and `testyard-agent`, readable by this user.
///
/// # Panics
///
/// Where they were not built: building tests does not build the programs of other packages.
#[must_use]
pub fn folder() -> PathBuf {
    let folder = candidates().into_iter().find(|folder| NAMES.iter().all(|name| folder.join(name).is_file()));
    folder.unwrap_or_else(|| {
        panic!("the programs under test are not built\nhint: cargo build -p testyard-cli -p testyard-agent")
    })
}

/// A program under test by its name.
///
/// # Panics
///
/// As [`folder`].
#[must_use]
pub fn path(name: &str) -> PathBuf {
    folder().join(name)
}

/// Whether the programs were built.
#[must_use]
pub fn are_built() -> bool {
    candidates().iter().any(|folder| NAMES.iter().all(|name| folder.join(name).is_file()))
}

fn candidates() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::env::var_os("TESTYARD_TEST_BIN").map(PathBuf::from).into_iter().collect();
    // A test program stands in target/debug/deps, what it tests one folder up.
    if let Ok(test) = std::env::current_exe() {
        folders.extend(test.ancestors().skip(1).take(3).map(Path::to_owned));
    }
    folders
}

/// Copies both programs into a new folder that every user of the host may enter.
///
/// # Errors
///
/// Those of the file system.
///
/// # Panics
///
/// As [`folder`].
pub fn copy_into(to: &Path) -> std::io::Result<()> {
    let from = folder();
    std::fs::create_dir(to)?;
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o755))?;
    for name in NAMES {
        std::fs::copy(from.join(name), to.join(name))?;
        std::fs::set_permissions(to.join(name), std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Whether everybody may enter each folder on the way.
#[must_use]
pub(crate) fn is_open_to_all(folder: &Path) -> bool {
    folder.ancestors().all(|part| std::fs::metadata(part).is_ok_and(|meta| meta.permissions().mode() & 0o005 == 0o005))
}

/// The workspace, or what stands in for it in the ordinary user's round.
#[must_use]
pub fn source_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("TESTYARD_TEST_SOURCE") {
        return PathBuf::from(folder);
    }
    // testing/testkit, two below the top.
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map_or_else(PathBuf::new, Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_folder_is_open_and_a_private_one_is_not() {
        assert!(is_open_to_all(Path::new("/usr/bin")));
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).expect("ours");
        assert!(!is_open_to_all(folder.path()));
    }

    #[test]
    fn a_test_looks_for_programs_beside_its_build() {
        let test = std::env::current_exe().expect("a running program");
        let beside = test.parent().and_then(Path::parent).expect("target/debug above deps");
        assert!(candidates().iter().any(|folder| folder == beside));
    }
}
