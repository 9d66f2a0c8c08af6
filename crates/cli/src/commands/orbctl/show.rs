//! `status`, `version`, `list` and `info`: asked hundreds of times, so they open as little as they can.

use std::ffi::OsString;

use serde_json::{Value, json};
use testyard::Testyard;
use testyard_model::{ImageReference, MachineInfo, MachineState, Problem, ProblemKind};

use super::book::Book;
use super::words::{Flag, Rest, Words};
use super::{find, images, settings};
use crate::commands::{DONE, Outcome};
use crate::output::{Output, table};
use crate::yard;

const FORMAT: Flag = Flag::with_value("format", Some('f'));

/// `status`: ready, once the home could be opened.
pub(super) fn status(output: Output) -> Outcome {
    yard::options()?;
    output.data("Running\n")?;
    DONE
}

/// `version`
pub(super) fn version(output: Output) -> Outcome {
    output.data(concat!("Version: ", env!("CARGO_PKG_VERSION"), " (testyard)\n"))?;
    DONE
}

/// `list [-f json]`
pub(super) fn list(yard: &Testyard, words: Vec<OsString>, output: Output) -> Outcome {
    let flags = [FORMAT, Flag::alone("running", Some('r')), Flag::alone("quiet", Some('q'))];
    let words = Words::parse(&flags, Rest::Ours, words)?;
    words.exactly([])?;
    let json = wants_json(&words)?;
    let mut machines = yard.machines().list()?;
    machines.retain(|machine| exists(machine) && (!words.has("running") || machine.state == MachineState::Running));
    if words.has("quiet") {
        output.data(&machines.iter().map(|machine| format!("{}\n", machine.name)).collect::<String>())?;
        return DONE;
    }
    let book = Book::load(yard)?;
    let records: Vec<Value> = machines.iter().map(|machine| record(yard, &book, machine)).collect();
    if json {
        output.data(&format!("{}\n", Value::Array(records)))?;
    } else {
        let rows: Vec<Vec<String>> = records.iter().map(row).collect();
        output.data(&table(&["NAME", "STATE", "DISTRO", "VERSION", "ARCH"], &rows))?;
    }
    DONE
}

/// `info NAME [-f json]`
pub(super) fn info(yard: &Testyard, words: Vec<OsString>, output: Output) -> Outcome {
    let words = Words::parse(&[FORMAT], Rest::Ours, words)?;
    let [name] = words.exactly(["NAME"])?;
    let machine = find(yard, name)?;
    let book = Book::load(yard)?;
    let mut shown = json!({ "record": record(yard, &book, &machine), "disk_size": disk_size(yard, &machine) });
    if machine.state == MachineState::Running
        && let Some(note) = book.about(&machine.id)
    {
        shown["ip4"] = settings::address(&book, note.address).to_string().into();
        shown["ip6"] = "::1".into();
    }
    if wants_json(&words)? {
        output.data(&format!("{shown}\n"))?;
        return DONE;
    }
    let record = &shown["record"];
    let mut text = String::new();
    for (key, value) in [
        ("ID", &record["id"]),
        ("Name", &record["name"]),
        ("State", &record["state"]),
        ("Distro", &record["image"]["distro"]),
        ("Version", &record["image"]["version"]),
        ("Stands in for", &record["image"]["stands_in_for"]),
        ("Architecture", &record["image"]["arch"]),
        ("Username", &record["config"]["default_username"]),
        ("IPv4", &shown["ip4"]),
        ("IPv6", &shown["ip6"]),
        ("Disk size", &shown["disk_size"]),
    ] {
        match value {
            Value::Null => {}
            Value::String(value) => text.push_str(&format!("{key}: {value}\n")),
            value => text.push_str(&format!("{key}: {value}\n")),
        }
    }
    output.data(&text)?;
    DONE
}

/// What others mean by a machine that exists: it was made, and nobody is deleting it.
pub(super) fn exists(machine: &MachineInfo) -> bool {
    !matches!(machine.state, MachineState::Creating | MachineState::Deleting)
}

fn wants_json(words: &Words) -> Result<bool, Problem> {
    match words.value("format")? {
        None | Some("text") => Ok(false),
        Some("json") => Ok(true),
        Some(other) => {
            Err(Problem::new(ProblemKind::Usage, format!("no such format: {other}; there are text and json")))
        }
    }
}

fn record(yard: &Testyard, book: &Book, machine: &MachineInfo) -> Value {
    let note = book.about(&machine.id);
    let mut image = match note.and_then(|note| note.made_from.as_ref()) {
        Some(made_from) => {
            let mut image = json!({ "distro": made_from.distro, "version": made_from.version });
            if let Some(wanted) = &made_from.stands_in_for {
                image["stands_in_for"] = wanted.as_str().into();
            }
            image
        }
        None => {
            let (distro, version) = distribution(yard, machine);
            json!({ "distro": distro, "version": version })
        }
    };
    image["arch"] = match machine.spec.arch.as_deref().unwrap_or(std::env::consts::ARCH) {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
    .into();
    image["variant"] = "default".into();
    json!({
        "id": machine.id,
        "name": machine.name,
        "image": image,
        "config": {
            "isolated": note.is_some_and(|note| note.isolated),
            "default_username": settings::username(book, machine),
        },
        "builtin": false,
        "state": if machine.state == MachineState::Running { "running" } else { "stopped" },
    })
}

/// Of a machine that was not made by this surface.
fn distribution(yard: &Testyard, machine: &MachineInfo) -> (String, String) {
    match &machine.spec.image {
        ImageReference::Named { name, tag } => (name.clone(), tag.clone()),
        ImageReference::Host => ("host".to_owned(), String::new()),
        ImageReference::Digest(_) => yard::images(yard)
            .and_then(|store| store.find(&machine.spec.image).map_err(|error| error.problem()))
            .map(|image| images::distribution(&machine.spec.image, &image))
            .unwrap_or_default(),
    }
}

/// A look at more than so many files would make `info` slow.
const COUNTED: usize = 2_000;

/// Bytes that a machine's own files take: what was written over its image. Of very many, only the first are counted.
fn disk_size(yard: &Testyard, machine: &MachineInfo) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut folders = vec![yard.options().home.machine_folder(&machine.id)];
    let (mut bytes, mut counted) = (0, 0);
    // A folder that goes away meanwhile, or that its owner may not read, counts for nothing.
    while counted < COUNTED
        && let Some(folder) = folders.pop()
    {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            counted += 1;
            let Ok(facts) = entry.metadata() else { continue };
            bytes += facts.blocks() * 512;
            if facts.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    bytes
}

fn row(record: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let image = &record["image"];
    [&record["name"], &record["state"], &image["distro"], &image["version"], &image["arch"]].map(text).to_vec()
}
