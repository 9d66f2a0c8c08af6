//! Which commands run on a developer's machine: a file for each process that runs some, locked as long as it lives.
//!
//! The file is one line, a list of records as `docker ps --format json` has them, with the environment of each. Any
//! program that runs commands this way (the Python package does) writes one in `dev/ID` of the runtime folder, under an
//! exclusive `flock`. A file that is not locked is of a process that is gone: whoever sees it removes it.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Value, json};
use testyard::{Machine, Testyard};
use testyard_linux::lock::{FileLock, Mode, Patience};
use testyard_linux::{Error, files};
use testyard_model::{EnvironmentId, MachineInfo, MachineName, Problem, ProblemKind};
use testyard_protocol::{Exec, RawText};

const INSTANCE_TYPE: &str = "instance-type";

fn folder(yard: &Testyard, machine: &MachineInfo) -> PathBuf {
    yard.options().home.runtime().join("dev").join(machine.id.as_str())
}

fn made(yard: &Testyard, machine: &MachineInfo) -> Result<PathBuf, Problem> {
    let folder = folder(yard, machine);
    let all = yard.options().home.runtime().join("dev");
    for one in [&all, &folder] {
        files::verified_private_directory(one).map_err(|error| error.problem())?;
    }
    Ok(folder)
}

/// A command that runs, told to whoever asks. Dropped, it is told no more.
pub(super) struct Told {
    path: PathBuf,
    _lock: FileLock,
}

impl Told {
    /// Writes it down.
    pub(super) fn begin(
        yard: &Testyard,
        machine: &MachineInfo,
        name: &str,
        command: &str,
        environment: Option<EnvironmentId>,
    ) -> Result<Self, Problem> {
        let path = made(yard, machine)?.join(format!("{name}.json"));
        let lock = FileLock::acquire(&path, Mode::Exclusive, Patience::Wait).map_err(|error| error.problem())?;
        let Some(lock) = lock else { return Err(Problem::new(ProblemKind::Bug, "a lock was not waited for")) };
        let now = Timestamp::now();
        let record = json!([{
            "Names": name,
            "Status": "Up",
            "Image": machine.spec.image.to_string(),
            "Command": command,
            "CreatedAt": now.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string(),
            "ID": environment.map_or_else(|| name.to_owned(), |environment| environment.to_string()),
            "State": "running",
        }]);
        fs::write(&path, format!("{record}\n"))
            .map_err(|error| Error::new("write", path.display(), error).problem())?;
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // What is left is not locked, and removed by whoever sees it.
        let _ = fs::remove_file(&self.path);
    }
}

/// What runs now, as `docker ps --format json` has it.
pub(super) fn running(yard: &Testyard, machine: &MachineInfo) -> Vec<Value> {
    let Ok(entries) = fs::read_dir(folder(yard, machine)) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|end| end == "json")).flat_map(|path| records(&path)).collect()
}

fn records(path: &Path) -> Vec<Value> {
    if let Ok(Some(_lock)) = FileLock::acquire(path, Mode::Exclusive, Patience::Try) {
        // Its process is gone. One that is about to lock a file of its own sees that this was removed.
        let _ = fs::remove_file(path);
        return Vec::new();
    }
    // Rewritten in place: a look in between finds no line that is whole.
    for _ in 0..20 {
        let text = fs::read_to_string(path).unwrap_or_default();
        if let Some(Ok(found)) = text.lines().next().map(serde_json::from_str) {
            return found;
        }
    }
    Vec::new()
}

/// The environment of a record.
pub(super) fn environment_of(record: &Value) -> Option<EnvironmentId> {
    record["ID"].as_str()?.strip_prefix('e')?.parse().ok().map(EnvironmentId)
}

/// What the machine's own docker runs.
pub(super) fn of_docker(machine: &mut Machine) -> Result<Vec<Value>, Problem> {
    let output = on_machine(machine, &["docker", "ps", "--format", "json"])?;
    Ok(output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Runs a command on the machine itself; what it wrote.
pub(super) fn on_machine(machine: &mut Machine, argv: &[&str]) -> Result<String, Problem> {
    let argv = argv.iter().map(|word| RawText::from(*word)).collect();
    let captured = machine.capture(Exec { argv, ..Exec::default() })?;
    if !captured.finished.status.success() {
        let said = String::from_utf8_lossy(&captured.stderr).trim().to_owned();
        return Err(Problem::new(ProblemKind::System, "the machine's docker did not answer").because(said));
    }
    Ok(String::from_utf8_lossy(&captured.stdout).into_owned())
}

/// Remembers what the machine stands for.
pub(super) fn set_instance_type(yard: &Testyard, machine: &MachineInfo, word: &str) -> Result<(), Problem> {
    let path = made(yard, machine)?.join(INSTANCE_TYPE);
    fs::write(&path, word).map_err(|error| Error::new("write", path.display(), error).problem())
}

/// What it stands for: as it was told, else its backend.
pub(super) fn instance_type(yard: &Testyard, machine: &MachineInfo) -> String {
    let told = fs::read_to_string(folder(yard, machine).join(INSTANCE_TYPE)).unwrap_or_default();
    if told.is_empty() { format!("testyard-{}", machine.spec.backend) } else { told }
}

/// Removes what was written down of a machine that is about to go.
pub(super) fn forget(yard: &Testyard, name: &MachineName) -> Result<(), Problem> {
    let machine = match yard.machines().info(name) {
        Ok(machine) => machine,
        Err(problem) if problem.kind == ProblemKind::NotFound => return Ok(()),
        Err(problem) => return Err(problem),
    };
    let folder = folder(yard, &machine);
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        // Gone already is as good.
        let _ = fs::remove_file(entry.path());
    }
    let _ = fs::remove_dir(&folder);
    Ok(())
}
