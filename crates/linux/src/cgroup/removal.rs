//! Ending what runs in a group, and removing its folders.
//!
//! A group's folder is removed as such, never with a recursive delete of files: the kernel's files in it are no
//! files that could be deleted, and a name that turned out to be something else must stop the work.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::Pid;

use super::group::{Folder, write_file};
use crate::pause;
use crate::process::{await_end, pidfd_open, pidfd_signal};

/// How often the processes of a group are looked at anew: one that forks meanwhile shows in the next round.
const ROUNDS: usize = 200;
/// How long one round waits for what it killed.
const ROUND: Duration = Duration::from_millis(25);
/// For the kernel, which has no event for the end of a count.
const MOMENT: Duration = Duration::from_micros(500);
/// The deepest nesting that is followed.
const DEEPEST: usize = 64;

pub(super) fn kill(folders: &[Folder]) -> rustix::io::Result<()> {
    for _ in 0..ROUNDS {
        for folder in folders {
            // Version 2, since Linux 5.14: all at once, forks included.
            let _ = write_file(folder.descriptor.as_fd(), "cgroup.kill", b"1");
        }
        let inside = processes_of(folders)?;
        if inside.is_empty() {
            return Ok(());
        }
        end(inside, folders)?;
    }
    Err(Errno::BUSY)
}

fn end(listed: Vec<Pid>, folders: &[Folder]) -> rustix::io::Result<()> {
    let opened: Vec<(Pid, OwnedFd)> = listed.into_iter().filter_map(|pid| Some((pid, pidfd_open(pid).ok()?))).collect();
    // A number that is still listed now, after its descriptor was opened, either is the process of the descriptor,
    // or that one has ended and takes no signal: a stranger who got the number is never hit.
    let still = processes_of(folders)?;
    let mut ending = Vec::new();
    for (_, pidfd) in opened.into_iter().filter(|(pid, _)| still.contains(pid)) {
        match pidfd_signal(pidfd.as_fd(), libc::SIGKILL) {
            Ok(()) => ending.push(pidfd),
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error.errno()),
        }
    }
    await_end(ending, ROUND).map(drop).map_err(|error| error.errno())
}

fn processes_of(folders: &[Folder]) -> rustix::io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for folder in folders {
        found.extend(processes_below(&folder.descriptor)?);
    }
    Ok(found)
}

/// Every process of a folder and the folders below it, as far as this pid namespace knows them.
pub(super) fn processes_below(folder: &OwnedFd) -> rustix::io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    visit(folder, 0, &mut |folder| {
        let text = match read_all(folder, "cgroup.procs") {
            // Removed meanwhile, or a group of threads, whose processes the group above lists.
            Err(Errno::NODEV | Errno::NOENT | Errno::OPNOTSUPP) => return Ok(()),
            other => other?,
        };
        found.extend(text.split(|byte| *byte == b'\n').filter_map(|line| {
            let number = std::str::from_utf8(line).ok()?.parse().ok()?;
            // Processes of other pid namespaces are shown as 0.
            Pid::from_raw(number)
        }));
        Ok(())
    })?;
    Ok(found)
}

pub(super) fn remove(folders: &[Folder], name: &OsStr) -> rustix::io::Result<()> {
    for attempt in 0.. {
        kill(folders)?;
        let removed = folders.iter().try_for_each(|folder| remove_folder(&folder.descriptor, name));
        match removed {
            // A process that has ended is off the list before it is off the count.
            Err(Errno::BUSY) if attempt < ROUNDS => pause(MOMENT),
            other => return other,
        }
    }
    Ok(())
}

/// Removes an empty group and the groups in it, by its descriptor: its name in the folder above it is all that is
/// needed beside, and the descriptor leads there also where no path does.
pub(super) fn remove_folder(folder: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    remove_below(folder, 0)?;
    let mut path = OsString::from("../");
    path.push(name);
    match unlinkat(folder, &path, AtFlags::REMOVEDIR) {
        // Already removed: a removed folder has no way up any more.
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        other => other,
    }
}

fn remove_below(folder: &OwnedFd, depth: usize) -> rustix::io::Result<()> {
    for name in groups_in(folder)? {
        if depth >= DEEPEST {
            return Err(Errno::LOOP);
        }
        match open_group(folder, &name) {
            Ok(below) => remove_below(&below, depth + 1)?,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        }
        match unlinkat(folder, name.as_os_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn visit(
    folder: &OwnedFd,
    depth: usize,
    each: &mut impl FnMut(&OwnedFd) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    each(folder)?;
    if depth >= DEEPEST {
        return Err(Errno::LOOP);
    }
    for name in groups_in(folder)? {
        match open_group(folder, &name) {
            Ok(below) => visit(&below, depth + 1, each)?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn groups_in(folder: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    let entries = match Dir::read_from(folder) {
        Err(Errno::NOENT) => return Ok(names),
        other => other?,
    };
    for entry in entries {
        let entry = match entry {
            // The folder was removed while it was listed.
            Err(Errno::NOENT) => break,
            other => other?,
        };
        let name = entry.file_name().to_bytes();
        if entry.file_type() == FileType::Directory && name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

fn open_group(folder: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder, name, flags, Mode::empty())
}

fn read_all(folder: &OwnedFd, file: &str) -> rustix::io::Result<Vec<u8>> {
    let file = openat(folder, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    let mut chunk = [0_u8; 4096];
    loop {
        match rustix::io::read(&file, &mut chunk)? {
            0 => return Ok(text),
            length => text.extend_from_slice(&chunk[..length]),
        }
    }
}
