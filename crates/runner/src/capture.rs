//! What a test writes, kept: in memory while it is little, in a file once it is much.
//!
//! Capturing never fails a test: where the file cannot be written (a full disk), the beginning stays in memory
//! and the rest is counted as lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// One of a command's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The word for it, also the ending of its file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Where output goes, and how much of it stays in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureOptions {
    /// The folder for files; made when the first one is needed.
    pub folder: PathBuf,
    /// The file's name without `.stdout` or `.stderr`; unique in the folder.
    pub stem: String,
    /// Bytes held in memory, above which everything goes to the file.
    pub limit: usize,
}

impl CaptureOptions {
    /// What stays in memory unless told otherwise: 64 KiB, which is also what a kept run shows without a file.
    pub const LIMIT: usize = 64 << 10;

    fn path(&self, stream: Stream) -> PathBuf {
        self.folder.join(format!("{}.{}", self.stem, stream.as_str()))
    }
}

/// Takes the output of one stream as it comes.
#[derive(Debug)]
pub struct Capture {
    path: PathBuf,
    limit: usize,
    held: Vec<u8>,
    file: Option<File>,
    broken: bool,
    bytes: u64,
    kept: u64,
    /// At so many kept bytes it is looked how much room is left.
    look_at: u64,
}

/// What stays free on the disk of the files: outputs, artifacts and the results themselves need it more.
const SPARE: u64 = 128 << 20;
/// Room is looked at each time that so many bytes were kept.
const LOOK_EVERY: u64 = 4 << 20;

impl Capture {
    /// Nothing captured yet.
    #[must_use]
    pub fn new(options: &CaptureOptions, stream: Stream) -> Self {
        Self {
            path: options.path(stream),
            limit: options.limit,
            held: Vec::new(),
            file: None,
            broken: false,
            bytes: 0,
            kept: 0,
            look_at: 0,
        }
    }

    /// Takes more.
    pub fn write(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if self.file.is_none() && !self.broken && self.held.len() + bytes.len() > self.limit {
            self.file = create(&self.path).ok();
            self.broken = self.file.is_none();
            if let Some(file) = &mut self.file {
                // A file that takes only a part stays with that part.
                self.kept = write_counted(file, &self.held);
                self.broken = self.kept < self.held.len() as u64;
                self.held = Vec::new();
            }
        }
        if let Some(file) = &mut self.file {
            if !self.broken {
                let written = write_counted(file, bytes);
                self.kept += written;
                self.broken = written < bytes.len() as u64;
                if self.kept >= self.look_at {
                    self.look_at = self.kept + LOOK_EVERY;
                    self.broken |= room(file).is_some_and(|free| free < SPARE);
                }
            }
            return;
        }
        let room = self.limit.saturating_sub(self.held.len()).min(bytes.len());
        self.held.extend_from_slice(&bytes[..room]);
        self.kept = self.held.len() as u64;
    }

    /// How many bytes have come.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Everything that came.
    #[must_use]
    pub fn finish(self) -> Captured {
        let mut held = self.held;
        held.shrink_to_fit();
        Captured { held, file: self.file.map(|_| self.path), bytes: self.bytes, kept: self.kept }
    }
}

/// What one stream gave. The raw bytes; see [`crate::report::SafeText`] for showing them.
#[derive(Debug, Default)]
pub struct Captured {
    held: Vec<u8>,
    file: Option<PathBuf>,
    bytes: u64,
    kept: u64,
}

