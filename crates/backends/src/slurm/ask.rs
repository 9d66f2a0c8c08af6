//! Running one of another program's commands to its end: what it says, within a deadline.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// More than this of what it says is nothing that we understand.
const MOST: usize = 4 << 20;

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) success: bool,
    /// Its exit code; none where a signal ended it.
    pub(super) code: Option<i32>,
    pub(super) output: String,
    pub(super) errors: String,
}

/// Why nothing is known of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsaid {
    #[error("it could not be started")]
    Start(#[source] std::io::Error),
    #[error("it did not end within {} s", .0.as_secs())]
    Late(Duration),
    #[error("its output could not be read")]
    Read(#[source] std::io::Error),
}

/// Runs it with this input.
pub(super) fn ask(command: &mut Command, input: &str, patience: Duration) -> Result<Said, Unsaid> {
    let deadline = Instant::now() + patience;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(Unsaid::Start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // It is short enough for a pipe; one who reads nothing says so in another way.
        let _ = stdin.write_all(input.as_bytes());
    }
    let streams = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
    let read = read_all(streams.map(|stream| stream.map(File::from)), deadline);
    if read.is_err() {
        // One that has ended meanwhile cannot be killed, and is waited for all the same.
        let _ = child.kill();
    }
    let status = child.wait().map_err(Unsaid::Read)?;
    match read {
        Ok([output, errors]) => {
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            Ok(Said { success: status.success(), code: status.code(), output: text(output), errors: text(errors) })
        }
        Err(Errno::TIMEDOUT) => Err(Unsaid::Late(patience)),
        Err(errno) => Err(Unsaid::Read(errno.into())),
    }
}

fn read_all(mut streams: [Option<File>; 2], deadline: Instant) -> rustix::io::Result<[Vec<u8>; 2]> {
    let mut said = [Vec::new(), Vec::new()];
    let mut buffer = vec![0; 64 * 1024];
    while streams.iter().any(Option::is_some) {
        let left = deadline.checked_duration_since(Instant::now()).ok_or(Errno::TIMEDOUT)?;
        let left = left.try_into().map_err(|_| Errno::INVAL)?;
        let open: Vec<usize> = (0..2).filter(|at| streams[*at].is_some()).collect();
        let mut polled: Vec<PollFd<'_>> =
            streams.iter().flatten().map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)).collect();
        match poll(&mut polled, Some(&left)) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let ready: Vec<bool> = polled.iter().map(|one| !one.revents().is_empty()).collect();
        for (at, _) in open.into_iter().zip(ready).filter(|(_, ready)| *ready) {
            let count = streams[at].as_ref().map_or(Ok(0), |file| rustix::io::read(file, &mut buffer))?;
            if count == 0 {
                streams[at] = None;
            } else if said[at].len() < MOST {
                said[at].extend_from_slice(&buffer[..count]);
            }
        }
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_streams_and_the_end_are_told_and_one_that_hangs_is_ended() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "cat; echo wrong >&2; exit 3"]);
        let said = ask(&mut command, "in", Duration::from_secs(20)).expect("it ends");
        assert_eq!((said.success, said.output.as_str(), said.errors.as_str()), (false, "in", "wrong\n"));
        let mut command = Command::new("/bin/sleep");
        let late = ask(command.arg("1000"), "", Duration::from_millis(50));
        assert!(matches!(late, Err(Unsaid::Late(_))), "{late:?}");
        assert!(matches!(ask(&mut Command::new("/no/such"), "", Duration::ZERO), Err(Unsaid::Start(_))));
    }
}
