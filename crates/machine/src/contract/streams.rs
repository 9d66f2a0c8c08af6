//! Standard streams: passed descriptors, data frames, terminals, and who waits for whom.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;

use rustix::pipe::{PipeFlags, pipe_with};
use testyard_linux::files::in_memory;
use testyard_model::CommandStatus;
use testyard_protocol::{Exec, StreamTarget, TerminalSize};

use super::ground::{Broken, Ground, same, shell};
use super::{Ability, Case};
use crate::client::SessionCommand;

const TERMINALS: &[Ability] = &[Ability::Terminals];

pub(super) const CASES: &[Case] = &[
    Case { name: "output and error output are separate", needs: &[], run: separate },
    Case { name: "standard input is what was attached", needs: &[], run: attached_input },
    Case { name: "files can be attached", needs: &[], run: attached_files },
    Case { name: "standard input is empty unless given", needs: &[], run: no_input },
    Case { name: "frames carry all three streams", needs: &[], run: frames },
    Case { name: "much output arrives whole", needs: &[], run: much_output },
    Case { name: "a slow reader holds up its own stream only", needs: &[], run: slow_reader },
    Case { name: "output that nobody reads holds up its own command only", needs: &[], run: unread_output },
    Case { name: "a command may close its input early", needs: &[], run: closed_input },
    Case { name: "a terminal is one, of the size asked for", needs: TERMINALS, run: terminal },
    Case { name: "a terminal passes on what control keys mean", needs: TERMINALS, run: control_keys },
];

fn separate(ground: &Ground<'_>) -> Result<(), Broken> {
    let captured = ground.sh("echo out; echo err >&2; echo out; echo err >&2")?;
    same("output", captured.stdout, b"out\nout\n".to_vec())?;
    same("error output", captured.stderr, b"err\nerr\n".to_vec())
}

fn attached_input(ground: &Ground<'_>) -> Result<(), Broken> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let exec = Exec { stdin: StreamTarget::Attached(0), ..shell("cat; echo end") };
    File::from(write).write_all(b"through a pipe\n")?;
    let captured = ground.connect()?.capture(exec, &[read.as_fd()])?;
    same("what was read", captured.stdout, b"through a pipe\nend\n".to_vec())
}

fn attached_files(ground: &Ground<'_>) -> Result<(), Broken> {
    let input = in_memory("testyard-contract", b"from a file")?;
    let mut output = File::from(in_memory("testyard-contract", b"")?);
    let exec = Exec { stdin: StreamTarget::Attached(0), stdout: StreamTarget::Attached(1), ..shell("cat") };
    let finished = ground.connect()?.exec(exec, &[input.as_fd(), output.as_fd()])?.wait()?;
    same("the status", finished.status, CommandStatus::Exited(0))?;
    rustix::fs::seek(&output, rustix::fs::SeekFrom::Start(0))?;
    let mut seen = String::new();
    output.read_to_string(&mut seen)?;
    same("what was written", seen, "from a file".to_owned())
}

fn no_input(ground: &Ground<'_>) -> Result<(), Broken> {
    same("what was read", ground.told(shell("wc -c"))?, "0".to_owned())
}

fn frames(ground: &Ground<'_>) -> Result<(), Broken> {
    let session = ground.session()?;
    let frames = StreamTarget::Frames;
    let exec = Exec { stdin: frames, stdout: frames, stderr: frames, ..shell("cat; echo err >&2; exit 9") };
    let mut command = session.exec(exec, &[])?;
    let mut stdin = command.stdin.take().ok_or_else(|| Broken::new("no standard input"))?;
    stdin.write_all(b"in frames")?;
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    if let (Some(stdout), Some(stderr)) = (&mut command.stdout, &mut command.stderr) {
        stdout.read_to_string(&mut out)?;
        stderr.read_to_string(&mut err)?;
    }
    same("output", out.as_str(), "in frames")?;
    same("error output", err.as_str(), "err\n")?;
    same("the status", command.wait()?.status, CommandStatus::Exited(9))
}

fn much_output(ground: &Ground<'_>) -> Result<(), Broken> {
    const BYTES: usize = 5_000_000;
    let script = format!("head -c {BYTES} /dev/zero");
    same("bytes through pipes", ground.sh(&script)?.stdout.len(), BYTES)?;
    let session = ground.session()?;
    let mut command = session.exec(Exec { stdout: StreamTarget::Frames, ..shell(&script) }, &[])?;
    let mut stdout = command.stdout.take().ok_or_else(|| Broken::new("no standard output"))?;
    let count = std::io::copy(&mut stdout, &mut std::io::sink())?;
    same("bytes in frames", count, BYTES as u64)?;
    same("the status", command.wait()?.status, CommandStatus::Exited(0))
}

