//! The archive as a sequence of entries, each with its content behind it.

use std::io::Read;

use super::header::{Checksum, RawHeader};
use super::pax::{self, Extended};
use super::sparse::{self, Segment};
use super::{ArchiveError, BLOCK, HEADER_LIMIT};

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A file, with content.
    File,
    /// Another name of an earlier entry.
    HardLink(Vec<u8>),
    /// A symbolic link and its target.
    SymbolicLink(Vec<u8>),
    /// A directory.
    Directory,
    /// A character device.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// One entry's header, merged from all that the archive says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name as written: bytes without NUL, never empty, possibly hostile.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970.
    pub mtime: i64,
    /// Bytes of a file as its reader sees them, holes included; 0 for all else.
    pub size: u64,
    /// Extended attributes, in the archive's order.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
    segments: Vec<Segment>,
}

impl Entry {
    /// Bytes of content in the archive: the size without the holes.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }
}

/// Reads entries from an uncompressed archive.
pub struct ArchiveReader<R> {
    source: R,
    offset: u64,
    /// Stored bytes of the present entry not yet read, and the padding behind them.
    left: u64,
    padding: u64,
    last: Vec<u8>,
    /// Whether the end mark was met.
    ended: bool,
    /// Long name and long link of GNU tar, and the PAX header, for the next entry.
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    extended: Extended,
}

impl<R: Read> ArchiveReader<R> {
    /// Reads from the beginning of an archive.
    pub fn new(source: R) -> Self {
        Self {
            source,
            offset: 0,
            left: 0,
            padding: 0,
            last: Vec::new(),
            ended: false,
            long_name: None,
            long_link: None,
            extended: Extended::default(),
        }
    }

