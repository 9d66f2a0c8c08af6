//! `create` and `import`: a machine with a user of its own, from an image or from what `export` wrote.

use std::ffi::OsString;
use std::path::Path;

use testyard::{ArchivedMachine, Testyard};
use testyard_images::Image;
use testyard_model::{
    BackendName, ByteSize, ImageReference, MachineInfo, MachineName, MachineSpec, Problem, ProblemKind,
};

use super::book::{Book, MadeFrom, Note};
use super::user_data::UserData;
use super::words::{Flag, Rest, Words};
use super::{find, free_name, images, life, names, settings, user, wording};
use crate::commands::{DONE, Outcome};
use crate::output::Output;
use crate::values;

const CREATE: [Flag; 8] = [
    Flag::with_value("arch", Some('a')),
    Flag::with_value("user", Some('u')),
    Flag::with_value("user-data", Some('c')),
    Flag::alone("isolated", None),
    Flag::with_value("cpus", None),
    Flag::with_value("memory", None),
    Flag::with_value("disk", None),
    Flag::with_value("backend", None),
];
/// As others write processors, and as the kernel does.
const ARCHITECTURES: [(&str, &str); 4] =
    [("amd64", "x86_64"), ("x86_64", "x86_64"), ("arm64", "aarch64"), ("aarch64", "aarch64")];

/// `create IMAGE NAME …`
pub(super) fn create(yard: &Testyard, words: Vec<OsString>, output: Output) -> Outcome {
    let words = Words::parse(&CREATE, Rest::Ours, words)?;
    let [image, name] = words.exactly(["IMAGE", "NAME"])?;
    let wanted = images::parse(image)?;
    let arch = words.value("arch")?.map(architecture).transpose()?;
    let user = match words.value("user")? {
        Some(user) => {
            user::check_user(user)?;
            user.to_owned()
        }
        None => user::default_user(),
    };
    let cpus = words.value("cpus")?.map(values::processors).transpose();
    let cpus = cpus.map_err(|error| Problem::from_error(ProblemKind::Usage, &error))?;
    let (memory, disk) = (size(&words, "memory")?, size(&words, "disk")?);
    let user_data = words.raw("user-data").map(|path| UserData::load(Path::new(path))).transpose()?;
    let name = free_name(yard, name)?;
    let book = Book::load(yard)?;
    let chosen = images::choose(yard, &book, &wanted, output)?;
    let spec = MachineSpec {
        user: Some(user),
        cpus,
        memory,
        disk,
        arch,
        ..MachineSpec { image: chosen.reference, ..MachineSpec::new(BackendName::namespace()) }
    };
    let note = Note { isolated: words.has("isolated"), made_from: Some(chosen.made_from), ..Note::default() };
    let mut plan = Plan { name, spec, note, image: chosen.image, user_data };
    let asked = plan.spec.clone();
    let (set_cpus, set_mib) = settings::limits(&book);
    plan.spec.cpus = asked.cpus.or(set_cpus);
    plan.spec.memory = asked.memory.or(set_mib.map(ByteSize::mebibytes));
    match make(yard, &plan, output) {
        // Limits that this line asks for are kept or refused; those that are only set for all are kept where they can be.
        Err(problem) if problem.kind == ProblemKind::Unsupported && plan.spec != asked => {
            make(yard, &Plan { spec: asked, ..plan }, output)?;
            output.warn(format_args!("without the limits that are set for all: {}", wording::plain(problem)));
        }
        outcome => drop(outcome?),
    }
    DONE
}

/// `import -n NAME FILE`
pub(super) fn import(yard: &Testyard, words: Vec<OsString>, output: Output) -> Outcome {
    let words = Words::parse(&[Flag::with_value("name", Some('n'))], Rest::Ours, words)?;
    let [file] = words.exactly(["FILE"])?;
    let given = words.value("name")?.map(|name| free_name(yard, name)).transpose()?;
    let path = Path::new(file);
    if !path.is_file() {
        return Err(Problem::new(ProblemKind::NotFound, format!("no such file: {file}")));
    }
    let (image, about) = yard.machines().unpack(path)?;
    let reference = ImageReference::Digest(image.record.digest.as_str().to_owned());
    let made = given.map_or_else(|| free_name(yard, &about.name), Ok).and_then(|name| {
        let spec = MachineSpec {
            user: about.user.clone().or_else(|| Some(user::default_user())),
            cpus: about.cpus,
            memory: about.memory,
            disk: about.disk,
            arch: about.arch.as_deref().map(architecture).transpose()?,
            ..MachineSpec { image: reference.clone(), ..MachineSpec::new(BackendName::namespace()) }
        };
        let mut note: Note = serde_json::from_value(about.notes.clone()).unwrap_or_default();
        note.made_from.get_or_insert_with(|| {
            let (distro, version) = images::distribution(&reference, &image);
            MadeFrom { distro, version, stands_in_for: None }
        });
        make(yard, &Plan { name, spec, note, image: image.clone(), user_data: None }, output)
    });
    if let Err(problem) = made {
        forget(yard, &reference)?;
        return Err(problem);
    }
    DONE
}

