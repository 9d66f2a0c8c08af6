//! `testyard create`

use std::path::{Component, Path, PathBuf};

use testyard_model::{
    BackendName, ByteSize, Exposure, ImageReference, MachineInfo, MachineName, MachineSpec, Problem, ProblemKind, Span,
};

use super::elsewhere::Elsewhere;
use super::network_arguments::NetworkArguments;
use super::{DONE, Outcome};
use crate::output::Output;
use crate::values::{self, User};
use crate::{describe, yard};

/// Less than this not even an agent lives in.
const LEAST_MEMORY: ByteSize = ByteSize(1 << 20);

/// Create a machine and start it.
///
/// It exists once this returns: its agent has answered. Otherwise nothing of it is left.
///
/// Examples:
///     testyard create m1
///     testyard create n1 --network private:lab --publish 2222:22
///     testyard create big --image debian:12 --cpus 2 --memory 1G --idle 30m --ttl 8h
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Create {
    /// Its name: letters, digits, `-`, `_` and `.`, at most 63
    name: MachineName,
    /// What makes it: host, namespace, or auto for the strongest that this host can give
    #[arg(long, short, default_value = "auto")]
    backend: BackendName,
    /// What it starts from: host (a live view of this one), a stored image such as debian:12, or sha256:…
    #[arg(long, short, default_value = "host")]
    image: ImageReference,
    /// Whom its commands run as: a name, root, or a number [default: you]
    #[arg(long, short)]
    user: Option<User>,
    /// Processor time, in cores
    #[arg(long, value_name = "N", value_parser = values::processors)]
    cpus: Option<f64>,
    /// Memory of everything in it, such as 512M
    #[arg(long, short, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// What may be written over its image
    #[arg(long, value_name = "SIZE")]
    disk: Option<ByteSize>,
    /// Processor architecture, such as x86_64 [default: this host's]
    #[arg(long)]
    arch: Option<String>,
    /// Make root inside this host's root; needs root
    #[arg(long)]
    privileged: bool,
    /// Show a path of the host: with :ro the host's own files, read-only, with :rw also to write to, else as a machine
    /// sees its host; may be repeated
    #[arg(long, value_name = "PATH[:ro|:rw]")]
    expose: Vec<Exposure>,
    /// Pass this variable of yours to its commands; may be repeated
    #[arg(long, value_name = "NAME")]
    pass_env: Vec<String>,
    /// Keep this folder apart from its root, so that environments may share it; may be repeated
    #[arg(long, value_name = "FOLDER")]
    share: Vec<PathBuf>,
    /// Give it a command `docker`, whose containers are made in the machine itself
    #[arg(long)]
    docker: bool,
    #[command(flatten)]
    network: NetworkArguments,
    /// Stop it after so long without use, such as 10m
    #[arg(long, value_name = "DURATION")]
    idle: Option<Span>,
    /// Delete it after so long, such as 8h
    #[arg(long, value_name = "DURATION")]
    ttl: Option<Span>,
    #[command(flatten)]
    elsewhere: Elsewhere,
}

impl Create {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let (name, spec) = self.parts()?;
        let machine = yard::open_to_start()?.machines().create(&name, &spec)?;
        tell(&machine, "created", output)
    }

    /// What is asked for, checked.
    pub(super) fn parts(self) -> Result<(MachineName, MachineSpec), Problem> {
        let name = self.name.clone();
        Ok((name, self.spec()?))
    }

    fn spec(self) -> Result<MachineSpec, Problem> {
        exposed_exist(&self.expose)?;
        if let Some(memory) = self.memory.filter(|memory| *memory < LEAST_MEMORY) {
            let message = format!("no machine can live in --memory {memory}");
            return Err(Problem::new(ProblemKind::Usage, message).hint(format!("give it at least {LEAST_MEMORY}")));
        }
        if let Some(name) = self.pass_env.iter().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return Err(Problem::new(ProblemKind::Usage, format!("--pass-env {name:?} is not a variable's name")));
        }
        if let Some(folder) = self.share.iter().find(|folder| !is_shareable(folder)) {
            let message = format!("--share {} is not a folder that a machine can keep apart", folder.display());
            return Err(
                Problem::new(ProblemKind::Usage, message).hint("write an absolute path, for example: --share /tmp")
            );
        }
        let remote = self.elsewhere.remote(&self.backend)?;
        Ok(MachineSpec {
            backend: self.backend,
            image: self.image,
            image_digest: None,
            user: self.user.map(|user| user.written()),
            cpus: self.cpus,
            memory: self.memory,
            disk: self.disk,
            arch: self.arch,
            privileged: self.privileged,
            expose: self.expose,
            idle: self.idle,
            ttl: self.ttl,
            pass_env: self.pass_env,
            share: self.share,
            docker: self.docker,
            network: self.network.network()?,
            remote,
        })
    }
}

/// Refuses a path to show that is not there.
pub(super) fn exposed_exist(exposed: &[Exposure]) -> Result<(), Problem> {
    for Exposure { path, .. } in exposed {
        if !path.exists() {
            let message = format!("--expose {} does not exist", path.display());
            return Err(Problem::new(ProblemKind::NotFound, message).hint("make it first, or check how it is spelled"));
        }
    }
    Ok(())
}

/// Whether it is an absolute path, without `..`, below the root and none of the machine's own system file systems.
fn is_shareable(folder: &Path) -> bool {
    let system = ["/proc", "/sys", "/dev"];
    folder.is_absolute()
        && folder.parent().is_some()
        && !folder.components().any(|one| one == Component::ParentDir)
        && !system.iter().any(|one| folder.starts_with(one))
}

/// What has become of a machine: its description for programs, a remark for people.
pub(super) fn tell(machine: &MachineInfo, done: &str, output: Output) -> Outcome {
    if output.json {
        output.json("machine", &yard::with_socket(machine)?)?;
    } else {
        output.say(format_args!("{done} {}", describe::done(machine)));
    }
    DONE
}
