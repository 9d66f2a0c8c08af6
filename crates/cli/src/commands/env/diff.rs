//! `testyard env diff`

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use similar::TextDiff;
use testyard::KeptName;
use testyard_machine::client::{ChangeList, Connection};
use testyard_model::{ByteSize, Problem, ProblemKind};
use testyard_protocol::changes::{ChangeKind, Fetch, FileChange, FileKind, Part, When};
use testyard_transfer::{TransferError, UnpackOptions, unpack};

use crate::commands::{DONE, Outcome};
use crate::output::Output;
use crate::{moving, yard};

/// At most so many changes are shown.
const MOST: u32 = 100_000;
/// Files larger than this are not compared line by line.
const LARGEST: u64 = 1 << 20;
/// All files together that are compared.
const LARGEST_TOGETHER: u64 = 256 << 20;

/// Show what was changed in a kept environment's file system.
///
/// One line for each path that is new (A), another (M) or gone (D), with its size. What is shown
/// is read from the environment's own layer: reading alone changes nothing.
///
/// Examples:
///     testyard env diff run-namespace-host-ab12/e17
///     testyard env diff run-namespace-host-ab12/e17 --content
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Diff {
    /// The environment, as `testyard env list` names it
    #[arg(value_name = "MACHINE/eNUMBER")]
    name: KeptName,
    /// Also show how text files differ, line by line
    #[arg(long)]
    content: bool,
}

impl Diff {
    pub(super) fn run(self, output: Output) -> Outcome {
        yard::open()?.check_kept(&self.name)?;
        let mut machine = yard::connect(&self.name.machine)?;
        let connection = machine.connection();
        let list = connection.changes(self.name.environment, MOST).map_err(yard::told)?;
        let contents = if self.content { Contents::fetch(connection, &self.name, &list)? } else { Contents::default() };
        if output.json {
            let entries: Vec<Value> = list.entries.iter().map(|one| contents.json(one, &list)).collect();
            output.json_object(json!({ "changes": entries, "cut": list.cut }))?;
            return DONE;
        }
        let mut text = String::new();
        for entry in &list.entries {
            text.push_str(&line(entry, &list));
            text.push_str(contents.of(entry));
        }
        output.data(&text)?;
        if list.cut {
            output.say(format_args!("only the first {MOST} changes are shown"));
        } else if list.entries.is_empty() {
            output.say("nothing was changed");
        }
        DONE
    }
}

fn absolute(entry: &FileChange, list: &ChangeList) -> PathBuf {
    let top = match entry.part {
        Part::Source => list.source.as_deref().unwrap_or(Path::new("/")),
        Part::Root => Path::new("/"),
    };
    top.join(entry.path.as_path())
}

/// A path of a test's choice, safe to show.
fn shown(path: &Path) -> String {
    path.to_string_lossy().chars().map(|one| if one.is_control() { '?' } else { one }).collect()
}

fn line(entry: &FileChange, list: &ChangeList) -> String {
    let letter = match entry.change {
        ChangeKind::Added => 'A',
        ChangeKind::Changed => 'M',
        ChangeKind::Deleted => 'D',
    };
    let path = shown(&absolute(entry, list));
    let about = match entry.file {
        FileKind::File => format!("  {}", ByteSize(entry.size)),
        FileKind::Folder => "/".to_owned(),
        FileKind::Link => {
            entry.target.as_ref().map_or_else(String::new, |target| format!("  -> {}", shown(target.as_path())))
        }
        FileKind::Special => "  (device, pipe or socket)".to_owned(),
    };
    format!("{letter} {path}{about}\n")
}

/// How text files differ, by part and path.
#[derive(Default)]
struct Contents(BTreeMap<(Part, PathBuf), String>);

impl Contents {
    fn fetch(connection: &mut Connection, name: &KeptName, list: &ChangeList) -> Result<Self, Problem> {
        let mut contents = Self::default();
        for part in [Part::Source, Part::Root] {
            let mut together = 0;
            let compared: BTreeSet<PathBuf> = list
                .entries
                .iter()
                .filter(|one| one.part == part && one.file == FileKind::File && one.size <= LARGEST)
                .take_while(|one| {
                    together += one.size;
                    together <= LARGEST_TOGETHER
                })
                .map(|one| one.path.as_path().to_owned())
                .collect();
            if compared.is_empty() {
                continue;
            }
            let folder = tempfile::tempdir()
                .map_err(|error| Problem::new(ProblemKind::System, "cannot make a temporary folder").because(error))?;
            for (when, below) in [(When::Before, "before"), (When::Now, "now")] {
                let fetch = Fetch { environment: name.environment, part, when };
                fetch_to(connection, fetch, &compared, &folder.path().join(below))?;
            }
            for path in compared {
                if let Some(text) = compare(folder.path(), &path) {
                    contents.0.insert((part, path), text);
                }
            }
        }
        Ok(contents)
    }

    fn of(&self, entry: &FileChange) -> &str {
        self.0.get(&(entry.part, entry.path.as_path().to_owned())).map_or("", String::as_str)
    }

    fn json(&self, entry: &FileChange, list: &ChangeList) -> Value {
        let mut value = json!({
            "path": absolute(entry, list).to_string_lossy(),
            "change": entry.change.as_str(),
            "kind": entry.file,
        });
        if entry.file == FileKind::File {
            value["size"] = entry.size.into();
        }
        if let Some(target) = &entry.target {
            value["target"] = target.lossy().into();
        }
        let content = self.of(entry);
        if !content.is_empty() {
            value["diff"] = content.into();
        }
        value
    }
}

fn fetch_to(connection: &mut Connection, fetch: Fetch, paths: &BTreeSet<PathBuf>, to: &Path) -> Result<(), Problem> {
    let system =
        |error: std::io::Error| Problem::new(ProblemKind::System, "cannot make a temporary folder").because(error);
    std::fs::create_dir(to).map_err(system)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(to, flags, Mode::empty()).map_err(|errno| system(errno.into()))?;
    let options = UnpackOptions { hostile: true, limit: Some(2 * LARGEST_TOGETHER), ..UnpackOptions::default() };
    let fetched = connection.fetch(fetch, paths, |mut stream| {
        unpack(&mut stream, folder.as_fd(), Path::new("."), &options)?;
        Ok::<_, TransferError>(())
    });
    fetched.map_err(moving::told)
}

/// How one file differs; none where it is no text, or where only its mode or owner is another.
fn compare(folder: &Path, path: &Path) -> Option<String> {
    let read = |below: &str| {
        let path = folder.join(below).join(path);
        let plain = std::fs::symlink_metadata(&path).is_ok_and(|facts| facts.is_file());
        // What is not there is empty.
        if plain { std::fs::read(path).ok() } else { Some(Vec::new()) }
    };
    let (before, now) = (read("before")?, read("now")?);
    if before == now || before.contains(&0) || now.contains(&0) {
        return None;
    }
    let (before, now) = (String::from_utf8(before).ok()?, String::from_utf8(now).ok()?);
    let diff = TextDiff::from_lines(&before, &now);
    let text = diff.unified_diff().context_radius(3).to_string();
    Some(text.lines().map(|line| format!("  {}\n", safe(line))).collect())
}

/// A line that a test wrote, without what a terminal would obey.
fn safe(line: &str) -> String {
    line.chars().map(|one| if one.is_control() && one != '\t' { '\u{fffd}' } else { one }).collect()
}
