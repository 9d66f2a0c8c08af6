//! From what a client asked for to three descriptors for the command, and pipes for the agent to relay.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use testyard_linux::Error;
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::{Exec, StreamTarget};

/// Both sides of a command's standard streams.
#[derive(Default)]
pub(crate) struct StandardStreams {
    /// For the command; none where it has a terminal.
    pub(crate) command: Option<[OwnedFd; 3]>,
    /// Where the agent writes the command's input.
    pub(crate) input: Option<OwnedFd>,
    /// Where the agent reads output (channel 1) and error output (channel 2).
    pub(crate) outputs: Vec<(u8, OwnedFd)>,
}

impl StandardStreams {
    /// Takes what was attached, opens the rest.
    pub(crate) fn open(exec: &Exec, attached: Vec<OwnedFd>) -> Result<Self, Problem> {
        let mut streams = Self::default();
        if exec.terminal.is_some() {
            return Ok(streams);
        }
        let mut attached: Vec<Option<OwnedFd>> = attached.into_iter().map(Some).collect();
        let input = streams.one(exec.stdin, 0, &mut attached)?;
        let output = streams.one(exec.stdout, 1, &mut attached)?;
        let error = streams.one(exec.stderr, 2, &mut attached)?;
        streams.command = Some([input, output, error]);
        Ok(streams)
    }

    fn one(&mut self, target: StreamTarget, channel: u8, attached: &mut [Option<OwnedFd>]) -> Result<OwnedFd, Problem> {
        let system = |what: &'static str| move |error| Error::new("open", what, error).problem();
        match target {
            StreamTarget::Null => {
                // The staging area calls it otherwise; plain processes have the host's.
                let flags = OFlags::RDWR | OFlags::CLOEXEC;
                rustix::fs::open("/devices/null", flags, Mode::empty())
                    .or_else(|_| rustix::fs::open("/dev/null", flags, Mode::empty()))
                    .map_err(system("/dev/null"))
            }
            StreamTarget::Attached(index) => {
                let fd = attached.get_mut(usize::from(index)).and_then(|slot| match slot {
                    Some(fd) => fd.try_clone().ok(),
                    None => None,
                });
                let fd = fd.ok_or_else(|| {
                    Problem::new(
                        ProblemKind::Protocol,
                        format!("standard stream {channel} names descriptor {index}, which did not come"),
                    )
                })?;
                if rustix::termios::isatty(&fd) {
                    return Err(Problem::new(ProblemKind::Protocol, "a terminal cannot be passed to a machine")
                        .hint("ask for a terminal inside: exec -t"));
                }
                Ok(fd)
            }
            StreamTarget::Frames => {
                let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(system("a pipe"))?;
                let (own, command) = if channel == 0 { (writer, reader) } else { (reader, writer) };
                rustix::io::ioctl_fionbio(&own, true).map_err(system("a pipe"))?;
                if channel == 0 {
                    self.input = Some(own);
                } else {
                    self.outputs.push((channel, own));
                }
                Ok(command)
            }
        }
    }
}
