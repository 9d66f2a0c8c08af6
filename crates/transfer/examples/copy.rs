//! Copies a tree between two processes through a pipe, as a machine on this host would be given one.
//!
//! `cargo run --release -p testyard-transfer --example copy -- FROM TO` — what the speed goals are measured with.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use testyard_transfer::{Oversight, UnpackOptions, pack_into, unpack_from};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    let none = Oversight::default();
    let outcome = match words.as_slice() {
        ["pack", from] => root().and_then(|root| {
            pack_into(root.as_fd(), Path::new(from), io::stdout().as_fd(), none).map_err(io::Error::other)
        }),
        ["unpack", to] => root().and_then(|root| {
            let options = UnpackOptions { mask: Some(0o22), ..UnpackOptions::default() };
            unpack_from(io::stdin().as_fd(), root.as_fd(), Path::new(to), &options, none).map_err(io::Error::other)
        }),
        [from, to] => return copy(from, to).unwrap_or(ExitCode::FAILURE),
        _ => Err(io::Error::other("usage: copy FROM TO, both absolute")),
    };
    match outcome {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn root() -> io::Result<File> {
    File::open("/")
}

fn copy(from: &str, to: &str) -> io::Result<ExitCode> {
    let this = std::env::current_exe()?;
    let (theirs, ours) = io::pipe()?;
    let mut receiver = Command::new(&this).args(["unpack", to]).stdin(Stdio::from(theirs)).spawn()?;
    let sent = Command::new(&this).args(["pack", from]).stdout(Stdio::from(ours)).status()?;
    let received = receiver.wait()?;
    Ok(if sent.success() && received.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
