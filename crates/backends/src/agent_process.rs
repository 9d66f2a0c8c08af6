//! Starting the agent's program with its link, its configuration and its listening socket.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Pid;
use serde::Serialize;
use testyard_images::store::ImageConfig;
use testyard_linux::files::{in_memory, remove_file};
use testyard_linux::identity::ProcessIdentity;
use testyard_linux::{Error, process, socket};
use testyard_machine::backend::{AgentLink, BackendError, MachinePlace, Recorder};
use testyard_machine::client::caller;
use testyard_model::{Problem, ProblemKind, UserSpec};
use testyard_protocol::RawText;
use testyard_protocol::start::{AgentStart, CONFIGURATION, HELD, LINK, LISTENER};

/// Variables of the supervisor's that every command gets; everything else must be asked for.
const PASSED: [&str; 4] = ["LANG", "LC_ALL", "LC_CTYPE", "TZ"];

fn host_error<'a>(place: &'a MachinePlace, operation: &'static str) -> impl Fn(Error) -> BackendError + 'a {
    move |source| BackendError::Host { operation, machine: place.name.clone(), source }
}

/// What was written down of a machine whose folder, which its caller removes, has all there is of it.
pub(crate) fn forget_records(place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
    let ours = recorder.all()?.into_iter().filter(|resource| resource.place != place.folder);
    let gone: Vec<_> = ours.map(|resource| resource.id).collect();
    Ok(recorder.gone(&gone)?)
}

/// Starts the agent, which keeps `held` open as long as it lives.
pub(crate) fn spawn(
    place: &MachinePlace,
    start: &AgentStart,
    held: Option<&OwnedFd>,
) -> Result<AgentLink, BackendError> {
    let mut command = Command::new(&place.agent);
    // Environments see the name of their init, which is a fork of the agent: not the path of a program of the host.
    command.arg0("testyard").env_clear();
    for name in ["TESTYARD_KILL_AT", "TESTYARD_STEP_LOG"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    spawn_as_agent(place, command, start, held)
}

/// Starts a program that is, or plays, the machine's agent, with what an agent is told.
pub(crate) fn spawn_as_agent(
    place: &MachinePlace,
    mut command: Command,
    start: &impl Serialize,
    held: Option<&OwnedFd>,
) -> Result<AgentLink, BackendError> {
    let failed = host_error(place, "start the agent");
    let (ours, theirs) = socket::pair(socket::Kind::Stream).map_err(&failed)?;
    let configuration = configuration(start).map_err(&failed)?;
    let path = place.agent_socket();
    // That of an agent which is gone: the caller holds the machine's lock.
    remove_file(&path).map_err(&failed)?;
    let listener = socket::listen(&path, 0o600).map_err(&failed)?;
    let log = log(&place.log()).map_err(&failed)?;
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut descriptors =
        vec![(theirs.as_fd(), LINK), (configuration.as_fd(), CONFIGURATION), (listener.as_fd(), LISTENER)];
    descriptors.extend(held.map(|held| (held.as_fd(), HELD)));
    let child =
        process::spawn_with_descriptors(&mut command, &descriptors).map_err(|error| missing_agent(place, error))?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| {
        BackendError::from(Problem::new(ProblemKind::Bug, "the agent was started without a process id"))
    })?;
    let pidfd = process::pidfd_open(pid).map_err(&failed)?;
    let identity = ProcessIdentity::of(pid).map_err(&failed)?;
    Ok(AgentLink { socket: ours, process: identity, pidfd })
}

fn missing_agent(place: &MachinePlace, error: Error) -> BackendError {
    if error.is_absent() {
        let message = format!("the agent's program is not at {}", place.agent.display());
        return Problem::new(ProblemKind::NotFound, message).hint("install it: cargo xtask install").into();
    }
    BackendError::Host { operation: "start the agent", machine: place.name.clone(), source: error }
}

fn configuration(start: &impl Serialize) -> Result<OwnedFd, Error> {
    let failed = |error: std::io::Error| Error::new("write", "the agent's configuration", error);
    let text = serde_json::to_vec(start).map_err(|error| failed(error.into()))?;
    in_memory("testyard-agent", &text).map_err(failed)
}

fn log(path: &Path) -> Result<Stdio, Error> {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.map(Stdio::from).map_err(|error| Error::new("open", path.display(), error))
}

/// Whom commands run as by default: whom the machine or its image names, else who started the machine, with the same
/// ids and no capabilities.
pub(crate) fn default_user(place: &MachinePlace, image: &ImageConfig) -> UserSpec {
    match (place.spec.user.as_deref(), image.user.as_deref()) {
        (Some(written), _) => user(written, written),
        // Groups that an image names beside a user are those of its own files: the user's entry there has them.
        (None, Some(written)) => user_of_image(written),
        (None, None) => caller(),
    }
}

fn user(written: &str, name: &str) -> UserSpec {
    match name {
        "root" => UserSpec::Root,
        name => numbered(written).unwrap_or_else(|| UserSpec::Named(name.to_owned())),
    }
}

fn user_of_image(written: &str) -> UserSpec {
    match written.split(':').next().unwrap_or(written) {
        "0" => UserSpec::Root,
        name => user(written, name),
    }
}

/// A user written as `1000` or `1000:1000`.
fn numbered(written: &str) -> Option<UserSpec> {
    let (uid, gid) = written.split_once(':').unwrap_or((written, written));
    Some(UserSpec::Numbered { uid: uid.parse().ok()?, gid: gid.parse().ok()?, groups: Vec::new() })
}

/// The variables that commands get: a short list of the supervisor's, the image's, and what the specification names;
/// later ones win.
pub(crate) fn environment(place: &MachinePlace, image: &ImageConfig) -> Vec<(RawText, RawText)> {
    let own = |name: &str| std::env::var_os(name).map(|value| (RawText::from(name.to_owned()), value.into()));
    let of_image = image.env.iter().filter_map(|pair| pair.split_once('='));
    let of_image = of_image.map(|(name, value)| (RawText::from(name.to_owned()), RawText::from(value.to_owned())));
    let mut variables: Vec<_> = PASSED.into_iter().filter_map(own).collect();
    variables.extend(of_image);
    variables.extend(place.spec.pass_env.iter().filter_map(|name| own(name)));
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_images_are_names_numbers_or_pairs() {
        let named = |name: &str| UserSpec::Named(name.to_owned());
        let number = |uid, gid| UserSpec::Numbered { uid, gid, groups: Vec::new() };
        for (written, expected) in [
            ("root", UserSpec::Root),
            ("app", named("app")),
            ("app:staff", named("app")),
            ("root:root", UserSpec::Root),
            ("0:0", UserSpec::Root),
            ("1000", number(1000, 1000)),
            ("1000:50", number(1000, 50)),
        ] {
            assert_eq!(user_of_image(written), expected, "{written}");
        }
    }
}
