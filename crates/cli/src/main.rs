//! The command line: one file a command, below [`commands`].
//!
//! Data goes to standard output, words for people to standard error; `--json`, `--quiet` and `NO_COLOR` are
//! understood by every command. An error is printed once, here, and becomes one of the documented exit codes.
//! This program starts no machine itself: it parses, asks the `testyard` crate, and prints.

mod asking;
mod attend;
mod commands;
mod describe;
mod follow;
mod moving;
mod output;
#[cfg(test)]
mod reference;
mod streams;
mod values;
mod yard;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use testyard_model::ExitCode as Code;

use commands::Command;
use output::Output;

/// Real machines for tests: they stay warm, and every test gets its own isolated environment
/// inside one.
///
/// A machine is made once and kept; an environment is made for one command or test and costs
/// about a millisecond. Nothing is left behind, whoever is killed.
///
/// Examples:
///     testyard doctor                         what this host can do, and what would provide the rest
///     testyard run                            the tests of testyard.toml in this folder
///     testyard create m1 && testyard exec m1 -- uname -a
///
/// Exit codes:
///     0    done; every test passed
///     1    tests failed
///     2    wrong usage or configuration, or nothing selected
///     69   the infrastructure failed, not the test
///     70   a bug in Testyard
///     77   everything was skipped
///     130  interrupted, after cleanup
/// exec, shell and env run return the command's own code, 128+n for signal n, 124 when its time
/// was up and 127 when it could not be started; our own errors are told apart by lines that
/// begin with `error:`.
///
/// Environment:
///     TESTYARD_HOME  where everything is kept; two homes never see each other's machines
///     NO_COLOR       no colours
#[derive(Debug, Parser)]
#[command(name = "testyard", version, verbatim_doc_comment, max_term_width = 100, disable_help_subcommand = true)]
#[command(subcommand_required = true, arg_required_else_help = true, propagate_version = false)]
struct Testyard {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    flags: Flags,
}

/// What every command understands.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Flags {
    /// Print data as JSON, one document, with the version of its form
    #[arg(long, global = true)]
    json: bool,
    /// Print no remarks on standard error, only errors
    #[arg(long, short, global = true)]
    quiet: bool,
}

fn main() -> ExitCode {
    testyard_linux::step::prepare();
    if let Some(code) = asked_by_ssh().or_else(own_process) {
        return code;
    }
    // Before clap: asked hundreds of times, and with flags of its own.
    if let Some(words) = commands::orbctl_words(std::env::args_os()) {
        return ExitCode::from(commands::orbctl(words));
    }
    let parsed = match alone(std::env::args_os()).map_or_else(Testyard::try_parse, Ok) {
        Ok(parsed) => parsed,
        Err(error) => return refused(&error),
    };
    let output = Output { json: parsed.flags.json, quiet: parsed.flags.quiet };
    match parsed.command.run(output) {
        Ok(code) => ExitCode::from(code),
        Err(problem) => {
            output.problem(&problem);
            ExitCode::from(commands::code_of(&problem))
        }
    }
}

/// One command without the definitions of all others, which would cost some as much as the rest of their start. What
/// is not plainly a command of this kind that parses is left to the whole command line, and so are its errors and help.
#[derive(Debug, Parser)]
#[command(disable_help_flag = true)]
struct Alone<C: clap::Args> {
    #[command(flatten)]
    command: C,
    #[command(flatten)]
    flags: Flags,
}

/// The commands that are asked for again and again, parsed [`Alone`].
fn alone(words: impl Iterator<Item = OsString>) -> Option<Testyard> {
    fn parsed<C: clap::Args>(
        words: impl Iterator<Item = OsString>,
        name: &str,
        command: impl FnOnce(C) -> Command,
    ) -> Option<Testyard> {
        let alone = Alone::<C>::try_parse_from(std::iter::once(name.into()).chain(words)).ok()?;
        Some(Testyard { command: command(alone.command), flags: alone.flags })
    }
    let mut words = words.skip(1);
    match words.next()?.to_str()? {
        "exec" => parsed(words, "testyard exec", Command::Exec),
        "sync" => parsed(words, "testyard sync", Command::Sync),
        _ => None,
    }
}

