//! A machine whose disk is limited: its files are in an ext4 file system in a file of that size, on a loop device.
//!
//! The file system is mounted by the machine's agent alone, in its own mount namespace, and so goes with it. The ids in
//! it are those that the machine sees: they are mapped when it is mounted.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use testyard_linux::{Error, files, mount};
use testyard_machine::backend::{BackendError, MachinePlace};
use testyard_model::{ByteSize, MachineSpec, Problem, ProblemKind};

use super::ids::{self, Sort};
use super::{refuse, store};

/// The least that a file system and a machine's first files take.
const LEAST: ByteSize = ByteSize::mebibytes(16);

/// Where the program that makes the file system may be.
const PROGRAMS: [&str; 4] =
    ["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4", "/usr/bin/mkfs.ext4", "/usr/local/sbin/mkfs.ext4"];

/// Refuses a limit that cannot be had here, and says what would provide it.
pub(super) fn check(spec: &MachineSpec) -> Result<(), BackendError> {
    let Some(size) = spec.disk else { return Ok(()) };
    let asked = || format!("with a disk of {size}");
    if size < LEAST {
        let problem = Problem::new(ProblemKind::Usage, format!("no machine can live on a disk of {size}"));
        return Err(problem.hint(format!("give it at least {LEAST}")).into());
    }
    if ids::sort_of(spec) == Sort::Single {
        let hint = "run testyard as root for --disk, or leave it out: each environment has a limit of its own";
        return Err(refuse(asked(), hint));
    }
    if program().is_none() {
        return Err(refuse(asked(), "install mkfs.ext4: apt-get install e2fsprogs"));
    }
    match mount::check_disk_images() {
        Ok(()) => Ok(()),
        Err(error) if error.is_absent() => Err(refuse(
            asked(),
            "load the kernel's loop devices: modprobe loop; in a container, give it /dev/loop-control",
        )),
        Err(error) => Err(BackendError::from(error.problem().hint("leave --disk out"))),
    }
}

fn program() -> Option<PathBuf> {
    PROGRAMS.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// The file of a machine whose disk is limited.
pub(super) fn image(place: &MachinePlace) -> Option<PathBuf> {
    place.spec.disk.map(|_| store::folder(place).join("disk.ext4"))
}

/// Makes the file and the file system in it. Only what is written takes room on the host.
pub(super) fn create(place: &MachinePlace, path: &Path) -> Result<(), BackendError> {
    let size = place.spec.disk.unwrap_or(LEAST).0;
    // What the file system itself needs is not counted.
    let length = size.saturating_add(size / 32).saturating_add(4 << 20);
    let failed = |source| BackendError::Host { operation: "make the disk", machine: place.name.clone(), source };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .and_then(|file| rustix::fs::ftruncate(&file, length))
        .map_err(|errno| failed(Error::new("make", path.display(), errno)))?;
    let program = program().unwrap_or_else(|| PathBuf::from(PROGRAMS[0]));
    let mut command = Command::new(&program);
    // No journal: after a crash of the host the files of a machine for tests are as good as its upper layer's.
    command.args(["-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "nodiscard,root_owner=0:0"]);
    let output = command.arg(path).env_clear().current_dir("/").stdin(Stdio::null()).output();
    let output = output.map_err(|error| failed(Error::new("run", program.display(), error)))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Problem::new(ProblemKind::System, format!("cannot make the disk of machine {}", place.name))
        .because(format!("{} said: {said}", program.display()))
        .into())
}

/// Copies the file for a clone.
pub(super) fn copy(from: &MachinePlace, to: &MachinePlace) -> Result<(), BackendError> {
    if from.machine_socket().exists() {
        // What is mounted may be half written.
        let message = format!("machine {} has a disk of its own, which cannot be copied while it runs", from.name);
        return Err(Problem::new(ProblemKind::WrongState, message)
            .hint(format!("stop it first: testyard stop {}", from.name))
            .into());
    }
    let failed = |source| BackendError::Host { operation: "copy the disk", machine: to.name.clone(), source };
    let open = |path: PathBuf| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| failed(Error::new("open", path.display(), errno)))
    };
    if let Some(fresh) = image(to) {
        std::fs::remove_file(&fresh).map_err(|error| failed(Error::new("remove", fresh.display(), error)))?;
    }
    let (source, target) = (open(store::folder(from))?, open(store::folder(to))?);
    let options = files::CopyOptions { owners: false, attributes: false, times: false };
    files::copy_tree(source.as_fd(), target.as_fd(), options).map(drop).map_err(failed)
}
