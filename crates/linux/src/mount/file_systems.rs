//! New instances of the kernel's file systems, not attached anywhere.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::error::{Error, Result};

/// A file system being configured. Its errors carry what the kernel wrote into the context's log.
pub(super) struct Configuration {
    context: OwnedFd,
    kind: &'static str,
}

impl Configuration {
    pub(super) fn open(kind: &'static str) -> Result<Self> {
        match fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(context) => Ok(Self { context, kind }),
            Err(errno) => Err(Error::new("open the file system", kind, errno)),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<()> {
        fsconfig_set_flag(self.context.as_fd(), key).map_err(|errno| self.error(&format!("option {key}"), errno))
    }

    pub(super) fn string(&self, key: &str, value: impl rustix::path::Arg + Copy) -> Result<()> {
        fsconfig_set_string(self.context.as_fd(), key, value)
            .map_err(|errno| self.error(&format!("option {key}={}", value.to_string_lossy()), errno))
    }

    /// Without the log: for options that are tried, and done otherwise where the kernel does not know them.
    pub(super) fn try_descriptor(&self, key: &str, value: impl AsFd) -> rustix::io::Result<()> {
        fsconfig_set_fd(self.context.as_fd(), key, value)
    }

    pub(super) fn try_string(&self, key: &str, value: impl rustix::path::Arg) -> rustix::io::Result<()> {
        fsconfig_set_string(self.context.as_fd(), key, value)
    }

    pub(super) fn mount(self, attributes: MountAttrFlags) -> Result<OwnedFd> {
        fsconfig_create(self.context.as_fd()).map_err(|errno| self.error("", errno))?;
        fsmount(self.context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|errno| self.error("", errno))
    }

    fn error(&self, at: &str, errno: rustix::io::Errno) -> Error {
        let mut subject = self.kind.to_owned();
        if !at.is_empty() {
            subject = format!("{subject} with {at}");
        }
        let said = self.log();
        if !said.is_empty() {
            subject = format!("{subject} (the kernel says: {})", said.join("; "));
        }
        Error::new("mount", subject, io::Error::from(errno))
    }

    /// What the kernel wrote about this context and nobody has read yet.
    fn log(&self) -> Vec<String> {
        let mut said = Vec::new();
        let mut message = [0_u8; 512];
        // Its ring holds eight messages.
        for _ in 0..8 {
            match rustix::io::read(&self.context, &mut message) {
                Ok(length) if length > 0 => {
                    let text = String::from_utf8_lossy(&message[..length]);
                    // "e ", "w " or "i " in front: error, warning, information.
                    said.push(text.trim_end().get(2..).unwrap_or_default().to_owned());
                }
                _ => break,
            }
        }
        said
    }
}

/// How a tmpfs is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TmpfsOptions {
    /// The most bytes that it holds; half of the memory where nothing is said.
    pub size: Option<u64>,
    /// The most files and folders that it holds.
    pub inodes: Option<u64>,
    /// The permission bits of its root.
    pub mode: u32,
}

impl Default for TmpfsOptions {
    fn default() -> Self {
        Self { size: None, inodes: None, mode: 0o755 }
    }
}

const QUIET: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);
const INERT: MountAttrFlags = QUIET.union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// A tmpfs, `nosuid` and `nodev`.
///
/// # Errors
/// What the kernel says; `EPERM` without capabilities over the mount namespace's users.
pub fn tmpfs(options: &TmpfsOptions) -> Result<OwnedFd> {
    let configuration = Configuration::open("tmpfs")?;
    configuration.string("mode", format!("{:o}", options.mode).as_str())?;
    if let Some(size) = options.size {
        configuration.string("size", size.to_string().as_str())?;
    }
    if let Some(inodes) = options.inodes {
        configuration.string("nr_inodes", inodes.to_string().as_str())?;
    }
    configuration.string("source", "testyard")?;
    configuration.mount(QUIET)
}

/// The processes of this process's pid namespace: to be made by a process inside it.
///
/// # Errors
/// `EPERM` in a user namespace whose only visible proc is partly masked, as in many containers.
pub fn proc() -> Result<OwnedFd> {
    Configuration::open("proc")?.mount(INERT)
}

/// The kernel's devices and settings, with the interfaces of this network namespace, which must belong to the
/// caller's user namespace.
///
/// # Errors
/// `EPERM` when it does not.
pub fn sysfs(read_only: bool) -> Result<OwnedFd> {
    let attributes = if read_only { INERT.union(MountAttrFlags::MOUNT_ATTR_RDONLY) } else { INERT };
    Configuration::open("sysfs")?.mount(attributes)
}

/// Pseudo-terminals of their own, with a `ptmx` that everybody may open; terminals have mode 620 and group 5 where
/// the user namespace maps that group.
///
/// # Errors
/// What the kernel says.
pub fn devpts() -> Result<OwnedFd> {
    with_terminal_group(true).or_else(|_| with_terminal_group(false))
}

fn with_terminal_group(wanted: bool) -> Result<OwnedFd> {
    let configuration = Configuration::open("devpts")?;
    configuration.flag("newinstance")?;
    configuration.string("ptmxmode", "0666")?;
    configuration.string("mode", "0620")?;
    if wanted {
        configuration.string("gid", "5")?;
    }
    configuration.mount(MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC)
}

/// The POSIX message queues of this IPC namespace.
///
/// # Errors
/// What the kernel says.
pub fn message_queues() -> Result<OwnedFd> {
    Configuration::open("mqueue")?.mount(INERT)
}

/// The part of a v1 hierarchy that this cgroup namespace shows. Controllers that are mounted together must be named
/// together.
///
/// # Errors
/// `EBUSY` when the controllers are in other hierarchies.
pub fn cgroup_v1(controllers: &[&str]) -> Result<OwnedFd> {
    let configuration = Configuration::open("cgroup")?;
    for controller in controllers {
        match controller.strip_prefix("name=") {
            Some(name) => {
                configuration.flag("none")?;
                configuration.string("name", name)?;
            }
            None => configuration.flag(controller)?,
        }
    }
    configuration.mount(INERT)
}

/// The part of the v2 hierarchy that this cgroup namespace shows.
///
/// # Errors
/// What the kernel says.
pub fn cgroup_v2() -> Result<OwnedFd> {
    Configuration::open("cgroup2")?.mount(INERT)
}
