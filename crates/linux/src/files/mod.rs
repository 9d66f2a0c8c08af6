//! Files reached through descriptors of folders, so that no name that others chose leads elsewhere; and single files
//! of our own.

pub mod attributes;
pub mod changes;
mod copy;
pub mod layer_marks;
mod remove;
mod unlink;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, retry_on_intr};

pub use copy::{Copied, CopyOptions, copy_tree};
pub use remove::{Refused, Removed, remove_tree};
pub use unlink::{remove_file, remove_link_to};

use crate::error::{Error, Result};

/// Opens a path as if `root` were `/`: `..` and links cannot lead out of it, and the kernel's
/// magic links (`/proc/…/fd`) are not followed.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: u32) -> Result<OwnedFd> {
    open_resolved(root, path, flags, mode, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
        .map_err(|errno| Error::new("open", path.display(), errno))
}

/// Opens a relative path that must stay below `root`: `..` or a link that leads out is `EXDEV`.
pub fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: u32) -> Result<OwnedFd> {
    open_resolved(root, path, flags, mode, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
        .map_err(|errno| Error::new("open", path.display(), errno))
}

fn open_resolved(
    root: BorrowedFd<'_>,
    path: impl rustix::path::Arg + Copy,
    flags: OFlags,
    mode: u32,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    // openat2 refuses a mode where nothing is made.
    let makes = flags.intersects(OFlags::CREATE | OFlags::TMPFILE.difference(OFlags::DIRECTORY));
    let mode = if makes { Mode::from_raw_mode(mode) } else { Mode::empty() };
    // The kernel answers EAGAIN when something was renamed while it resolved `..`.
    for _ in 0..100 {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            answer => return answer,
        }
    }
    Err(Errno::AGAIN)
}

/// The name of the file system below a descriptor when it lives on other machines or is served by
/// a program; `None` for local ones. Locks and SQLite's WAL are not to be trusted on such.
#[must_use]
pub fn is_network_file_system(file: impl AsFd) -> Option<&'static str> {
    let facts = rustix::fs::fstatfs(file).ok()?;
    // The kernel's magic numbers are 32 bits wide; the field's own width and sign differ by platform.
    network_file_system(facts.f_type as u32)
}

/// By its magic number. The registry, which may not know this crate, has the same list.
fn network_file_system(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "nfs",
        0xff53_4d42 => "cifs",
        0xfe53_4d42 => "smb2",
        0x517b => "smb",
        0x0102_1997 => "9p",
        0x6573_5546 => "fuse",
        0x00c3_6400 => "ceph",
        0x0116_1970 => "gfs2",
        0x0bd0_0bd0 => "lustre",
        0x7461_636f => "ocfs2",
        0x5346_414f | 0x6b41_4653 => "afs",
        0x7375_7245 => "coda",
        0x564c => "ncp",
        0x2003_0528 => "orangefs",
        0x4750_4653 => "gpfs",
        0xaad7_aaea => "panfs",
        0x0027_bde8 | 0x1983_0326 => "beegfs",
        0x786f_4256 => "vboxsf",
        0xbacb_acbc => "vmhgfs",
        0x0187 => "autofs",
        _ => return None,
    })
}

/// A file without a name that holds this, ready to be read from its beginning. It is gone with its last descriptor.
///
/// `name` is only what `/proc/PID/fd` shows.
///
/// # Errors
/// There is no memory for it, or no descriptor.
pub fn in_memory(name: &str, content: &[u8]) -> std::io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
    write_all(file.as_fd(), content)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file)
}

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What an ordinary user may still write, in bytes.
    pub free_bytes: u64,
    /// Its whole size, in bytes.
    pub total_bytes: u64,
    /// Files that can still be made; `None` where the file system does not count them.
    pub free_inodes: Option<u64>,
}

/// The room on the file system of a descriptor.
pub fn free_space(file: impl AsFd) -> Result<Space> {
    let facts = rustix::fs::fstatvfs(file).map_err(|errno| Error::new("ask for the free space of", "a file", errno))?;
    Ok(Space {
        free_bytes: facts.f_bavail.saturating_mul(facts.f_frsize),
        total_bytes: facts.f_blocks.saturating_mul(facts.f_frsize),
        free_inodes: (facts.f_files > 0).then_some(facts.f_favail),
    })
}

