//! A backend that Testyard does not come with, and the program that has it.
//!
//! Backend `folder` makes machines that are plain processes with a home folder of their own, which is kept while the
//! machine is stopped and copied when it is cloned. It is all that a third party writes: commands, files, expiry,
//! names and records come from Testyard. `crates/testyard/tests/contract.rs` shows that it keeps the contract.
//!
//! A supervisor is started from the same program, so that it finds the backend in the same table.
//!
//! ```sh
//! cargo build -p testyard-agent && cargo run -p testyard --example third_party_backend -- demo
//! ```

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::Pid;
use testyard::{BackendName, MachineSpec, Options, Problem, ProblemKind, Testyard};
use testyard_linux::files::{self, CopyOptions};
use testyard_linux::identity::ProcessIdentity;
use testyard_linux::{process, socket};
use testyard_machine::backend::{
    AgentLink, Backend, BackendError, KernelIdentity, MachinePlace, Recorder, ResourceKind,
};
use testyard_model::{ImageReference, UserSpec};
use testyard_protocol::start::{AgentMode, AgentStart, CONFIGURATION, LINK, LISTENER};

/// Plain processes with a home of their own.
pub(crate) struct Folder;

fn name() -> BackendName {
    "folder".parse().expect("lower-case letters")
}

fn home(place: &MachinePlace) -> PathBuf {
    place.folder.join("home")
}

impl Folder {
    fn refuse(ability: &str) -> BackendError {
        BackendError::Unsupported { backend: name(), ability: ability.to_owned(), hint: None }
    }

    fn failed(place: &MachinePlace, operation: &'static str) -> impl Fn(testyard_linux::Error) -> BackendError {
        let machine = place.name.clone();
        move |source| BackendError::Host { operation, machine: machine.clone(), source }
    }

    fn configuration(place: &MachinePlace) -> AgentStart {
        let home = home(place);
        AgentStart {
            machine: place.id.to_string(),
            mode: AgentMode::Process { workspaces: place.folder.join("workspaces") },
            user: UserSpec::Numbered {
                uid: rustix::process::getuid().as_raw(),
                gid: rustix::process::getgid().as_raw(),
                groups: Vec::new(),
            },
            env: vec![("HOME".into(), home.into())],
            folder: None,
            cgroup: None,
            limits: vec!["everything but the home folder is shared with the host".to_owned()],
            relay: Vec::new(),
        }
    }
}

impl Backend for Folder {
    fn name(&self) -> BackendName {
        name()
    }

    fn check(&self, spec: &MachineSpec) -> Result<(), BackendError> {
        if let Some(arch) = spec.arch.as_deref().filter(|arch| *arch != std::env::consts::ARCH) {
            return Err(Self::refuse(&format!("of architecture {arch}")));
        }
        let MachineSpec { image, user, cpus, memory, disk, privileged, expose, network, .. } = spec;
        let asked = [
            (*image != ImageReference::Host, "an image"),
            (user.is_some(), "another user"),
            (cpus.is_some() || memory.is_some() || disk.is_some(), "limits"),
            (*privileged, "privileges"),
            (!expose.is_empty(), "exposed paths"),
            (!network.is_host(), "a network of its own"),
        ];
        match asked.into_iter().find(|(asked, _)| *asked) {
            Some((_, ability)) => Err(Self::refuse(&format!("with {ability}"))),
            None => Ok(()),
        }
    }

    fn create(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        let failed = Self::failed(place, "make the folders");
        // Intent first: if this process dies here, whoever cleans up knows what to look for.
        let folders = [home(place), place.folder.join("workspaces")];
        let wanted: Vec<_> = folders.iter().map(|folder| (ResourceKind::Folder, folder.as_path())).collect();
        let ids = recorder.intend(&wanted)?;
        let mut made = Vec::new();
        for (id, folder) in ids.into_iter().zip(&folders) {
            rustix::fs::mkdir(folder, Mode::from_raw_mode(0o700))
                .map_err(|errno| failed(testyard_linux::Error::new("make folder", folder.display(), errno)))?;
            made.extend(KernelIdentity::of_path(folder).map_err(&failed)?.map(|identity| (id, identity)));
        }
        Ok(recorder.made(&made)?)
    }

