//! Writing tar archives: POSIX headers, with an extended one before an entry that does not fit. The same tree gives the
//! same bytes.

use std::io::{self, Read, Write};

use crate::archive::BLOCK;

/// What an entry is, content aside.
#[derive(Debug, Clone, Default)]
pub(super) struct Header<'h> {
    /// Relative; a directory's ends with a slash.
    pub(super) path: &'h [u8],
    /// The type flag.
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) size: u64,
    /// What a link points to.
    pub(super) link: &'h [u8],
    /// Extended attributes.
    pub(super) attributes: &'h [(Vec<u8>, Vec<u8>)],
}

/// Writes one archive.
#[derive(Debug)]
pub(super) struct ArchiveWriter<W> {
    target: W,
}

impl<W: Write> ArchiveWriter<W> {
    pub(super) fn new(target: W) -> Self {
        Self { target }
    }

    /// An entry without content, or with that of `content`, which must be as long as the header says.
    pub(super) fn entry(&mut self, header: &Header<'_>, content: &mut dyn Read) -> io::Result<()> {
        let extended = extended(header);
        if !extended.is_empty() {
            let own =
                Header { path: b"extended", kind: b'x', mode: 0o644, size: extended.len() as u64, ..Header::default() };
            self.target.write_all(&block(&own))?;
            self.target.write_all(&extended)?;
            self.pad(extended.len() as u64)?;
        }
        self.target.write_all(&block(header))?;
        let copied = io::copy(&mut content.take(header.size), &mut self.target)?;
        if copied != header.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.pad(header.size)
    }

    /// The end mark.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.target.write_all(&[0; 2 * BLOCK])?;
        self.target.flush()
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = (BLOCK - (size % BLOCK as u64) as usize) % BLOCK;
        self.target.write_all(&[0; BLOCK][..padding])
    }
}

/// The largest numbers of a header's octal fields.
const ID_MAX: u32 = 0o7_777_777;
const LONG_MAX: u64 = 0o77_777_777_777;

/// The records of what does not fit into a header block.
fn extended(header: &Header<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    if header.path.len() > 100 {
        record(&mut records, b"path", header.path);
    }
    if header.link.len() > 100 {
        record(&mut records, b"linkpath", header.link);
    }
    if header.size > LONG_MAX {
        record(&mut records, b"size", header.size.to_string().as_bytes());
    }
    for (key, id) in [(b"uid", header.uid), (b"gid", header.gid)] {
        if id > ID_MAX {
            record(&mut records, key, id.to_string().as_bytes());
        }
    }
    if !u64::try_from(header.mtime).is_ok_and(|time| time <= LONG_MAX) {
        record(&mut records, b"mtime", header.mtime.to_string().as_bytes());
    }
    for (name, value) in header.attributes {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

/// `length key=value\n`, where the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn block(header: &Header<'_>) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |place: usize, text: &[u8]| block[place..place + text.len()].copy_from_slice(text);
    put(0, &header.path[..header.path.len().min(100)]);
    put(100, format!("{:07o}\0", header.mode).as_bytes());
    put(108, format!("{:07o}\0", header.uid.min(ID_MAX)).as_bytes());
    put(116, format!("{:07o}\0", header.gid.min(ID_MAX)).as_bytes());
    put(124, format!("{:011o}\0", header.size.min(LONG_MAX)).as_bytes());
    put(136, format!("{:011o}\0", u64::try_from(header.mtime).unwrap_or(0).min(LONG_MAX)).as_bytes());
    put(148, b"        ");
    put(156, &[header.kind]);
    put(157, &header.link[..header.link.len().min(100)]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{ArchiveReader, EntryKind};

    #[test]
    fn what_is_written_is_read_again() {
        let long = b"d/".repeat(400);
        let attributes = [(b"user.note".to_vec(), b"a\0b\n".to_vec())];
        let first = Header {
            path: &long,
            kind: b'0',
            mode: 0o4755,
            uid: 70_000_000,
            gid: 3,
            mtime: -5,
            size: 700,
            link: b"",
            attributes: &attributes,
        };
        let first = Header { path: &[&long[..], b"x"].concat(), ..first };
        let second = Header { path: b"link", kind: b'2', link: &long, mode: 0o777, ..Header::default() };
        let mut bytes = Vec::new();
        let mut writer = ArchiveWriter::new(&mut bytes);
        writer.entry(&first, &mut io::repeat(7)).expect("in memory");
        writer.entry(&second, &mut io::empty()).expect("in memory");
        writer.finish().expect("in memory");
        let mut short = ArchiveWriter::new(Vec::new());
        assert!(short.entry(&first, &mut io::empty()).is_err(), "its content is shorter than it says");
        let mut reader = ArchiveReader::new(&*bytes);
        let read = reader.next_entry().expect("well-formed").expect("an entry");
        assert_eq!((read.path.len(), read.uid, read.mtime, read.size), (801, 70_000_000, -5, 700));
        assert_eq!((read.mode, read.attributes.as_slice()), (0o4755, &attributes[..]));
        let read = reader.next_entry().expect("well-formed").expect("an entry");
        assert_eq!(read.kind, EntryKind::SymbolicLink(long));
        assert!(reader.next_entry().expect("the end").is_none());
    }
}
