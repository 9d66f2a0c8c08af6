//! One control group, in every tree that has a controller of ours.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat};
use rustix::io::Errno;

use super::{Controller, Hierarchy, removal, v1, v2};
use crate::error::{Context, Error, Result};
use crate::identity::file_identity;
use crate::process::Pid;

/// What the processes of a group, past and present, used. What the host does not count is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupUsage {
    /// Processor time, in microseconds.
    pub cpu_us: Option<u64>,
    /// The most memory at once since the group was made or [`Group::reset`], in bytes, page cache included.
    pub memory_peak: Option<u64>,
    /// Memory now, in bytes.
    pub memory_now: Option<u64>,
    /// Bytes read from block devices.
    pub io_read: Option<u64>,
    /// Bytes written to block devices.
    pub io_write: Option<u64>,
    /// Processes that the memory limit ended.
    pub oom_kills: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
}

/// A control group of ours. Dropping it closes its descriptors and leaves it where it is.
#[derive(Debug)]
pub struct Group {
    name: String,
    version: Version,
    folders: Vec<Folder>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The group's folder in one tree.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) controllers: Vec<Controller>,
    pub(super) descriptor: OwnedFd,
    /// Files that are read over and over, once opened.
    pub(super) kept: v1::KeptFiles,
}

impl Folder {
    fn new(controllers: Vec<Controller>, descriptor: OwnedFd) -> Self {
        Self { controllers, descriptor, kept: v1::KeptFiles::default() }
    }
}

impl Group {
    /// Makes a group below the one that this process is in (in version 2: below the hierarchy's base), in every tree; missing folders of the name's path are
    /// made too. In version 2 the controllers are switched on along the way: those for which that fails (a group
    /// that holds processes cannot hand them on) will be [unavailable](Self::set_limits).
    ///
    /// # Errors
    /// `EEXIST` when the group exists in any of the trees (nothing is left in the others then), `EACCES` where
    /// this user may not, `ENOENT` without control groups.
    pub fn create(hierarchy: &Hierarchy, name: &str) -> Result<Self> {
        let parent = Self::top(hierarchy)?;
        let (path, last) = parent.split(name)?;
        let mut folders = Vec::new();
        for folder in &parent.folders {
            folders.push(Folder::new(folder.controllers.clone(), parent.make_path(folder, path)?));
        }
        Self { name: path.display().to_string(), version: parent.version, folders }.child(last)
    }

    /// Opens a group that [`Group::create`] made, by the same name.
    ///
    /// # Errors
    /// `ENOENT` when it is missing in one of the trees.
    pub fn open(hierarchy: &Hierarchy, name: &str) -> Result<Self> {
        Self::top(hierarchy)?.open_child(name)
    }

    /// The group in which [`Group::create`] makes others: not ours to remove.
    ///
    /// # Errors
    /// `ENOENT` without control groups.
    pub fn base(hierarchy: &Hierarchy) -> Result<Self> {
        Self::top(hierarchy)
    }

    fn top(hierarchy: &Hierarchy) -> Result<Self> {
        let folders = hierarchy.folders()?;
        if folders.is_empty() {
            return Err(Error::new("find", "control groups on this host", Errno::NOENT));
        }
        let folders = folders.into_iter().map(|(controllers, folder)| Folder::new(controllers, folder)).collect();
        let version = if hierarchy.is_v2() { Version::Two } else { Version::One };
        Ok(Self { name: String::new(), version, folders })
    }

    /// The same in the trees of this controller alone: the descriptors of others are closed.
    #[must_use]
    pub fn narrowed(mut self, controller: Controller) -> Self {
        self.folders.retain(|folder| folder.controllers.contains(&controller));
        self
    }