/// Makes sure that `path` is a folder of ours that nobody else may enter, and opens it.
///
/// Made (0700) where it is missing; its parent must exist. A link, another's folder, or one that
/// others may enter is an error and left as it is.
pub fn verified_private_directory(path: &Path) -> Result<OwnedFd> {
    let failed = |errno: Errno| Error::new("use as a private folder", path.display(), errno);
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    let status = rustix::fs::fstat(&folder).map_err(failed)?;
    let refused = |why: String| {
        let source = std::io::Error::new(std::io::ErrorKind::PermissionDenied, why);
        Error::new("use as a private folder", path.display(), source)
    };
    let us = rustix::process::geteuid().as_raw();
    if status.st_uid != us {
        return Err(refused(format!("it belongs to user {}, not to user {us}", status.st_uid)));
    }
    if status.st_mode & 0o077 != 0 {
        let mode = status.st_mode & 0o7777;
        return Err(refused(format!("others may enter it (mode {mode:o}); it must be 700")));
    }
    Ok(folder)
}

/// One name in a folder.
#[derive(Debug)]
struct Entry {
    name: CString,
    /// [`FileType::Unknown`] where the file system does not tell.
    kind: FileType,
}

/// Every name in an open folder but `.` and `..`, from its start.
fn entries(folder: BorrowedFd<'_>) -> rustix::io::Result<Vec<Entry>> {
    rustix::fs::seek(folder, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = vec![std::mem::MaybeUninit::uninit(); 16 * 1024];
    let mut reader = rustix::fs::RawDir::new(folder, &mut buffer);
    let mut found = Vec::new();
    while let Some(entry) = reader.next() {
        let entry = match entry {
            Err(Errno::INTR) => continue,
            entry => entry?,
        };
        let name: &CStr = entry.file_name();
        if name != c"." && name != c".." {
            found.push(Entry { name: name.to_owned(), kind: entry.file_type() });
        }
    }
    Ok(found)
}

/// A folder below an open one by a single name: links and mount points are refused by the kernel.
fn open_child_folder(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    open_resolved(parent, name, flags, 0, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV)
}

fn shown(name: &CStr) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

/// Writes all of it, whatever the kernel takes at a time.
fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match retry_on_intr(|| rustix::io::write(file, bytes))? {
            0 => return Err(Errno::IO),
            written => bytes = &bytes[written..],
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn open_folder(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("a folder")
    }

    #[test]
    fn links_stay_inside_the_root() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir_all(folder.path().join("root/etc")).expect("a folder");
        std::fs::write(folder.path().join("root/etc/name"), "inside").expect("written");
        std::fs::write(folder.path().join("secret"), "outside").expect("written");
        symlink("/etc/name", folder.path().join("root/absolute")).expect("a link");
        symlink("../../../secret", folder.path().join("root/upwards")).expect("a link");
        let root = open_folder(&folder.path().join("root"));
        let read = |path: &str| -> Result<String> {
            let file = open_in_root(root.as_fd(), Path::new(path), OFlags::RDONLY, 0)?;
            Ok(std::io::read_to_string(std::fs::File::from(file)).expect("readable"))
        };
        assert_eq!(read("absolute").expect("inside"), "inside");
        assert_eq!(read("/../../etc/name").expect("inside"), "inside");
        assert_eq!(read("upwards").expect_err("not there").errno(), Errno::NOENT);
        let beneath = |path: &str| open_beneath(root.as_fd(), Path::new(path), OFlags::RDONLY, 0);
        assert!(beneath("etc/name").is_ok());
        for path in ["../secret", "absolute", "upwards", "/etc/name"] {
            assert_eq!(beneath(path).expect_err("leads out").errno(), Errno::XDEV, "{path}");
        }
    }

    #[test]
    fn a_private_folder_is_verified() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("private");
        verified_private_directory(&path).expect("made");
        verified_private_directory(&path).expect("as it should be");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o750)).expect("ours");
        assert!(verified_private_directory(&path).is_err());
        let link = folder.path().join("link");
        symlink("/root", &link).expect("a link");
        assert!(verified_private_directory(&link).is_err());
        assert!(verified_private_directory(&folder.path().join("x/y")).is_err());
    }

    #[test]
    fn shared_folders_of_virtual_machines_are_no_local_disks() {
        for (magic, name) in [(0x786f_4256, "vboxsf"), (0xbacb_acbc, "vmhgfs"), (0x6969, "nfs")] {
            assert_eq!(network_file_system(magic), Some(name));
        }
        // ext4, tmpfs, overlayfs.
        assert!([0xef53, 0x0102_1994, 0x794c_7630].into_iter().all(|magic| network_file_system(magic).is_none()));
    }

    #[test]
    fn a_file_in_memory_is_read_from_its_beginning() {
        for content in [&b""[..], &[7; 100_000]] {
            let file = in_memory("testyard-test", content).expect("memory");
            let mut read = Vec::new();
            std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut read).expect("readable");
            assert!(read == content, "{} bytes", read.len());
        }
    }

    #[test]
    fn this_disk_has_room_and_is_local() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = open_folder(folder.path());
        let space = free_space(&folder).expect("known");
        assert!(space.free_bytes > 0 && space.free_bytes <= space.total_bytes);
        assert_eq!(is_network_file_system(&folder), None);
    }
}