/// `export NAME FILE`. A stopped machine is started for as long as it takes.
pub(super) fn export(yard: &Testyard, words: Vec<OsString>) -> Outcome {
    let words = Words::parse(&[], Rest::Ours, words)?;
    let [name, file] = words.exactly(["NAME", "FILE"])?;
    let machine = find(yard, name)?;
    if machine.spec.image == ImageReference::Host {
        let message = format!("{name} shows this host's own root, which is not copied into a file");
        return Err(Problem::new(ProblemKind::Unsupported, message));
    }
    let book = Book::load(yard)?;
    let about = ArchivedMachine {
        name: name.to_owned(),
        image: machine.spec.image.to_string(),
        user: machine.spec.user.clone(),
        cpus: machine.spec.cpus,
        memory: machine.spec.memory,
        disk: machine.spec.disk,
        arch: machine.spec.arch.clone(),
        notes: book.about(&machine.id).and_then(|note| serde_json::to_value(note).ok()).unwrap_or_default(),
    };
    let running = life::up(yard, &machine)?;
    let written = yard.machines().export(&running.name, &about, Path::new(file));
    if machine.state != running.state {
        yard.machines().stop(&running.name, true)?;
    }
    written?;
    DONE
}

/// What a new machine is to be.
struct Plan {
    name: MachineName,
    spec: MachineSpec,
    note: Note,
    image: Image,
    user_data: Option<UserData>,
}

/// Makes the machine with all that belongs to it, or nothing.
fn make(yard: &Testyard, plan: &Plan, output: Output) -> Result<MachineInfo, Problem> {
    let made = yard.machines().create_furnished(&plan.name, &plan.spec, |made| {
        let furnished = furnish(yard, made, plan);
        if furnished.is_err() {
            let _ = Book::change(yard, |book| {
                book.notes.remove(made.id.as_str());
                Ok(())
            });
            names::tell(yard, None);
        }
        furnished
    })?;
    let user = plan.spec.user.as_deref().unwrap_or("root");
    if user != "root" && !images::has_sudo(&plan.image) {
        output.warn(format_args!("there is no sudo in the image: {user} cannot become root"));
    }
    Ok(made)
}

fn furnish(yard: &Testyard, made: &MachineInfo, plan: &Plan) -> Result<(), Problem> {
    let alive = yard.machines().list()?;
    let hosts = Book::change(yard, |book| {
        *book.note(&made.id) = Note { address: 0, ..plan.note.clone() };
        book.give_address(&made.id, &alive);
        Ok(names::hosts(book, &alive))
    })?;
    std::thread::scope(|scope| {
        // The others learn its name meanwhile.
        scope.spawn(|| names::tell(yard, Some(made)));
        let mut machine = yard.connect(&made.name)?;
        user::prepare(&mut machine, plan.spec.user.as_deref().unwrap_or_default(), &hosts)?;
        plan.user_data.as_ref().map_or(Ok(()), |user_data| user_data.follow(&mut machine))
    })
}

/// Removes what was unpacked for a machine that was not made.
fn forget(yard: &Testyard, reference: &ImageReference) -> Result<(), Problem> {
    let store = crate::yard::images(yard)?;
    match store.find(reference) {
        Ok(image) if image.references.is_empty() => {
            let in_use = crate::yard::images_in_use(yard, &store)?;
            store.delete(reference, &in_use).map(drop).map_err(|error| error.problem())
        }
        _ => Ok(()),
    }
}

fn architecture(text: &str) -> Result<String, Problem> {
    let known = ARCHITECTURES.iter().find(|(name, _)| *name == text);
    match known {
        Some((_, own)) if *own == std::env::consts::ARCH => Ok((*own).to_owned()),
        Some(_) => {
            let message = format!("{text} programs cannot run here: this host is {}", std::env::consts::ARCH);
            Err(Problem::new(ProblemKind::Unsupported, message))
        }
        None => {
            Err(Problem::new(ProblemKind::Usage, format!("no such architecture: {text}; there are amd64 and arm64")))
        }
    }
}

/// A size; a bare number counts mebibytes.
fn size(words: &Words, flag: &str) -> Result<Option<ByteSize>, Problem> {
    let Some(text) = words.value(flag)? else { return Ok(None) };
    let written = if text.bytes().all(|byte| byte.is_ascii_digit()) { format!("{text}M") } else { text.to_owned() };
    let size: ByteSize = written.parse().map_err(|error| Problem::from_error(ProblemKind::Usage, &error))?;
    if size < ByteSize::mebibytes(1) {
        return Err(Problem::new(ProblemKind::Usage, format!("--{flag} {text} is too little for anything to run")));
    }
    Ok(Some(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_have_two_names_each() {
        let own = std::env::consts::ARCH;
        for (name, arch) in ARCHITECTURES {
            let refused = format!("{name} programs cannot run here: this host is {own}");
            let told = architecture(name).map_err(|problem| problem.message);
            assert_eq!(told, if arch == own { Ok(own.to_owned()) } else { Err(refused) }, "{name}");
        }
        assert!(architecture("invalid-arch").is_err());
    }

    #[test]
    fn a_bare_number_counts_mebibytes() {
        let size = |text: &str| {
            let words = Words::parse(&CREATE, Rest::Ours, vec!["--memory".into(), text.into()]).expect("words");
            size(&words, "memory").map(|size| size.map(|size| size.0))
        };
        assert_eq!(size("512"), Ok(Some(512 << 20)));
        assert_eq!(size("2G"), Ok(Some(2 << 30)));
        assert!(size("1K").is_err() && size("much").is_err() && size("0").is_err());
    }
}
