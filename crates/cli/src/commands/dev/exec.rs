//! `testyard dev exec`

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use testyard::Testyard;
use testyard_linux::user;
use testyard_model::{BackendName, EnvironmentSpec, Isolation, MachineInfo, Network, Span, UserSpec};
use testyard_protocol::{Exec as Request, Place, RawText};

use super::{Outcome, Whose, containers};
use crate::commands::exec;
use crate::output::Output;
use crate::values::Variable;
use crate::{attend, yard};

/// Run a command in a fresh container on the developer's machine.
///
/// One word is given to the shell, several are run verbatim. It sees /tmp and /root of the
/// machine as they are; whatever else it writes goes with it. Returns the command's own exit code.
///
/// Examples:
///     testyard dev exec 'echo hello > /tmp/greeting'
///     testyard dev exec --timeout 60s -- python3 -m pytest
///     testyard dev exec --image ubuntu:22.04 'cat /etc/os-release'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Exec {
    #[command(flatten)]
    whose: Whose,
    /// Run it by the machine's docker, in this image [default: the machine's own root]
    #[arg(long, short, value_name = "IMAGE")]
    image: Option<String>,
    /// A variable for the command, or NAME alone for your own value; may be repeated
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = Variable::parser())]
    env: Vec<Variable>,
    /// End it and all it started after so long, such as 90s
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
    /// Give it a terminal of its own, of your terminal's size
    #[arg(long, short, conflicts_with = "json")]
    terminal: bool,
    /// The command
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    argv: Vec<OsString>,
}

impl Exec {
    pub(super) fn run(self, output: Output) -> Outcome {
        let yard = yard::open()?;
        let (mut machine, info) = self.whose.connect(&yard)?;
        let name = format!("flow-dev-exec-{:08x}", u32::from_ne_bytes(testyard_linux::random()));
        let mut request = Request {
            env: exec::variables(&self.env),
            timeout_ms: self.timeout.map(Span::milliseconds),
            ..Request::default()
        };
        let told = if let Some(image) = &self.image {
            request.argv = self.docker(&name, image, info.spec.backend == BackendName::host());
            None
        } else {
            request.argv = self.words();
            Some(self.contained(&yard, &info, &mut machine, &mut request, &name)?)
        };
        let code = if self.terminal {
            exec::report(&info.name, &attend::run_on_terminal(machine, request)?, self.timeout, output)
        } else if output.json {
            exec::collect(machine.connection(), request, output)
        } else {
            exec::report(&info.name, &attend::run(machine.connection(), request)?, self.timeout, output)
        };
        drop(told);
        code
    }

    /// In an environment of its own, which is told to whoever asks what runs.
    fn contained(
        &self,
        yard: &Testyard,
        info: &MachineInfo,
        machine: &mut testyard::Machine,
        request: &mut Request,
        name: &str,
    ) -> Result<containers::Told, testyard_model::Problem> {
        let plain = info.spec.backend == BackendName::host();
        if plain {
            // Else it would begin in the workspace, which goes with it.
            request.cwd = Some(own_home().as_path().into());
        }
        let isolation = if plain { Isolation::Workspace } else { Isolation::Namespace };
        let environment = machine.environment(&EnvironmentSpec {
            network: Network::Host,
            shared: !plain,
            ..EnvironmentSpec::new(isolation, UserSpec::Machine)
        })?;
        request.place = Place::Environment(environment);
        let shown = self.argv.join(OsStr::new(" "));
        containers::Told::begin(yard, info, name, &shown.to_string_lossy(), Some(environment))
    }

    /// As a shell takes it where it is one word.
    fn words(&self) -> Vec<RawText> {
        let words = self.argv.iter().map(|word| RawText::from(word.as_os_str()));
        if self.argv.len() > 1 {
            return words.collect();
        }
        ["sh", "-c"].into_iter().map(RawText::from).chain(words).collect()
    }

    fn docker(&self, name: &str, image: &str, plain: bool) -> Vec<RawText> {
        let own = own_home();
        let home = if plain { own.to_str().unwrap_or("/") } else { "/root" };
        let (volume, variable) = (format!("{home}:{home}"), format!("HOME={home}"));
        let words = ["docker", "run", "--rm", "-i", "--name", name, "-v", &volume, "-w", home, "-e", &variable];
        let mut argv: Vec<RawText> = words.into_iter().map(RawText::from).collect();
        for variable in &self.env {
            // Its value is in the command's environment.
            argv.extend([RawText::from("-e"), variable.name.as_os_str().into()]);
        }
        argv.push(RawText::from(image));
        argv.extend(self.words());
        argv
    }
}

/// The home of whoever runs this, where it is there.
fn own_home() -> PathBuf {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let home = user::account_in(Path::new("/"), &uid).map(|account| account.home);
    home.filter(|home| home.is_dir()).unwrap_or_else(|| PathBuf::from("/"))
}
