//! The release check: the README's two commands, as written, in a fresh Debian that knows nothing of us.
//!
//! The machine is a Testyard machine itself. Into Debian's base come git, Python, a C compiler for linking (as
//! every Rust installation needs one), a copy of the host's Rust, and how this host reaches networks. Everything
//! else the commands must fetch or install themselves, and say so.
//!
//! Root runs the first command twice, so that the second time is from warm, then the other one. Then the clone is
//! given to an ordinary user, who runs the first one twice as well.

mod machine;
mod surroundings;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cargo::{has_program, must_succeed, program, target_folder, workspace_root};
use crate::fault::{Fault, Outcome};
use crate::{install, requirements};
use machine::{Machine, Run};
use surroundings::Surroundings;

const IMAGE: &str = "debian:12";
const PACKAGES: &str = "git python3 gcc libc6-dev ca-certificates";
/// The ordinary user inside.
const USER: &str = "newcomer";
/// Where the clone stands inside.
const CLONE: &str = "/home/newcomer/testyard";
/// Above the clone, so that cargo finds it for root and for the ordinary user.
const CARGO_CONFIGURATION: &str = "/home/newcomer/.cargo/config.toml";
/// Where the copy of the host's Rust stands inside; its programs are linked from `/usr/local/bin`.
const RUST: &str = "/usr/local/rust";

/// `newcomer`.
pub(crate) fn run() -> Outcome<ExitCode> {
    let commands = readme_commands(&read_readme()?)?;
    let rust = sysroot()?;
    if !requirements::is_root() {
        return Err(Fault::Missing {
            what: "the machine has an ordinary user beside its root, which takes a range of ids".to_owned(),
            hint: "sudo cargo xtask newcomer".to_owned(),
        });
    }
    if !has_program("mmdebstrap") {
        return Err(Fault::Missing {
            what: format!("the image {IMAGE} is built with mmdebstrap, which is not installed"),
            hint: "apt-get install mmdebstrap".to_owned(),
        });
    }
    let surroundings = Surroundings::find(CARGO_CONFIGURATION)?;
    // As for tests: programs that are there need not be built.
    let testyard = match std::env::var_os("TESTYARD_TEST_BIN") {
        Some(folder) => PathBuf::from(folder).join("testyard"),
        None => install::install_into(&target_folder()?.join("testyard"))?.swap_remove(0),
    };
    let machine = Machine::create(&testyard, IMAGE, &surroundings.variables)?;
    let report = prepare(&machine, &rust, &surroundings).and_then(|()| time(&machine, &commands));
    // The machine goes whatever happened; what happened is said after.
    let removed = machine.remove();
    let report = report?;
    removed?;
    println!();
    for run in &report {
        println!("{run}");
    }
    let passed = report.iter().all(|run| run.passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What somebody who has just heard of us would have.
fn prepare(machine: &Machine, rust: &Path, surroundings: &Surroundings) -> Outcome<()> {
    machine
        .inside("useradd --create-home --shell /bin/bash newcomer && install -d -o newcomer /home/newcomer/.cargo")?;
    for path in &surroundings.files {
        let folder = path.parent().unwrap_or(path).display();
        machine.inside(&format!("mkdir -p '{folder}'"))?;
        machine.push(path, &path.display().to_string())?;
    }
    for (place, text) in &surroundings.made {
        machine.push_text(text, place)?;
    }
    machine.inside(&format!("apt-get update -q && apt-get install -qy --no-install-recommends {PACKAGES}"))?;
    machine.inside("update-ca-certificates")?;
    machine.inside(&format!("mkdir {RUST}"))?;
    // Without the documentation, which is more than all the rest.
    for name in ["bin", "lib", "libexec"] {
        if rust.join(name).is_dir() {
            machine.push(&rust.join(name), RUST)?;
        }
    }
    machine.inside(&format!("ln -s {RUST}/bin/* /usr/local/bin/"))?;
    let bundle = machine.scratch().join("testyard.bundle");
    must_succeed(program("git").args(["bundle", "create", "--quiet"]).arg(&bundle).arg("HEAD"))?;
    machine.push(&bundle, "/tmp/testyard.bundle")?;
    machine.inside(&format!("git -c advice.detachedHead=false clone -q /tmp/testyard.bundle {CLONE}"))
}

/// Each command in the clone, as root and then as the ordinary user.
fn time(machine: &Machine, commands: &[String]) -> Outcome<Vec<Run>> {
    let [first, second] = commands else { return Ok(Vec::new()) };
    let mut report = Vec::new();
    for line in [first, first, second] {
        report.push(machine.time("root", CLONE, line)?);
    }
    machine.inside(&format!("chown -R {USER}: /home/{USER}"))?;
    for line in [first, first] {
        report.push(machine.time(USER, CLONE, line)?);
    }
    Ok(report)
}

/// The folder of the host's Rust: its `bin` holds cargo and rustc themselves, not rustup's proxies.
fn sysroot() -> Outcome<PathBuf> {
    let fault = |why: String| Fault::Program { line: "rustc --print sysroot".to_owned(), why };
    let output = program("rustc").args(["--print", "sysroot"]).output().map_err(|error| fault(error.to_string()))?;
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if !folder.join("bin/cargo").is_file() {
        return Err(fault(format!("{} has no bin/cargo", folder.display())));
    }
    Ok(folder)
}

fn read_readme() -> Outcome<String> {
    let path = workspace_root().join("README.md");
    std::fs::read_to_string(&path).map_err(|error| Fault::file(&path, &error))
}

/// The first two `cargo` commands in the README's `sh` blocks.
fn readme_commands(readme: &str) -> Outcome<Vec<String>> {
    let mut commands = Vec::new();
    let mut in_shell = false;
    for line in readme.lines() {
        match line.trim() {
            "```sh" => in_shell = true,
            "```" => in_shell = false,
            command if in_shell && command.starts_with("cargo ") => {
                commands.push(command.split(" #").next().unwrap_or(command).trim().to_owned());
            }
            _ => {}
        }
    }
    commands.truncate(2);
    if commands.len() == 2 {
        return Ok(commands);
    }
    Err(Fault::Missing {
        what: "README.md does not show its two cargo commands in `sh` blocks".to_owned(),
        hint: "write them on lines of their own, between ```sh and ```".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_shows_its_two_commands() {
        let commands = readme_commands(&read_readme().expect("README.md is there")).expect("both commands");
        assert_eq!(commands, ["cargo xtask run examples/quickstart", "cargo xtask test"]);
    }

    #[test]
    fn only_shell_blocks_count() {
        let text =
            "cargo no\n```text\ncargo no\n```\n```sh\ncargo one # why\n```\n```sh\ncargo two\ncargo three\n```\n";
        assert_eq!(readme_commands(text).expect("both"), ["cargo one", "cargo two"]);
        assert!(readme_commands("```sh\ncargo one\n```\n").is_err());
    }
}