fn slow_reader(ground: &Ground<'_>) -> Result<(), Broken> {
    let session = ground.session()?;
    let frames = StreamTarget::Frames;
    let mut slow = session.exec(Exec { stdout: frames, ..shell("head -c 3000000 /dev/zero") }, &[])?;
    slow.wait_started()?;
    for number in 0..20_u8 {
        let mut quick = session.exec(Exec { stdout: frames, ..shell(&format!("echo hello; exit {number}")) }, &[])?;
        let mut seen = String::new();
        if let Some(stdout) = &mut quick.stdout {
            stdout.read_to_string(&mut seen)?;
        }
        same("the quick one's output", seen.as_str(), "hello\n")?;
        same("its status", quick.wait()?.status, CommandStatus::Exited(number))?;
    }
    let mut stdout = slow.stdout.take().ok_or_else(|| Broken::new("no standard output"))?;
    same("the slow one's bytes", std::io::copy(&mut stdout, &mut std::io::sink())?, 3_000_000)?;
    same("its status", slow.wait()?.status, CommandStatus::Exited(0))
}

fn unread_output(ground: &Ground<'_>) -> Result<(), Broken> {
    let session = ground.session()?;
    let attached = |script: &str| Exec { stdout: StreamTarget::Attached(0), ..shell(script) };
    let (unread, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut endless = session.exec(attached("exec cat /dev/zero"), &[write.as_fd()])?;
    drop(write);
    endless.wait_started()?;
    for number in 0..20_u8 {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut quick = session.exec(attached(&format!("echo hello; exit {number}")), &[write.as_fd()])?;
        drop(write);
        let mut seen = String::new();
        File::from(read).read_to_string(&mut seen)?;
        same("the quick one's output", seen.as_str(), "hello\n")?;
        same("its status", quick.wait()?.status, CommandStatus::Exited(number))?;
    }
    // It was not ended meanwhile: it is now, and told so once nobody is to read what it wrote.
    endless.handle().kill()?;
    drop(unread);
    let status = endless.wait()?.status;
    same("whether the endless one was ended", status.success(), false)
}

fn closed_input(ground: &Ground<'_>) -> Result<(), Broken> {
    let session = ground.session()?;
    let exec = Exec { stdin: StreamTarget::Frames, stdout: StreamTarget::Frames, ..shell("head -c 3") };
    let mut command = session.exec(exec, &[])?;
    let mut stdin = command.stdin.take().ok_or_else(|| Broken::new("no standard input"))?;
    // More than any buffer on the way. It is taken and dropped, or refused, but never waits for ever.
    let _ = (0..100).try_for_each(|_| stdin.write_all(&[b'x'; 65_536]));
    drop(stdin);
    let mut seen = String::new();
    if let Some(stdout) = &mut command.stdout {
        stdout.read_to_string(&mut seen)?;
    }
    same("output", seen.as_str(), "xxx")?;
    same("the status", command.wait()?.status, CommandStatus::Exited(0))
}

fn terminal(ground: &Ground<'_>) -> Result<(), Broken> {
    let session = ground.session()?;
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size; read line; stty size; exit 5";
    let size = |rows, columns| TerminalSize { rows, columns };
    let mut command = session.exec(Exec { terminal: Some(size(31, 97)), ..shell(script) }, &[])?;
    let mut seen = Vec::new();
    read_until(&mut command, &mut seen, b"31 97")?;
    command.handle().resize(size(12, 34))?;
    if let Some(stdin) = &mut command.stdin {
        stdin.write_all(b"\n")?;
    }
    read_until(&mut command, &mut seen, b"12 34")?;
    same("the status", command.wait()?.status, CommandStatus::Exited(5))
}

fn control_keys(ground: &Ground<'_>) -> Result<(), Broken> {
    let session = ground.session()?;
    let size = TerminalSize { rows: 24, columns: 80 };
    let script = "trap 'echo interrupted; exit 6' INT; echo ready; while :; do sleep 0.05; done";
    let mut command = session.exec(Exec { terminal: Some(size), ..shell(script) }, &[])?;
    let mut seen = Vec::new();
    read_until(&mut command, &mut seen, b"ready")?;
    if let Some(stdin) = &mut command.stdin {
        stdin.write_all(b"\x03")?;
    }
    read_until(&mut command, &mut seen, b"interrupted")?;
    same("the status", command.wait()?.status, CommandStatus::Exited(6))
}

/// Reads a command's output until it holds `wanted`.
fn read_until(command: &mut SessionCommand, seen: &mut Vec<u8>, wanted: &[u8]) -> Result<(), Broken> {
    let mut piece = [0; 1024];
    while !contains(seen, wanted) {
        let stdout = command.stdout.as_mut().ok_or_else(|| Broken::new("no terminal"))?;
        match stdout.read(&mut piece)? {
            0 => {
                let ended = command.wait()?.status;
                let text = String::from_utf8_lossy(seen);
                return Err(Broken::new(format!("the terminal said {text:?}, and the command ended with {ended:?}")));
            }
            count => seen.extend_from_slice(&piece[..count]),
        }
    }
    Ok(())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
