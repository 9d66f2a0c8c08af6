//! Files that are there whole or not at all.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Writes a file by way of a temporary one beside it, so that nobody ever reads a half. What is not a regular
/// file (`/dev/stdout`, a pipe) is written directly.
///
/// # Errors
/// Where the folder or the disk refuses; the former file then stays, and the temporary one does not.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    if path.metadata().is_ok_and(|data| !data.is_file()) {
        return write(&mut OpenOptions::new().write(true).open(path)?);
    }
    // Through a link to what it names: the link is the user's.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut name = OsString::from(".");
    name.push(target.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    name.push(format!(".{}", std::process::id()));
    let temporary = target.with_file_name(name);
    let written = (|| {
        let mut file = io::BufWriter::new(File::create(&temporary)?);
        write(&mut file)?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &target)
    })();
    if written.is_err() {
        // It may not even have been made.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_former_file_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("report.xml");
        write_whole(&path, |out| out.write_all(b"first")).expect("written");
        let error = write_whole(&path, |out| {
            out.write_all(b"sec")?;
            Err(io::Error::other("full"))
        });
        assert!(error.is_err());
        assert_eq!(std::fs::read(&path).expect("still there"), b"first");
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 1);
        write_whole(&path, |out| out.write_all(b"second")).expect("written");
        assert_eq!(std::fs::read(&path).expect("there"), b"second");
    }
}