    /// Makes a group in this one. In version 2 that works with all controllers only while this group holds no
    /// process itself.
    ///
    /// # Errors
    /// As [`Group::create`].
    pub fn child(&self, name: &str) -> Result<Self> {
        let (path, name) = self.split(name)?;
        if path != Path::new("") {
            return Err(Error::new("make the control group", name, Errno::INVAL));
        }
        let mut folders = Vec::with_capacity(self.folders.len());
        for folder in &self.folders {
            match self.make(folder, name) {
                Ok(descriptor) => folders.push(Folder::new(folder.controllers.clone(), descriptor)),
                Err(error) => {
                    for made in &folders {
                        let _ = removal::remove_folder(&made.descriptor, OsStr::new(name));
                    }
                    return Err(error);
                }
            }
        }
        Ok(Self { name: self.path_of(name), version: self.version, folders })
    }

    /// Opens a group below this one.
    ///
    /// # Errors
    /// `ENOENT` when it is missing in one of the trees.
    pub fn open_child(&self, name: &str) -> Result<Self> {
        self.split(name)?;
        let open = |folder: &Folder| {
            let descriptor = open_folder(folder.descriptor.as_fd(), name)
                .context("open the control group", || self.path_of(name))?;
            Ok(Folder::new(folder.controllers.clone(), descriptor))
        };
        let folders = self.folders.iter().map(open).collect::<Result<_>>()?;
        Ok(Self { name: self.path_of(name), version: self.version, folders })
    }

    /// The name, from [`Group::base`] as it was when this was made or opened.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves this process into the group. Cheap; a parent doing it for a child is not (in version 1, a wait of
    /// milliseconds for the kernel's readers).
    ///
    /// # Errors
    /// `EBUSY` in version 2 for a group that hands controllers on, `EACCES` where this user may not.
    pub fn attach_self(&self) -> Result<()> {
        let file = match self.version {
            // A thread moves alone and without the lock of the whole thread group.
            Version::One => "tasks",
            Version::Two => "cgroup.procs",
        };
        self.folders.iter().try_for_each(|folder| {
            write_file(folder.descriptor.as_fd(), file, b"0").context("join the control group", || &self.name)
        })
    }

    /// Moves another process, with all its threads, into the group. See [`Self::attach_self`], which is cheaper.
    ///
    /// # Errors
    /// As [`Self::attach_self`]; `ESRCH` when there is no such process.
    pub fn attach(&self, process: Pid) -> Result<()> {
        let number = process.as_raw_nonzero().to_string();
        self.folders.iter().try_for_each(|folder| {
            write_file(folder.descriptor.as_fd(), "cgroup.procs", number.as_bytes())
                .context("move into the control group", || format!("{} process {number}", self.name))
        })
    }

