//! The release check: the README's two commands, as written, in a fresh Debian that knows nothing of us.
//!
//! The machine is a Testyard machine itself. Into Debian's base come git, Python, a C compiler for linking (as
//! every Rust installation needs one) and the host's Rust toolchain, read-only. Everything else the commands must
//! fetch or install themselves, and say so.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::cargo::{has_program, must_succeed, program, shown, succeeds, target_folder, workspace_root};
use crate::fault::{Fault, Outcome};
use crate::install;

const MACHINE: &str = "newcomer";
const IMAGE: &str = "debian:12";
const PACKAGES: &str = "git python3 gcc libc6-dev ca-certificates";
/// What the host's network is like, the machine must know as well.
const RESOLVER: &str = "/etc/resolv.conf";
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Where the clone stands inside.
const CLONE: &str = "/home/newcomer/testyard";

/// `newcomer`.
pub(crate) fn run() -> Outcome<ExitCode> {
    let commands = readme_commands(&read_readme()?)?;
    let toolchain = Toolchain::find()?;
    let programs = install::install_into(&target_folder()?.join("testyard"))?;
    if !has_program("mmdebstrap") {
        return Err(Fault::Missing {
            what: format!("the image {IMAGE} is built with mmdebstrap, which is not installed"),
            hint: "apt-get install mmdebstrap".to_owned(),
        });
    }
    let machine = Machine { testyard: programs[0].clone() };
    machine.create(&toolchain)?;
    let report = machine.prepare(&toolchain).and_then(|()| machine.time(&commands, &toolchain));
    // The machine goes whatever happened; what happened is said after.
    let removed = machine.testyard(&["delete", MACHINE, "--force"]);
    let report = report?;
    removed?;
    println!();
    for (command, spent, passed) in &report {
        let word = if *passed { "passed" } else { "FAILED" };
        println!("{word} in {:.1} minutes: {command}", spent.as_secs_f64() / 60.0);
    }
    let passed = report.iter().all(|(_, _, passed)| *passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

/// The host's Rust, as folders that the machine can be shown.
struct Toolchain {
    /// Its `bin` holds cargo and rustc themselves, not rustup's proxies.
    sysroot: PathBuf,
}

impl Toolchain {
    fn find() -> Outcome<Self> {
        let mut command = program("rustc");
        command.args(["--print", "sysroot"]);
        let fault = |why: String| Fault::Program { line: "rustc --print sysroot".to_owned(), why };
        let output = command.output().map_err(|error| fault(error.to_string()))?;
        let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        // A link in the path (`stable` → `1.90`) would point out of what is shown.
        let sysroot = sysroot.canonicalize().map_err(|error| fault(error.to_string()))?;
        if !sysroot.join("bin/cargo").is_file() {
            return Err(fault(format!("{} has no bin/cargo", sysroot.display())));
        }
        Ok(Self { sysroot })
    }
}

/// The machine, through the command line that users have.
struct Machine {
    testyard: PathBuf,
}

impl Machine {
    fn create(&self, toolchain: &Toolchain) -> Outcome<()> {
        let mut image = Command::new(&self.testyard);
        if !succeeds(image.args(["image", "build", IMAGE]))? {
            return Err(Fault::Missing {
                what: format!("the image {IMAGE} could not be built; what was printed is above"),
                hint: "testyard doctor".to_owned(),
            });
        }
        let expose = toolchain.sysroot.display().to_string();
        let create = ["create", MACHINE, "--backend", "namespace", "--image", IMAGE];
        // An image of its own may have nowhere to show a folder of the host; then `prepare` copies it.
        let exposed = self.testyard(&[&create[..], &["--expose", &expose]].concat());
        exposed.or_else(|_| self.testyard(&create))
    }

    fn prepare(&self, toolchain: &Toolchain) -> Outcome<()> {
        let expose = toolchain.sysroot.join("bin/rustc").display().to_string();
        if self.inside(&format!("test -x {expose}")).is_err() {
            let to = toolchain.sysroot.display().to_string();
            self.testyard(&["push", MACHINE, &to, &to])?;
        }
        self.testyard(&["push", MACHINE, RESOLVER, RESOLVER])?;
        self.inside(&format!("apt-get update -q && apt-get install -qy --no-install-recommends {PACKAGES}"))?;
        if Path::new(AUTHORITIES).is_file() {
            // Whom this host trusts: a network may have an authority of its own between it and the registries.
            self.testyard(&["push", MACHINE, AUTHORITIES, AUTHORITIES])?;
        }
        self.inside("useradd --create-home newcomer")?;
        let archive = target_folder()?.join("newcomer.bundle");
        must_succeed(program("git").args(["bundle", "create", "--quiet"]).arg(&archive).arg("HEAD"))?;
        self.testyard(&["push", MACHINE, &archive.display().to_string(), "/tmp/testyard.bundle"])?;
        self.inside(&format!("git clone -q /tmp/testyard.bundle {CLONE} && chown -R newcomer: /home/newcomer"))
    }

    /// Runs each command as root, after the other, in the clone; how long each took and whether it passed.
    fn time(&self, commands: &[String], toolchain: &Toolchain) -> Outcome<Vec<(String, Duration, bool)>> {
        let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", toolchain.sysroot.join("bin").display());
        let mut report = Vec::new();
        for line in commands {
            let mut command = Command::new(&self.testyard);
            command.args(["exec", MACHINE, "--cwd", CLONE, "--user", "root", "--env", &path, "--env", "HOME=/root"]);
            command.args(["--", "sh", "-c", line]);
            println!("$ {}", shown(&command));
            let started = Instant::now();
            let passed = succeeds(&mut command)?;
            report.push((line.clone(), started.elapsed(), passed));
        }
        Ok(report)
    }

    fn inside(&self, script: &str) -> Outcome<()> {
        self.testyard(&["exec", MACHINE, "--user", "root", "--", "sh", "-c", script])
    }

    fn testyard(&self, words: &[&str]) -> Outcome<()> {
        let mut command = Command::new(Path::new(&self.testyard));
        command.args(words);
        println!("$ {}", shown(&command));
        must_succeed(&mut command)
    }
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