    fn start(&self, place: &MachinePlace, _recorder: &mut dyn Recorder) -> Result<AgentLink, BackendError> {
        let failed = Self::failed(place, "start the agent");
        let system = |what: &'static str| move |error: std::io::Error| testyard_linux::Error::new("use", what, error);
        let (ours, theirs) = socket::pair(socket::Kind::Stream).map_err(&failed)?;
        let text = serde_json::to_vec(&Self::configuration(place)).expect("a configuration is plain data");
        let configuration =
            files::in_memory("agent", &text).map_err(|error| failed(system("memory for the configuration")(error)))?;
        // The lock is ours: a socket file that is there was left by an agent that is gone.
        let _ = std::fs::remove_file(place.agent_socket());
        let listener = socket::listen(&place.agent_socket(), 0o600).map_err(&failed)?;
        let log = std::fs::File::options().append(true).open(place.log());
        let mut command = Command::new(&place.agent);
        command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(log.map_err(|error| failed(system("the log")(error)))?);
        let passed = [(theirs.as_fd(), LINK), (configuration.as_fd(), CONFIGURATION), (listener.as_fd(), LISTENER)];
        let child = process::spawn_with_descriptors(&mut command, &passed).map_err(&failed)?;
        let pid = Pid::from_child(&child);
        let pidfd = process::pidfd_open(pid).map_err(&failed)?;
        Ok(AgentLink { socket: ours, process: ProcessIdentity::of(pid).map_err(&failed)?, pidfd })
    }

    fn stopped(&self, _place: &MachinePlace, _recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        // It has nothing that only a running machine has.
        Ok(())
    }

    fn remove(&self, _place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        // Its folders lie in the machine's own, which goes next.
        let gone: Vec<_> = recorder.all()?.into_iter().map(|resource| resource.id).collect();
        Ok(recorder.gone(&gone)?)
    }

    fn copy(&self, from: &MachinePlace, to: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        self.create(to, recorder)?;
        let failed = Self::failed(to, "copy the home");
        let open = |path: PathBuf| {
            rustix::fs::openat(CWD, &path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| failed(testyard_linux::Error::new("open", path.display(), errno)))
        };
        let (source, target) = (open(home(from))?, open(home(to))?);
        files::copy_tree(source.as_fd(), target.as_fd(), CopyOptions::default()).map_err(&failed)?;
        Ok(())
    }
}

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&mut arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            #[expect(clippy::print_stderr, reason = "an example talks")]
            {
                eprintln!("error: {problem}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &mut Vec<String>) -> Result<(), Problem> {
    let own = std::env::current_exe()
        .map_err(|error| Problem::new(ProblemKind::System, "cannot find this program").because(error))?;
    let options = Options::from_process()?;
    let backends = options.backends.clone().with(&name(), || Box::new(Folder));
    let options = Options { program: own, backends, ..options };
    if arguments.first().is_some_and(|word| word == "supervise") {
        testyard::supervise_command(options, arguments.drain(1..));
    }
    let yard = Testyard::open(options)?;
    let Some(machine) = arguments.first().and_then(|name| name.parse().ok()) else {
        return Err(Problem::new(ProblemKind::Usage, "say a machine's name"));
    };
    yard.machines().create(&machine, &MachineSpec::new(name()))?;
    let output = yard.connect(&machine).and_then(|mut machine| machine.run(&["sh", "-c", "cd; pwd"]));
    yard.machines().delete(&machine, true)?;
    #[expect(clippy::print_stdout, reason = "an example talks")]
    {
        print!("{}", String::from_utf8_lossy(&output?.stdout));
    }
    Ok(())
}
