//! `docker` inside a machine: the part of its command line that suites and SDKs send, answered by the machine itself.
//!
//! A container is a process tree of the machine's own, in namespaces of its own, over the machine's root
//! copy-on-write. There is no engine behind it and no registry: an image is the machine's own root, or a well-known
//! name for which that root stands in, and says so. The agent's program runs this where it is called `docker`.
//!
//! It refuses to know the agent, its protocol and its environments: a container has no more rights than whoever typed
//! the command, as with any other program in the machine.
//!
//! ```text
//! run ─► written down ─► init cloned ─► command ─► running ─► exited ─► (gone, with --rm)
//! ```

mod answers;
mod arguments;
mod clock;
mod container;
mod images;
mod joining;
mod records;
mod root;
mod running;
mod template;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::Path;

use arguments::Line;

/// The name by which the agent's program becomes this.
pub const NAME: &str = "docker";

/// Whether a program that was called by this path is to be `docker`.
#[must_use]
pub fn is_called(path: &OsStr) -> bool {
    Path::new(path).file_name() == Some(OsStr::new(NAME))
}

/// Answers one command line, without the program's own name; its exit code.
pub fn run(words: impl Iterator<Item = OsString>) -> u8 {
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let outcome = Line::read(words).and_then(|line| answers::answer(&line));
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            warn(&failure.message);
            failure.code
        }
    }
}

/// Why a command line could not be served, in docker's words, with docker's exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) code: u8,
}

impl Failure {
    /// What docker's client says with exit code 1.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    /// What docker's engine refuses, said for a container that is to run: exit code 125.
    pub(crate) fn daemon(message: impl std::fmt::Display) -> Self {
        Self { message: format!("docker: Error response from daemon: {message}"), code: 125 }
    }
}

impl From<testyard_linux::Error> for Failure {
    fn from(error: testyard_linux::Error) -> Self {
        Self { message: format!("Error response from daemon: {}", error.with_cause()), code: 1 }
    }
}

pub(crate) type Outcome = Result<u8, Failure>;

/// A line of data. Whoever closed the stream has read enough.
pub(crate) fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A line for people.
pub(crate) fn warn(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
