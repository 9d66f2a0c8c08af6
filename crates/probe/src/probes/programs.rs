//! Programs: found, and really started.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use testyard_linux::process::{Pid, SingleThreaded, kill_descendants, pidfd_open};

use crate::finding::{Done, Lacking, Outcome, Step};
use crate::provide;

/// Where system programs lie that are not in an ordinary user's `PATH`.
const SYSTEM: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Every program that a probe looks for: their files are part of what the answers depend on.
pub(crate) const PROGRAMS: [&str; 24] = [
    "bwrap",
    "crun",
    "git",
    "mmdebstrap",
    "munged",
    "newgidmap",
    "newuidmap",
    "nft",
    "pasta",
    "qemu-system-aarch64",
    "qemu-system-x86_64",
    "runc",
    "scontrol",
    "slurmctld",
    "slurmd",
    "srun",
    "ssh",
    "ssh-keygen",
    "sshd",
    "sudo",
    "tar",
    "true",
    "unshare",
    "youki",
];

/// Where a program is, in `PATH` or where system programs lie.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(SYSTEM.into_iter().map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_absolute() && is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Where a program is, else which package has it.
pub(crate) fn require(program: &str, package: &str) -> Result<PathBuf, Lacking> {
    find(program)
        .ok_or_else(|| Lacking::new(format!("{program} is not installed")).provide(provide::package(package, program)))
}

/// A command without input, in the root folder, that speaks English.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// How long one program may take; shorter than any deadline, so that what it said until then can be told.
const PATIENCE: Duration = Duration::from_secs(6);

/// Runs a command to its end; anything but success is what is lacking, in the program's own words.
pub(crate) fn succeed(command: &mut Command) -> Result<Output, Lacking> {
    let name = Path::new(command.get_program()).file_name().unwrap_or(OsStr::new("it")).display().to_string();
    let child = command.spawn().step(format_args!("starting {name}"))?;
    let pidfd = i32::try_from(child.id()).ok().and_then(Pid::from_raw).map(pidfd_open);
    let timeout = Timespec::try_from(PATIENCE).ok();
    let ended = match &pidfd {
        Some(Ok(pidfd)) => {
            poll(&mut [PollFd::new(pidfd, PollFlags::IN)], timeout.as_ref()).is_ok_and(|ready| ready > 0)
        }
        _ => true,
    };
    // What it left behind may hold its output open for ever. A probe's process has one thread, and nothing below it
    // that is not this program's; a test of this function has neither.
    if SingleThreaded::check().is_ok() {
        let _ = kill_descendants(rustix::process::getpid());
    }
    let output = child.wait_with_output().step(format_args!("waiting for {name}"))?;
    match (ended, output.status.success()) {
        (true, true) => Ok(output),
        (true, false) => Err(failed(&name, &output)),
        (false, _) => {
            let said = last_words(&output.stderr).map(|words| format!(", and said: {words}")).unwrap_or_default();
            Err(Lacking::new(format!("{name} did not end within {PATIENCE:?}{said}")))
        }
    }
}

/// What a program that failed said.
pub(crate) fn failed(name: &str, output: &Output) -> Lacking {
    let said = last_words(&output.stderr).or_else(|| last_words(&output.stdout));
    Lacking::new(format!("{name} failed: {}", said.unwrap_or_else(|| output.status.to_string())))
}

/// The last line that says something, shortened.
fn last_words(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(300).collect())
}

/// The first line that a program writes when asked for its version.
pub(crate) fn version(program: &Path, option: &str) -> Result<String, Lacking> {
    let output = succeed(command(program).arg(option))?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(text.lines().next().unwrap_or("it started").trim().to_owned())
}

pub(crate) fn mmdebstrap() -> Outcome {
    let program = require("mmdebstrap", "mmdebstrap")?;
    let version = version(&program, "--version")?;
    require("tar", "tar")?;
    Ok(Done::new(format!("{version} starts")).detail("also needs root, or the ability user-namespace-range"))
}

pub(crate) fn git() -> Outcome {
    Ok(Done::new(format!("{} starts", version(&require("git", "git")?, "--version")?)))
}

pub(crate) fn bubblewrap() -> Outcome {
    let program = require("bwrap", "bubblewrap")?;
    let inner = require("true", "coreutils")?;
    succeed(command(&program).args(["--ro-bind", "/", "/", "--unshare-pid", "--"]).arg(inner))?;
    Ok(Done::new(format!("{} ran true in a sandbox", version(&program, "--version")?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_and_speak_for_themselves() {
        assert!(find("true").is_some());
        assert!(find("there-is-no-such-program").is_none());
        let shell = require("sh", "dash").expect("there is always a shell");
        let error = succeed(command(&shell).args(["-c", "echo one >&2; echo two >&2; echo >&2; exit 3"]));
        assert_eq!(error.expect_err("it failed").reason, "sh failed: two");
        let error = succeed(command(&shell).args(["-c", "exit 3"]));
        assert_eq!(error.expect_err("it failed").reason, "sh failed: exit status: 3");
    }

    #[test]
    fn the_list_is_sorted() {
        assert!(PROGRAMS.is_sorted());
    }
}
