//! One file as a stream, where only one end is a file: bytes from anywhere, or to anywhere.

use std::io::{self, Read, Write};

use crate::Summary;
use crate::error::{Refusal, TransferError};
use crate::failure::Failure;
use crate::format::{CHECKSUM, DIRECTORY, END, FILE, HOLE, MAGIC, MAX_CHUNK, MAX_NAME, Time};
use crate::oversight::Oversight;
use crate::receiver::{Inlet, Receiver};
use crate::sender::{Outlet, Sender};

/// Writes everything that `input` holds as one file with this mode, changed now and without a name of its own.
///
/// # Errors
/// Where `input` cannot be read or `out` not be written; the stream is then incomplete.
pub fn pack_bytes(input: &mut dyn Read, mode: u32, out: &mut dyn Write) -> Result<Summary, TransferError> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let time = Time { seconds: now.tv_sec, nanoseconds: u32::try_from(now.tv_nsec).unwrap_or(0) };
    let mut sender = Sender::new(Outlet::Checked(out), Oversight::default())?;
    sender.file(b"", mode, time, 0)?;
    let mut content = sender.content();
    while sender.bytes(input, &mut content)? > 0 {}
    sender.end_file(&content)?;
    sender.end()?;
    Ok(Summary { entries: 1, bytes: sender.moved, ..Summary::default() })
}

/// Writes the content of the one file of a stream to `out`.
///
/// # Errors
/// [`TransferError::Single`] where the stream holds a folder; what was written before an error stays written.
pub fn unpack_bytes(input: &mut dyn Read, out: &mut dyn Write) -> Result<Summary, TransferError> {
    copy(&mut Receiver::new(Inlet::Checked(input)), out).map_err(|failure| failure.at("the file".into()))
}

fn copy(stream: &mut Receiver<'_>, out: &mut dyn Write) -> Result<Summary, Failure> {
    let start = stream.array::<8>()?;
    if start[..7] != MAGIC {
        return Err(Refusal::NotAStream.into());
    }
    stream.form(start[7], true)?;
    match stream.byte()? {
        FILE => {}
        DIRECTORY => return Err(Failure::Told(TransferError::Single)),
        kind => return Err(Refusal::Kind(kind).into()),
    }
    stream.text(MAX_NAME, Refusal::Name)?;
    stream.number()?;
    stream.time()?;
    stream.number()?;
    let bytes = content(stream, out)?;
    if stream.byte()? != END {
        return Err(Refusal::Closing.into());
    }
    let told = (u64::from_le_bytes(stream.array()?), u64::from_le_bytes(stream.array()?));
    let expected = stream.checksum();
    if told != (1, bytes) || Some(stream.array::<CHECKSUM>()?) != expected {
        return Err(Refusal::Closing.into());
    }
    out.flush().map_err(unwritten)?;
    Ok(Summary { entries: 1, bytes, ..Summary::default() })
}

fn content(stream: &mut Receiver<'_>, out: &mut dyn Write) -> Result<u64, Failure> {
    let mut sum = stream.hasher().unwrap_or_default();
    let mut bytes = 0;
    loop {
        match u32::from_le_bytes(stream.uncovered()?) {
            0 => break,
            HOLE => {
                let length = u64::from_le_bytes(stream.uncovered()?);
                sum.update(&length.to_le_bytes());
                io::copy(&mut io::repeat(0).take(length), out).map_err(unwritten)?;
            }
            length if length > MAX_CHUNK => return Err(Refusal::TooLarge.into()),
            length => {
                let mut left = length as usize;
                while left > 0 {
                    let part = stream.content(left)?;
                    sum.update(part);
                    out.write_all(part).map_err(unwritten)?;
                    left -= part.len();
                }
                bytes += u64::from(length);
            }
        }
    }
    if stream.array::<CHECKSUM>()? == *sum.finalize().as_bytes() { Ok(bytes) } else { Err(Refusal::Checksum.into()) }
}

fn unwritten(source: io::Error) -> Failure {
    Failure::Told(TransferError::Bytes { operation: "write", source })
}
