//! The far side of a machine on another host: what `testyard far` and its keeper run there.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};
use testyard_link::SESSIONS;
use testyard_link::bootstrap::programs_folder;
use testyard_link::far::{self, Keeper, LISTENING, Made, TOLD};
use testyard_link::message::FarStart;
use testyard_linux::files::in_memory;
use testyard_linux::process;
use testyard_machine::supervisor::socket_of;
use testyard_model::{MachineName, MachineSpec, Problem, ProblemKind, Span};

use crate::options::Options;
use crate::yard::Testyard;

/// A machine there whose keeper was killed stops by itself so long after its grace.
const ORPHANED: std::time::Duration = std::time::Duration::from_secs(60);
/// How often a machine there is deleted that is just ending by itself.
const TRIES: u32 = 3;

/// What `testyard far` runs: one connection, over its standard streams.
pub fn far_command() -> Result<(), Problem> {
    far::attach(spawn_keeper)
}

/// Starts the keeper of a session, which leaves the login's session.
fn spawn_keeper(folder: &Path, listener: OwnedFd, start: &FarStart) -> Result<(), Problem> {
    let failed =
        |error: std::io::Error| Problem::new(ProblemKind::System, "cannot start the keeper there").because(error);
    let told = serde_json::to_vec(start).map_err(|error| failed(error.into()))?;
    let told = in_memory("testyard-far", &told).map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let log = File::options().create(true).append(true).open(folder.join("log")).map_err(failed)?;
    let mut command = Command::new(program);
    command.arg("far-keep").arg(folder).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let descriptors = [(listener.as_fd(), LISTENING), (told.as_fd(), TOLD)];
    process::spawn_with_descriptors(&mut command, &descriptors).map(drop).map_err(|error| error.problem())
}

/// What `testyard far-keep FOLDER` runs: the machine of one session, until that is over.
pub fn keep_command(folder: &Path) -> Result<(), Problem> {
    let [listener, told] = process::inherited_descriptors([LISTENING, TOLD])
        .ok_or_else(|| Problem::new(ProblemKind::Usage, "`far-keep` is started by testyard itself only"))?;
    process::set_session().map_err(|error| error.problem())?;
    testyard_linux::signal::ignore(testyard_linux::signal::Signal::PIPE).map_err(|error| error.problem())?;
    let start: FarStart = serde_json::from_reader(File::from(told))
        .map_err(|error| Problem::from_error(ProblemKind::Protocol, &error))?;
    let (done, told) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(|errno| Problem::new(ProblemKind::System, "cannot make a pipe").because(errno))?;
    let (home, wanted) = (home_of(folder), start.clone());
    let making = std::thread::Builder::new().name("make".to_owned()).spawn(move || {
        let made = make(&home, &wanted);
        drop(told);
        made
    });
    let making = making.map_err(|error| Problem::new(ProblemKind::System, "cannot start a thread").because(error))?;
    let mut keeper = Keeper::new(listener, &start, (making, done))?;
    keeper.serve();
    let removed = keeper.finish(|| remove(folder));
    // Others of this user whose keepers were killed.
    far::sweep(folder, |other| reap(&home_of(other)));
    removed
}

fn home_of(folder: &Path) -> PathBuf {
    folder.join("home")
}

/// The folder of all sessions of a user, where a home is that of one of them.
pub(crate) fn sessions_around(home: &Path) -> Option<&Path> {
    let sessions = home.parent()?.parent()?;
    let name = sessions.file_name()?.to_str()?;
    (home_of(home.parent()?) == home && name.starts_with(SESSIONS)).then_some(sessions)
}

fn yard_at(home: &Path) -> Result<Testyard, Problem> {
    Ok(Testyard::bare(Options::at(home)?))
}

fn make(home: &Path, start: &FarStart) -> Result<Made, Problem> {
    let yard = yard_at(home)?;
    let name: MachineName = start.name.parse().map_err(|error| Problem::from_error(ProblemKind::Protocol, &error))?;
    // Should the keeper be killed, its supervisor ends what nobody is connected to.
    let idle = std::time::Duration::from_millis(start.grace_ms) + ORPHANED;
    let backend = match start.spec.backend.as_str() {
        // A session's home is new: probing all that this host can would take longer than the machine.
        "auto" => yard.prober().backend(programs_folder().as_deref()).map_err(|error| error.problem())?,
        _ => start.spec.backend.clone(),
    };
    let spec = MachineSpec { idle: Some(Span(idle)), backend, ..start.spec.clone() };
    let (info, lease) = yard.machines().create_held(&name, &spec, "a link")?;
    // Held as long as this process lives: until then the machine is not idle, however rarely it is used.
    std::mem::forget(lease);
    let socket = socket_of(yard.options().home.runtime(), &name);
    let watch = yard.machines().watch(&info.id)?;
    Ok(Made { limits: info.limits, socket, watch })
}

/// Removes the machine and everything else of a session.
fn remove(folder: &Path) -> Result<(), Problem> {
    let home = home_of(folder);
    if home.exists() {
        let yard = yard_at(&home)?;
        delete_all(&yard)?;
    }
    far::remove(folder)
}

/// Finishes what a killed keeper left in its home, so that the folder can go.
fn reap(home: &Path) -> Result<(), Problem> {
    if !home.exists() {
        return Ok(());
    }
    let yard = yard_at(home)?;
    yard.reap(false)?;
    delete_all(&yard)
}

/// Deletes every machine; one that is just ending by itself is met again.
fn delete_all(yard: &Testyard) -> Result<(), Problem> {
    let mut tries = 0..TRIES;
    loop {
        let machines = yard.machines().list()?;
        let mut failed = None;
        for machine in machines {
            failed = yard.machines().delete(&machine.name, true).err().or(failed);
        }
        match failed {
            Some(problem) if tries.next().is_none() => return Err(problem),
            Some(_) => drop(yard.reap(false)?),
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sessions_home_is_known_by_where_it_is() {
        let around = |home: &str| sessions_around(Path::new(home)).map(|path| path.display().to_string());
        assert_eq!(around("/var/tmp/testyard-far-1001/k2x/home").as_deref(), Some("/var/tmp/testyard-far-1001"));
        assert_eq!(
            around("/root/.local/state/testyard-far/k2x/home").as_deref(),
            Some("/root/.local/state/testyard-far")
        );
        for other in ["/var/tmp/testyard-far-1001/home", "/home/me/.local/state/testyard", "/testyard-far/k/other", "/"]
        {
            assert_eq!(around(other), None, "{other}");
        }
    }
}
