//! A transport as a command line, and what the end of its process means.

use std::ffi::OsString;
use std::io;

use testyard_model::{Problem, ProblemKind, Transport};

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
}

impl Dialled {
    /// The command line of a transport.
    pub(crate) fn new(transport: &Transport, patience: std::time::Duration) -> Result<Self, Problem> {
        let name = transport.name();
        match transport {
            Transport::Ssh(ssh) => {
                let (words, variables) = ssh::command_line(ssh, patience)?;
                Ok(Self { program: "ssh".into(), words, variables, name, ssh: true })
            }
            Transport::Slurm(_) => {
                Err(Problem::new(ProblemKind::Bug, "an allocation leads nowhere before its job has a node"))
            }
            Transport::Command(words) => {
                let mut words = words.iter().map(OsString::from);
                let program = words.next().ok_or_else(|| {
                    Problem::new(ProblemKind::Usage, "the command that leads to the other host has no words")
                })?;
                Ok(Self { program, words: words.collect(), variables: Vec::new(), name, ssh: false })
            }
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
            return ssh::explain(&self.name, why, said);
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
