//! `testyard hold`

use std::io::{self, BufRead as _};
use std::time::Duration;

use clap::Parser as _;
use rustix::fs::{Mode, OFlags};
use serde_json::json;
use testyard::{Holder, KeptName};
use testyard_cluster::ClusterName;
use testyard_linux::process;
use testyard_linux::signal::{self, Signal};
use testyard_model::{ExitCode, MachineName, Problem, ProblemKind, Span};

use super::cluster::CreateCluster;
use super::create::Create;
use super::{DONE, Outcome};
use crate::output::Output;
use crate::yard;

/// Hold machines for the process at the other end of standard input; they end with it.
///
/// Standard input has one request a line, and each is answered by one line of JSON:
///
///     hold NAME                       holds a machine that is there
///     create ["NAME", "--image", …]   creates one, with the arguments of `testyard create`, and holds it
///     release NAME                    lets it go; deletes it where nobody else holds it
///     hold-cluster NAME               the same three for clusters, with the arguments of
///     create-cluster ["slurm", …]     `testyard cluster create`
///     release-cluster NAME
///     keep MACHINE/eNUMBER 1h TEST    writes down that an environment is kept, so that its machine is too
///
/// At the end of standard input everything is let go, and a machine that nobody else holds is
/// deleted, with all that runs in it. That is so too when who started this was killed. Where
/// this is killed itself, every other command looks around now and then, and `testyard reap`
/// does. Signals from a terminal do not end it.
///
/// Examples:
///     testyard hold < requests
///     (echo hold m1; sleep 5) | testyard hold --for "a rehearsal"
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Hold {
    /// For people: what it is held for
    #[arg(long = "for", value_name = "WORDS", default_value = "another process")]
    purpose: String,
}

/// The arguments of `create`, on their own.
#[derive(Debug, clap::Parser)]
#[command(name = "create", disable_help_flag = true)]
struct CreateAlone {
    #[command(flatten)]
    create: Create,
}

/// The arguments of `cluster create`, on their own.
#[derive(Debug, clap::Parser)]
#[command(name = "cluster create", disable_help_flag = true)]
struct CreateClusterAlone {
    #[command(flatten)]
    create: CreateCluster,
}

impl Hold {
    pub(crate) fn run(self, output: Output) -> Outcome {
        leave_starter()?;
        let yard = yard::open()?;
        let mut holder = Holder::new(&yard, &self.purpose);
        for line in io::stdin().lock().split(b'\n') {
            // A reader that cannot be read from any more has ended too.
            let Ok(line) = line else { break };
            let answer = match answer(&mut holder, &String::from_utf8_lossy(&line)) {
                Ok(answer) => answer,
                Err(problem) => json!({ "error": problem }),
            };
            // Who does not read answers is told nothing; the end of standard input is what counts.
            let _ = output.json_object(answer);
        }
        let mut problems = holder.release_all();
        if holder.is_waiting() {
            leave_streams();
        }
        problems.extend(holder.finish());
        for problem in &problems {
            output.problem(problem);
        }
        if problems.is_empty() { DONE } else { Ok(ExitCode::Infrastructure.code()) }
    }
}

fn answer(holder: &mut Holder<'_>, line: &str) -> Result<serde_json::Value, Problem> {
    let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    match word {
        "hold" => {
            let machine = holder.hold(&name(rest)?)?;
            Ok(json!({ "held": machine.name, "machine": yard::with_socket(&machine)? }))
        }
        "create" => {
            let parsed = CreateAlone::try_parse_from(words(word, rest)?).map_err(|error| refused(&error))?;
            let (name, spec) = parsed.create.parts()?;
            let machine = holder.create(&name, &spec)?;
            Ok(json!({ "held": machine.name, "machine": yard::with_socket(&machine)? }))
        }
        "release" => {
            let name = name(rest)?;
            let deleted = holder.release(&name)?;
            Ok(json!({ "released": name, "deleted": deleted }))
        }
        "hold-cluster" => {
            let cluster = holder.hold_cluster(&cluster_name(rest)?)?;
            Ok(json!({ "held": cluster.name, "cluster": cluster }))
        }
        "create-cluster" => {
            let parsed = CreateClusterAlone::try_parse_from(words(word, rest)?).map_err(|error| refused(&error))?;
            let (name, spec) = parsed.create.parts()?;
            let cluster = holder.create_cluster(&name, &spec)?;
            Ok(json!({ "held": cluster.name, "cluster": cluster }))
        }
        "release-cluster" => {
            let name = cluster_name(rest)?;
            let deleted = holder.release_cluster(&name)?;
            Ok(json!({ "released": name, "deleted": deleted }))
        }
        "keep" => {
            let (environment, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let (duration, test) = rest.split_once(' ').unwrap_or((rest, ""));
            let environment: KeptName = environment.parse().map_err(|error| usage(format!("{error}")))?;
            let duration: Span = duration.parse().map_err(|error| usage(format!("{error}")))?;
            holder.keep(&environment, test, duration.0.max(Duration::from_secs(1)))?;
            Ok(json!({ "kept": environment.to_string(), "enter": format!("testyard env enter {environment}") }))
        }
        _ => Err(usage(format!("`{word}` is none of hold, create, release, keep, and hold-cluster and its kind"))
            .hint("testyard hold --help")),
    }
}

/// The command's own name, then the arguments that were given as a JSON list.
fn words(word: &str, list: &str) -> Result<Vec<String>, Problem> {
    let words: Vec<String> = serde_json::from_str(list)
        .map_err(|error| usage(format!("`{word}` takes its arguments as a JSON list: {error}")))?;
    Ok(std::iter::once(word.to_owned()).chain(words).collect())
}

fn cluster_name(text: &str) -> Result<ClusterName, Problem> {
    text.trim().parse().map_err(|error| usage(format!("{error}")))
}

fn name(text: &str) -> Result<MachineName, Problem> {
    text.trim().parse().map_err(|error| usage(format!("{error}")))
}

fn usage(message: String) -> Problem {
    Problem::new(ProblemKind::Usage, message)
}

/// The first paragraph of what the parser says, without its own mark.
fn refused(error: &clap::Error) -> Problem {
    let text = error.to_string();
    let first = text.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
    usage(first.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// What ends the process that started this, a key on its terminal or the end of its session, must not end this too.
fn leave_starter() -> Result<(), Problem> {
    let terminal = [Signal::INT, Signal::HUP, Signal::QUIT, Signal::TERM, Signal::TSTP];
    // Blocked, not ignored: that would be inherited by what is started here.
    signal::block(&terminal).map_err(|error| error.problem())?;
    // One that leads a process group stays in its session.
    let _ = process::set_session();
    rustix::process::chdir("/").map_err(|errno| {
        Problem::new(ProblemKind::System, "cannot leave the working folder").because(io::Error::from(errno))
    })
}

/// Somebody may wait for the end of what our output goes to: for a machine that is kept that would be too long.
fn leave_streams() {
    let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) else { return };
    let _ = rustix::stdio::dup2_stdin(&null);
    let _ = rustix::stdio::dup2_stdout(&null);
    let _ = rustix::stdio::dup2_stderr(&null);
}
