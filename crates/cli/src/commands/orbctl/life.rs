//! `start`, `stop`, `restart`, `delete`, `rename`, `clone`, `logs` and `ssh`.

use std::ffi::OsString;
use std::io::IsTerminal as _;

use testyard::Testyard;
use testyard_images::StoreError;
use testyard_model::{ImageReference, MachineInfo, MachineState, Problem, ProblemKind};

use super::book::Book;
use super::words::{Flag, Rest, Words};
use super::{find, free_name, names, parse_name};
use crate::commands::{DONE, Outcome};
use crate::output::Output;
use crate::yard;

const FORCE: Flag = Flag::alone("force", Some('f'));
const ALL: Flag = Flag::alone("all", Some('a'));
/// Lines of a log that are enough for most.
const LAST_LINES: usize = 100;

/// `start NAME…`
pub(super) fn start(yard: &Testyard, words: Vec<OsString>) -> Outcome {
    for machine in chosen(yard, &Words::parse(&[ALL], Rest::Ours, words)?)? {
        up(yard, &machine)?;
    }
    DONE
}

/// Starts a machine that does not run, and tells it its neighbours' names.
pub(super) fn up(yard: &Testyard, machine: &MachineInfo) -> Result<MachineInfo, Problem> {
    if machine.state == MachineState::Running {
        return Ok(machine.clone());
    }
    let started = yard.machines().start(&machine.name)?;
    names::tell_one(yard, &started);
    Ok(started)
}

/// `stop NAME… [-f]`
pub(super) fn stop(yard: &Testyard, words: Vec<OsString>) -> Outcome {
    let words = Words::parse(&[ALL, FORCE], Rest::Ours, words)?;
    for machine in chosen(yard, &words)? {
        // What broke does not run either.
        if machine.state != MachineState::Failed {
            yard.machines().stop(&machine.name, words.has("force"))?;
        }
    }
    DONE
}

/// `restart NAME… [-f]`
pub(super) fn restart(yard: &Testyard, words: Vec<OsString>) -> Outcome {
    let words = Words::parse(&[ALL, FORCE], Rest::Ours, words)?;
    for machine in chosen(yard, &words)? {
        let started = yard.machines().restart(&machine.name, words.has("force"))?;
        names::tell_one(yard, &started);
    }
    DONE
}

/// `delete NAME… [-f]`. Who cannot be asked has said enough.
pub(super) fn delete(yard: &Testyard, words: Vec<OsString>, output: Output) -> Outcome {
    let words = Words::parse(&[ALL, FORCE], Rest::Ours, words)?;
    let machines = chosen(yard, &words)?;
    let asked = !words.has("force") && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    for machine in &machines {
        if asked && !is_wanted(machine, output) {
            return Err(Problem::new(ProblemKind::Interrupted, format!("{} was not deleted", machine.name)));
        }
        yard.machines().delete(&machine.name, true)?;
        forget_image(yard, machine)?;
    }
    Book::change(yard, |book| {
        book.notes.retain(|id, _| machines.iter().all(|machine| machine.id.as_str() != id));
        Ok(())
    })?;
    names::tell(yard, None);
    DONE
}

fn is_wanted(machine: &MachineInfo, output: Output) -> bool {
    output.say(format_args!("delete {} and all that is in it? [y/N]", machine.name));
    let mut answer = String::new();
    // No answer is a no.
    let _ = std::io::stdin().read_line(&mut answer);
    matches!(answer.trim(), "y" | "Y" | "yes")
}

/// What was unpacked for one imported machine alone, and has no name, goes with it.
pub(super) fn forget_image(yard: &Testyard, machine: &MachineInfo) -> Result<(), Problem> {
    let reference = &machine.spec.image;
    if !matches!(reference, ImageReference::Digest(_)) {
        return Ok(());
    }
    let store = yard::images(yard)?;
    match store.find(reference) {
        Ok(image) if image.references.is_empty() => {}
        _ => return Ok(()),
    }
    match store.delete(reference, &yard::images_in_use(yard, &store)?) {
        // A clone stands on it still, or somebody was faster.
        Ok(_) | Err(StoreError::InUse(_) | StoreError::NotFound(_)) => Ok(()),
        Err(error) => Err(error.problem()),
    }
}

