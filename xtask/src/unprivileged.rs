//! The part of the suite that runs once more as an ordinary user, where root runs the first round.
//!
//! A crate names its test programs for this in its manifest; `lib` means the unit tests:
//!
//! ```toml
//! [package.metadata.testyard]
//! unprivileged = ["lib", "contract"]
//! ```
//!
//! They run from copies, because an ordinary user may not be able to read the target folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::cargo::{cargo, metadata, must_succeed, packages, program, shown, target_folder, workspace_root};
use crate::fault::{Fault, Outcome};
use crate::requirements::{ORDINARY_USER, user_id};

/// Where programs, sources, home and temporary files of the ordinary user stand during its round.
pub(crate) struct Stage {
    folder: PathBuf,
    skip_log: PathBuf,
    user: u32,
    tests: Vec<PathBuf>,
}

impl Stage {
    /// Copies everything; a reason where there is nobody to run as.
    pub(crate) fn prepare() -> Outcome<Result<Self, String>> {
        let mut stage = match Self::empty()? {
            Ok(stage) => stage,
            Err(reason) => return Ok(Err(reason)),
        };
        match stage.take_test_programs() {
            Ok(()) => Ok(Ok(stage)),
            Err(fault) => stage.remove().and(Err(fault)),
        }
    }

    /// Only the folders, and the examples.
    pub(crate) fn empty() -> Outcome<Result<Self, String>> {
        let Some(user) = user_id(ORDINARY_USER) else {
            return Ok(Err(format!("there is no user `{ORDINARY_USER}`; useradd --create-home {ORDINARY_USER}")));
        };
        // A short path: sockets inside must fit into 108 bytes.
        let folder = PathBuf::from(format!("/tmp/ty-user-{}", std::process::id()));
        let stage = Self { skip_log: folder.join("skips.jsonl"), folder, user, tests: Vec::new() };
        match stage.fill() {
            Ok(()) => Ok(Ok(stage)),
            // What was begun goes; why it could not be finished is what is worth saying.
            Err(fault) => stage.remove().and(Err(fault)),
        }
    }

    fn fill(&self) -> Outcome<()> {
        for folder in ["bin", "tests", "home", "tmp", "source"] {
            make_folder(&self.folder.join(folder))?;
        }
        let examples = workspace_root().join("examples");
        if examples.is_dir() {
            must_succeed(program("cp").args(["-r", "--"]).arg(&examples).arg(self.folder.join("source")))?;
        }
        std::fs::write(&self.skip_log, "").map_err(|error| Fault::file(&self.skip_log, &error))?;
        let mut owner = program("chown");
        owner.args(["-R", &self.user.to_string()]).arg(self.folder.join("home")).arg(self.folder.join("tmp"));
        must_succeed(owner.arg(self.folder.join("source")).arg(&self.skip_log))
    }

    fn take_test_programs(&mut self) -> Outcome<()> {
        let built = target_folder()?.join("debug");
        for name in ["testyard", "testyard-agent"] {
            copy(&built.join(name), &self.folder.join("bin").join(name))?;
        }
        for (index, test) in test_programs()?.iter().enumerate() {
            let name = test.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            // Numbered, because two crates may both have tests of one name.
            let copied = self.folder.join("tests").join(format!("{index}-{name}"));
            copy(test, &copied)?;
            self.tests.push(copied);
        }
        Ok(())
    }

    /// Copies a file or folder of root's into the stage, and gives it to the ordinary user; where it is then.
    pub(crate) fn take(&self, from: &Path, to: &str) -> Outcome<PathBuf> {
        let to = self.folder.join(to);
        must_succeed(program("cp").args(["-r", "--preserve=mode,links", "--"]).arg(from).arg(&to))?;
        must_succeed(program("chown").args(["-R", "--no-dereference", &self.user.to_string()]).arg(&to))?;
        Ok(to)
    }

    /// One command for each test program, to be run as the ordinary user.
    pub(crate) fn programs(&self) -> Vec<Command> {
        self.tests.iter().map(|test| self.command(test)).collect()
    }

