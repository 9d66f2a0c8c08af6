//! Removing single names that may be gone already.

use std::path::Path;

use rustix::io::Errno;

use crate::error::{Error, Result};

/// Removes a file, link or socket. One that is not there is what is wanted.
pub fn remove_file(path: &Path) -> Result<()> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::new("remove", path.display(), errno)),
    }
}

/// Removes a link that leads there. One that leads elsewhere, or is none, is another's.
pub fn remove_link_to(target: &Path, link: &Path) -> Result<()> {
    match std::fs::read_link(link) {
        Ok(found) if found == target => remove_file(link),
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidInput => Ok(()),
            _ => Err(Error::new("remove", link.display(), error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_what_is_ours_goes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "").expect("written");
        symlink("there", at("link")).expect("a link");
        for other in ["link", "file", "missing"] {
            remove_link_to(Path::new("elsewhere"), &at(other)).expect("nothing to do");
        }
        assert!(at("file").exists() && at("link").is_symlink());
        remove_link_to(Path::new("there"), &at("link")).expect("it leads there");
        assert!(!at("link").is_symlink());
        for _ in 0..2 {
            remove_file(&at("file")).expect("gone");
        }
        assert!(!at("file").exists());
        assert_eq!(remove_file(folder.path()).expect_err("a folder").errno(), Errno::ISDIR);
    }
}
