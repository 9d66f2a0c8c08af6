//! Where control groups are mounted here, and where in them this process is.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, accessat, open};

use super::Controller;
use crate::error::{Context, Result};
use crate::mount::{MountEntry, mount_table};

/// Where this process may make control groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// Version 1, a mount for each controller or for several together.
    V1(Vec<V1Mount>),
    /// Version 2.
    V2(V2Mount),
    /// None is mounted here.
    None,
}

/// One mounted v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V1Mount {
    /// Those of its controllers that Testyard uses.
    pub controllers: Vec<Controller>,
    /// All of them by name, as mounting it again would have to name them.
    pub names: Vec<String>,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The folder of the group that this process is in.
    pub own: PathBuf,
}

/// The mounted v2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V2Mount {
    /// Where it is mounted.
    pub point: PathBuf,
    /// The folder of the group that this process is in.
    pub own: PathBuf,
    /// The folder in which groups are made. Not the own one wherever that can be helped: a group that holds
    /// processes cannot hand controllers on. It is the topmost that this user may write and that holds no process
    /// (the root of all may): the root for root, a systemd user's `user@1000.service`.
    pub base: PathBuf,
}

impl Hierarchy {
    /// What is mounted in this mount namespace: v1 where it has any controller that Testyard uses, else v2.
    ///
    /// # Errors
    /// What reading `/proc` says.
    pub fn detect() -> Result<Self> {
        let path = "/proc/self/cgroup";
        let own = match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::None),
            other => other.context("read", || path)?,
        };
        Ok(Self::from_tables(&mount_table(None)?, &own).with_base())
    }

    /// The v2 hierarchy alone, also where v1 has the controllers.
    ///
    /// # Errors
    /// What reading `/proc` says.
    pub fn detect_v2() -> Result<Self> {
        let path = "/proc/self/cgroup";
        let own = fs::read_to_string(path).context("read", || path)?;
        Ok(find_v2(&mount_table(None)?, &own).map_or(Self::None, Self::V2).with_base())
    }

    fn with_base(self) -> Self {
        match self {
            Self::V2(mount) => Self::V2(V2Mount { base: choose_base(&mount), ..mount }),
            other => other,
        }
    }

    /// The version 1 hierarchies that this process is in, mounted here or not: the names of each.
    ///
    /// # Errors
    /// What reading `/proc` says.
    pub fn own_v1_names() -> Result<Vec<Vec<String>>> {
        let path = "/proc/self/cgroup";
        let own = fs::read_to_string(path).context("read", || path)?;
        let names = own.lines().filter_map(group_line).filter(|(names, _)| !names.is_empty());
        Ok(names.map(|(names, _)| names.split(',').map(str::to_owned).collect()).collect())
    }

    fn from_tables(mounts: &[MountEntry], own: &str) -> Self {
        let v1 = find_v1(mounts, own);
        if !v1.is_empty() {
            return Self::V1(v1);
        }
        find_v2(mounts, own).map_or(Self::None, Self::V2)
    }

    /// The controllers that can be had.
    ///
    /// # Errors
    /// What reading `cgroup.controllers` says.
    pub fn controllers(&self) -> Result<Vec<Controller>> {
        match self {
            Self::V1(mounts) => Ok(mounts.iter().flat_map(|mount| mount.controllers.iter().copied()).collect()),
            Self::V2(mount) => {
                let path = mount.base.join("cgroup.controllers");
                let text = fs::read_to_string(&path).context("read", || path.display())?;
                let named = |name| text.split_ascii_whitespace().any(|word| word == name);
                Ok(Controller::ALL.into_iter().filter(|controller| controller.v2_name().is_none_or(named)).collect())
            }
            Self::None => Ok(Vec::new()),
        }
    }

    /// The controllers in whose tree this user may make a group. Only the permissions are looked
    /// at: whether it works is known when it was done.
    #[must_use]
    pub fn writable(&self) -> Vec<Controller> {
        match self {
            Self::V1(mounts) => {
                let mounts = mounts.iter().filter(|mount| may_write(&mount.own));
                mounts.flat_map(|mount| mount.controllers.iter().copied()).collect()
            }
            Self::V2(mount) if may_write(&mount.base) => self.controllers().unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// The folders in which groups are made, with their controllers.
    pub(super) fn folders(&self) -> Result<Vec<(Vec<Controller>, OwnedFd)>> {
        let wanted = match self {
            Self::V1(mounts) => mounts.iter().map(|mount| (mount.controllers.clone(), &mount.own)).collect(),
            Self::V2(mount) => vec![(Controller::ALL.to_vec(), &mount.base)],
            Self::None => Vec::new(),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        wanted
            .into_iter()
            .map(|(controllers, path)| {
                let folder = open(path, flags, Mode::empty()).context("open the control group", || path.display())?;
                Ok((controllers, folder))
            })
            .collect()
    }

    /// Whether it is of version 2.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2(_))
    }
}

fn may_write(path: &Path) -> bool {
    accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

fn choose_base(mount: &V2Mount) -> PathBuf {
    let mut folders: Vec<&Path> = mount.own.ancestors().take_while(|folder| folder.starts_with(&mount.point)).collect();
    folders.reverse();
    let serves = |folder: &&Path| {
        let processes = folder.join("cgroup.procs");
        // The root of all, and only it, has no type.
        let may_hand_on =
            || !folder.join("cgroup.type").exists() || fs::read(&processes).is_ok_and(|listed| listed.is_empty());
        may_write(folder) && may_write(&processes) && may_hand_on()
    };
    folders.into_iter().find(serves).unwrap_or(&mount.own).to_owned()
}

fn find_v1(mounts: &[MountEntry], own: &str) -> Vec<V1Mount> {
    let mut found: Vec<V1Mount> = Vec::new();
    for mount in mounts.iter().filter(|mount| mount.fs_type == "cgroup") {
        let options: Vec<&str> = mount.super_options.split(',').collect();
        let Some((names, group)) = own.lines().find_map(|line| {
            let (names, group) = group_line(line)?;
            (!names.is_empty() && names.split(',').all(|name| options.contains(&name))).then_some((names, group))
        }) else {
            continue;
        };
        let names: Vec<String> = names.split(',').map(str::to_owned).collect();
        let is_named = |controller: &Controller| names.iter().any(|name| name == controller.v1_name());
        let controllers: Vec<Controller> = Controller::ALL.into_iter().filter(is_named).collect();
        // A hierarchy that is mounted twice is one: what is made in one is in the other too.
        let known = found.iter().any(|other| other.names == names);
        if let (false, false, Some(own)) = (controllers.is_empty(), known, folder_of(mount, group)) {
            found.push(V1Mount { controllers, names, point: mount.point.clone(), own });
        }
    }
    found
}

fn find_v2(mounts: &[MountEntry], own: &str) -> Option<V2Mount> {
    let group = own.lines().find_map(|line| group_line(line).filter(|(names, _)| names.is_empty()))?.1;
    mounts.iter().filter(|mount| mount.fs_type == "cgroup2").find_map(|mount| {
        let own = folder_of(mount, group)?;
        Some(V2Mount { point: mount.point.clone(), base: own.clone(), own })
    })
}

/// `4:memory:/group` as names and path.
fn group_line(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.split_once(':')?;
    rest.split_once(':')
}

/// The folder of a group below a mount; nothing when the mount shows another part of the tree.
fn folder_of(mount: &MountEntry, group: &str) -> Option<PathBuf> {
    let below = Path::new(group).strip_prefix(&mount.root).ok()?;
    // "/../other": the process is outside of its cgroup namespace.
    if below.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    Some(mount.point.join(below))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::parse_mount_table;

    fn detected(mounts: &str, own: &str) -> Hierarchy {
        Hierarchy::from_tables(&parse_mount_table(mounts.as_bytes()).expect("the table is valid"), own)
    }

    #[test]
    fn a_hybrid_host_is_v1() {
        let mounts = "33 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      36 31 0:33 / /again/memory rw - cgroup cgroup rw,memory\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "4:memory:/a/b\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n";
        let Hierarchy::V1(found) = detected(mounts, own) else { panic!("v1 has the controllers") };
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].controllers, [Controller::Cpu, Controller::CpuAccounting]);
        assert_eq!(found[0].own, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(found[1].own, Path::new("/sys/fs/cgroup/memory/a/b"));
    }

    #[test]
    fn a_container_sees_its_own_part() {
        let mounts = "35 31 0:32 /docker/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let Hierarchy::V1(found) = detected(mounts, "4:memory:/docker/1/x\n") else { panic!("v1 is mounted") };
        assert_eq!(found[0].own, Path::new("/sys/fs/cgroup/memory/x"));
        assert_eq!(detected(mounts, "4:memory:/elsewhere\n"), Hierarchy::None);
    }

    #[test]
    fn an_ordinary_host_is_v2() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = PathBuf::from("/sys/fs/cgroup/user.slice/a");
        let expected = V2Mount { point: "/sys/fs/cgroup".into(), base: own.clone(), own };
        assert_eq!(detected(mounts, "0::/user.slice/a\n"), Hierarchy::V2(expected));
        assert_eq!(detected(mounts, "0::/../other\n"), Hierarchy::None);
        assert_eq!(detected("", "0::/\n"), Hierarchy::None);
    }
}
