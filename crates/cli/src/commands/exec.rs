//! `testyard exec`

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use serde_json::json;
use testyard::Machine;
use testyard_machine::client::{Connection, Finished};
use testyard_model::{ByteSize, CommandStatus, MachineName, Problem, ProblemKind, Span, UserSpec};
use testyard_protocol::{Exec as Request, RawText, StreamTarget};

use super::{DONE, Outcome};
use crate::output::Output;
use crate::values::{User, Variable};
use crate::{attend, streams, yard};

/// Run a command in a machine.
///
/// Its standard streams are yours, signals are passed on to it, and it ends when this does,
/// unless detached. Returns the command's own exit code, 128+n for signal n, 124 when its time
/// was up and 127 when it could not be started. With --json its output is collected and printed
/// with its status.
///
/// Examples:
///     testyard exec m1 -- uname -a
///     testyard exec m1 --user root --cwd /srv --env LANG=C -- sh -c 'make test'
///     testyard exec m1 -t -- htop
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Exec {
    /// The machine's name
    name: MachineName,
    #[command(flatten)]
    order: Order,
}

/// What is to run, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Order {
    /// Working folder [default: the user's home]
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
    /// Give it a terminal of its own, of your terminal's size
    #[arg(long, short, conflicts_with_all = ["json", "detach"])]
    terminal: bool,
    /// Start it and return; it lives on in the machine, without its standard streams
    #[arg(long, short)]
    detach: bool,
    /// The command and its arguments, verbatim
    #[arg(required = true, trailing_var_arg = true, value_name = "ARGV")]
    argv: Vec<OsString>,
}

impl Exec {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let machine = yard::connect(&self.name)?;
        self.order.run(machine, None, output)
    }
}

impl Order {
    /// Runs it in a machine, as this user where none was asked for.
    pub(super) fn run(self, mut machine: Machine, usual: Option<UserSpec>, output: Output) -> Outcome {
        let mut request = self.request();
        request.user = request.user.or(usual);
        let name = machine.name().clone();
        if self.detach {
            return detach(machine.connection(), request, output);
        }
        if self.terminal {
            return report(&name, &attend::run_on_terminal(machine, request)?, self.timeout, output);
        }
        if output.json {
            return collect(machine.connection(), request, output);
        }
        let finished = attend::run(machine.connection(), request)?;
        tell_of_memory(&finished, None, output);
        report(&name, &finished, self.timeout, output)
    }

    fn request(&self) -> Request {
        Request {
            argv: self.argv.iter().map(|word| RawText::from(word.as_os_str())).collect(),
            cwd: self.cwd.as_deref().map(RawText::from),
            env: variables(&self.env),
            user: self.user.clone().map(|user| user.0),
            timeout_ms: self.timeout.map(Span::milliseconds),
            ..Request::default()
        }
    }
}

/// Variables as the protocol carries them.
pub(super) fn variables(variables: &[Variable]) -> Vec<(RawText, RawText)> {
    variables.iter().map(|variable| (variable.name.as_os_str().into(), variable.value.as_os_str().into())).collect()
}

/// Says so of a command that was killed for its memory: else that is a riddle.
pub(super) fn tell_of_memory(finished: &Finished, limit: Option<ByteSize>, output: Output) {
    if finished.usage.out_of_memory && finished.status == CommandStatus::Signalled(9) {
        let limit = limit.map_or_else(String::new, |limit| format!(" of {limit}"));
        output.say(format_args!("killed: its memory{limit} was not enough"));
    }
}

/// A command's own exit code; says so where its time was up, because then the code is ours.
pub(super) fn report(name: &MachineName, finished: &Finished, timeout: Option<Span>, output: Output) -> Outcome {
    if finished.status == CommandStatus::TimedOut {
        let limit = timeout.map_or_else(|| "its time".to_owned(), |limit| limit.to_string());
        let message = format!("the command in machine {name} was ended because {limit} had passed");
        output.problem(&Problem::new(ProblemKind::TimedOut, message));
    }
    Ok(finished.status.shell_code())
}

/// Runs a command and prints its output and status as one document.
pub(super) fn collect(connection: &mut Connection, mut request: Request, output: Output) -> Outcome {
    let stdin = std::io::stdin();
    let attached = if streams::can_be_passed(stdin.as_fd()) {
        request.stdin = StreamTarget::Attached(0);
        vec![stdin.as_fd()]
    } else {
        Vec::new()
    };
    let captured = connection.capture(request, &attached).map_err(yard::told)?;
    let code = captured.finished.status.shell_code();
    output.json_object(json!({
        "status": captured.finished.status,
        "code": code,
        "usage": captured.finished.usage,
        "environment": captured.finished.environment,
        "stdout": String::from_utf8_lossy(&captured.stdout),
        "stderr": String::from_utf8_lossy(&captured.stderr),
    }))?;
    Ok(code)
}

fn detach(connection: &mut Connection, mut request: Request, output: Output) -> Outcome {
    request.detach = true;
    let pid = connection.exec(request, &[]).and_then(|mut command| command.wait_started()).map_err(yard::told)?;
    if output.json {
        output.json("pid", &pid)?;
    } else {
        output.say(format_args!("started as process {pid}"));
    }
    DONE
}