/// `rename A B`
pub(super) fn rename(yard: &Testyard, words: Vec<OsString>) -> Outcome {
    let words = Words::parse(&[], Rest::Ours, words)?;
    let [from, to] = words.exactly(["the old NAME", "the new NAME"])?;
    let from = find(yard, from)?;
    let to = free_name(yard, to)?;
    yard.machines().rename(&from.name, &to)?;
    names::tell(yard, None);
    DONE
}

/// `clone A B`
pub(super) fn clone(yard: &Testyard, words: Vec<OsString>) -> Outcome {
    let words = Words::parse(&[], Rest::Ours, words)?;
    let [from, to] = words.exactly(["NAME", "the new NAME"])?;
    let from = find(yard, from)?;
    let to = free_name(yard, to)?;
    let made = yard.machines().clone_from(&from.name, &to)?;
    let alive = yard.machines().list()?;
    Book::change(yard, |book| {
        if let Some(note) = book.about(&from.id).cloned() {
            *book.note(&made.id) = note;
            book.note(&made.id).address = 0;
            book.give_address(&made.id, &alive);
        }
        Ok(())
    })?;
    names::tell(yard, None);
    DONE
}

/// `logs NAME [--all]`
pub(super) fn logs(yard: &Testyard, words: Vec<OsString>, output: Output) -> Outcome {
    let words = Words::parse(&[ALL], Rest::Ours, words)?;
    let [name] = words.exactly(["NAME"])?;
    let path = yard.machines().log(&find(yard, name)?.name)?;
    let text = std::fs::read(&path)
        .map_err(|error| Problem::new(ProblemKind::System, format!("cannot read the log of {name}")).because(error))?;
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let skipped = if words.has("all") { 0 } else { lines.len().saturating_sub(LAST_LINES) };
    output.bytes(&lines[skipped..].concat())?;
    DONE
}

/// `ssh`: nothing listens for it here; says what to type instead.
pub(super) fn ssh(yard: &Testyard, words: Vec<OsString>, output: Output) -> Outcome {
    let words = Words::parse(&[], Rest::Ours, words)?;
    let named = match words.texts()?.as_slice() {
        [] => None,
        [name] => Some(find(yard, name)?.name),
        [_, other, ..] => return Err(Problem::new(ProblemKind::Usage, format!("one word too many: {other}"))),
    };
    let name = named.as_ref().map_or("NAME", |name| name.as_str());
    output.data(&format!(
        "No SSH server is run: machines are reached through the program itself.\n\
         A shell:      orbctl run -m {name}\n\
         A command:    orbctl run -m {name} -u USER -w FOLDER COMMAND ARGUMENT…\n\
         Files:        orbctl push -m {name} FROM TO, orbctl pull -m {name} FROM TO\n"
    ))?;
    DONE
}

/// The machines that a line names, or all.
fn chosen(yard: &Testyard, words: &Words) -> Result<Vec<MachineInfo>, Problem> {
    let names = words.texts()?;
    match (names.is_empty(), words.has("all")) {
        (true, true) => Ok(yard.machines().list()?.into_iter().filter(super::show::exists).collect()),
        (true, false) => Err(Problem::new(ProblemKind::Usage, "NAME is missing")),
        (false, true) => Err(Problem::new(ProblemKind::Usage, "write names, or --all")),
        (false, false) => {
            // None is touched where one is wrong.
            names.iter().try_for_each(|name| parse_name(name).map(drop))?;
            names.into_iter().map(|name| find(yard, name)).collect()
        }
    }
}
