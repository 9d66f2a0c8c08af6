//! Backend `host`: plain processes, no privilege needed. Workspaces, ports and process trees; no isolation beyond them.

use std::path::PathBuf;

use testyard_images::store::ImageConfig;
use testyard_machine::backend::{
    AgentLink, Backend, BackendError, KernelIdentity, MachinePlace, Recorder, ResourceKind,
};
use testyard_model::{BackendName, ImageReference, MachineSpec};
use testyard_protocol::RawText;
use testyard_protocol::start::{AgentMode, AgentStart};

use crate::agent_process;

/// Plain processes on this host.
pub struct Host;

/// Where commands are looked for.
const SEARCHED: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A folder of the machine's in which the agent's program is called `docker`.
fn docker_folder(place: &MachinePlace) -> testyard_linux::Result<PathBuf> {
    let folder = place.folder.join("programs");
    let failed = |error| testyard_linux::Error::new("make folder", folder.display(), error);
    std::fs::create_dir_all(&folder).map_err(failed)?;
    match std::os::unix::fs::symlink(&place.agent, folder.join("docker")) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(failed(error)),
        _ => Ok(folder),
    }
}

impl Host {
    fn refuse(ability: &str, hint: &str) -> BackendError {
        BackendError::NotOffered { backend: BackendName::host(), ability: ability.to_owned(), hint: hint.to_owned() }
    }
}

impl Backend for Host {
    fn name(&self) -> BackendName {
        BackendName::host()
    }

    fn check(&self, spec: &MachineSpec) -> Result<(), BackendError> {
        let namespace = "use --backend namespace; `testyard doctor` tells whether this host allows it";
        if spec.image != ImageReference::Host {
            return Err(Self::refuse(&format!("from image {}", spec.image), namespace));
        }
        for (asked, ability) in [
            (spec.memory.is_some(), "a memory limit"),
            (spec.cpus.is_some(), "a processor limit"),
            (spec.disk.is_some(), "a disk limit"),
            (spec.privileged, "privileges"),
            (!spec.expose.is_empty(), "exposed paths: it sees everything as it is"),
            (!spec.network.is_host(), "a network of its own"),
        ] {
            if asked {
                return Err(Self::refuse(&format!("with {ability}"), namespace));
            }
        }
        if let Some(user) = &spec.user
            && user != "root"
            && rustix::process::getuid().is_root()
        {
            // Root may become anybody; the name is looked up when a command runs.
            return Ok(());
        }
        match &spec.user {
            Some(user) if !rustix::process::getuid().is_root() => {
                Err(Self::refuse(&format!("as user {user}"), "leave --user out: commands run as yourself"))
            }
            _ => crate::namespace::check_architecture(spec, &self.name()),
        }
    }

    fn create(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        let folder = place.folder.join("workspaces");
        let ids = recorder.intend(&[(ResourceKind::Folder, &folder)])?;
        let failed = |source| BackendError::Host { operation: "make the folders", machine: place.name.clone(), source };
        std::fs::create_dir_all(&folder)
            .map_err(|error| failed(testyard_linux::Error::new("make folder", folder.display(), error)))?;
        if let (Some(id), Some(identity)) = (ids.first(), KernelIdentity::of_path(&folder).map_err(failed)?) {
            recorder.made(&[(*id, identity)])?;
        }
        Ok(())
    }

    fn start(&self, place: &MachinePlace, _recorder: &mut dyn Recorder) -> Result<AgentLink, BackendError> {
        let mut env = agent_process::environment(place, &ImageConfig::default());
        if place.spec.docker {
            let folder = docker_folder(place).map_err(|source| BackendError::Host {
                operation: "give a docker to",
                machine: place.name.clone(),
                source,
            })?;
            let path = format!("{}:{SEARCHED}", folder.display());
            env.push((RawText::from("PATH"), RawText::from(path)));
        }
        let start = AgentStart {
            machine: place.id.to_string(),
            mode: AgentMode::Process { workspaces: place.folder.join("workspaces") },
            user: agent_process::default_user(place, &ImageConfig::default()),
            env,
            folder: None,
            cgroup: None,
            limits: vec![
                "plain processes on this host: nothing is isolated but folders, `TMPDIR` and leased ports".to_owned(),
                "a process that clears its environment and leaves its parents is not found again".to_owned(),
            ],
            relay: Vec::new(),
        };
        agent_process::spawn(place, &start, None)
    }

    fn stopped(&self, _place: &MachinePlace, _recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        Ok(())
    }

    fn remove(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        // Workspaces are below the machine's folder, which the caller removes.
        agent_process::forget_records(place, recorder)
    }

    fn copy(&self, _from: &MachinePlace, to: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        // It has no files of its own but workspaces, and those belong to environments.
        self.create(to, recorder)
    }
}
