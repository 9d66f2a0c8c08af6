//! Backend `namespace`: Testyard's own container. See `docs/machines.md` for what is inside one.

mod disk;
mod exposed;
mod granted;
mod groups;
mod ids;
mod layers;
mod layers_of_user;
mod network;
mod store;

pub use ids::expect_several;
use testyard_machine::backend::{AgentLink, Backend, BackendError, MachinePlace, Recorder};
use testyard_model::{BackendName, ImageReference, MachineSpec};
use testyard_protocol::start::{AgentMode, AgentStart, NamespaceStart};

use crate::agent_process;

/// Testyard's own container.
pub struct Namespace;

/// Refuses an architecture that this host's processor cannot run.
pub(crate) fn check_architecture(spec: &MachineSpec, backend: &BackendName) -> Result<(), BackendError> {
    let own = std::env::consts::ARCH;
    match spec.arch.as_deref() {
        None => Ok(()),
        Some(arch) if arch == own || (arch == "amd64" && own == "x86_64") || (arch == "arm64" && own == "aarch64") => {
            Ok(())
        }
        Some(arch) => Err(BackendError::Unsupported {
            backend: backend.clone(),
            ability: format!("of architecture {arch}: this host is {own}"),
            hint: Some(format!("leave --arch out, or write --arch {own}")),
        }),
    }
}

fn refuse(ability: impl Into<String>, hint: &str) -> BackendError {
    BackendError::Unsupported {
        backend: BackendName::namespace(),
        ability: ability.into(),
        hint: Some(hint.to_owned()),
    }
}

impl Backend for Namespace {
    fn name(&self) -> BackendName {
        BackendName::namespace()
    }

    fn check(&self, spec: &MachineSpec) -> Result<(), BackendError> {
        check_architecture(spec, &self.name())?;
        if spec.privileged && !rustix::process::geteuid().is_root() {
            return Err(refuse("that is privileged", "run testyard as root for --privileged"));
        }
        if let Some(cpus) = spec.cpus
            && !(0.01..=4096.0).contains(&cpus)
        {
            return Err(refuse(format!("with {cpus} processors"), "write a number from 0.01 to 4096"));
        }
        disk::check(spec)?;
        network::check(spec)?;
        groups::check(spec)
    }

    fn create(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        layers::check_image(place)?;
        network::join(place, recorder)?;
        let ids = ids::acquire(place, recorder)?;
        store::create(place, ids, recorder)
    }

    fn start(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<AgentLink, BackendError> {
        let ids = ids::acquire(place, recorder)?;
        let network = network::join(place, recorder)?;
        let layers = layers::find(place)?;
        store::prepare(place, ids, recorder)?;
        let group = groups::create(place, ids, recorder)?;
        let mut limits = layers.limits;
        if group.is_none() {
            limits.push("no limits on memory, processes and processor time: no cgroup here is writable".to_owned());
        }
        limits.extend(ids::limit(place));
        limits.extend(granted::limit(place));
        limits.extend(store::limit(place));
        let start = AgentStart {
            machine: place.id.to_string(),
            mode: AgentMode::Namespace(Box::new(NamespaceStart {
                host_name: place.name.to_string(),
                ids,
                staging: store::staging(place),
                store: store::folder(place),
                layers: layers.layers,
                data: layers.data,
                submounts: layers.submounts,
                exposed: layers.exposed,
                disk: disk::image(place),
                // Copies are no part of what the machine wrote.
                generations_in_memory: place.spec.image == ImageReference::Host || place.spec.disk.is_some(),
                hidden: layers.hidden,
                shared: place.spec.share.clone(),
                docker: place.spec.docker,
                network,
            })),
            user: agent_process::default_user(place, &layers.config),
            env: agent_process::environment(place, &layers.config),
            folder: layers.config.working_directory.map(Into::into),
            cgroup: group,
            limits,
            relay: Vec::new(),
        };
        agent_process::spawn(place, &start, layers.lease.as_ref())
    }

    fn stopped(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        groups::remove(place, recorder)?;
        store::forget_generations(place)
    }

    fn remove(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        groups::remove(place, recorder)?;
        network::leave(place, recorder)?;
        store::remove(place, recorder)?;
        ids::release(place, recorder)
    }

    fn copy(&self, from: &MachinePlace, to: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        network::join_as_copy(to, from, recorder)?;
        let ids = ids::acquire(to, recorder)?;
        store::create(to, ids, recorder)?;
        store::copy(from, to, ids)
    }
}
