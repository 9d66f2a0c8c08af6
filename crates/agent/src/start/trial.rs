//! Trying whether this kernel takes a metadata tree, before a machine stands on one.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags};
use testyard_linux::mount::{self, Layer, OverlaySpec};
use testyard_linux::namespace::{self, IdMap};
use testyard_linux::process::CloneFlags;
use testyard_linux::{Error, Result};

/// Mounts `tree` over its data layers in a user namespace of this process's own, and reads a file that is redirected.
pub(crate) fn try_root(tree: &Path, data: &[PathBuf]) -> Result<()> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    namespace::unshare(CloneFlags::NEWUSER)?;
    let pid = rustix::process::getpid();
    namespace::write_id_maps(pid, &[IdMap::single(0, uid)], &[IdMap::single(0, gid)], true)?;
    namespace::unshare(CloneFlags::NEWNS)?;
    let overlay = mount::overlay(&OverlaySpec {
        lower: vec![Layer::Path(tree)],
        data_only: data.iter().map(|path| Layer::Path(path)).collect(),
        user_xattr: true,
        ..OverlaySpec::default()
    })?;
    let failed = |error| Error::new("read a file of", tree.display(), error);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let etc = rustix::fs::openat(overlay.as_fd(), "etc", flags, Mode::empty()).map_err(failed)?;
    for entry in Dir::read_from(&etc).map_err(failed)?.filter_map(std::result::Result::ok) {
        let facts = rustix::fs::statat(&etc, entry.file_name(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
        let full = facts.is_ok_and(|facts| {
            FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile
                && facts.st_size > 0
                && facts.st_mode & 0o4 != 0
        });
        if full {
            let file = rustix::fs::openat(&etc, entry.file_name(), flags, Mode::empty()).map_err(failed)?;
            let mut byte = [0];
            let read = std::fs::File::from(file).read(&mut byte);
            return match read {
                Ok(1) => Ok(()),
                Ok(_) => Err(failed(rustix::io::Errno::NODATA)),
                Err(error) => Err(Error::new("read a file of", tree.display(), error)),
            };
        }
    }
    Ok(())
}
