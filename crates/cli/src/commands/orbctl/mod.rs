//! `testyard orbctl …`, and this program under the names `orbctl` and `orb`: a command line that clients of another tool
//! already speak, over Testyard's machines. What each call means is in `docs/orbctl.md`.

mod book;
mod create;
mod files;
mod images;
mod life;
mod names;
mod run;
mod settings;
mod show;
mod user;
mod user_data;
mod wording;
mod words;

use std::ffi::OsString;
use std::path::Path;

use testyard::Testyard;
use testyard_model::{MachineInfo, MachineName, Problem, ProblemKind};

use super::{Outcome, code_of};
use crate::output::Output;
use crate::yard;

/// The names under which this program speaks this surface alone.
const NAMES: [&str; 2] = ["orbctl", "orb"];

/// The command line of OrbStack's machines, over namespace machines of Testyard.
///
/// The same program linked or copied as `orbctl` or `orb` speaks it without the first two words.
/// Flags may come before or after names; what `run` runs needs no `--`.
///
///     status, version
///     list [-f json]                          info NAME [-f json]
///     create IMAGE NAME [--arch A] [--user U] [-c FILE] [--isolated] [--cpus N] [--memory M] [--disk D]
///     start NAME…, stop NAME… [-f], restart NAME… [-f], delete NAME… [-f]
///     run -m NAME [-u USER] [-w FOLDER] COMMAND ARGUMENT…
///     push -m NAME FROM… TO                   pull -m NAME FROM… TO
///     config get KEY, config set KEY VALUE, config show
///     clone NAME NEW, rename NAME NEW, export NAME FILE, import -n NAME FILE
///     logs NAME [--all], ssh
///
/// Examples:
///     testyard orbctl create debian:12 web
///     testyard orbctl run -m web sudo apt-get update
///     ln -s "$(command -v testyard)" ~/bin/orbctl && orbctl list -f json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, disable_help_flag = true)]
pub(crate) struct Orbctl {
    /// A call, as above
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "WORD")]
    words: Vec<OsString>,
}

impl Orbctl {
    pub(crate) fn run(self) -> Outcome {
        Ok(speak(self.words))
    }
}

/// The words of this surface, where the whole line is in it: told by the program's own name, or by its first word.
pub(crate) fn addressed(line: impl Iterator<Item = OsString>) -> Option<Vec<OsString>> {
    let mut line = line;
    let program = line.next()?;
    let own = Path::new(&program).file_name()?;
    if NAMES.iter().any(|name| own == *name) {
        return Some(line.collect());
    }
    (line.next()? == NAMES[0]).then(|| line.collect())
}

/// Follows one line; its exit code.
pub(crate) fn speak(words: Vec<OsString>) -> u8 {
    let output = Output { json: false, quiet: false };
    match follow(words, output) {
        Ok(code) => code,
        Err(problem) => {
            let problem = wording::plain(problem);
            output.problem(&problem);
            code_of(&problem)
        }
    }
}

fn follow(mut words: Vec<OsString>, output: Output) -> Outcome {
    if words.is_empty() {
        return help(output);
    }
    let rest = words.split_off(1);
    let command = words[0].to_string_lossy().into_owned();
    match command.as_str() {
        "status" => return show::status(output),
        "version" | "--version" | "-v" => return show::version(output),
        "help" | "--help" | "-h" => return help(output),
        "run" => return run::run(&yard::open()?, rest),
        _ if rest.iter().any(|word| word == "--help" || word == "-h") => return help(output),
        _ => {}
    }
    let yard = || yard::open();
    match command.as_str() {
        "list" | "ls" => show::list(&yard()?, rest, output),
        "info" => show::info(&yard()?, rest, output),
        "create" | "add" => create::create(&yard()?, rest, output),
        "start" => life::start(&yard()?, rest),
        "stop" => life::stop(&yard()?, rest),
        "restart" => life::restart(&yard()?, rest),
        "delete" | "rm" => life::delete(&yard()?, rest, output),
        "push" => files::push(&yard()?, rest, output),
        "pull" => files::pull(&yard()?, rest, output),
        "config" => settings::config(&yard()?, rest, output),
        "clone" => life::clone(&yard()?, rest),
        "rename" => life::rename(&yard()?, rest),
        "export" => create::export(&yard()?, rest),
        "import" => create::import(&yard()?, rest, output),
        "logs" => life::logs(&yard()?, rest, output),
        "ssh" => life::ssh(&yard()?, rest, output),
        _ => Err(Problem::new(ProblemKind::Usage, format!("no such command: {command}")).hint("see them: orbctl help")),
    }
}

fn help(output: Output) -> Outcome {
    use clap::Args as _;
    let mut command = Orbctl::augment_args(clap::Command::new("orbctl"));
    output.data(&command.render_long_help().to_string())?;
    super::DONE
}

/// The machine of this name.
fn find(yard: &Testyard, name: &str) -> Result<MachineInfo, Problem> {
    let unknown = || wording::no_such_name(name);
    let parsed = name.parse::<MachineName>().map_err(|_| unknown())?;
    match yard.machines().info(&parsed) {
        Err(problem) if problem.kind == ProblemKind::NotFound => Err(unknown()),
        outcome => outcome,
    }
}

/// A name, without a look at what there is.
fn parse_name(name: &str) -> Result<MachineName, Problem> {
    if name.is_empty() {
        return Err(Problem::new(ProblemKind::Usage, "the name is empty"));
    }
    name.parse().map_err(|_| wording::no_such_name(name))
}

/// A name for something new.
fn free_name(yard: &Testyard, name: &str) -> Result<MachineName, Problem> {
    if name.is_empty() {
        return Err(Problem::new(ProblemKind::Usage, "the name is empty"));
    }
    let parsed: MachineName = name.parse().map_err(|_| {
        Problem::new(ProblemKind::Usage, format!("not a name: {name}"))
            .hint("write at most 63 letters, digits, `-`, `_` and `.`, beginning with a letter or digit")
    })?;
    match yard.machines().info(&parsed) {
        Ok(machine) if show::exists(&machine) => Err(wording::already_exists(&parsed)),
        // One that a killed process left half-made or half-removed gives its name back.
        _ => Ok(parsed),
    }
}

/// The one machine there is, for a line that names none.
fn only_name(yard: &Testyard) -> Result<MachineName, Problem> {
    let mut machines = yard.machines().list()?;
    machines.retain(show::exists);
    match machines.as_slice() {
        [one] => Ok(one.name.clone()),
        [] => Err(Problem::new(ProblemKind::NotFound, "nothing was created yet")),
        _ => Err(Problem::new(ProblemKind::Usage, "there are several; say which: -m NAME")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Option<Vec<OsString>> {
        addressed(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_surface_is_addressed_by_the_programs_name_or_the_first_word() {
        for line in ["orbctl list -f json", "/usr/bin/orb list -f json", "testyard orbctl list -f json"] {
            assert_eq!(words(line), Some(vec!["list".into(), "-f".into(), "json".into()]), "{line}");
        }
        for line in ["testyard list", "testyard", "testyard exec orbctl", "/orb/testyard list"] {
            assert_eq!(words(line), None, "{line}");
        }
        assert_eq!(words("orb"), Some(vec![]));
    }
}
