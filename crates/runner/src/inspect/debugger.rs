//! A debugger of this host, asked where a process is.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Bytes of one process's stacks that are kept.
const MOST: usize = 16 << 10;

/// A program that can tell a running process's stacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debugger {
    program: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    EuStack,
    Gdb,
}

impl Debugger {
    /// The first of `eu-stack` and `gdb` in these folders, written as `PATH` is.
    #[must_use]
    pub fn find(path: &str) -> Option<Self> {
        let in_path = |name: &str, kind| {
            let mut places = path.split(':').filter(|folder| folder.starts_with('/'));
            let program = places.find_map(|folder| Some(Path::new(folder).join(name)).filter(|file| file.is_file()))?;
            Some(Self { program, kind })
        };
        in_path("eu-stack", Kind::EuStack).or_else(|| in_path("gdb", Kind::Gdb))
    }

    /// The stacks of all threads of a process; none where it cannot be attached to, or in no such time.
    #[must_use]
    pub fn stack_of(&self, pid: u32, longest: Duration) -> Option<String> {
        let mut command = Command::new(&self.program);
        match self.kind {
            Kind::EuStack => command.args(["-n", "32", "-p"]).arg(pid.to_string()),
            Kind::Gdb => {
                command.args(["--batch", "--nx", "-ex", "set debuginfod enabled off", "-ex", "thread apply all bt 32"]);
                command.arg("-p").arg(pid.to_string())
            }
        };
        command.env("DEBUGINFOD_URLS", "").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().ok()?;
        let until = Instant::now() + longest;
        let mut text = Vec::new();
        if let Some(mut stdout) = child.stdout.take() {
            let mut buffer = [0_u8; 4096];
            while text.len() < MOST {
                let left = until.saturating_duration_since(Instant::now());
                let wait = Timespec::try_from(left).unwrap_or_default();
                let mut polled = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN)];
                match poll(&mut polled, Some(&wait)) {
                    Ok(0) => break,
                    Ok(_) => match stdout.read(&mut buffer) {
                        Ok(count) if count > 0 => text.extend_from_slice(&buffer[..count]),
                        _ => break,
                    },
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        }
        // One that is done cannot be killed, which is as well; a process that was attached to goes on either way.
        let _ = child.kill();
        let _ = child.wait();
        text.truncate(MOST);
        let text = String::from_utf8_lossy(&text);
        let wanted = |line: &&str| ["#", "TID ", "Thread "].iter().any(|start| line.starts_with(start));
        let told: Vec<&str> = text.lines().filter(wanted).collect();
        told.iter().any(|line| line.starts_with('#')).then(|| told.join("\n"))
    }
}
