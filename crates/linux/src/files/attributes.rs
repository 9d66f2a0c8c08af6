//! Extended attributes of open files.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::error::{Error, Result};

/// An attribute's value; `None` where the file has none of this name.
pub fn get(file: impl AsFd, name: &CStr) -> Result<Option<Vec<u8>>> {
    match read(|buffer| rustix::fs::fgetxattr(&file, name, buffer)) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(Error::new("read the attribute", name.to_string_lossy(), errno)),
    }
}

/// Sets an attribute, made or replaced.
pub fn set(file: impl AsFd, name: &CStr, value: &[u8]) -> Result<()> {
    rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())
        .map_err(|errno| Error::new("set the attribute", name.to_string_lossy(), errno))
}

/// Removes an attribute; one that is not there is no error.
pub fn remove(file: impl AsFd, name: &CStr) -> Result<()> {
    match rustix::fs::fremovexattr(file, name) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(Error::new("remove the attribute", name.to_string_lossy(), errno)),
    }
}

/// The names of a file's attributes; none where the file system has no attributes.
pub fn list(file: impl AsFd) -> Result<Vec<CString>> {
    let names = match read(|buffer| rustix::fs::flistxattr(&file, buffer)) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => Vec::new(),
        Err(errno) => return Err(Error::new("list the attributes of", "a file", errno)),
    };
    Ok(names
        .split_inclusive(|byte| *byte == 0)
        .filter_map(|name| CString::from_vec_with_nul(name.to_vec()).ok())
        .collect())
}

/// Calls with growing buffers until the answer fits; most attributes are small.
fn read(mut ask: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    // The kernel's own limit is 64 KiB for a value and for a list of names.
    for size in [256, 4096, 65536] {
        let mut buffer = vec![0; size];
        match ask(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::TOOBIG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_and_go() {
        let file = tempfile::tempfile().expect("a temporary file");
        assert_eq!(get(&file, c"user.testyard").expect("no error"), None);
        if set(&file, c"user.testyard", b"value").is_err() {
            return; // An older tmpfs has no user attributes; the probe of that name says so.
        }
        set(&file, c"user.large", &[7; 3000]).expect("it fits");
        assert_eq!(get(&file, c"user.testyard").expect("no error").as_deref(), Some(&b"value"[..]));
        assert_eq!(get(&file, c"user.large").expect("no error").map(|value| value.len()), Some(3000));
        assert!(list(&file).expect("no error").contains(&c"user.testyard".to_owned()));
        remove(&file, c"user.testyard").expect("it is there");
        remove(&file, c"user.testyard").expect("gone is gone");
        assert_eq!(get(&file, c"user.testyard").expect("no error"), None);
    }
}
