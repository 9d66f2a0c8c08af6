//! A machine of this check's own, through the command line that users have, in a home of its own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cargo::{must_succeed, shown, succeeds};
use crate::fault::{Fault, Outcome};

const MACHINE: &str = "newcomer";
/// One that takes longer has failed.
const LIMIT: &str = "90m";

/// The machine, and the home that it is in.
pub(super) struct Machine {
    testyard: PathBuf,
    home: PathBuf,
    /// Whether the home was there before, and stays.
    lent: bool,
}

/// One command, as somebody ran it.
pub(super) struct Run {
    user: String,
    line: String,
    spent: Duration,
    /// Whether it exited with 0.
    pub(super) passed: bool,
}

impl Machine {
    /// Builds the image and makes the machine, in the home that `TESTYARD_HOME` names, else in a new one.
    pub(super) fn create(testyard: &Path, image: &str, variables: &[&str]) -> Outcome<Self> {
        let lent = std::env::var_os("TESTYARD_HOME").map(PathBuf::from);
        // A short path: sockets inside must fit into 108 bytes.
        let home = lent.clone().unwrap_or_else(|| format!("/tmp/ty-newcomer-{}", std::process::id()).into());
        std::fs::create_dir_all(&home).map_err(|error| Fault::file(&home, &error))?;
        let machine = Self { testyard: testyard.to_owned(), home, lent: lent.is_some() };
        match machine.make(image, variables) {
            Ok(()) => Ok(machine),
            // What was begun goes; why it could not be finished is what is worth saying.
            Err(fault) => machine.remove_home().and(Err(fault)),
        }
    }

    fn make(&self, image: &str, variables: &[&str]) -> Outcome<()> {
        if !succeeds(&mut self.command(&["image", "build", image, "--quiet"]))? {
            return Err(Fault::Missing {
                what: format!("the image {image} could not be built; what was printed is above"),
                hint: "testyard doctor".to_owned(),
            });
        }
        let mut command = self.command(&["create", MACHINE, "--backend", "namespace", "--image", image]);
        for name in variables {
            command.args(["--pass-env", name]);
        }
        run(&mut command)
    }

    /// A folder of the host for what is on its way inside.
    pub(super) fn scratch(&self) -> &Path {
        &self.home
    }

    /// A file or folder of the host, put where root inside owns it.
    pub(super) fn push(&self, from: &Path, to: &str) -> Outcome<()> {
        run(&mut self.command(&["push", MACHINE, &from.display().to_string(), to, "--user", "root", "--quiet"]))
    }

    /// A file with this text.
    pub(super) fn push_text(&self, text: &str, to: &str) -> Outcome<()> {
        let file = self.home.join("text");
        std::fs::write(&file, text).map_err(|error| Fault::file(&file, &error))?;
        self.push(&file, to)
    }

    /// A line of shell, as root; what it prints is shown.
    pub(super) fn inside(&self, script: &str) -> Outcome<()> {
        run(&mut self.command(&["exec", MACHINE, "--user", "root", "--", "sh", "-c", script]))
    }

    /// A command as a user would type it, in a folder.
    pub(super) fn time(&self, user: &str, folder: &str, line: &str) -> Outcome<Run> {
        let words = ["exec", MACHINE, "--user", user, "--cwd", folder, "--timeout", LIMIT, "--", "bash", "-lc", line];
        let mut command = self.command(&words);
        println!("$ {}", shown(&command));
        let started = Instant::now();
        let passed = succeeds(&mut command)?;
        Ok(Run { user: user.to_owned(), line: line.to_owned(), spent: started.elapsed(), passed })
    }

    /// Deletes the machine, and the home if it was made for it.
    pub(super) fn remove(&self) -> Outcome<()> {
        run(&mut self.command(&["delete", MACHINE, "--force"]))?;
        self.remove_home()
    }

    fn remove_home(&self) -> Outcome<()> {
        if self.lent {
            return Ok(());
        }
        run(&mut self.command(&["reap"]))?;
        run(Command::new("rm").args(["-r", "--one-file-system", "--"]).arg(&self.home))
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.testyard);
        command.args(words).env("TESTYARD_HOME", &self.home);
        command
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.passed { "passed" } else { "FAILED" };
        write!(f, "{word} in {:.1} minutes as {}: {}", self.spent.as_secs_f64() / 60.0, self.user, self.line)
    }
}

fn run(command: &mut Command) -> Outcome<()> {
    println!("$ {}", shown(command));
    must_succeed(command)
}
