//! A file system in a file, mounted through a loop device that goes with the mount.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::file_systems::Configuration;
use crate::error::{Context, Error, Result, checked};

const GET_FREE: libc::c_ulong = 0x4c82;
const CONFIGURE: libc::c_ulong = 0x4c0a;
/// The device lets go of its file with its last user.
const AUTOCLEAR: u32 = 4;

/// Where the devices come from.
const CONTROL: &str = "/dev/loop-control";

/// How often a device that was free a moment ago may have been taken by somebody else.
const TRIES: u32 = 64;

/// The kernel's `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    real_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// The kernel's `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    file: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// Whether this process may have loop devices.
///
/// # Errors
/// `ENOENT` where the kernel has none, `EACCES` or `EPERM` where they are not this user's to use.
pub fn check_disk_images() -> Result<()> {
    open(CONTROL).map(drop)
}

/// Mounts the ext4 file system in a file, detached, `nodev`. Nothing is left once the mount is gone.
///
/// # Errors
/// As [`check_disk_images`]; `EINVAL` when there is no such file system in the file.
pub fn disk_image(file: BorrowedFd<'_>) -> Result<OwnedFd> {
    let control = open(CONTROL)?;
    for _ in 0..TRIES {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument and touches no memory.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE as _) };
        let number = checked(libc::c_long::from(number)).context("find a free device in", || CONTROL)?;
        let path = format!("/dev/loop{number}");
        let device = open(&path)?;
        match configure(&device, file) {
            Ok(()) => {
                let configuration = Configuration::open("ext4")?;
                configuration.string("source", path.as_str())?;
                return configuration.mount(MountAttrFlags::MOUNT_ATTR_NODEV);
            }
            Err(errno) if errno.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(Error::new("set up", path, error)),
        }
    }
    Err(Error::new("find a free device in", CONTROL, Errno::BUSY))
}

fn open(path: &str) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context("open", || path.to_owned())
}

fn configure(device: &impl AsFd, file: BorrowedFd<'_>) -> std::io::Result<()> {
    // SAFETY: all zeroes is a valid value of this structure of plain numbers.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.file = file.as_raw_fd().unsigned_abs();
    config.info.flags = AUTOCLEAR;
    // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, which this is, and which outlives the call.
    let returned = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), CONFIGURE as _, &raw const config) };
    checked(libc::c_long::from(returned)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_long_as_the_kernels() {
        assert_eq!((size_of::<LoopInfo>(), size_of::<LoopConfig>()), (232, 304));
    }
}