/// What this program starts itself as: a machine's supervisor, or a probe. Both come before anything is allocated
/// or started that would stay for a machine's whole life.
fn own_process() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    match words.next()?.as_str() {
        "supervise" => match yard::options() {
            Ok(options) => testyard::supervise_command(options, words),
            Err(problem) => {
                Output { json: false, quiet: false }.problem(&problem);
                Some(ExitCode::from(commands::code_of(&problem)))
            }
        },
        "near" => Some(finished(testyard::near_command())),
        "plain" => Some(match testyard::plain_command(std::env::args_os().skip(2).collect()) {
            Ok(code) => ExitCode::from(code),
            Err(problem) => finished(Err(problem)),
        }),
        "far" => Some(finished(testyard::far_command())),
        "far-keep" => Some(finished(testyard::keep_command(Path::new(&words.next().unwrap_or_default())))),
        "probe-child" => testyard_probe::probe_child(&words.next().unwrap_or_default()),
        _ => None,
    }
}

/// The answer to a question of `ssh`, which started this program to ask it.
fn asked_by_ssh() -> Option<ExitCode> {
    let question = std::env::args().nth(1).unwrap_or_default();
    let answer = testyard::answer_ssh(&question)?;
    Some(finished(answer.and_then(|word| {
        let mut line = word.into_bytes();
        line.push(b'\n');
        let written = rustix::io::write(rustix::stdio::stdout(), &line);
        written.map(drop).map_err(|errno| {
            testyard_model::Problem::new(testyard_model::ProblemKind::System, "ssh takes no answer").because(errno)
        })
    })))
}

/// What came of a process of our own: said where it logs.
fn finished(outcome: Result<(), testyard_model::Problem>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            Output { json: false, quiet: false }.problem(&problem);
            ExitCode::from(commands::code_of(&problem))
        }
    }
}

/// Help and version are data; everything else that does not parse is wrong usage.
fn refused(error: &clap::Error) -> ExitCode {
    // Whoever closed the stream has read enough.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { Code::Usage.code() } else { Code::Passed.code() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn exec(arguments: &[&str]) -> String {
        let all = ["testyard", "exec"].iter().chain(arguments);
        format!("{:?}", Testyard::try_parse_from(all).expect("well-formed").command)
    }

    #[test]
    fn a_command_is_passed_on_verbatim() {
        for arguments in [&["m", "ls", "--json", "-t", "--", "x"][..], &["m", "--", "ls", "--json", "-t", "--", "x"]] {
            let parsed = exec(arguments);
            assert!(parsed.contains(r#"argv: ["ls", "--json", "-t", "--", "x"]"#), "{parsed}");
            assert!(parsed.contains("terminal: false"), "{parsed}");
        }
        let parsed = exec(&["-t", "m", "--cwd", "/srv", "-eA=1", "-e", "B=2", "--", "--odd"]);
        assert!(parsed.contains(r#"argv: ["--odd"]"#) && parsed.contains("terminal: true"), "{parsed}");
    }

    #[test]
    fn a_command_alone_understands_the_same() {
        let lines: [&[&str]; 8] = [
            &["exec", "m", "-t", "--", "ls"],
            &["exec", "--json", "m", "-e", "A=1", "--timeout", "5s", "ls", "-q"],
            &["exec", "m", "ls", "-h", "--help", "--", "x"],
            &["exec", "-q", "m", "--detach", "--user", "root", "--cwd", "/", "x"],
            &["exec", "m", "--", "--help"],
            &["sync", "m"],
            &["sync", "m", "tree", "--json", "-wq", "--git-history"],
            &["sync", "--user", "root", "m", "--", "-tree"],
        ];
        for line in lines {
            let words = || std::iter::once("testyard").chain(line.iter().copied());
            let alone = alone(words().map(OsString::from)).expect("well-formed");
            let whole = Testyard::try_parse_from(words()).expect("well-formed");
            assert_eq!(format!("{alone:?}"), format!("{whole:?}"));
        }
        for line in
            ["testyard", "testyard list", "testyard exec m", "testyard exec -h", "testyard sync", "testyard sync -h"]
        {
            assert!(alone(line.split(' ').map(OsString::from)).is_none(), "{line}");
        }
    }

    #[test]
    fn flags_are_understood_anywhere() {
        for arguments in [["testyard", "--json", "list"], ["testyard", "list", "--json"]] {
            assert!(Testyard::try_parse_from(arguments).expect("well-formed").flags.json);
        }
    }
}
