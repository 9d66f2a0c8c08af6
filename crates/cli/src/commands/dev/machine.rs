//! `testyard dev ensure-started`, and how a developer's machine is found.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use testyard::{Machine, Testyard};
use testyard_linux::user;
use testyard_model::{
    BackendName, ImageReference, MachineInfo, MachineName, MachineSpec, MachineState, Problem, ProblemKind,
};

use super::{Outcome, Whose, containers};
use crate::commands::DONE;
use crate::output::Output;
use crate::{describe, yard};

/// How often is looked again at a machine that somebody else is just starting or ending, and how long between.
const LOOKS: usize = 1200;
const PAUSE: Duration = Duration::from_millis(50);
/// What belongs to the machine and outlives a command.
const SHARED: [&str; 2] = ["/tmp", "/root"];

/// Make sure that the developer's machine runs: created where there is none, started where it
/// is stopped.
///
/// Whoever else does the same at the same time gets the same machine.
///
/// Examples:
///     testyard dev ensure-started
///     testyard dev ensure-started --image debian:12 --force-new
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct EnsureStarted {
    #[command(flatten)]
    whose: Whose,
    /// What makes it: host, namespace, or auto for the strongest that this host can give
    #[arg(long, short, default_value = "auto", env = "TESTYARD_DEV_BACKEND")]
    backend: BackendName,
    /// What it starts from: host (a live view of this one), or a stored image such as debian:12
    #[arg(long, short, default_value = "host", env = "TESTYARD_DEV_IMAGE")]
    image: ImageReference,
    /// A word for what it stands for, shown by status; it changes nothing
    #[arg(long, value_name = "WORD")]
    instance_type: Option<String>,
    /// Delete the one that is there, with its files, and make another
    #[arg(long)]
    force_new: bool,
}

impl EnsureStarted {
    pub(super) fn run(self, output: Output) -> Outcome {
        let yard = yard::open()?;
        let name = self.whose.name()?;
        if self.force_new {
            containers::forget(&yard, &name)?;
            match yard.machines().delete(&name, true) {
                Err(problem) if problem.kind != ProblemKind::NotFound => return Err(problem),
                _ => {}
            }
        }
        let spec = self.spec(&yard)?;
        let (machine, created) = ensured(&yard, &name, &spec)?;
        if let Some(word) = &self.instance_type {
            containers::set_instance_type(&yard, &machine, word)?;
        }
        let instance_type = containers::instance_type(&yard, &machine);
        if output.json {
            let machine = yard::with_socket(&machine)?;
            output.json_object(json!({ "machine": machine, "created": created, "instance_type": instance_type }))?;
        } else {
            output.say(format_args!("{} {}", if created { "created" } else { "running:" }, describe::done(&machine)));
        }
        DONE
    }

    fn spec(&self, yard: &Testyard) -> Result<MachineSpec, Problem> {
        let backend = yard.machines().backend_for(&self.backend)?;
        let contained = backend != BackendName::host();
        Ok(MachineSpec {
            image: self.image.clone(),
            // Plain processes are the developer's own.
            user: (contained || rustix::process::geteuid().is_root()).then(|| "root".to_owned()),
            share: SHARED.iter().map(PathBuf::from).collect(),
            docker: true,
            // Why that one is told where it is chosen.
            ..MachineSpec::new(self.backend.clone())
        })
    }
}

impl Whose {
    /// The machine's name.
    pub(super) fn name(&self) -> Result<MachineName, Problem> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let uid = rustix::process::geteuid().as_raw().to_string();
        let user = user::account_in(Path::new("/"), &uid).map_or(uid, |account| account.name);
        let plain: String =
            user.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')).collect();
        format!("dev-{plain}").parse().map_err(|error| Problem::from_error(ProblemKind::Usage, &error))
    }

    /// The machine, where it runs.
    pub(super) fn running(&self, yard: &Testyard) -> Result<Option<MachineInfo>, Problem> {
        match yard.machines().info(&self.name()?) {
            Ok(machine) if machine.state == MachineState::Running => Ok(Some(machine)),
            Err(problem) if problem.kind != ProblemKind::NotFound => Err(problem),
            _ => Ok(None),
        }
    }

    /// A connection to it, and what it is.
    pub(super) fn connect(&self, yard: &Testyard) -> Result<(Machine, MachineInfo), Problem> {
        let Some(info) = self.running(yard)? else {
            return Err(Problem::new(
                ProblemKind::NotFound,
                format!("no developer's machine {} is running", self.name()?),
            )
            .hint("start it: testyard dev ensure-started"));
        };
        Ok((yard.connect(&info.name)?, info))
    }
}

/// The machine of this name, running, and whether this made it.
fn ensured(yard: &Testyard, name: &MachineName, spec: &MachineSpec) -> Result<(MachineInfo, bool), Problem> {
    let mut last = None;
    for _ in 0..LOOKS {
        let machines = yard.machines();
        let outcome = match machines.info(name) {
            Ok(machine) if machine.state == MachineState::Running => {
                return suited(machine).map(|machine| (machine, false));
            }
            Ok(machine) if matches!(machine.state, MachineState::Stopped | MachineState::Failed) => {
                machines.start(&suited(machine)?.name).map(|machine| (machine, false))
            }
            Ok(machine) => Err(Problem::new(ProblemKind::WrongState, format!("machine {name} is {}", machine.state))),
            Err(problem) if problem.kind == ProblemKind::NotFound => match machines.create(name, spec) {
                // Not the machine, which is being made: its image.
                Err(problem) if problem.kind == ProblemKind::NotFound => return Err(problem),
                outcome => outcome.map(|machine| (machine, true)),
            },
            Err(problem) => return Err(problem),
        };
        match outcome {
            Ok(done) => return Ok(done),
            // Somebody else was faster, or is at it.
            Err(problem) if is_passing(problem.kind) => last = Some(problem),
            Err(problem) => return Err(problem),
        }
        testyard_linux::pause(PAUSE);
    }
    Err(last.unwrap_or_else(|| Problem::new(ProblemKind::TimedOut, format!("machine {name} does not come to rest"))))
}

fn is_passing(kind: ProblemKind) -> bool {
    matches!(kind, ProblemKind::AlreadyExists | ProblemKind::WrongState | ProblemKind::NotFound)
}

/// Refuses a machine of that name that is nobody's for developing.
fn suited(machine: MachineInfo) -> Result<MachineInfo, Problem> {
    if machine.spec.docker && SHARED.iter().all(|folder| machine.spec.share.iter().any(|one| one == Path::new(folder)))
    {
        return Ok(machine);
    }
    let message = format!("machine {} is not a developer's machine: it shares no folders", machine.name);
    Err(Problem::new(ProblemKind::Usage, message).hint("give another name: --name, or TESTYARD_DEV_MACHINE"))
}
