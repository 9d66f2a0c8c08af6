//! Running programs, and what cargo knows of the workspace.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::fault::{Fault, Outcome};

/// The workspace's top folder. What cargo says now comes before what it said when this program was built: the
/// checkout may have been moved, or share its target folder with another one.
pub(crate) fn workspace_root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// The cargo that started this program, in the workspace's top folder.
pub(crate) fn cargo() -> Command {
    program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A program, in the workspace's top folder.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(workspace_root());
    command
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs it with its output on the terminal; whether it exited with 0.
pub(crate) fn succeeds(command: &mut Command) -> Outcome<bool> {
    match command.status() {
        Ok(status) => Ok(status.success()),
        Err(error) => Err(Fault::Program { line: shown(command), why: error.to_string() }),
    }
}

/// Runs it and stops the verb where it does not exit with 0.
pub(crate) fn must_succeed(command: &mut Command) -> Outcome<()> {
    if succeeds(command)? {
        return Ok(());
    }
    Err(Fault::Program { line: shown(command), why: "it failed; what it printed is above".to_owned() })
}

/// Runs it, lets both of its streams through line by line, and hands each line to `look` as well.
pub(crate) fn watched(command: &mut Command, mut look: impl FnMut(&str)) -> Outcome<bool> {
    let started = |error: std::io::Error| Fault::Program { line: format!("{command:?}"), why: error.to_string() };
    // One pipe for both streams keeps the order in which they were written.
    let (reader, writer) = std::io::pipe().map_err(started)?;
    let second = writer.try_clone().map_err(started)?;
    command.stdin(Stdio::null()).stdout(writer).stderr(second);
    let mut child = command.spawn().map_err(|error| Fault::Program { line: shown(command), why: error.to_string() })?;
    // The command still holds our ends of the pipe; without closing them the reading would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    for line in BufReader::new(reader).split(b'\n') {
        let Ok(bytes) = line else { break };
        let text = String::from_utf8_lossy(&bytes);
        println!("{text}");
        look(&text);
    }
    let status = child.wait().map_err(|error| Fault::Program { line: shown(command), why: error.to_string() })?;
    Ok(status.success())
}

/// Whether a program of this name can be found.
pub(crate) fn has_program(name: &str) -> bool {
    // The administrator's folders are not in an ordinary user's PATH on Debian.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').any(|folder| Path::new(folder).join(name).is_file())
}

/// Whether cargo has this subcommand.
pub(crate) fn has_subcommand(name: &str) -> bool {
    cargo().args([name, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// `cargo metadata`, with or without the packages that are not ours.
pub(crate) fn metadata(with_dependencies: bool) -> Outcome<Value> {
    let mut command = cargo();
    command.args(["metadata", "--format-version=1", "--locked"]);
    if !with_dependencies {
        command.arg("--no-deps");
    }
    let fault = |why: String| Fault::Program { line: "cargo metadata".to_owned(), why };
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| fault(error.to_string()))?;
    if !output.status.success() {
        return Err(fault("it failed; what it printed is above".to_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| fault(error.to_string()))
}

/// The packages of a `cargo metadata` answer.
pub(crate) fn packages(metadata: &Value) -> &[Value] {
    metadata["packages"].as_array().map_or(&[], Vec::as_slice)
}

/// Whether the workspace has a package of this name.
pub(crate) fn has_package(name: &str) -> Outcome<bool> {
    Ok(packages(&metadata(false)?).iter().any(|package| package["name"] == name))
}

/// The triple of the host's own toolchain, as `rustc` says it.
pub(crate) fn host_triple() -> Outcome<String> {
    let mut command = program("rustc");
    command.arg("-vV");
    let fault = |why: String| Fault::Program { line: "rustc -vV".to_owned(), why };
    let output = command.output().map_err(|error| fault(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| fault("it names no host".to_owned()))
}

/// Where cargo puts what it builds.
pub(crate) fn target_folder() -> Outcome<PathBuf> {
    let metadata = metadata(false)?;
    let folder = metadata["target_directory"].as_str();
    folder.map(PathBuf::from).ok_or_else(|| Fault::Program {
        line: "cargo metadata".to_owned(),
        why: "it names no target folder".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_streams_are_seen_in_order() {
        let mut lines = Vec::new();
        let mut command = program("sh");
        command.args(["-c", "echo one; echo two >&2; echo three; exit 3"]);
        let passed = watched(&mut command, |line| lines.push(line.to_owned())).expect("sh starts");
        assert!(!passed);
        assert_eq!(lines, ["one", "two", "three"]);
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(has_program("sh"));
        assert!(!has_program("no-such-program-anywhere"));
    }
}
