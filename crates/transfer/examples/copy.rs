//! Copies a tree between two processes through a socket, as a machine on this host would be given one.
//!
//! `cargo run --release -p testyard-transfer --example copy -- FROM TO` — what the speed goals are measured with.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use testyard_transfer::{UnpackOptions, pack, unpack, widen};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["pack", from] => root().and_then(|root| {
            let mut out = Descriptor(io::stdout().as_fd().try_clone_to_owned()?);
            pack(root.as_fd(), Path::new(from), &mut out).map_err(io::Error::other)
        }),
        ["unpack", to] => root().and_then(|root| {
            let mut input = Descriptor(io::stdin().as_fd().try_clone_to_owned()?);
            unpack(&mut input, root.as_fd(), Path::new(to), &UnpackOptions::default()).map_err(io::Error::other)
        }),
        [from, to] => return copy(from, to).unwrap_or(ExitCode::FAILURE),
        _ => Err(io::Error::other("usage: copy FROM TO, both absolute")),
    };
    match outcome {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A descriptor without the standard library's line buffering.
struct Descriptor(OwnedFd);

impl Read for Descriptor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, buffer)?)
    }
}

impl Write for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn root() -> io::Result<File> {
    File::open("/")
}

fn copy(from: &str, to: &str) -> io::Result<ExitCode> {
    let this = std::env::current_exe()?;
    let (ours, theirs): (OwnedFd, OwnedFd) = if std::env::var_os("PIPE").is_some() {
        let (reader, writer) = io::pipe()?;
        (writer.into(), reader.into())
    } else {
        let (one, other) = UnixStream::pair()?;
        (one.into(), other.into())
    };
    widen(ours.as_fd());
    widen(theirs.as_fd());
    let mut receiver = Command::new(&this).args(["unpack", to]).stdin(Stdio::from(theirs)).spawn()?;
    let sent = Command::new(&this).args(["pack", from]).stdout(Stdio::from(ours)).status()?;
    let received = receiver.wait()?;
    Ok(if sent.success() && received.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
