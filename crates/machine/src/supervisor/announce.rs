//! What a new supervisor tells whoever started it: the machine is there, or why it is not.
//!
//! One line of JSON through a pipe. While a machine is being created it must not outlive its creator's wish: if
//! nobody reads the line, the machine is removed again.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use testyard_model::{MachineInfo, Problem, ProblemKind};

/// What is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Announcement {
    /// It is there; its agent answered.
    Ready(Box<MachineInfo>),
    /// It is not there.
    Failed(Problem),
}

/// Nobody was told, because nobody listens any more.
#[derive(Debug, thiserror::Error)]
#[error("whoever asked for the machine is gone")]
pub struct CreatorGone(#[source] io::Error);

/// The supervisor's end of the pipe.
#[derive(Debug)]
pub struct Creator {
    pipe: Option<File>,
}

impl Creator {
    /// Over the writing end of a pipe, or nobody.
    #[must_use]
    pub fn new(pipe: Option<OwnedFd>) -> Self {
        Self { pipe: pipe.map(File::from) }
    }

    /// Tells it, once. With nobody to tell from the start this succeeds.
    pub fn tell(&mut self, announcement: &Announcement) -> Result<(), CreatorGone> {
        let Some(mut pipe) = self.pipe.take() else { return Ok(()) };
        let mut line = serde_json::to_vec(announcement).expect("an announcement is plain data");
        line.push(b'\n');
        pipe.write_all(&line).map_err(CreatorGone)
    }
}

/// Waits at the reading end for the supervisor's word. `log` is where it writes, for the hint.
pub fn await_announcement(pipe: OwnedFd, log: &std::path::Path) -> Result<Box<MachineInfo>, Problem> {
    let mut line = String::new();
    let read = BufReader::new(File::from(pipe)).read_line(&mut line);
    let died = || {
        let problem = Problem::new(ProblemKind::Unavailable, "the machine's supervisor ended without a word");
        problem.hint(format!("see what it wrote: tail {}", log.display()))
    };
    match read {
        Ok(_) => match serde_json::from_str(&line) {
            Ok(Announcement::Ready(info)) => Ok(info),
            Ok(Announcement::Failed(problem)) => Err(problem),
            Err(_) => Err(died()),
        },
        Err(error) => Err(died().because(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_word_arrives_or_its_absence_is_noticed() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipes are to be had");
        let problem = Problem::new(ProblemKind::Exhausted, "no room");
        Creator::new(Some(write)).tell(&Announcement::Failed(problem.clone())).expect("somebody listens");
        assert_eq!(await_announcement(read, Path::new("/log")), Err(problem));

        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipes are to be had");
        drop(Creator::new(Some(write)));
        assert_eq!(await_announcement(read, Path::new("/log")).expect_err("it died").kind, ProblemKind::Unavailable);

        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipes are to be had");
        drop(read);
        let problem = Problem::new(ProblemKind::Bug, "unheard");
        assert!(Creator::new(Some(write)).tell(&Announcement::Failed(problem)).is_err());
    }
}
