//! A blob on its way into a file, from where an earlier try left it.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;

use testyard_linux::Error as SystemError;
use testyard_linux::lock::FileLock;
use testyard_model::ByteSize;

use super::PullError;
use super::client::Client;
use crate::import::{ImportError, ImportOptions};
use crate::oci::{Blob, BundleError};
use crate::store::Store;

/// A whole blob, its digest not yet looked at. Nobody else fetches it while this lives.
#[derive(Debug)]
pub(super) struct Download {
    pub(super) path: PathBuf,
    pub(super) file: File,
    _lock: FileLock,
}

/// How often nothing may come before it is given up.
const TRIES: u32 = 3;

impl Download {
    pub(super) fn failed(&self, error: io::Error) -> PullError {
        SystemError::new("write", self.path.display(), error).into()
    }
}

impl Store {
    /// Fetches a blob, or what is missing of it.
    pub(super) fn download(
        &self,
        client: &mut Client<'_>,
        blob: &Blob,
        options: &ImportOptions,
    ) -> Result<Download, PullError> {
        let (Some(digest), Some(size)) = (&blob.digest, blob.size) else {
            return Err(BundleError::DigestKind(blob.name.clone()).into());
        };
        if size > options.limit.0 {
            let entry = blob.name.as_bytes().to_vec();
            return Err(ImportError::TooLarge { entry, limit: options.limit }.into());
        }
        let (path, lock) = self.download_of(digest)?;
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(|error| SystemError::new("write", path.display(), error))?;
        let mut download = Download { path, file, _lock: lock };
        self.check_room(blob, size, options)?;
        let (mut tries, mut best) = (0, 0);
        loop {
            let have = download.length()?;
            best = best.max(have);
            if have == size {
                return Ok(download);
            }
            let have = if have > size { 0 } else { have };
            match download.go_on(client, &digest.to_string(), have, size) {
                Ok(()) => return Ok(download),
                Err(error @ PullError::Connection { .. }) => {
                    // A server that knows no ranges begins again each time: that alone is no progress.
                    let progressed = download.length()? > best;
                    tries = if progressed { 0 } else { tries + 1 };
                    if tries >= TRIES {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn check_room(&self, blob: &Blob, size: u64, options: &ImportOptions) -> Result<(), PullError> {
        let failed = |errno| SystemError::new("measure the disk of", self.path().display(), errno);
        let free = rustix::fs::statvfs(self.path()).map_err(failed)?;
        let free = free.f_bavail.saturating_mul(free.f_frsize);
        if free >= options.reserve.0.saturating_add(size) {
            return Ok(());
        }
        let (path, entry) = (self.path().to_owned(), blob.name.as_bytes().to_vec());
        Err(ImportError::NoSpace { path, entry, free: ByteSize(free), reserve: options.reserve }.into())
    }
}

impl Download {
    fn length(&self) -> Result<u64, PullError> {
        Ok(self.file.metadata().map_err(|error| self.failed(error))?.len())
    }

    /// Asks once, and writes what comes.
    fn go_on(&mut self, client: &mut Client<'_>, digest: &str, have: u64, size: u64) -> Result<(), PullError> {
        let (body, continued) = client.blob(digest, have)?;
        let mut at = if continued { have } else { 0 };
        self.file.set_len(at).map_err(|error| self.failed(error))?;
        self.file.seek(SeekFrom::Start(at)).map_err(|error| self.failed(error))?;
        let mut body = body.into_reader();
        let mut buffer = vec![0; 256 << 10];
        loop {
            client.check_time()?;
            let read = body.read(&mut buffer).map_err(|error| client.connection(error.into()))?;
            if read == 0 && at < size {
                return Err(client.connection(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
            }
            if read == 0 {
                return Ok(());
            }
            at += read as u64;
            if at > size {
                // Nothing of it is worth to be continued.
                self.file.set_len(0).map_err(|error| self.failed(error))?;
                let what = format!("blob {digest}");
                return Err(BundleError::Size { what, expected: size, found: at }.into());
            }
            self.file.write_all(&buffer[..read]).map_err(|error| self.failed(error))?;
        }
    }
}
