//! What the kernel alone takes: the same namespaces, mounts and control groups as an environment's, all made fresh,
//! then exec and wait; with nothing of Testyard's above. The yardstick for the environments of the agent.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use testyard_linux::cgroup::{Group, Hierarchy};
use testyard_linux::mount::{
    Attributes, Layer, OverlaySpec, RootMount, TmpfsOptions, attach, clone_tree, devpts, make_all_private, overlay,
    pivot_into, proc, set_attributes, sysfs, tmpfs,
};
use testyard_linux::namespace::{self, IdMap, new_user_namespace, set_host_name};
use testyard_linux::process::{
    self, CloneFlags, CloneOptions, Credentials, Forked, SingleThreaded, become_user, clone3, execute, exit_immediately,
};
use testyard_linux::{Error, Result};
use testyard_model::{Problem, ProblemKind};

use crate::worker::{Task, told};

/// Apart from those of machines.
const RANGE: IdMap = IdMap { inside: 0, outside: 0x7000_0000, count: 65_536 };
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Fork, exec, wait.
pub struct PlainProbe {
    proof: SingleThreaded,
    program: CString,
}

impl PlainProbe {
    /// Of this program.
    #[must_use]
    pub fn new(proof: SingleThreaded, program: CString) -> Self {
        Self { proof, program }
    }
}

impl Task for PlainProbe {
    fn once(&mut self) -> std::result::Result<(), Problem> {
        match clone3(self.proof, CloneFlags::NONE, CloneOptions::default()).map_err(|error| told(&error))? {
            Forked::Parent(child) => wait(&child.pidfd),
            Forked::Child => {
                drop(execute(&self.program, std::slice::from_ref(&self.program), &[]));
                exit_immediately(127)
            }
        }
    }
}

fn wait(pidfd: &OwnedFd) -> std::result::Result<(), Problem> {
    match process::pidfd_wait(pidfd.as_fd(), false).map_err(|error| told(&error))? {
        Some(0) => Ok(()),
        status => Err(Problem::new(ProblemKind::System, format!("the probe's child ended with {status:?}"))),
    }
}

/// An isolated environment of the strongest level.
pub struct FullProbe {
    proof: SingleThreaded,
    program: CString,
    hierarchy: Hierarchy,
    folder: PathBuf,
    made: u64,
}

impl FullProbe {
    /// In an existing, empty folder. Takes this process into a mount namespace of its own.
    ///
    /// # Errors
    /// What the kernel says; `EPERM` for others than root.
    pub fn new(proof: SingleThreaded, program: CString, folder: PathBuf) -> Result<Self> {
        let users = new_user_namespace(&[RANGE], &[RANGE], false)?;
        namespace::unshare(CloneFlags::NEWNS)?;
        make_all_private()?;
        attach(tmpfs(&TmpfsOptions { mode: 0o755, ..TmpfsOptions::default() })?.as_fd(), folder.as_path())?;
        for name in ["layer", "base"] {
            make_folder(&folder.join(name))?;
        }
        let layer = clone_tree(Path::new("/"), false)?;
        set_attributes(layer.as_fd(), &Attributes { idmap: Some(users.as_fd()), ..Attributes::default() }, false)?;
        attach(layer.as_fd(), folder.join("layer").as_path())?;
        Ok(Self { proof, program, hierarchy: Hierarchy::detect()?, folder, made: 0 })
    }

    fn make(&mut self) -> Result<()> {
        self.made += 1;
        let group = match self.hierarchy.writable().is_empty() {
            true => None,
            false => {
                let name = format!("testyard-bare-probe-{}-{}", std::process::id(), self.made);
                Some(Group::create(&self.hierarchy, &name)?)
            }
        };
        let (go, start) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| Error::new("make", "a pipe", error))?;
        let done = match clone3(self.proof, CloneFlags::ALL.without(CloneFlags::NEWCGROUP), CloneOptions::default())? {
            Forked::Parent(child) => {
                namespace::write_id_maps(child.pid, &[RANGE], &[RANGE], false)?;
                rustix::io::write(&start, b"g").map_err(|error| Error::new("write", "a pipe", error))?;
                process::pidfd_wait(child.pidfd.as_fd(), false)?
            }
            Forked::Child => {
                if let Err(error) = self.become_environment(group.as_ref(), &go) {
                    let _ =
                        rustix::io::write(rustix::stdio::stderr(), format!("{error}: {}\n", error.source).as_bytes());
                    exit_immediately(1);
                }
                drop(execute(&self.program, std::slice::from_ref(&self.program), &[]));
                exit_immediately(127)
            }
        };
        if let Some(group) = group {
            let _ = group.usage();
            group.remove()?;
        }
        match done {
            Some(0) => Ok(()),
            _ => Err(Error::new("make", "a bare environment", rustix::io::Errno::CANCELED)),
        }
    }

    fn become_environment(&self, group: Option<&Group>, go: &OwnedFd) -> Result<()> {
        if let Some(group) = group {
            group.attach_self()?;
        }
        namespace::unshare(CloneFlags::NEWCGROUP)?;
        set_host_name("probe")?;
        namespace::loopback_up()?;
        rustix::io::read(go, &mut [0_u8; 1]).map_err(|error| Error::new("read", "a pipe", error))?;
        become_user(&Credentials::default(), true)?;
        self.mount_root()
    }

    fn mount_root(&self) -> Result<()> {
        let base = self.folder.join("base");
        attach(
            tmpfs(&TmpfsOptions { size: Some(1 << 30), mode: 0o755, ..TmpfsOptions::default() })?.as_fd(),
            base.as_path(),
        )?;
        let folders = ["upper", "work"].map(|name| base.join(name));
        folders.iter().try_for_each(|folder| make_folder(folder))?;
        let [upper, work] = &folders;
        let layer = self.folder.join("layer");
        let spec = OverlaySpec {
            lower: vec![Layer::Path(&layer)],
            upper: Some((Layer::Path(upper), Layer::Path(work))),
            user_xattr: true,
            volatile: true,
            ..OverlaySpec::default()
        };
        attach(overlay(&spec)?.as_fd(), base.as_path())?;
        attach(proc()?.as_fd(), base.join("proc").as_path())?;
        attach(sysfs(true)?.as_fd(), base.join("sys").as_path())?;
        let dev = base.join("dev");
        attach(tmpfs(&TmpfsOptions { mode: 0o755, ..TmpfsOptions::default() })?.as_fd(), dev.as_path())?;
        for name in DEVICES {
            let node = dev.join(name);
            std::fs::write(&node, b"").map_err(|error| Error::new("make", node.display(), error))?;
            attach(clone_tree(Path::new("/dev").join(name).as_path(), false)?.as_fd(), node.as_path())?;
        }
        make_folder(&dev.join("pts"))?;
        attach(devpts()?.as_fd(), dev.join("pts").as_path())?;
        pivot_into(&base, RootMount::Mounted)
    }
}

impl Task for FullProbe {
    fn once(&mut self) -> std::result::Result<(), Problem> {
        self.make().map_err(|error| told(&error))
    }
}

fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir(path).map_err(|error| Error::new("make folder", path.display(), error))
}
