//! `testyard env`

mod diff;
pub(super) mod kept;

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use testyard_model::{
    ByteSize, EnvironmentLimits, EnvironmentSpec, Isolation, MachineName, Network, Problem, ProblemKind, Span, Usage,
    UserSpec,
};
use testyard_protocol::{Exec, Place, RawText};

use super::{Outcome, exec};
use crate::output::Output;
use crate::values::{self, User, Variable};
use crate::{attend, yard};

/// Environments: short-lived, isolated places in a machine.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Env {
    #[command(subcommand)]
    command: EnvCommand,
}

#[derive(Debug, clap::Subcommand)]
enum EnvCommand {
    Run(Run),
    List(kept::List),
    Enter(kept::Enter),
    Diff(diff::Diff),
    Fork(kept::Fork),
    Delete(kept::Delete),
}

impl Env {
    pub(crate) fn run(self, output: Output) -> Outcome {
        match self.command {
            EnvCommand::Run(command) => command.run(output),
            EnvCommand::List(command) => command.run(output),
            EnvCommand::Enter(command) => command.run(output),
            EnvCommand::Diff(command) => command.run(output),
            EnvCommand::Fork(command) => command.run(output),
            EnvCommand::Delete(command) => command.run(output),
        }
    }
}

/// Make an environment, run one command in it, and end it with all that is in it.
///
/// It has its own copy-on-write root, processes, IPC, host name and network. Returns the
/// command's own exit code, 128+n for signal n, 124 when its time was up and 127 when it could
/// not be started.
///
/// Examples:
///     testyard env run m1 -- sh -c 'rm -rf /usr/bin; echo still fine outside'
///     testyard env run m1 --network none --memory 256M --pids 64 --usage -- ./test
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct Run {
    /// The machine's name
    name: MachineName,
    /// How far it is kept from others; below `namespace` it shares the machine's network
    #[arg(long, short, value_name = "LEVEL", default_value = "namespace", value_parser = values::isolation())]
    isolation: Isolation,
    /// Its network: its own loopback, that and a route out, the machine's, or nothing [default: private]
    #[arg(long, short, value_parser = values::network())]
    network: Option<Network>,
    /// The most memory, page cache included, such as 512M
    #[arg(long, short, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// The most processes and threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pids: Option<u32>,
    /// Processor time, in cores
    #[arg(long, value_name = "N", value_parser = values::processors)]
    cpus: Option<f64>,
    /// The most that it may write [default: 1G]
    #[arg(long, value_name = "SIZE")]
    disk: Option<ByteSize>,
    /// Fail rather than run without a limit that this host cannot set
    #[arg(long)]
    strict_limits: bool,
    /// Mount its own control groups at /sys/fs/cgroup, for what runs containers inside
    #[arg(long)]
    cgroups: bool,
    /// Show this folder of yours at its own path, copy-on-write, and run there
    #[arg(long, value_name = "FOLDER")]
    source: Option<PathBuf>,
    /// Working folder
    #[arg(long, value_name = "FOLDER")]
    cwd: Option<PathBuf>,
    /// A variable for the command, or NAME alone for your own value; may be repeated
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = Variable::parser())]
    env: Vec<Variable>,
    /// Whom it runs as: a name, root, or a number [default: the machine's user]
    #[arg(long, short)]
    user: Option<User>,
    /// End it and all it started after so long, such as 90s
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
    /// Say on standard error what it used
    #[arg(long)]
    usage: bool,
    /// The command and its arguments, verbatim
    #[arg(required = true, trailing_var_arg = true, value_name = "ARGV")]
    argv: Vec<OsString>,
}

impl Run {
    fn run(self, output: Output) -> Outcome {
        self.check()?;
        let mut machine = yard::connect(&self.name)?;
        let connection = machine.connection();
        let mut request = self.request();
        if let Some(source) = &self.source {
            let (_, path) = crate::moving::here(source)?;
            let folder = File::open(&path).map_err(|error| no_source(&path, error))?;
            if !folder.metadata().is_ok_and(|found| found.is_dir()) {
                return Err(Problem::new(ProblemKind::Usage, format!("the source {} is not a folder", path.display()))
                    .hint(format!(
                        "show the folder it lies in: --source {}",
                        path.parent().unwrap_or(&path).display()
                    )));
            }
            request.source = Some(connection.open_source(&path).map_err(yard::told)?);
        }
        if output.json {
            return exec::collect(connection, request, output);
        }
        let finished = attend::run(connection, request)?;
        if self.usage {
            output.say(described(&finished.usage));
        } else {
            exec::tell_of_memory(&finished, self.memory, output);
        }
        exec::report(&self.name, &finished, self.timeout, output)
    }

    fn check(&self) -> Result<(), Problem> {
        let limited = self.memory.is_some() || self.pids.is_some() || self.cpus.is_some() || self.disk.is_some();
        let usage = |message: &str| Problem::new(ProblemKind::Usage, message);
        match self.isolation {
            Isolation::Machine => Err(usage("isolation `machine` is a machine of its own, not an environment in one")
                .hint("testyard create NAME, then testyard exec NAME")),
            Isolation::None if limited || self.source.is_some() => {
                Err(usage("without isolation there is nothing to limit, and no source to show")
                    .hint("leave out --isolation none"))
            }
            Isolation::None | Isolation::Workspace if self.network.is_some_and(|network| network != Network::Host) => {
                Err(usage("isolation `none` and `workspace` share the machine's network")
                    .hint("leave out --network, or --isolation"))
            }
            _ => Ok(()),
        }
    }

    fn place(&self) -> Place {
        if self.isolation == Isolation::None {
            return Place::Machine;
        }
        let spec = EnvironmentSpec::new(self.isolation, self.user.clone().map_or(UserSpec::Machine, |user| user.0));
        Place::Fresh(Box::new(EnvironmentSpec {
            network: self.network.unwrap_or(spec.network),
            limits: EnvironmentLimits { memory: self.memory, pids: self.pids, cpus: self.cpus, disk: self.disk },
            source: self.source.as_ref().and_then(|path| std::path::absolute(path).ok()),
            strict_limits: self.strict_limits,
            cgroups: self.cgroups,
            ..spec
        }))
    }

    fn request(&self) -> Exec {
        Exec {
            argv: self.argv.iter().map(|word| RawText::from(word.as_os_str())).collect(),
            cwd: self.cwd.as_deref().map(RawText::from),
            env: exec::variables(&self.env),
            timeout_ms: self.timeout.map(Span::milliseconds),
            user: self.user.clone().map(|user| user.0),
            place: self.place(),
            ..Exec::default()
        }
    }
}

fn no_source(path: &Path, error: std::io::Error) -> Problem {
    Problem::new(ProblemKind::Usage, format!("cannot open the source {}", path.display()))
        .because(error)
        .hint("give a folder that is there and that you may read")
}

/// What an environment used, in one line.
fn described(usage: &Usage) -> String {
    let mut text = format!("used {:.1} ms, {:.1} ms of processor time", milli(usage.wall_us), milli(usage.cpu_us));
    if let Some(peak) = usage.memory_peak {
        text.push_str(&format!(", {} of memory at most", ByteSize(peak)));
    }
    if usage.out_of_memory {
        text.push_str(", and ran out of memory");
    }
    if !usage.unavailable.is_empty() {
        text.push_str(&format!("; this host could not give: {}", usage.unavailable.join(", ")));
    }
    text
}

fn milli(microseconds: u64) -> f64 {
    microseconds as f64 / 1000.0
}