impl Captured {
    /// Output that was never more than this.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let length = bytes.len() as u64;
        Self { held: bytes.to_vec(), file: None, bytes: length, kept: length }
    }

    /// Output that an earlier run left in a file; none where the file is gone or is not what was left.
    #[must_use]
    pub fn at(file: PathBuf, bytes: u64, kept: u64) -> Option<Self> {
        let there = file.symlink_metadata().is_ok_and(|data| data.is_file() && data.len() == kept);
        there.then_some(Self { held: Vec::new(), file: Some(file), bytes, kept })
    }

    /// How many bytes the command wrote.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many of them could not be kept.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.bytes - self.kept
    }

    /// The file that holds them, where they are not in memory.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// How many bytes of memory they take.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Everything, piece by piece, in order.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn read(&self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let Some(path) = &self.file else { return take(&self.held) };
        let mut file = File::open(path)?;
        let mut buffer = vec![0_u8; 64 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                count => take(&buffer[..count])?,
            }
        }
    }

    /// The beginning and the end, together at most `most` bytes, with the number left out between them.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn ends(&self, most: usize) -> io::Result<(Vec<u8>, u64, Vec<u8>)> {
        let half = most / 2;
        let cut = |length: u64| length.saturating_sub(2 * half as u64);
        let Some(path) = &self.file else {
            let left_out = cut(self.held.len() as u64);
            if left_out == 0 {
                return Ok((self.held.clone(), 0, Vec::new()));
            }
            return Ok((self.held[..half].to_vec(), left_out, self.held[self.held.len() - half..].to_vec()));
        };
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let left_out = cut(length);
        let mut head = Vec::new();
        if left_out == 0 {
            file.read_to_end(&mut head)?;
            return Ok((head, 0, Vec::new()));
        }
        (&file).take(half as u64).read_to_end(&mut head)?;
        file.seek(SeekFrom::Start(length - half as u64))?;
        let mut tail = Vec::new();
        file.take(half as u64).read_to_end(&mut tail)?;
        Ok((head, left_out, tail))
    }

    /// Moves what is in memory to the file, to make room; keeps it in memory where that fails.
    pub fn spill(&mut self, options: &CaptureOptions, stream: Stream) {
        if self.file.is_some() || self.held.is_empty() {
            return;
        }
        let path = options.path(stream);
        if create(&path).and_then(|mut file| file.write_all(&self.held)).is_ok() {
            self.held = Vec::new();
            self.file = Some(path);
        }
    }

    /// Forgets everything, the file too.
    pub fn discard(&mut self) {
        self.held = Vec::new();
        if let Some(path) = self.file.take() {
            // It lies in the run's own folder, which goes with the run.
            let _ = std::fs::remove_file(path);
        }
        self.kept = 0;
    }
}

fn create(path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            open()
        }
        opened => opened,
    }
}

/// Free bytes on the disk of a file; none where it does not say.
fn room(file: &File) -> Option<u64> {
    let facts = rustix::fs::fstatvfs(file).ok()?;
    Some(facts.f_bavail.saturating_mul(facts.f_frsize))
}

/// Writes until it is all there or no more goes; says how much.
fn write_counted(file: &mut File, bytes: &[u8]) -> u64 {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    written as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(folder: &Path, limit: usize) -> CaptureOptions {
        CaptureOptions { folder: folder.join("made/when/needed"), stem: "t".to_owned(), limit }
    }

    fn whole(captured: &Captured) -> Vec<u8> {
        let mut all = Vec::new();
        captured.read(|piece| all.write_all(piece)).expect("the file is there");
        all
    }

    #[test]
    fn little_stays_in_memory_and_much_goes_to_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let options = options(folder.path(), 10);
        let mut capture = Capture::new(&options, Stream::Stdout);
        capture.write(b"0123456789");
        capture.write(b"");
        let captured = capture.finish();
        assert_eq!((captured.file(), captured.bytes(), captured.lost()), (None, 10, 0));
        assert!(!options.folder.exists());

        let mut capture = Capture::new(&options, Stream::Stderr);
        for _ in 0..100 {
            capture.write(b"0123456");
        }
        let mut captured = capture.finish();
        assert_eq!((captured.bytes(), captured.held(), captured.lost()), (700, 0, 0));
        assert_eq!(whole(&captured), b"0123456".repeat(100));
        assert_eq!(captured.ends(6).expect("readable"), (b"012".to_vec(), 694, b"456".to_vec()));
        captured.discard();
        assert_eq!(std::fs::read_dir(&options.folder).expect("readable").count(), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_written_loses_only_the_rest() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let options = CaptureOptions { folder: file.path().to_owned(), stem: "t".to_owned(), limit: 4 };
        let mut capture = Capture::new(&options, Stream::Stdout);
        capture.write(b"abc");
        capture.write(b"defg");
        capture.write(b"h");
        let captured = capture.finish();
        assert_eq!((whole(&captured), captured.lost()), (b"abcd".to_vec(), 4));
    }

    #[test]
    fn held_output_can_make_room() {
        let folder = tempfile::tempdir().expect("a folder");
        let options = options(folder.path(), 10);
        let mut captured = Captured::of(b"hello");
        captured.spill(&options, Stream::Stdout);
        assert_eq!((captured.held(), whole(&captured)), (0, b"hello".to_vec()));
    }
}
