//! Backend `slurm-allocation`: a job of one node is the machine, and its step the way to it.
//!
//! ```text
//! start ─┬► salloc: a free node, at once ──────────┬─► srun: the link's byte stream ─► Testyard there
//!        └► sbatch (a guard) ─► pending ─► its node ┘
//! ```
//!
//! The job is named after the machine's id: found and cancelled from the machine's row alone. It ends with its step; until
//! that begins, the guard ends one that had to wait for its node, when nobody has been linked to it for [`GUARD`]. What
//! travels over the link is [`testyard_link`]'s business, what may be placed where is Slurm's.

mod ask;
mod client;
mod job;

use std::path::Path;
use std::time::Duration;

use testyard_machine::backend::{AgentLink, Backend, BackendError, MachinePlace, Recorder};
use testyard_model::{
    BackendName, ByteSize, ImageReference, Inside, MachineSpec, Problem, Remote, SlurmJob, Span, Transport,
};

use crate::remote;

pub use client::Slurm;
pub use job::job_name;

use job::{Asked, Job};

/// How long a job may wait for its node where nobody says.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// How long a job goes on to which nobody is linked.
const GUARD: Duration = Duration::from_secs(60);
/// How long the link is tried again: a step that has ended does not come back with its job.
const GRACE: Span = Span(Duration::from_secs(5));
/// The file with the number of a machine's job and what that has; empty while it is asked for, and gone once it is
/// certain that there is none.
const JOB: &str = "slurm-job";
/// A controller may still give a job so long after it was asked for, and its answer was lost.
const LATE: Duration = Duration::from_secs(60);

/// Machines that are allocations.
pub struct SlurmAllocation;

impl SlurmAllocation {
    fn refuse(ability: &str, hint: &str) -> BackendError {
        BackendError::NotOffered {
            backend: BackendName::slurm_allocation(),
            ability: ability.to_owned(),
            hint: hint.to_owned(),
        }
    }

    fn job(spec: &MachineSpec) -> Result<(&Remote, &SlurmJob), BackendError> {
        match &spec.remote {
            Some(remote) => match &remote.transport {
                Transport::Slurm(job) => Ok((remote, job)),
                _ => Err(Self::refuse("over another backend's way", "leave --through out")),
            },
            None => Err(Self::refuse("that is no job", "ask for one: --backend slurm-allocation")),
        }
    }

    /// What the machine is on its node. Its limits are the job's.
    fn there(spec: &MachineSpec, inside: Inside) -> Result<MachineSpec, BackendError> {
        let backend = match inside {
            Inside::Host => BackendName::host(),
            Inside::Namespace => BackendName::namespace(),
            Inside::Strongest => {
                "auto".parse().map_err(|error| Problem::from_error(testyard_model::ProblemKind::Bug, &error))?
            }
        };
        Ok(MachineSpec { backend, remote: None, idle: None, ttl: None, cpus: None, memory: None, ..spec.clone() })
    }

    fn cancel(place: &MachinePlace) -> Result<(), BackendError> {
        let (_, job) = Self::job(&place.spec)?;
        // What was never asked for is not looked for either, where nobody may answer. A lost folder says nothing.
        if place.folder.is_dir() && !place.folder.join(JOB).exists() {
            return Ok(());
        }
        cancel(&Slurm::of(job)?, place)
    }
}

impl Backend for SlurmAllocation {
    fn name(&self) -> BackendName {
        BackendName::slurm_allocation()
    }

    fn check(&self, spec: &MachineSpec) -> Result<(), BackendError> {
        Self::job(spec)?;
        let node = "the machine is the node that Slurm gives, with its own root";
        for (asked, ability) in [
            (spec.image != ImageReference::Host, format!("from image {}", spec.image)),
            (spec.disk.is_some(), "with a disk limit".to_owned()),
            (spec.privileged, "with privileges".to_owned()),
            (spec.docker, "with a docker of its own".to_owned()),
            (!spec.pass_env.is_empty(), "with variables of this host's".to_owned()),
            (!spec.network.is_host(), "with a network of its own".to_owned()),
        ] {
            if asked {
                return Err(Self::refuse(&ability, node));
            }
        }
        let hint = "it is that of the node: leave --arch out, or name a partition of such nodes: --partition";
        remote::check_architecture(&self.name(), spec, hint)
    }

    fn create(&self, _place: &MachinePlace, _recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        // Its job is named after its id, which is in its row already.
        Ok(())
    }