    /// Sets limits: memory in bytes (swap included), processes and threads, processor time in cores. Nothing leaves
    /// a limit as it is. Returns the names of those that this host cannot set: `memory`, `pids`, `cpus`.
    ///
    /// # Errors
    /// What the kernel says to a limit that it has: `EBUSY` for less memory than is in use, `EINVAL` for nonsense.
    pub fn set_limits(&self, memory: Option<u64>, pids: Option<u32>, cpus: Option<f64>) -> Result<Vec<&'static str>> {
        let mut unavailable = Vec::new();
        let mut note = |name, set: rustix::io::Result<bool>| match set
            .context("limit", || format!("{name} of the control group {}", self.name))
        {
            Ok(true) => Ok(()),
            Ok(false) => {
                unavailable.push(name);
                Ok(())
            }
            Err(error) => Err(error),
        };
        let two = self.version == Version::Two;
        if let Some(bytes) = memory {
            let of =
                |folder: &Folder| if two { v2::limit_memory(folder, bytes) } else { v1::limit_memory(folder, bytes) };
            note("memory", self.with(Controller::Memory, of))?;
        }
        if let Some(count) = pids {
            let of = |folder: &Folder| v1::write_if_there(folder, "pids.max", &count.to_string());
            note("pids", self.with(Controller::Pids, of))?;
        }
        if let Some(cores) = cpus {
            let of = |folder: &Folder| if two { v2::limit_cpus(folder, cores) } else { v1::limit_cpus(folder, cores) };
            note("cpus", self.with(Controller::Cpu, of))?;
        }
        Ok(unavailable)
    }

    fn with(
        &self,
        controller: Controller,
        set: impl Fn(&Folder) -> rustix::io::Result<bool>,
    ) -> rustix::io::Result<bool> {
        let folder = self.folders.iter().find(|folder| folder.controllers.contains(&controller));
        folder.map_or(Ok(false), set)
    }

    /// What the group's processes used, and those of groups below it.
    #[must_use]
    pub fn usage(&self) -> GroupUsage {
        let mut usage = self.accounts();
        if self.version == Version::One {
            usage.pids = self.folders.iter().find_map(v1::count);
        }
        usage
    }

    /// As [`Self::usage`], in version 1 without the count of processes. Files are opened at the first call and kept,
    /// so the next takes microseconds.
    #[must_use]
    pub fn accounts(&self) -> GroupUsage {
        let mut usage = GroupUsage::default();
        for folder in &self.folders {
            match self.version {
                Version::One => v1::add_usage(folder, &mut usage),
                Version::Two => v2::add_usage(folder, &mut usage),
            }
        }
        usage
    }

    /// Starts a new peak of memory, which is cheap; every other account goes on. False where that cannot be done
    /// (in version 2): then [`GroupUsage::memory_peak`] is the peak since the group was made.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn restart_peak(&self) -> Result<bool> {
        if self.version == Version::Two {
            return Ok(false);
        }
        for folder in &self.folders {
            if v1::restart_peak(folder).context("start a new peak of the control group", || &self.name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many processes of the group itself were killed for want of memory. In version 1 the groups around it do not
    /// count them.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        let folder = self.folders.iter().find(|folder| folder.controllers.contains(&Controller::Memory))?;
        let file = if self.version == Version::Two { "memory.events" } else { "memory.oom_control" };
        let text = if self.version == Version::Two { v1::read(folder, file) } else { v1::oom(folder) };
        v1::keyed(&text?, "oom_kill")
    }

    /// Makes the accounts start anew, as far as the kernel can, so that an empty group can serve again. Take
    /// [`Self::usage`] before and subtract what did not go back (io, and in version 2 processor time).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn reset(&self) -> Result<()> {
        self.folders.iter().try_for_each(|folder| {
            let reset = match self.version {
                Version::One => v1::reset(folder),
                Version::Two => v2::reset(folder),
            };
            reset.context("reset the accounts of the control group", || &self.name)
        })
    }

    /// What proves that a group found later by its name is this one: for each tree its first controller, the device
    /// and the inode of the folder.
    ///
    /// # Errors
    /// What fstat says.
    pub fn identity(&self) -> Result<Vec<(Controller, u64, u64)>> {
        self.folders
            .iter()
            .map(|folder| {
                let (device, inode) = file_identity(&folder.descriptor)?;
                Ok((folder.controllers[0], device, inode))
            })
            .collect()
    }

    /// The folders, with their controllers. In version 2 the only one may be given to
    /// [`crate::process::CloneOptions::cgroup`].
    pub fn folders(&self) -> impl Iterator<Item = (&[Controller], BorrowedFd<'_>)> {
        self.folders.iter().map(|folder| (folder.controllers.as_slice(), folder.descriptor.as_fd()))
    }

    /// The folder of a version 2 group, in which a clone may start; nothing for version 1.
    #[must_use]
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        (self.version == Version::Two).then(|| self.folders[0].descriptor.as_fd())
    }

    /// Hands the group on: the user may make groups in it and move processes between them, but not change its limits.
    ///
    /// # Errors
    /// `EPERM` without capabilities over the file system's users.
    pub fn chown(&self, uid: u32, gid: u32) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let files = ["", "tasks", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];
        for folder in &self.folders {
            for file in files {
                let flags = if file.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
                match chownat(&folder.descriptor, file, Some(uid), Some(gid), flags) {
                    // Not in this version.
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(Error::new("hand on the control group", &self.name, errno)),
                }
            }
        }
        Ok(())
    }

    /// Lets the groups in this one have every controller that it has: version 2 wants to be told, and takes it only from a
    /// group without processes. What is refused is left out.
    pub fn hand_on_controllers(&self) {
        if self.version == Version::Two {
            self.folders.iter().for_each(v2::hand_on_controllers);
        }
    }

    /// The processes in the group and the groups below it, each once. Those of other pid namespaces are not seen.
    ///
    /// # Errors
    /// What reading `cgroup.procs` says.
    pub fn list_processes(&self) -> Result<Vec<Pid>> {
        let mut found = Vec::new();
        for folder in &self.folders {
            let inside = removal::processes_below(&folder.descriptor);
            found.extend(inside.context("list the processes of the control group", || &self.name)?);
        }
        found.sort_unstable_by_key(|pid| pid.as_raw_nonzero());
        found.dedup();
        Ok(found)
    }

    /// Ends every process in the group and the groups below it with SIGKILL, and waits until they are gone.
    ///
    /// # Errors
    /// `EBUSY` when processes are still there after some seconds, `EPERM` when one is not ours to end.
    pub fn kill(&self) -> Result<()> {
        removal::kill(&self.folders).context("end the processes of the control group", || &self.name)
    }

    /// Removes the group and the groups below it, after ending what runs in them. What is gone already is no error.
    ///
    /// # Errors
    /// As [`Self::kill`].
    pub fn remove(self) -> Result<()> {
        let Some(last) = Path::new(&self.name).file_name() else {
            return Err(Error::new("remove the control group", "of this process", Errno::INVAL));
        };
        removal::remove(&self.folders, last).context("remove the control group", || &self.name)
    }

    fn path_of(&self, child: &str) -> String {
        if self.name.is_empty() { child.to_owned() } else { format!("{}/{child}", self.name) }
    }

    /// A name as the path before it and its last part; refused when it could lead out of this group.
    fn split<'a>(&self, name: &'a str) -> Result<(&'a Path, &'a str)> {
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        let path = Path::new(name);
        let last = path.file_name().and_then(OsStr::to_str);
        match last {
            Some(last) if path.components().all(plain) => Ok((path.parent().unwrap_or(Path::new("")), last)),
            _ => Err(Error::new("use as the name of a control group", format_args!("{name:?}"), Errno::INVAL)),
        }
    }

    fn make(&self, folder: &Folder, name: &str) -> Result<OwnedFd> {
        let operation = "make the control group";
        if self.version == Version::Two {
            v2::hand_on_controllers(folder);
        }
        mkdirat(&folder.descriptor, name, Mode::from_raw_mode(0o755)).context(operation, || self.path_of(name))?;
        open_folder(folder.descriptor.as_fd(), name).context(operation, || self.path_of(name))
    }

    /// The folder at the end of the path, made where parts are missing.
    fn make_path(&self, folder: &Folder, path: &Path) -> Result<OwnedFd> {
        let operation = "make the control group";
        let mut at = open_folder(folder.descriptor.as_fd(), ".").context(operation, || path.display())?;
        for part in path.components() {
            let name = part.as_os_str();
            if self.version == Version::Two {
                v2::hand_on_controllers(&Folder::new(
                    Vec::new(),
                    at.try_clone().context(operation, || path.display())?,
                ));
            }
            match mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::new(operation, path.display(), errno)),
            }
            at = open_folder(at.as_fd(), name).context(operation, || path.display())?;
        }
        Ok(at)
    }
}

fn open_folder(at: BorrowedFd<'_>, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// Writes one value in one call, as the kernel's files want it.
pub(super) fn write_file(folder: BorrowedFd<'_>, file: &str, value: &[u8]) -> rustix::io::Result<()> {
    let file = openat(folder, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value).map(drop)
}
