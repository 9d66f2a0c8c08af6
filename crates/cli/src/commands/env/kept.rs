//! `testyard env list`, `enter`, `fork` and `delete`

use std::ffi::OsString;
use std::time::Duration;

use serde_json::json;
use testyard::KeptName;
use testyard_model::{Problem, ProblemKind, Span};
use testyard_protocol::{Exec, Place, RawText};

use crate::commands::{DONE, Outcome, exec};
use crate::output::Output;
use crate::values::User;
use crate::{attend, yard};

/// How long an environment is kept that nobody says more about.
pub(crate) const KEPT_FOR: &str = "1h";

/// The environment's own shell, where the working tree is.
const SHELL: &str = r#"exec "${SHELL:-/bin/sh}" -i"#;

/// List the environments that are kept.
///
/// They are what `testyard run --keep-failed` left of failed tests, and forks of those.
///
/// Examples:
///     testyard env list
///     testyard env list --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct List {}

impl List {
    pub(super) fn run(self, output: Output) -> Outcome {
        let kept = yard::open()?.kept()?;
        if output.json {
            output.json("environments", &kept)?;
            return DONE;
        }
        if kept.is_empty() {
            output.say("no environment is kept; testyard run --keep-failed keeps those of failed tests");
        }
        let now = jiff::Timestamp::now().as_millisecond();
        let mut text = String::new();
        for one in &kept {
            let left = Duration::from_millis(u64::try_from(one.expires_ms - now).unwrap_or(0));
            let left = Span(Duration::from_secs(left.as_secs()));
            text.push_str(&format!("{}  {}::{}  for {left} more\n", one.name, one.suite, one.test));
        }
        output.data(&text)?;
        DONE
    }
}

/// Open a shell in a kept environment, or run a command there.
///
/// Everything is as the test left it: files, processes that still run, network, limits. What is
/// done there stays. Returns the shell's or command's exit code.
///
/// Examples:
///     testyard env enter run-namespace-host-ab12/e17
///     testyard env enter run-namespace-host-ab12/e17 --user root -- ls -l /tmp
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Enter {
    /// The environment, as `testyard env list` names it
    #[arg(value_name = "MACHINE/eNUMBER")]
    name: KeptName,
    /// Whom it runs as: a name, root, or a number [default: the test's user]
    #[arg(long, short)]
    user: Option<User>,
    /// A command and its arguments, verbatim [default: a shell]
    #[arg(trailing_var_arg = true, value_name = "ARGV")]
    argv: Vec<OsString>,
}

impl Enter {
    pub(super) fn run(self, output: Output) -> Outcome {
        yard::open()?.check_kept(&self.name)?;
        enter(&self.name, self.user.map(|user| user.0), &self.argv, output)
    }
}

/// Runs a command, else a shell, in an environment that is there.
pub(crate) fn enter(
    name: &KeptName,
    user: Option<testyard_model::UserSpec>,
    argv: &[OsString],
    output: Output,
) -> Outcome {
    let mut machine = yard::connect(&name.machine)?;
    let shell = ["/bin/sh", "-c", SHELL].map(OsString::from);
    let argv = if argv.is_empty() { shell.as_slice() } else { argv };
    let on_terminal = attend::has_terminal();
    let request = Exec {
        argv: argv.iter().map(|word| RawText::from(word.as_os_str())).collect(),
        user,
        place: Place::Environment(name.environment),
        ..Exec::default()
    };
    if output.json {
        return exec::collect(machine.connection(), request, output);
    }
    let finished = if on_terminal {
        attend::run_on_terminal(machine, request)?
    } else {
        attend::run(machine.connection(), request)?
    };
    exec::report(&name.machine, &finished, None, output)
}

/// Start another environment from a kept one.
///
/// It has the same files, in a copy of its own, and none of the processes. Prints its name.
///
/// Examples:
///     testyard env fork run-namespace-host-ab12/e17
///     testyard env enter "$(testyard env fork run-namespace-host-ab12/e17)"
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Fork {
    /// The environment, as `testyard env list` names it
    #[arg(value_name = "MACHINE/eNUMBER")]
    name: KeptName,
    /// How long it is kept
    #[arg(long, value_name = "DURATION", default_value = KEPT_FOR)]
    keep_for: Span,
}

impl Fork {
    pub(super) fn run(self, output: Output) -> Outcome {
        let fork = yard::open()?.fork_kept(&self.name, self.keep_for.0)?;
        if output.json {
            output.json("environment", &fork.to_string())?;
        } else {
            output.data(&format!("{fork}\n"))?;
        }
        DONE
    }
}

/// End kept environments, with all that is in them.
///
/// Examples:
///     testyard env delete run-namespace-host-ab12/e17
///     testyard env delete --all
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Delete {
    /// The environments, as `testyard env list` names them
    #[arg(value_name = "MACHINE/eNUMBER", required_unless_present = "all")]
    names: Vec<KeptName>,
    /// Every kept environment
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

impl Delete {
    pub(super) fn run(self, output: Output) -> Outcome {
        let yard = yard::open()?;
        let names = if self.all {
            let parsed = yard.kept()?.into_iter().map(|one| one.name.parse());
            let names: Result<Vec<KeptName>, _> = parsed.collect();
            names.map_err(|error| Problem::from_error(ProblemKind::Bug, &error))?
        } else {
            self.names
        };
        for name in &names {
            yard.delete_kept(name)?;
        }
        if output.json {
            let names: Vec<String> = names.iter().map(KeptName::to_string).collect();
            output.json_object(json!({ "deleted": names }))?;
        }
        DONE
    }
}
