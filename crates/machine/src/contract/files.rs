//! Files and trees to and from a machine.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use testyard_model::ProblemKind;
use testyard_protocol::{Carrier, Transfer};
use testyard_transfer::{UnpackOptions, pack, unpack};

use super::ground::{Broken, Ground, holds, same, shell};
use super::{Ability, Case};
use crate::client::TransferError;

pub(super) const CASES: &[Case] = &[
    Case { name: "a tree comes back as it was sent", needs: &[], run: round_trip },
    Case { name: "a tree travels in frames, too", needs: &[Ability::FramedTrees], run: in_frames },
    Case { name: "a transfer that breaks off leaves nothing that looks finished", needs: &[], run: broken_off },
    Case { name: "what is not there cannot be fetched", needs: &[], run: missing },
];

/// A folder of the client's, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(ground: &Ground<'_>) -> Result<Self, Broken> {
        let path = std::env::temp_dir().join(format!("testyard-contract-{}", ground.mark()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let (Some(parent), Some(name)) = (self.0.parent(), self.0.file_name())
            && let Ok(parent) = open(parent)
        {
            // What stays is in a temporary folder, by our own name.
            let _ = testyard_linux::files::remove_tree(parent.as_fd(), name);
        }
    }
}

fn open(folder: &Path) -> Result<OwnedFd, Broken> {
    Ok(rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn transfer(path: &str) -> Transfer {
    Transfer { path: path.into(), user: None, carrier: Carrier::Attached, environment: None }
}

fn make_tree(at: &Path) -> Result<(), Broken> {
    fs::create_dir_all(at.join("sub/deeper"))?;
    fs::write(at.join("plain"), b"content")?;
    fs::write(at.join("sub/script"), b"#!/bin/sh\n")?;
    fs::set_permissions(at.join("sub/script"), fs::Permissions::from_mode(0o751))?;
    fs::write(at.join("sub/deeper/big"), vec![b'z'; 1_000_000])?;
    fs::write(at.join(OsStr::new("odd \u{1}\n name")), b"")?;
    symlink("sub/script", at.join("link"))?;
    symlink("/nonexistent", at.join("dangling"))?;
    fs::hard_link(at.join("plain"), at.join("twin"))?;
    fs::set_permissions(at.join("sub/deeper"), fs::Permissions::from_mode(0o700))?;
    Ok(())
}

fn check_tree(at: &Path) -> Result<(), Broken> {
    same("a file's content", fs::read(at.join("plain"))?, b"content".to_vec())?;
    same("a file's mode", fs::metadata(at.join("sub/script"))?.mode() & 0o7777, 0o751)?;
    same("a folder's mode", fs::metadata(at.join("sub/deeper"))?.mode() & 0o7777, 0o700)?;
    same("a big file's length", fs::metadata(at.join("sub/deeper/big"))?.len(), 1_000_000)?;
    same("a link", fs::read_link(at.join("link"))?, PathBuf::from("sub/script"))?;
    same("a dangling link", fs::read_link(at.join("dangling"))?, PathBuf::from("/nonexistent"))?;
    holds("the odd name is there", at.join(OsStr::new("odd \u{1}\n name")).exists())?;
    same("the inode of a hard link", fs::metadata(at.join("twin"))?.ino(), fs::metadata(at.join("plain"))?.ino())
}

fn told<E: std::fmt::Display>(error: TransferError<E>) -> Broken {
    match error {
        TransferError::Machine(error) => error.into(),
        TransferError::Local(error) => Broken::new(format!("our own side failed: {error}")),
    }
}

fn send(from: &Path, mut out: &mut dyn Write) -> Result<(), testyard_transfer::TransferError> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .expect("there is a root");
    pack(root.as_fd(), from, &mut out).map(|_| ())
}

fn take(to: &Path, mut input: &mut dyn Read) -> Result<(), testyard_transfer::TransferError> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .expect("there is a root");
    let options = UnpackOptions { hostile: true, ..UnpackOptions::default() };
    unpack(&mut input, root.as_fd(), to, &options).map(|_| ())
}

fn round_trip(ground: &Ground<'_>) -> Result<(), Broken> {
    let scratch = Scratch::new(ground)?;
    let (sent, back) = (scratch.0.join("sent"), scratch.0.join("back"));
    make_tree(&sent)?;
    let inside = format!("/tmp/contract-{}", ground.mark());
    let mut connection = ground.connect()?;
    connection.push(transfer(&inside), |out| send(&sent, out)).map_err(told)?;
    let seen = ground.told(shell(&format!("cat {inside}/plain; stat -c %a {inside}/sub/script")))?;
    same("what is inside", seen.as_str(), "content751")?;
    connection.pull(transfer(&inside), |bytes| take(&back, bytes)).map_err(told)?;
    ground.told(shell(&format!("rm -r {inside}")))?;
    check_tree(&back)
}

fn in_frames(ground: &Ground<'_>) -> Result<(), Broken> {
    let scratch = Scratch::new(ground)?;
    let (sent, back) = (scratch.0.join("sent"), scratch.0.join("back"));
    make_tree(&sent)?;
    let inside = format!("/tmp/contract-{}", ground.mark());
    let session = ground.session()?;
    session.push(transfer(&inside), |out| send(&sent, out)).map_err(told)?;
    session.pull(transfer(&inside), |bytes| take(&back, bytes)).map_err(told)?;
    ground.told(shell(&format!("rm -r {inside}")))?;
    check_tree(&back)
}

fn broken_off(ground: &Ground<'_>) -> Result<(), Broken> {
    let scratch = Scratch::new(ground)?;
    let sent = scratch.0.join("sent");
    make_tree(&sent)?;
    let mut whole = Vec::new();
    send(&sent, &mut whole).map_err(|error| Broken::new(error.to_string()))?;
    let mark = ground.mark();
    let mut connection = ground.connect()?;
    let outcome =
        connection.push(transfer(&format!("/tmp/contract-{mark}")), |out| out.write_all(&whole[..whole.len() / 2]));
    holds("half a tree is refused", outcome.is_err())?;
    let left = ground.told(shell(&format!("ls -d /tmp/contract-{mark}* /tmp/.testyard-* 2>/dev/null; :")))?;
    same("what is left", left.as_str(), "")?;
    ground.told(shell("true")).map(|_| ())
}

fn missing(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut connection = ground.connect()?;
    let nothing = |bytes: &mut dyn Read| std::io::copy(bytes, &mut std::io::sink()).map(|_| ());
    let Err(TransferError::Machine(error)) = connection.pull(transfer("/nonexistent/tree"), nothing) else {
        return Err(Broken::new("a missing tree could be fetched"));
    };
    let problem = error.problem();
    same("the kind of problem", problem.kind, ProblemKind::NotFound)?;
    holds(format!("the problem names it: {problem}"), problem.to_string().contains("/nonexistent/tree"))?;
    connection.status()?;
    Ok(())
}
