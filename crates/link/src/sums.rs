//! The sums of the programs that are delivered, kept by what the kernel says of their files: reading and summing them
//! takes longer than everything else that is done to make a connection.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A file that was changed less long ago may change once more without another time.
const SETTLED: Duration = Duration::from_millis(500);
/// So many files' sums are kept.
const KEPT: usize = 16;

/// What changes when a file is replaced or written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    sum: String,
}

/// Sums that are kept in a file.
#[derive(Debug)]
pub(crate) struct Sums {
    file: Option<PathBuf>,
    known: BTreeMap<PathBuf, Known>,
    fresh: bool,
}

impl Stamp {
    fn of(facts: &Metadata) -> Self {
        Self {
            device: facts.dev(),
            inode: facts.ino(),
            size: facts.size(),
            modified: (facts.mtime(), facts.mtime_nsec()),
            changed: (facts.ctime(), facts.ctime_nsec()),
        }
    }

    /// Whether a later change would surely have another time.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanoseconds) = self.changed;
        let changed = u64::try_from(seconds).ok().zip(u32::try_from(nanoseconds).ok());
        changed.is_some_and(|(seconds, nanoseconds)| now >= Duration::new(seconds, nanoseconds) + SETTLED)
    }
}

impl Sums {
    /// Those that are kept in this file, if there is one; one that cannot be read holds none.
    pub(crate) fn load(file: Option<&Path>) -> Self {
        let known = file.and_then(|file| serde_json::from_slice(&fs::read(file).ok()?).ok()).unwrap_or_default();
        Self { file: file.map(Path::to_owned), known, fresh: false }
    }

    /// The length and the sum of an open file, which has this path.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn of(&mut self, path: &Path, file: &mut File) -> io::Result<(u64, String)> {
        let stamp = Stamp::of(&file.metadata()?);
        if let Some(known) = self.known.get(path).filter(|known| known.stamp == stamp) {
            return Ok((stamp.size, known.sum.clone()));
        }
        let (length, sum) = sum(file)?;
        if stamp.is_settled() && Stamp::of(&file.metadata()?) == stamp && length == stamp.size {
            if self.known.len() >= KEPT {
                self.known.clear();
            }
            self.known.insert(path.to_owned(), Known { stamp, sum: sum.clone() });
            self.fresh = true;
        }
        Ok((length, sum))
    }

    /// Keeps what is new. What cannot be kept is summed again the next time.
    pub(crate) fn keep(&self) {
        let Some(file) = self.file.as_ref().filter(|_| self.fresh) else { return };
        let Ok(text) = serde_json::to_vec(&self.known) else { return };
        let fresh = file.with_extension(format!("new.{}", std::process::id()));
        let opened = File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh);
        let written = opened.and_then(|mut opened| io::Write::write_all(&mut opened, &text));
        if written.and_then(|()| fs::rename(&fresh, file)).is_err() {
            let _ = fs::remove_file(&fresh);
        }
    }
}

fn sum(file: &mut File) -> io::Result<(u64, String)> {
    let (mut hash, mut length, mut buffer) = (Sha256::new(), 0, vec![0; 256 * 1024]);
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((length, hexadecimal(&hash.finalize())));
        }
        hash.update(&buffer[..count]);
        length += count as u64;
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn summed(kept: &Path, program: &Path) -> (String, bool) {
        let mut sums = Sums::load(Some(kept));
        let mut file = File::open(program).expect("it is there");
        let (_, sum) = sums.of(program, &mut file).expect("it is read");
        let read = io::Seek::stream_position(&mut file).expect("a file") > 0;
        sums.keep();
        (sum, read)
    }

    #[test]
    fn a_file_is_summed_once_until_it_is_another() {
        let folder = tempfile::tempdir().expect("a folder");
        let (kept, program) = (folder.path().join("sums.json"), folder.path().join("program"));
        fs::write(&program, "one").expect("written");
        let one = hexadecimal(&Sha256::digest(b"one"));
        // Too young to be known by its times: it may be read several times.
        let settled = testkit::wait_until(Duration::from_secs(20), || {
            assert_eq!(summed(&kept, &program).0, one);
            !summed(&kept, &program).1
        });
        assert!(settled);
        // As long as before, in place.
        File::options().write(true).open(&program).expect("ours").write_all_at(b"two", 0).expect("written");
        assert_eq!(summed(&kept, &program), (hexadecimal(&Sha256::digest(b"two")), true));
        // Another of the same name, which never was this one.
        let other = folder.path().join("other");
        fs::write(&other, "six").expect("written");
        fs::rename(&other, &program).expect("renamed");
        assert_eq!(summed(&kept, &program), (hexadecimal(&Sha256::digest(b"six")), true));
        fs::write(&kept, "{").expect("written");
        assert_eq!(summed(&kept, &program).0, hexadecimal(&Sha256::digest(b"six")), "a damaged file knows nothing");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 2, "nothing else stays");
    }
}
