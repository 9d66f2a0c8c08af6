//! `run`: a command in a machine, which is started where it is stopped.

use std::ffi::OsString;

use testyard::{Machine, Testyard};
use testyard_model::{MachineName, MachineState, Problem, ProblemKind, UserSpec};
use testyard_protocol::{Exec, RawText};

use super::book::Book;
use super::words::{Flag, Rest, Words};
use super::{find, life, names, only_name, parse_name, settings, user};
use crate::commands::Outcome;
use crate::{attend, values};

const FLAGS: [Flag; 5] = [
    Flag::with_value("machine", Some('m')),
    Flag::with_value("user", Some('u')),
    Flag::with_value("workdir", Some('w')),
    Flag::alone("shell", Some('s')),
    Flag::alone("path", Some('p')),
];
const LOGIN_SHELL: &str = r#"exec "${SHELL:-/bin/sh}" -l"#;

/// `run -m NAME [-u USER] [-w DIR] CMD ARG…`
pub(super) fn run(yard: &Testyard, words: Vec<OsString>) -> Outcome {
    let words = Words::parse(&FLAGS, Rest::Verbatim, words)?;
    let name = match words.value("machine")? {
        Some(name) => parse_name(name)?,
        None => only_name(yard)?,
    };
    let asked = words.value("user")?.map(|name| name.parse::<values::User>()).transpose();
    let asked = asked.map_err(|error| Problem::from_error(ProblemKind::Usage, &error))?;
    let mut machine = reach(yard, &name)?;
    let request = Exec {
        argv: argv(&words),
        cwd: words.raw("workdir").map(RawText::from),
        user: match &asked {
            Some(user) => Some(user.0.clone()),
            None => changed_user(yard, &name)?.map(user_spec),
        },
        ..Exec::default()
    };
    match attended(machine, request.clone()) {
        // A user who was set for the machine later, or whom a killed `create` did not make any more.
        Err(problem) if asked.is_none() && problem.kind == ProblemKind::NotFound => {
            machine = reach(yard, &name)?;
            repair(yard, &name, &mut machine)?;
            attended(machine, request)
        }
        outcome => outcome,
    }
    .map_err(|problem| no_such_user(&words, problem))
}

fn argv(words: &Words) -> Vec<RawText> {
    let text = |word: &OsString| RawText::from(word.as_os_str());
    match words.positionals.as_slice() {
        [] => ["/bin/sh", "-c", LOGIN_SHELL].map(RawText::from).to_vec(),
        [first, ..] if words.has("shell") => {
            let joined = words.positionals.iter().skip(1).fold(first.clone(), |mut line, word| {
                line.push(" ");
                line.push(word);
                line
            });
            vec!["/bin/sh".into(), "-c".into(), joined.into()]
        }
        words => words.iter().map(text).collect(),
    }
}

fn attended(mut machine: Machine, request: Exec) -> Outcome {
    let is_shell = request.argv.get(2).is_some_and(|word| word.0 == LOGIN_SHELL.as_bytes());
    let finished = if is_shell && attend::has_terminal() {
        attend::run_on_terminal(machine, request)?
    } else {
        attend::run(machine.connection(), request)?
    };
    Ok(finished.status.shell_code())
}

/// A connection to a machine, started where it does not run.
pub(super) fn reach(yard: &Testyard, name: &MachineName) -> Result<Machine, Problem> {
    match yard.connect(name) {
        Err(problem) if problem.kind == ProblemKind::WrongState => {
            let machine = find(yard, name.as_str())?;
            if matches!(machine.state, MachineState::Stopped | MachineState::Failed) {
                life::up(yard, &machine)?;
            }
            yard.connect(name)
        }
        outcome => outcome,
    }
}

/// Whom commands run as, where that was changed after the machine was made. Most homes have no such change, and then
/// the registry is not asked.
pub(super) fn changed_user(yard: &Testyard, name: &MachineName) -> Result<Option<String>, Problem> {
    let book = Book::load(yard)?;
    if book.notes.values().all(|note| note.username.is_none()) {
        return Ok(None);
    }
    let machine = find(yard, name.as_str())?;
    Ok(book.about(&machine.id).and_then(|note| note.username.clone()))
}

/// As commands are run.
pub(super) fn user_spec(name: String) -> UserSpec {
    if name == "root" { UserSpec::Root } else { UserSpec::Named(name) }
}

/// Makes a machine's default user where it is missing.
fn repair(yard: &Testyard, name: &MachineName, machine: &mut Machine) -> Result<(), Problem> {
    let info = find(yard, name.as_str())?;
    let machines = yard.machines().list()?;
    let book = Book::change(yard, |book| {
        if book.about(&info.id).is_none() {
            book.give_address(&info.id, &machines);
        }
        Ok(book.clone())
    })?;
    user::prepare(machine, &settings::username(&book, &info), &names::hosts(&book, &machines))
}

fn no_such_user(words: &Words, problem: Problem) -> Problem {
    match words.value("user") {
        Ok(Some(user)) if problem.message.starts_with("no user `") => {
            Problem::new(ProblemKind::NotFound, format!("no such user: {user}"))
        }
        _ => problem,
    }
}
