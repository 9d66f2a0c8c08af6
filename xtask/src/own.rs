//! The project's integration tests, run by Testyard itself: the suite in the root `testyard.toml`.
//!
//! A suite's tests are files. So each test function of the chosen test programs gets one, empty, beside a link to its
//! program:
//!
//! ```text
//! target/own/programs/NAME, NAME.folder     the program, and the folder it starts in
//! target/own/isolated/NAME/module::test     run in an environment of its own
//! target/own/plain/NAME/module::test        it makes machines itself, and runs on the host as it is
//! ```

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::cargo::{cargo, must_succeed, program, shown, target_folder};
use crate::fault::{Fault, Outcome};

/// A package whose integration tests Testyard runs.
struct Chosen {
    package: &'static str,
    /// The folder of its tests below `target/own`.
    kind: &'static str,
}

const CHOSEN: [Chosen; 5] = [
    Chosen { package: "testyard-registry", kind: "isolated" },
    Chosen { package: "testyard-sync", kind: "isolated" },
    Chosen { package: "testyard-transfer", kind: "isolated" },
    Chosen { package: "testyard-cli", kind: "plain" },
    Chosen { package: "bad-input-tests", kind: "plain" },
];

/// What another runner is told to leave to this suite, in nextest's language.
pub(crate) fn others() -> String {
    let packages: Vec<String> = CHOSEN.iter().map(|chosen| format!("package({})", chosen.package)).collect();
    format!("not (kind(test) and ({}) and not test(alone))", packages.join(" or "))
}

/// The suite, laid out, with a home of its own.
pub(crate) struct Own {
    home: PathBuf,
    folder: PathBuf,
}

impl Own {
    /// Builds the test programs and lays their tests out.
    pub(crate) fn lay_out() -> Outcome<Self> {
        let folder = target_folder()?.join("own");
        if folder.exists() {
            must_succeed(program("rm").args(["-r", "--one-file-system", "--"]).arg(&folder))?;
        }
        make_folder(&folder.join("programs"))?;
        for (chosen, name, test_program, starts_in) in built()? {
            let link = folder.join("programs").join(&name);
            std::os::unix::fs::symlink(&test_program, &link).map_err(|error| Fault::file(&link, &error))?;
            write(&folder.join("programs").join(format!("{name}.folder")), &starts_in)?;
            let tests = folder.join(chosen.kind).join(&name);
            make_folder(&tests)?;
            for test in listed(&test_program)? {
                write(&tests.join(test), "")?;
            }
        }
        write(&folder.join("skips.jsonl"), "")?;
        // A short path: sockets inside must fit into 108 bytes.
        let home = PathBuf::from(format!("/tmp/ty-own-{}", std::process::id()));
        make_folder(&home)?;
        Ok(Self { home, folder })
    }

    /// The command that runs it.
    pub(crate) fn command(&self) -> Outcome<Command> {
        let mut command = self.testyard()?;
        // What passed would bury the rest.
        command.args(["run", ".", "--quiet"]);
        Ok(command)
    }

    /// Where its tests write what they skipped.
    pub(crate) fn skip_log(&self) -> PathBuf {
        self.folder.join("skips.jsonl")
    }

    /// Deletes the machines that it left warm, and its home.
    pub(crate) fn remove(self) -> Outcome<()> {
        let list = self.testyard()?.args(["list", "--names"]).output();
        let list = list.map_err(|error| Fault::file(&self.home, &error))?;
        for name in String::from_utf8_lossy(&list.stdout).lines() {
            must_succeed(self.testyard()?.args(["delete", name, "--force"]))?;
        }
        must_succeed(self.testyard()?.arg("reap").stdout(Stdio::null()))?;
        must_succeed(program("rm").args(["-r", "--one-file-system", "--"]).arg(&self.home))
    }

    fn testyard(&self) -> Outcome<Command> {
        let mut command = program(target_folder()?.join("debug/testyard"));
        command.env("TESTYARD_HOME", &self.home);
        Ok(command)
    }
}

/// Each chosen test program: its name, itself, and the folder that it starts in.
fn built() -> Outcome<Vec<(&'static Chosen, String, PathBuf, String)>> {
    let mut command = cargo();
    command.args(["test", "--no-run", "--tests", "--locked", "--message-format=json-render-diagnostics"]);
    for chosen in &CHOSEN {
        command.args(["--package", chosen.package]);
    }
    println!("$ {}", shown(&command));
    let fault = |why: String| Fault::Program { line: "cargo test --no-run".to_owned(), why };
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| fault(error.to_string()))?;
    if !output.status.success() {
        return Err(fault("it failed; what it printed is above".to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages.filter_map(|message| integration_test(&message)).collect())
}

fn integration_test(message: &Value) -> Option<(&'static Chosen, String, PathBuf, String)> {
    let target = &message["target"];
    let manifest = Path::new(message["manifest_path"].as_str()?);
    let id = message["package_id"].as_str()?;
    let ours = |chosen: &&Chosen| id.contains(&format!("#{}@", chosen.package));
    let chosen = CHOSEN.iter().find(ours)?;
    let executable = PathBuf::from(message["executable"].as_str()?);
    if target["kind"][0] != "test" {
        return None;
    }
    let name = format!("{}-{}", chosen.package, target["name"].as_str()?);
    Some((chosen, name, executable, manifest.parent()?.to_string_lossy().into_owned()))
}

/// The names of a program's tests, but for those that must have the host alone: no other runner would know of them.
fn listed(test_program: &Path) -> Outcome<Vec<String>> {
    let mut command = program(test_program);
    let output = command.args(["--list", "--format", "terse"]).output();
    let output = output.map_err(|error| Fault::file(test_program, &error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.filter(|name| !name.contains("alone")).map(str::to_owned).collect())
}

fn make_folder(folder: &Path) -> Outcome<()> {
    std::fs::create_dir_all(folder).map_err(|error| Fault::file(folder, &error))
}

fn write(path: &Path, text: &str) -> Outcome<()> {
    std::fs::write(path, text).map_err(|error| Fault::file(path, &error))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn integration_tests_of_the_chosen_are_found() {
        let message = |package: &str, kind: &str| {
            json!({
                "package_id": format!("path+file:///w/crates/x#{package}@0.1.0"), "manifest_path": "/w/crates/x/Cargo.toml",
                "target": {"kind": [kind], "name": "trees"}, "executable": "/t/trees-1",
            })
        };
        let (chosen, name, executable, folder) = integration_test(&message("testyard-sync", "test")).expect("chosen");
        assert_eq!((chosen.kind, name.as_str(), folder.as_str()), ("isolated", "testyard-sync-trees", "/w/crates/x"));
        assert_eq!(executable, Path::new("/t/trees-1"));
        assert!(integration_test(&message("testyard-sync", "lib")).is_none());
        assert!(integration_test(&message("testyard-model", "test")).is_none());
    }

    #[test]
    fn the_others_are_named_for_nextest() {
        assert!(others().starts_with("not (kind(test) and (package(testyard-registry) or "));
        assert!(others().ends_with(") and not test(alone))"));
    }
}
