//! Telling by its first bytes how an archive is compressed.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::ArchiveError;

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Not at all.
    Plain,
    /// By gzip, also in several members.
    Gzip,
    /// By zstd.
    Zstd,
}

/// Quick rather than small: an archive of a root is written once and read soon.
const ZSTD_LEVEL: i32 = 1;

impl Compression {
    /// As a file's name ends: `.zst`, `.gz`, `.tgz`; plain with any other end.
    #[must_use]
    pub fn of_name(path: &Path) -> Self {
        match path.extension().and_then(|end| end.to_str()) {
            Some("zst") => Self::Zstd,
            Some("gz" | "tgz") => Self::Gzip,
            _ => Self::Plain,
        }
    }

    /// Writes to a file what `write` gives, compressed; then nothing of it is in memory any more.
    ///
    /// # Errors
    /// The file's, and those of `write`.
    pub fn write(self, file: File, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        match self {
            Self::Plain => write(&mut file)?,
            Self::Gzip => {
                let mut encoder = GzEncoder::new(&mut file, flate2::Compression::fast());
                write(&mut encoder)?;
                encoder.finish()?;
            }
            Self::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(&mut file, ZSTD_LEVEL)?;
                write(&mut encoder)?;
                encoder.finish()?;
            }
        }
        file.flush()
    }
}

/// What is recognised by its first bytes only to be refused by name.
const REFUSED: [(&[u8], &str); 4] =
    [(b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2"), (b"PK\x03\x04", "zip"), (b"\x04\x22\x4d\x18", "lz4")];
/// zstd refuses frames that need a larger window than 2 to this power: 128 MiB.
const ZSTD_WINDOW_LOG: u32 = 27;

/// A reader of the uncompressed archive.
pub(crate) fn open<'a, R: Read + 'a>(source: R) -> Result<(Compression, Box<dyn Read + 'a>), ArchiveError> {
    let read_error = |source| ArchiveError::Read { offset: 0, source };
    // fill_buf may give fewer bytes than the longest mark, so the first block is read whole and chained.
    let mut source = BufReader::with_capacity(128 << 10, source);
    let mut first = Vec::with_capacity(super::BLOCK);
    source.by_ref().take(super::BLOCK as u64).read_to_end(&mut first).map_err(read_error)?;
    if let Some((_, name)) = REFUSED.into_iter().find(|(mark, _)| first.starts_with(mark)) {
        return Err(ArchiveError::Compression(name));
    }
    let gzip = first.starts_with(b"\x1f\x8b");
    let zstd = first.starts_with(b"\x28\xb5\x2f\xfd");
    let whole = io::Cursor::new(first).chain(source);
    if gzip {
        let decoder = MultiGzDecoder::new(BufReader::new(whole));
        Ok((Compression::Gzip, Box::new(decoder)))
    } else if zstd {
        let mut decoder = zstd::stream::read::Decoder::new(whole).map_err(read_error)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(read_error)?;
        Ok((Compression::Zstd, Box::new(decoder)))
    } else {
        Ok((Compression::Plain, Box::new(whole)))
    }
}
