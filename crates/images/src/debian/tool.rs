//! mmdebstrap as a process: where it works, how it is started, what it says, and that nothing of it stays.
//!
//! As root it mounts, and starts what may outlive it. So it has namespaces of its own, and is their first process: what it
//! has mounted and started ends with it, and it ends with us, whoever is killed in which way. What it unpacks is in a
//! file system in memory that is mounted there, and is gone with the rest; where memory is short, in a temporary folder
//! of the store's, which whoever comes next removes.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use testyard_linux::Error as SystemError;

use super::{BuildError, INCLUDED, Release};
use crate::store::{Staged, Staging};

/// Lines of the log that an error carries.
const TAIL: usize = 12;
/// Makes a mount and a process namespace. The end of this program, by whatever signal, kills the first process in them,
/// and that everything else.
const NAMESPACES: [&str; 6] = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--"];
/// Where the tool unpacks in memory, as nobody else sees it.
const MEMORY: &str = "/dev/shm";
/// For a shell within the namespaces: the other words are the command.
const IN_MEMORY: &str = "mount -t tmpfs -o mode=755 tmpfs /dev/shm && exec \"$@\"";

/// Where the tool works.
pub(super) enum Workplace {
    /// In namespaces and in memory of its own.
    Memory,
    /// In namespaces of its own, and a folder of the store's.
    Disk(Staged),
    /// In a folder of the store's. Root that may make no namespaces may mount nothing either.
    Bare(Staged),
    /// Where it likes: an ordinary user's makes namespaces by itself, and runs as ids that may not enter our closed
    /// folders.
    Any,
}

impl Workplace {
    /// Picks one: in memory where there is plenty, for a file costs a tenth there.
    pub(super) fn find(staging: &Staging) -> Result<Self, SystemError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Any);
        }
        match (can_make_namespaces(), memory_is_plenty()) {
            (true, true) => Ok(Self::Memory),
            (true, false) => staging.create().map(Self::Disk),
            (false, _) => staging.create().map(Self::Bare),
        }
    }

    /// What stands before the tool's own name.
    fn words(&self) -> Vec<&'static str> {
        let mut words = match self {
            Self::Memory | Self::Disk(_) => vec!["setpriv", "--pdeathsig", "KILL", "--"],
            // It removes what it has made when it is told to end.
            Self::Bare(_) | Self::Any if installed("setpriv") => vec!["setpriv", "--pdeathsig", "TERM", "--"],
            Self::Bare(_) | Self::Any => Vec::new(),
        };
        if let Self::Memory | Self::Disk(_) = self {
            words.extend(NAMESPACES);
        }
        if let Self::Memory = self {
            words.extend(["sh", "-c", IN_MEMORY, "sh"]);
        }
        if let Self::Memory | Self::Disk(_) = self {
            // Where it fails it tells its process group to end, which it has not got in here.
            words.push("setsid");
        }
        words.push("mmdebstrap");
        words
    }

    /// Starts the tool, which writes its archive to a pipe.
    pub(super) fn start(&self, release: &Release) -> Result<Child, BuildError> {
        let words = self.words();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let temporary = match self {
            Self::Memory => Some(PathBuf::from(MEMORY)),
            Self::Disk(staged) | Self::Bare(staged) => Some(staged.path()),
            Self::Any => None,
        };
        command
            .envs(temporary.map(|folder| ("TMPDIR", folder)))
            .args(["--variant=minbase", "--format=tar", "--include", INCLUDED])
            .args((!release.packages.is_empty()).then(|| format!("--include={}", release.packages)))
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .arg(&release.suite)
            .arg("-")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => BuildError::NoTool,
                _ => BuildError::Start(error),
            })
    }

    /// After the tool has ended.
    pub(super) fn clear(self) -> Result<(), SystemError> {
        match self {
            Self::Disk(staged) | Self::Bare(staged) => staged.discard(),
            Self::Memory | Self::Any => Ok(()),
        }
    }
}

/// Done rather than asked: root of a container may be refused.
fn can_make_namespaces() -> bool {
    let mut command = Command::new(NAMESPACES[0]);
    command.args(&NAMESPACES[1..]).arg("true");
    let ended = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    installed("setpriv") && ended.is_ok_and(|status| status.success())
}

/// Whether a tmpfs may take some hundred megabytes for a minute.
fn memory_is_plenty() -> bool {
    const WANTED: u64 = 4 << 20;
    Path::new(MEMORY).is_dir() && crate::tree::available_memory() > WANTED
}

pub(super) fn installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// The tool's output, whose end is an error unless the tool ended well.
pub(super) struct EndedWell<'a> {
    pub(super) output: ChildStdout,
    pub(super) child: &'a mut Child,
    pub(super) status: &'a mut Option<ExitStatus>,
}

impl Read for EndedWell<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.output.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            let status = self.child.wait()?;
            *self.status = Some(status);
            if !status.success() {
                return Err(std::io::Error::other(format!("mmdebstrap failed ({status})")));
            }
        }
        Ok(read)
    }
}

/// Keeps the log and tells its lines; its last ones come back.
pub(super) fn follow(errors: impl Read, log: &Path, told: &mut dyn FnMut(String)) -> Vec<String> {
    let mut file = fs::File::create(log).ok();
    let mut tail = VecDeque::new();
    let mut lines = BufReader::new(errors);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        if let Some(open) = &mut file
            && open.write_all(&line).is_err()
        {
            // The log is a courtesy: a full disk is reported by the import.
            file = None;
        }
        let text = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
        line.clear();
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(text.clone());
        told(text);
    }
    tail.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_fails_late_spoils_its_archive() {
        let mut child =
            Command::new("sh").args(["-c", "printf whole; exit 3"]).stdout(Stdio::piped()).spawn().expect("a shell");
        let output = child.stdout.take().expect("piped");
        let mut status = None;
        let mut source = EndedWell { output, child: &mut child, status: &mut status };
        let mut text = Vec::new();
        assert!(source.read_to_end(&mut text).is_err());
        assert_eq!(text, b"whole");
        assert_eq!(status.and_then(|status| status.code()), Some(3));
    }
}
