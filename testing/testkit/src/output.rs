//! A program run to its end, with a deadline, and what it printed.

use std::fmt;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; 128+n for signal n.
    pub code: i32,
    /// What it printed for programs.
    pub stdout: String,
    /// What it printed for people.
    pub stderr: String,
}

/// After the end of a program its pipes close at once, unless something it left behind holds them.
const PIPES_CLOSE_WITHIN: Duration = Duration::from_secs(5);

impl Output {
    /// Runs a command to its end, its standard input empty unless the command says otherwise.
    ///
    /// # Panics
    ///
    /// Where it cannot be started, does not end before the deadline (it is killed then), or leaves something
    /// behind that holds its output open: a background process of ours must never do that to its caller.
    #[must_use]
    pub fn of(command: &mut Command, deadline: Duration) -> Self {
        let line = format!("{command:?}");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
        Self::of_child(&mut child, &line, deadline)
    }

    /// The same for a child that runs already; its output must be piped.
    ///
    /// # Panics
    ///
    /// As [`Output::of`].
    #[must_use]
    pub fn of_child(child: &mut Child, line: &str, deadline: Duration) -> Self {
        let stdout = reader(child.stdout.take());
        let stderr = reader(child.stderr.take());
        let ended = ends_within(child, deadline);
        if !ended {
            child.kill().unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        let status = child.wait().unwrap_or_else(|error| panic!("{line}: {error}"));
        let collect = |stream: Receiver<Vec<u8>>, name: &str| match stream.recv_timeout(PIPES_CLOSE_WITHIN) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                panic!("{line}: it ended, but something it left behind still holds its {name}")
            }
        };
        let (stdout, stderr) = (collect(stdout, "stdout"), collect(stderr, "stderr"));
        assert!(ended, "{line}: not ended within {deadline:?}\nstdout:\n{stdout}\nstderr:\n{stderr}");
        Self { code: shell_code(status), stdout, stderr }
    }

    /// The same output, if the program exited with 0.
    ///
    /// # Panics
    ///
    /// Where it did not, with all it printed.
    #[must_use]
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert_eq!(self.code, 0, "{self}");
        self
    }

    /// The standard output as JSON.
    ///
    /// # Panics
    ///
    /// Where it is not JSON.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in:\n{self}"))
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {}\nstdout:\n{}\nstderr:\n{}", self.code, self.stdout, self.stderr)
    }
}

fn shell_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Reads a stream to its end in a thread of its own, so that neither stream can block the other.
fn reader(stream: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream
            && let Err(error) = stream.read_to_end(&mut bytes)
        {
            bytes.extend(format!("(unreadable: {error})").bytes());
        }
        // Nobody listens any more where the test has failed meanwhile.
        let _ = sender.send(bytes);
    });
    receiver
}

/// Whether the child ends before the deadline; it is not reaped.
fn ends_within(child: &Child, deadline: Duration) -> bool {
    let pid = Pid::from_child(child);
    let handle = pidfd_open(pid, PidfdFlags::empty()).unwrap_or_else(|error| panic!("pidfd of {pid:?}: {error}"));
    let end = std::time::Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll on a pidfd: {error}"),
            Ok(ready) => return ready > 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    #[test]
    fn streams_and_codes_are_kept_apart() {
        let output = Output::of(&mut shell("echo out; echo err >&2; exit 7"), DEADLINE);
        assert_eq!(output, Output { code: 7, stdout: "out\n".to_owned(), stderr: "err\n".to_owned() });
        assert_eq!(Output::of(&mut shell("kill -9 $$"), DEADLINE).code, 137);
    }

    #[test]
    fn json_is_read() {
        assert_eq!(Output::of(&mut shell("echo '{\"a\": 1}'"), DEADLINE).expect_success().json()["a"], 1);
    }

    #[test]
    #[should_panic(expected = "not ended within")]
    fn a_deadline_ends_it() {
        let _ = Output::of(&mut shell("exec tail -f /dev/null"), Duration::from_millis(50));
    }

    #[test]
    fn much_output_on_both_streams_blocks_nothing() {
        let output = Output::of(&mut shell("head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2"), DEADLINE);
        assert_eq!((output.stdout.len(), output.stderr.len()), (300_000, 300_000));
    }
}
