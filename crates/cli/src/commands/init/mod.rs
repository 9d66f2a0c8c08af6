//! `testyard init`

mod find;
mod write;

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::json;
use testyard_model::{Problem, ProblemKind};

use super::{DONE, Outcome};
use crate::output::Output;

/// The file that says that a folder is a suite.
const FILE: &str = "testyard.toml";

/// Write a commented testyard.toml from what is in a folder.
///
/// Looks for shell scripts, pytest and unittest files, Cargo and Go projects and programs in test
/// folders. A file that is there already is never touched.
///
/// Examples:
///     testyard init && testyard run
///     testyard init services/shop
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Init {
    /// The folder
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
}

impl Init {
    pub(crate) fn run(self, output: Output) -> Outcome {
        let folder = self.folder.canonicalize().map_err(|error| refused(&self.folder, &error))?;
        let path = folder.join(FILE);
        if path.symlink_metadata().is_ok() {
            return Err(exists(&path));
        }
        let found = find::look(&folder, find::Host::of_process());
        let text = write::suite(&folder, &found);
        let mut options = OpenOptions::new();
        let written = options.write(true).create_new(true).open(&path).and_then(|mut file| {
            let whole = file.write_all(text.as_bytes());
            if whole.is_err() {
                // Half a file would be worse than none.
                let _ = std::fs::remove_file(&path);
            }
            whole
        });
        written.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(&path),
            _ => refused(&path, &error),
        })?;
        if output.json {
            output.json_object(json!({ "file": path.display().to_string(), "found": found.words() }))?;
            return DONE;
        }
        let words = found.words();
        let words = if words.is_empty() {
            "nothing that looks like tests: it has an example".to_owned()
        } else {
            words.join(", ")
        };
        output.data(&format!("{}\n", path.display()))?;
        output.say(format_args!("found {words}"));
        output.say("next: testyard run --list, then testyard run");
        DONE
    }
}

fn exists(path: &Path) -> Problem {
    Problem::new(ProblemKind::AlreadyExists, format!("{} exists", path.display()))
        .hint("see what it runs: testyard run --list")
}

fn refused(path: &Path, error: &io::Error) -> Problem {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ProblemKind::NotFound,
        io::ErrorKind::PermissionDenied => ProblemKind::Denied,
        _ => ProblemKind::System,
    };
    Problem::new(kind, format!("cannot write a suite for {}", path.display())).because(error)
}