    /// A program as the ordinary user runs it, with nothing of root's environment.
    pub(crate) fn command(&self, test: &Path) -> Command {
        let user = self.user;
        let mut command = program("setpriv");
        command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()]);
        command.arg("--").arg(test).current_dir(&self.folder).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("LANG", "C.UTF-8").env("USER", ORDINARY_USER).env("RUST_BACKTRACE", "1");
        command.env("HOME", self.folder.join("home")).env("TMPDIR", self.folder.join("tmp"));
        command.env("TESTYARD_TEST_BIN", self.folder.join("bin"));
        command.env("TESTYARD_TEST_SOURCE", self.source());
        command.env("TESTYARD_SKIP_LOG", &self.skip_log);
        command
    }

    /// The copy of the tree, or as much of it as there is.
    pub(crate) fn source(&self) -> PathBuf {
        self.folder.join("source")
    }

    /// Where its tests write what they skipped.
    pub(crate) fn skip_log(&self) -> &Path {
        &self.skip_log
    }

    /// Empties the log between two programs.
    pub(crate) fn clear_skip_log(&self) -> Outcome<()> {
        std::fs::write(&self.skip_log, "").map_err(|error| Fault::file(&self.skip_log, &error))
    }

    /// Removes all of it, never into what may be mounted there.
    pub(crate) fn remove(self) -> Outcome<()> {
        must_succeed(program("rm").args(["-r", "--one-file-system", "--"]).arg(&self.folder))
    }
}

fn make_folder(folder: &Path) -> Outcome<()> {
    std::fs::create_dir_all(folder).map_err(|error| Fault::file(folder, &error))
}

fn copy(from: &Path, to: &Path) -> Outcome<()> {
    std::fs::copy(from, to).map(drop).map_err(|error| Fault::file(from, &error))
}

/// The compiled test programs that manifests name.
fn test_programs() -> Outcome<Vec<PathBuf>> {
    let wanted = wanted(&metadata(false)?);
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = cargo();
    command.args(["test", "--no-run", "--locked", "--message-format=json-render-diagnostics"]);
    for (package, _) in &wanted {
        command.args(["--package", package]);
    }
    let fault = |why: String| Fault::Program { line: "cargo test --no-run".to_owned(), why };
    println!("$ {}", shown(&command));
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| fault(error.to_string()))?;
    if !output.status.success() {
        return Err(fault("it failed; what it printed is above".to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages.filter_map(|message| executable(&wanted, &message)).collect())
}

/// Each package with the names of its test programs.
fn wanted(metadata: &Value) -> Vec<(String, Vec<String>)> {
    let mut wanted = Vec::new();
    for package in packages(metadata) {
        let names = package["metadata"]["testyard"]["unprivileged"].as_array();
        let names: Vec<String> = names.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        if let (Some(package), false) = (package["name"].as_str(), names.is_empty()) {
            wanted.push((package.to_owned(), names));
        }
    }
    wanted
}

fn executable(wanted: &[(String, Vec<String>)], message: &Value) -> Option<PathBuf> {
    let target = &message["target"];
    let kind = target["kind"][0].as_str()?;
    // Integration tests go by their own name, unit tests of libraries and programs by their kind.
    let name = if kind == "test" { target["name"].as_str()? } else { kind };
    let manifest = message["manifest_path"].as_str()?;
    let id = message["package_id"].as_str()?;
    let executable = message["executable"].as_str()?;
    let named = wanted.iter().any(|(package, names)| {
        let ours = id.contains(&format!("#{package}@")) || manifest.ends_with(&format!("/{package}/Cargo.toml"));
        ours && names.iter().any(|wanted| wanted == name)
    });
    (named && message["profile"]["test"] == true).then(|| PathBuf::from(executable))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn manifests_name_their_programs() {
        let metadata = json!({"packages": [
            {"name": "a", "metadata": {"testyard": {"unprivileged": ["lib", "contract"]}}},
            {"name": "b", "metadata": null},
        ]});
        let wanted = wanted(&metadata);
        assert_eq!(wanted, [("a".to_owned(), vec!["lib".to_owned(), "contract".to_owned()])]);
        let message = |kind: &str, name: &str, test: bool| {
            json!({
                "package_id": "path+file:///w/crates/x#a@0.1.0", "manifest_path": "/w/crates/x/Cargo.toml",
                "target": {"kind": [kind], "name": name}, "profile": {"test": test}, "executable": "/t/a",
            })
        };
        assert_eq!(executable(&wanted, &message("lib", "a", true)), Some(PathBuf::from("/t/a")));
        assert_eq!(executable(&wanted, &message("test", "contract", true)), Some(PathBuf::from("/t/a")));
        assert_eq!(executable(&wanted, &message("test", "other", true)), None);
        assert_eq!(executable(&wanted, &message("lib", "a", false)), None);
    }
}