    /// The next entry, or none after the end mark. What is left of the present entry's content is skipped.
    ///
    /// # Errors
    /// Any [`ArchiveError`]; the reader is of no further use after one.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        self.skip_rest()?;
        loop {
            let mut block = [0; BLOCK];
            let begin = self.offset;
            if !self.fill(&mut block)? {
                // Without an end mark nothing tells a whole archive from its first half.
                return Err(if begin == 0 { ArchiveError::NotAnArchive } else { self.truncated() });
            }
            let header = RawHeader(&block);
            match header.checksum() {
                Checksum::Zero => {
                    self.finish()?;
                    self.ended = true;
                    return Ok(None);
                }
                Checksum::Wrong if begin == 0 => return Err(ArchiveError::NotAnArchive),
                Checksum::Wrong => return Err(ArchiveError::Checksum { offset: begin, entry: self.last.clone() }),
                Checksum::Right => {}
            }
            let size = header.size().and_then(|size| u64::try_from(size).ok()).ok_or_else(|| self.invalid("size"))?;
            match header.kind() {
                b'L' => self.long_name = Some(self.long_text(size)?),
                b'K' => self.long_link = Some(self.long_text(size)?),
                b'x' | b'X' => {
                    let body = self.body(size)?;
                    self.extended = pax::decode(&body).map_err(|field| self.invalid(field))?;
                }
                b'g' => {
                    let body = self.body(size)?;
                    let global = pax::decode(&body).map_err(|field| self.invalid(field))?;
                    if global.misplaced_in_global() {
                        return Err(self.invalid("global header"));
                    }
                }
                _ => return self.entry(&block, size).map(Some),
            }
        }
    }

    /// Gives a file's content piece by piece with the place of each; holes are left out.
    ///
    /// # Errors
    /// [`ArchiveError`] as the outer error, what `sink` answers as the inner one.
    pub fn read_content<E>(
        &mut self,
        entry: &Entry,
        buffer: &mut [u8],
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>, ArchiveError> {
        for segment in &entry.segments {
            let mut done = 0;
            while done < segment.length {
                let want = usize::try_from(segment.length - done).unwrap_or(usize::MAX).min(buffer.len());
                let read = self.read_some(&mut buffer[..want])?;
                if let Err(error) = sink(segment.offset + done, &buffer[..read]) {
                    return Ok(Err(error));
                }
                done += read as u64;
            }
        }
        Ok(Ok(()))
    }

    /// Bytes of the uncompressed archive read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn entry(&mut self, block: &[u8; BLOCK], header_size: u64) -> Result<Entry, ArchiveError> {
        let header = RawHeader(block);
        let extended = std::mem::take(&mut self.extended);
        let path = self.long_name.take();
        let path = extended.sparse.name.clone().or(extended.path).or(path).unwrap_or_else(|| header.name());
        let link = self.long_link.take();
        let link = extended.link.or(link).unwrap_or_else(|| header.link_name());
        if path.is_empty() {
            return Err(self.invalid("name"));
        }
        self.last.clone_from(&path);
        let kind = self.kind(&header, &path, link)?;
        let id = |value: Option<i64>, long: Option<u64>| {
            let value = long.or_else(|| value.and_then(|value| u64::try_from(value).ok()))?;
            // The last id means "leave it" to chown.
            u32::try_from(value).ok().filter(|id| *id != u32::MAX)
        };
        let mut entry = Entry {
            path,
            kind,
            mode: (header.mode().ok_or_else(|| self.invalid("mode"))? & 0o7777) as u32,
            uid: id(header.uid(), extended.uid).ok_or_else(|| self.invalid("owner"))?,
            gid: id(header.gid(), extended.gid).ok_or_else(|| self.invalid("group"))?,
            mtime: extended.mtime.or(header.mtime()).ok_or_else(|| self.invalid("modification time"))?,
            size: 0,
            attributes: extended.attributes,
            segments: Vec::new(),
        };
        if entry.kind == EntryKind::File {
            // Only files have content: many writers leave a size in the headers of links and directories.
            let stored = extended.size.unwrap_or(header_size);
            self.begin_content(stored)?;
            entry.size = stored;
            entry.segments = vec![Segment { offset: 0, length: stored }];
            if header.kind() == b'S' {
                self.old_sparse_map(block, &mut entry)?;
            } else {
                self.pax_sparse_map(extended.sparse, &mut entry)?;
            }
        }
        Ok(entry)
    }

    fn kind(&self, header: &RawHeader<'_>, path: &[u8], link: Vec<u8>) -> Result<EntryKind, ArchiveError> {
        let device = || {
            let (major, minor) = header.device().ok_or_else(|| self.invalid("device number"))?;
            let narrow = |value| u32::try_from(value).map_err(|_| self.invalid("device number"));
            Ok((narrow(major)?, narrow(minor)?))
        };
        Ok(match header.kind() {
            // Before POSIX a directory was a file whose name ends with a slash.
            0 | b'0' if path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' | b'2' if link.is_empty() => return Err(self.invalid("link target")),
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::SymbolicLink(link),
            b'3' => {
                let (major, minor) = device()?;
                EntryKind::CharacterDevice { major, minor }
            }
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            kind => return Err(ArchiveError::Kind { entry: path.to_vec(), kind }),
        })
    }

    fn old_sparse_map(&mut self, block: &[u8; BLOCK], entry: &mut Entry) -> Result<(), ArchiveError> {
        let stored = self.left;
        let real_size = super::header::number(&block[483..495]).and_then(|size| u64::try_from(size).ok());
        let real_size = real_size.ok_or_else(|| self.invalid("sparse size"))?;
        let mut segments = Vec::new();
        let mut piece = |field: &[u8]| -> Option<()> {
            if field[..12].iter().all(|byte| *byte == 0) && field[12..].iter().all(|byte| *byte == 0) {
                return Some(());
            }
            let offset = u64::try_from(super::header::number(&field[..12])?).ok()?;
            let length = u64::try_from(super::header::number(&field[12..])?).ok()?;
            segments.push(Segment { offset, length });
            (segments.len() <= sparse::SEGMENT_LIMIT).then_some(())
        };
        let mut valid = block[386..482].chunks_exact(24).all(|field| piece(field).is_some());
        let mut more = block[482] != 0;
        let mut next = [0; BLOCK];
        while more && valid {
            if !self.fill(&mut next)? {
                return Err(self.truncated());
            }
            valid = next[..504].chunks_exact(24).all(|field| piece(field).is_some());
            more = next[504] != 0;
        }
        if !valid || !sparse::is_consistent(&segments, stored, real_size) {
            return Err(self.invalid("sparse map"));
        }
        entry.size = real_size;
        entry.segments = segments;
        Ok(())
    }

    fn pax_sparse_map(&mut self, records: sparse::SparseRecords, entry: &mut Entry) -> Result<(), ArchiveError> {
        let segments = if records.major == Some(1) && records.minor == Some(0) {
            self.text_map()?
        } else if let Some(map) = records.map {
            map
        } else if records.major.is_some_and(|major| major > 1) {
            return Err(self.invalid("sparse format"));
        } else {
            return Ok(());
        };
        let real_size = records.real_size.ok_or_else(|| self.invalid("sparse size"))?;
        if !sparse::is_consistent(&segments, self.left, real_size) {
            return Err(self.invalid("sparse map"));
        }
        entry.size = real_size;
        entry.segments = segments;
        Ok(())
    }

    /// The map of format 1.0: lines of decimal numbers, first how many pairs, filled up to whole blocks.
    fn text_map(&mut self) -> Result<Vec<Segment>, ArchiveError> {
        let mut numbers = Vec::new();
        let mut digits = Vec::new();
        let mut wanted = 1;
        while numbers.len() < wanted {
            let mut block = [0; BLOCK];
            if self.left < BLOCK as u64 {
                return Err(self.invalid("sparse map"));
            }
            let mut filled = 0;
            while filled < BLOCK {
                filled += self.read_some(&mut block[filled..])?;
            }
            for byte in block {
                if numbers.len() == wanted {
                    break;
                }
                if byte != b'\n' {
                    digits.push(byte);
                    continue;
                }
                let number = pax::decimal(&digits).ok_or_else(|| self.invalid("sparse map"))?;
                digits.clear();
                numbers.push(number);
                if numbers.len() == 1 {
                    let pairs = usize::try_from(number).ok().filter(|pairs| *pairs <= sparse::SEGMENT_LIMIT);
                    wanted = 1 + 2 * pairs.ok_or_else(|| self.invalid("sparse map"))?;
                }
            }
            if digits.len() > 20 {
                return Err(self.invalid("sparse map"));
            }
        }
        Ok(numbers[1..].chunks_exact(2).map(|pair| Segment { offset: pair[0], length: pair[1] }).collect())
    }

    /// A long name's bytes, up to their NUL.
    fn long_text(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut text = self.body(size)?;
        if let Some(end) = text.iter().position(|byte| *byte == 0) {
            text.truncate(end);
        }
        Ok(text)
    }

    fn body(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > HEADER_LIMIT {
            return Err(ArchiveError::HeaderTooLong { entry: self.last.clone(), length: size });
        }
        self.begin_content(size)?;
        let mut body = vec![0; size as usize];
        let mut done = 0;
        while done < body.len() {
            done += self.read_some(&mut body[done..])?;
        }
        self.skip_rest()?;
        Ok(body)
    }

    fn begin_content(&mut self, size: u64) -> Result<(), ArchiveError> {
        let padded = size.checked_next_multiple_of(BLOCK as u64).ok_or_else(|| self.invalid("size"))?;
        (self.left, self.padding) = (size, padded - size);
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        let mut sink = [0; 8192];
        self.left += std::mem::take(&mut self.padding);
        while self.left > 0 {
            self.read_some(&mut sink)?;
        }
        Ok(())
    }

    /// Reads the rest, so that a compressed stream's own checksum is verified.
    fn finish(&mut self) -> Result<(), ArchiveError> {
        const MOST: u64 = 64 << 20;
        let begin = self.offset;
        let mut sink = [0; 8192];
        loop {
            let read = self.read_raw(&mut sink)?;
            if read == 0 {
                return Ok(());
            }
            if self.offset - begin > MOST {
                return Err(ArchiveError::Trailing);
            }
        }
    }

    /// At least one byte of the present entry's content.
    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.read_raw(&mut buffer[..want])?;
        if read == 0 {
            return Err(self.truncated());
        }
        self.left -= read as u64;
        Ok(read)
    }

    /// A whole block; false at the very end.
    fn fill(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, ArchiveError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.read_raw(&mut block[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 if self.offset < BLOCK as u64 => return Err(ArchiveError::NotAnArchive),
                0 => return Err(self.truncated()),
                read => filled += read,
            }
        }
        Ok(true)
    }

    fn read_raw(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        loop {
            match self.source.read(buffer) {
                Ok(read) => {
                    self.offset += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // How the decoders say that a compressed stream stops in the middle.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(self.truncated()),
                Err(source) => return Err(ArchiveError::Read { offset: self.offset, source }),
            }
        }
    }

    fn truncated(&self) -> ArchiveError {
        ArchiveError::Truncated { offset: self.offset, entry: self.last.clone() }
    }

    fn invalid(&self, field: &'static str) -> ArchiveError {
        ArchiveError::Field { entry: self.last.clone(), field }
    }
}
