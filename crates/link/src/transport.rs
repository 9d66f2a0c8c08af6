//! A transport as a command line, and what the end of its process means.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use testyard_model::{Problem, ProblemKind, Transport};

use crate::asking::Questions;
use crate::ssh;

/// Why there is no connection, as far as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The process closed its output; its exit code, where it ended by itself.
    Closed {
        /// The code.
        exit: Option<i32>,
    },
    /// It did not get there in time.
    Late {
        /// How long it had.
        seconds: u64,
    },
}

/// A transport that can be started.
#[derive(Debug, Clone)]
pub(crate) struct Dialled {
    pub(crate) program: OsString,
    pub(crate) words: Vec<OsString>,
    pub(crate) variables: Vec<(OsString, OsString)>,
    /// For people.
    pub(crate) name: String,
    ssh: bool,
    /// Where a password would come from.
    password: Password,
}

/// Where a password comes from, should one be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Password {
    /// From a file or a variable.
    Kept,
    /// From a person.
    Asked(Questions),
    /// Nobody has one.
    Nowhere,
}

impl Dialled {
    /// The command line of a transport. Somebody who listens at `asks` is asked what only a person knows.
    pub(crate) fn new(
        transport: &Transport,
        patience: std::time::Duration,
        asks: Option<&Path>,
    ) -> Result<Self, Problem> {
        let name = transport.name();
        match transport {
            Transport::Ssh(ssh) => {
                let (words, variables) = ssh::line(ssh, patience, asks)?;
                let password = match (&ssh.password, asks) {
                    (Some(_), _) => Password::Kept,
                    (None, Some(listens)) => Password::Asked(Questions::from_now(listens)),
                    (None, None) => Password::Nowhere,
                };
                Ok(Self { program: "ssh".into(), words, variables, name, ssh: true, password })
            }
            Transport::Slurm(_) => {
                Err(Problem::new(ProblemKind::Bug, "an allocation leads nowhere before its job has a node"))
            }
            Transport::Command(words) => {
                let mut words = words.iter().map(OsString::from);
                let program = words.next().ok_or_else(|| {
                    Problem::new(ProblemKind::Usage, "the command that leads to the other host has no words")
                })?;
                let (words, variables) = (words.collect(), Vec::new());
                Ok(Self { program, words, variables, name, ssh: false, password: Password::Nowhere })
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn asking(words: &[&str], listens: &Path) -> Self {
        let mut words = words.iter().map(OsString::from);
        let program = words.next().unwrap_or_default();
        let password = Password::Asked(Questions::from_now(listens));
        let (words, variables) = (words.collect(), Vec::new());
        Self { program, words, variables, name: "there".to_owned(), ssh: false, password }
    }

    /// What a person is asked, where one may be.
    pub(crate) fn questions(&self) -> Option<&Questions> {
        match &self.password {
            Password::Asked(questions) => Some(questions),
            Password::Kept | Password::Nowhere => None,
        }
    }

    /// The words behind the command line that make the other host run a shell script.
    pub(crate) fn behind(&self, script: &str) -> Vec<OsString> {
        if self.ssh {
            // A login shell parses it, whichever that is.
            vec![format!("exec sh -c '{script}'").into()]
        } else {
            vec!["sh".into(), "-c".into(), script.into()]
        }
    }

    pub(crate) fn not_started(&self, error: &io::Error) -> Problem {
        let program = self.program.to_string_lossy();
        let problem = Problem::new(ProblemKind::NotFound, format!("cannot start {program}")).because(error);
        if self.ssh { problem.hint("install OpenSSH's client: apt-get install openssh-client") } else { problem }
    }

    /// What it means that there is no connection.
    pub(crate) fn explain(&self, why: Why, said: &str) -> Problem {
        if self.ssh {
            let problem = ssh::explain(&self.name, why, said);
            let unasked = self.password == Password::Nowhere && ssh::wants_password(said);
            return if unasked {
                problem.because("it would take a password, and there is no terminal at which to ask for it")
            } else {
                problem
            };
        }
        let problem = match why {
            Why::Closed { exit: Some(code) } => {
                let message = format!("{} ended with {code} before the other host answered", self.name);
                Problem::new(ProblemKind::Unavailable, message)
            }
            Why::Closed { exit: None } => Problem::new(
                ProblemKind::Unavailable,
                format!("{} closed its output before the other host answered", self.name),
            ),
            Why::Late { seconds } => Problem::new(
                ProblemKind::TimedOut,
                format!("{} did not lead to the other host within {seconds} s", self.name),
            ),
        };
        last_lines(said).into_iter().fold(problem, Problem::because)
    }
}

/// What a process said last.
pub(crate) fn last_lines(said: &str) -> Vec<String> {
    let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].iter().map(|line| (*line).to_owned()).collect()
}