    fn start(&self, place: &MachinePlace, _recorder: &mut dyn Recorder) -> Result<AgentLink, BackendError> {
        let (remote, job) = Self::job(&place.spec)?;
        let slurm = Slurm::of(job)?;
        // One of an earlier start, whose supervisor was killed. And where a host that is reached cannot be, nothing was
        // asked for yet.
        if !slurm.is_here() || place.folder.join(JOB).exists() {
            cancel(&slurm, place)?;
        }
        note(place, "")?;
        let name = job_name(&place.id);
        let asked = Asked { name: &name, job, cpus: place.spec.cpus, memory: place.spec.memory };
        let id = match slurm.submit(asked, GUARD) {
            Ok(id) => id,
            Err(unsubmitted) => {
                if unsubmitted.certain {
                    forget(place)?;
                }
                return Err(unsubmitted.problem.into());
            }
        };
        note(place, &format!("{id}\n"))?;
        let begun = slurm
            .await_node(place.name.as_str(), id, job.patience.map_or(PATIENCE, |span| span.0))
            .and_then(|job| note(place, &job.kept()).map(|()| job))
            .map_err(BackendError::from)
            .and_then(|job| {
                let way = Transport::Command(slurm.step(&job)?);
                let remote = Remote { transport: way, grace: remote.grace.or(Some(GRACE)), ..remote.clone() };
                remote::near(place, remote.clone(), Self::there(&place.spec, remote.inside)?, notes(&job), None)
            });
        if begun.is_err() {
            // Where Slurm does not answer any more, the job's guard ends it.
            let _ = cancel(&slurm, place);
        }
        begun
    }

    fn stopped(&self, place: &MachinePlace, _recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        Self::cancel(place)
    }

    fn remove(&self, place: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        Self::cancel(place)?;
        let ours = recorder.all()?.into_iter().filter(|resource| resource.place != place.folder);
        let gone: Vec<_> = ours.map(|resource| resource.id).collect();
        recorder.gone(&gone)?;
        Ok(())
    }

    fn copy(&self, _from: &MachinePlace, to: &MachinePlace, recorder: &mut dyn Recorder) -> Result<(), BackendError> {
        // It has no files of its own: another job is the same machine.
        self.create(to, recorder)
    }

    fn ending(&self, place: &MachinePlace, said: Option<&Problem>) -> Option<Problem> {
        let (_, job) = Self::job(&place.spec).ok()?;
        let id = Job::kept_number(&kept(&place.folder)?)?;
        let name = place.name.as_str();
        let of_memory = said.is_some_and(job::is_of_memory);
        // The step may have ended, and the job not yet.
        let of_step = || of_memory.then(|| job::out_of_memory(name, id));
        Slurm::of(job).ok()?.ending(name, id, of_memory).or_else(of_step)
    }
}

/// The processors and the memory of the job that the machine with this folder is; none where it has none, or they were
/// not written down. No memory means that Slurm counts none.
#[must_use]
pub fn room_of(folder: &Path) -> Option<(u32, Option<ByteSize>)> {
    Job::kept_room(&kept(folder)?)
}

/// What was written down of a machine's job.
fn kept(folder: &Path) -> Option<String> {
    std::fs::read_to_string(folder.join(JOB)).ok()
}

fn note(place: &MachinePlace, text: &str) -> Result<(), Problem> {
    std::fs::write(place.folder.join(JOB), text).map_err(|error| {
        Problem::new(testyard_model::ProblemKind::System, "cannot write down the job's number").because(error)
    })
}

/// How long ago the job was asked for.
fn age(place: &MachinePlace) -> Option<Duration> {
    std::fs::metadata(place.folder.join(JOB)).ok()?.modified().ok()?.elapsed().ok()
}

/// There is no job any more: nobody needs to look for it.
fn forget(place: &MachinePlace) -> Result<(), Problem> {
    testyard_linux::files::remove_file(&place.folder.join(JOB)).map_err(|error| {
        Problem::new(testyard_model::ProblemKind::System, "cannot write down that there is no job")
            .because(error.source)
    })
}

/// Cancels a machine's jobs, and waits until none is left.
fn cancel(slurm: &Slurm, place: &MachinePlace) -> Result<(), BackendError> {
    let unanswered = || kept(&place.folder).is_some_and(|text| text.is_empty()).then(|| age(place)).flatten();
    let late = unanswered().map_or(Duration::ZERO, |age| LATE.saturating_sub(age));
    slurm.cancel(&job_name(&place.id), late)?;
    Ok(forget(place)?)
}

/// What `info` says of the job.
fn notes(job: &Job) -> Vec<String> {
    let memory = job.memory.map_or_else(|| "all memory".to_owned(), |memory| format!("{memory} memory"));
    vec![format!("job {} on node {}: {} processors, {memory}; it ends with the job", job.id, job.node, job.cpus)]
}
