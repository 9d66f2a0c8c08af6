//! Making files out of a stream, whoever sent it.
//!
//! A stack of open folders follows the stream. Every file is made by its single name in the folder on top,
//! so nothing in the stream, and no link that somebody swaps in meanwhile, leads anywhere else.
//!
//! ```text
//! folder on top is …       a file is made        a folder is made
//! existing (merged into)   as a temporary,       as a temporary, renamed when it is left;
//!                          renamed when whole    an existing one is entered
//! fresh (in a temporary)   at once, exclusively  at once, exclusively
//! ```

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Refusal, TransferError};
use crate::format::{
    CHECKSUM, DIRECTORY, END, FILE, HARD_LINK, HOLE, LEAVE, LINK, MAGIC, MAX_CHUNK, MAX_DEPTH, MAX_FILE, MAX_NAME,
    MAX_TARGET, Time, VERSION, is_name, leads_outward,
};
use crate::pack::OPEN_FOLDER;
use crate::receiver::{Fault, Receiver};
use crate::removal;
use crate::target::{self, Target};
use crate::{SpecialBits, Summary, UnpackOptions};

/// Makes the file or tree that `input` holds at `path`, resolved within `root`.
///
/// May read beyond the stream's end record: one stream has one carrier.
///
/// # Errors
/// Anything unexpected ends the transfer; see the crate's documentation for what is left then.
pub fn unpack<R: Read>(
    input: &mut R,
    root: BorrowedFd<'_>,
    path: &Path,
    options: &UnpackOptions,
) -> Result<Summary, TransferError> {
    let mut unpacker = Unpacker {
        stream: Receiver::new(input),
        options: *options,
        root: path.to_owned(),
        floor: 1,
        folders: Vec::new(),
        current: Vec::new(),
        begun: None,
        arrived: HashMap::new(),
        temporaries: Temporaries::new(),
        summary: Summary::default(),
    };
    match unpacker.run(root, path) {
        Ok(()) => Ok(unpacker.summary),
        Err(failure) => {
            let error = failure.at(unpacker.entry());
            unpacker.clean_up();
            Err(error)
        }
    }
}

/// An error that does not yet know its entry's path.
enum Failure {
    Fault(Fault),
    System(&'static str, Errno),
    /// A folder is where a file is to go.
    Folder,
    /// Something else is where a folder is to go.
    NotAFolder,
    Told(TransferError),
}

impl Failure {
    fn at(self, entry: PathBuf) -> TransferError {
        match self {
            Self::Fault(Fault::Stream(source)) => TransferError::Stream { operation: "read", source },
            Self::Fault(Fault::Truncated) => TransferError::Truncated { entry },
            Self::Fault(Fault::Refused(reason)) => TransferError::Refused { entry, reason },
            Self::System(operation, errno) => TransferError::file(operation, entry, errno),
            Self::Folder => TransferError::Folder { path: entry },
            Self::NotAFolder => TransferError::NotAFolder { path: entry },
            Self::Told(error) => error,
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Fault(Fault::Refused(refusal))
    }
}

/// A folder on the way from the root to where the stream is.
struct Folder {
    descriptor: OwnedFd,
    /// Its name in the folder below it on the stack; the first has none.
    name: Vec<u8>,
    /// Whether it is new, and so not yet visible under its name.
    fresh: bool,
    /// The last name that came in it.
    last: Option<Vec<u8>>,
    /// Mode and time to give it when it is left, if it was made here.
    made: Option<(u32, Time)>,
    /// What it is called until it is left.
    temporary: Option<Vec<u8>>,
}

struct Unpacker<'a, R> {
    stream: Receiver<'a, R>,
    options: UnpackOptions,
    /// What the root entry becomes, for messages.
    root: PathBuf,
    /// How many folders are open while the stream is directly in its root folder.
    floor: usize,
    folders: Vec<Folder>,
    /// The name of the entry at hand, in the last folder; empty between entries.
    current: Vec<u8>,
    /// The temporary being made in the last folder.
    begun: Option<Vec<u8>>,
    /// Files that hard links may refer to: number and names from the first folder on.
    arrived: HashMap<u32, Vec<Vec<u8>>>,
    temporaries: Temporaries,
    summary: Summary,
}

impl<R: Read> Unpacker<'_, R> {
    fn run(&mut self, root: BorrowedFd<'_>, path: &Path) -> Result<(), Failure> {
        let start = self.stream.array::<8>()?;
        if start[..7] != MAGIC {
            return Err(Refusal::NotAStream.into());
        }
        if start[7] != VERSION {
            return Err(Refusal::Version(start[7]).into());
        }
        let kind = self.stream.byte()?;
        if kind != DIRECTORY && kind != FILE {
            return Err(Refusal::Kind(kind).into());
        }
        let name = self.stream.text(MAX_NAME, Refusal::Name)?;
        let found = target::find(root, path, kind == DIRECTORY, &name).map_err(Failure::Told)?;
        self.summary.entries = 1;
        match found {
            Target::Contents(folder) => {
                self.stream.number()?;
                self.stream.time()?;
                self.enter(folder, Vec::new(), None);
                self.contents()?;
                self.end()
            }
            Target::Named(folder, name) => {
                self.enter(folder, Vec::new(), None);
                if path.file_name().is_none_or(|given| given.as_bytes() != name) {
                    self.root.push(OsStr::from_bytes(&name));
                }
                self.floor = 2;
                if kind == DIRECTORY {
                    self.directory(name)?;
                    self.contents()?;
                    self.end()?;
                    self.leave()
                } else {
                    self.file(&name)?;
                    self.end()?;
                    self.commit(&name)
                }
            }
        }
    }

    /// Everything up to the leave record of the root folder, which stays open.
    fn contents(&mut self) -> Result<(), Failure> {
        loop {
            let kind = self.stream.byte()?;
            if kind == LEAVE {
                if self.folders.len() == self.floor {
                    return Ok(());
                }
                self.leave()?;
                continue;
            }
            if !matches!(kind, DIRECTORY | FILE | LINK | HARD_LINK) {
                return Err(Refusal::Kind(kind).into());
            }
            let name = self.next_name()?;
            self.summary.entries += 1;
            match kind {
                DIRECTORY => self.directory(name)?,
                FILE => {
                    self.file(&name)?;
                    self.commit(&name)?;
                }
                LINK => self.link(&name)?,
                _ => self.hard_link(&name)?,
            }
            self.current.clear();
        }
    }

    fn next_name(&mut self) -> Result<Vec<u8>, Failure> {
        let name = self.stream.text(MAX_NAME, Refusal::Name)?;
        self.current.clone_from(&name);
        if !is_name(&name) {
            return Err(Refusal::Name.into());
        }
        let folder = self.folders.last_mut().expect("the root folder stays open");
        if folder.last.as_ref().is_some_and(|last| *last >= name) {
            return Err(Refusal::Order.into());
        }
        folder.last = Some(name.clone());
        Ok(name)
    }

    fn directory(&mut self, name: Vec<u8>) -> Result<(), Failure> {
        let (mode, time) = (self.stream.number()?, self.stream.time()?);
        if self.folders.len() > MAX_DEPTH + 1 {
            return Err(Refusal::TooDeep.into());
        }
        let top = self.top();
        if !top.fresh {
            match rustix::fs::openat(&top.descriptor, &*name, OPEN_FOLDER, Mode::empty()) {
                Ok(existing) => {
                    self.enter(existing, name, None);
                    return Ok(());
                }
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(Failure::NotAFolder),
                Err(errno) => return Err(Failure::System("open", errno)),
            }
        }
        let made_as = self.begin(&name);
        let top = self.top();
        rustix::fs::mkdirat(&top.descriptor, &*made_as, Mode::RWXU)
            .map_err(|errno| Failure::System("make the folder", errno))?;
        let made = rustix::fs::openat(&top.descriptor, &*made_as, OPEN_FOLDER, Mode::empty())
            .map_err(|errno| Failure::System("open the new folder", errno))?;
        let temporary = self.begun.take();
        self.enter(made, name, Some((mode, time)));
        self.folders.last_mut().expect("entered just now").temporary = temporary;
        self.current.clear();
        Ok(())
    }

    fn enter(&mut self, descriptor: OwnedFd, name: Vec<u8>, made: Option<(u32, Time)>) {
        let folder = Folder { descriptor, name, fresh: made.is_some(), last: None, made, temporary: None };
        self.folders.push(folder);
    }

    fn leave(&mut self) -> Result<(), Failure> {
        let folder = self.folders.pop().expect("the root folder is left last");
        if self.folders.len() >= self.floor {
            self.current.clone_from(&folder.name);
        }
        self.begun = folder.temporary;
        if let Some((mode, time)) = folder.made {
            self.settle(folder.descriptor.as_fd(), mode, time)?;
        }
        if let Some(temporary) = &self.begun {
            let parent = &self.top().descriptor;
            rename_new(parent, temporary, &folder.name).map_err(|errno| Failure::System("make the folder", errno))?;
            self.begun = None;
        }
        self.current.clear();
        Ok(())
    }

    /// Receives a file, whole and checked, under a temporary name if it has one.
    fn file(&mut self, name: &[u8]) -> Result<(), Failure> {
        let (mode, time, number) = (self.stream.number()?, self.stream.time()?, self.stream.number()?);
        let made_as = self.begin(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.top().descriptor, &*made_as, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| Failure::System("make", errno))?;
        self.content(&file)?;
        self.settle(file.as_fd(), mode, time)?;
        if number != 0 {
            let mut names: Vec<_> = self.folders[1..].iter().map(|folder| folder.name.clone()).collect();
            names.push(name.to_vec());
            self.arrived.insert(number, names);
        }
        Ok(())
    }

    fn content(&mut self, file: &OwnedFd) -> Result<(), Failure> {
        let mut checksum = self.stream.hasher();
        let (mut at, mut ends_in_hole) = (0_u64, false);
        loop {
            let length = u32::from_le_bytes(self.stream.uncovered()?);
            let advance = match length {
                0 => break,
                HOLE => u64::from_le_bytes(self.stream.uncovered()?),
                length if length > MAX_CHUNK => return Err(Refusal::TooLarge.into()),
                length => length.into(),
            };
            if advance > MAX_FILE || at + advance > MAX_FILE {
                return Err(Refusal::TooLarge.into());
            }
            ends_in_hole = length == HOLE;
            if ends_in_hole {
                checksum.update(&advance.to_le_bytes());
                at += advance;
                continue;
            }
            self.summary.bytes += advance;
            if let Some(limit) = self.options.limit.filter(|limit| self.summary.bytes > *limit) {
                return Err(Refusal::OverLimit(limit).into());
            }
            let end = at + advance;
            while at < end {
                let part = self.stream.content((end - at) as usize)?;
                checksum.update(part);
                write_at(file, part, at).map_err(|errno| Failure::System("write", errno))?;
                at += part.len() as u64;
            }
        }
        if ends_in_hole {
            rustix::fs::ftruncate(file, at).map_err(|errno| Failure::System("write", errno))?;
        }
        if self.stream.array::<CHECKSUM>()? == *checksum.finalize().as_bytes() {
            Ok(())
        } else {
            Err(Refusal::Checksum.into())
        }
    }

    fn link(&mut self, name: &[u8]) -> Result<(), Failure> {
        let time = self.stream.time()?;
        let target = self.stream.text(MAX_TARGET, Refusal::LinkTarget)?;
        if target.is_empty() || target.contains(&0) {
            return Err(Refusal::LinkTarget.into());
        }
        self.summary.outward_links += u64::from(leads_outward(&target, self.folders.len() - self.floor));
        let made_as = self.begin(name);
        let folder = &self.top().descriptor;
        rustix::fs::symlinkat(&*target, folder, &*made_as).map_err(|errno| Failure::System("make the link", errno))?;
        if let Some((uid, gid)) = self.options.owner {
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            rustix::fs::chownat(folder, &*made_as, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| Failure::System("give away", errno))?;
        }
        rustix::fs::utimensat(folder, &*made_as, &time.timestamps(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| Failure::System("set the time of", errno))?;
        self.commit(name)
    }

    fn hard_link(&mut self, name: &[u8]) -> Result<(), Failure> {
        let number = self.stream.number()?;
        let names = self.arrived.get(&number).ok_or(Refusal::HardLink)?.clone();
        let (first, way) = names.split_last().expect("at least the file's own name");
        // Folders that are still open may go by a temporary name: start at the last one both share.
        let shared = self.folders[1..].iter().zip(way).take_while(|(folder, name)| folder.name == **name).count();
        let made_as = self.begin(name);
        let start = self.folders[shared].descriptor.as_fd();
        let rest: PathBuf = way[shared..].iter().map(|name| OsStr::from_bytes(name)).collect();
        let top = &self.top().descriptor;
        let linked = if rest.as_os_str().is_empty() {
            rustix::fs::linkat(start, &**first, top, &*made_as, AtFlags::empty())
        } else {
            target::open_beneath(start, &rest, OFlags::PATH | OFlags::DIRECTORY)
                .and_then(|parent| rustix::fs::linkat(&parent, &**first, top, &*made_as, AtFlags::empty()))
        };
        linked.map_err(|errno| Failure::System("make the hard link", errno))?;
        self.commit(name)
    }

    /// The closing record: what was received is what was sent.
    fn end(&mut self) -> Result<(), Failure> {
        self.current.clear();
        let kind = self.stream.byte()?;
        if kind != END {
            return Err(Refusal::Kind(kind).into());
        }
        let entries = u64::from_le_bytes(self.stream.array()?);
        let bytes = u64::from_le_bytes(self.stream.array()?);
        let checksum = self.stream.checksum();
        let sent = self.stream.uncovered::<CHECKSUM>()?;
        if sent == checksum && entries == self.summary.entries && bytes == self.summary.bytes {
            Ok(())
        } else {
            Err(Refusal::Closing.into())
        }
    }

    /// The name to make an entry under: its own where nobody sees it yet, else a temporary.
    fn begin(&mut self, name: &[u8]) -> Vec<u8> {
        if self.top().fresh {
            return name.to_vec();
        }
        let temporary = self.temporaries.next();
        self.begun = Some(temporary.clone());
        temporary
    }

    /// Gives what was begun its name, in place of any file or link that had it.
    fn commit(&mut self, name: &[u8]) -> Result<(), Failure> {
        let Some(temporary) = &self.begun else { return Ok(()) };
        let folder = &self.top().descriptor;
        match rustix::fs::renameat(folder, &**temporary, folder, name) {
            Ok(()) => {
                self.begun = None;
                Ok(())
            }
            Err(Errno::ISDIR) => Err(Failure::Folder),
            Err(errno) => Err(Failure::System("replace", errno)),
        }
    }

    fn settle(&self, made: BorrowedFd<'_>, mode: u32, time: Time) -> Result<(), Failure> {
        if let Some((uid, gid)) = self.options.owner {
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            rustix::fs::fchown(made, Some(uid), Some(gid)).map_err(|errno| Failure::System("give away", errno))?;
        }
        let keep = !self.options.hostile && self.options.special_bits == SpecialBits::Keep;
        let mode = Mode::from_raw_mode(mode & if keep { 0o7777 } else { 0o777 });
        rustix::fs::fchmod(made, mode).map_err(|errno| Failure::System("set the mode of", errno))?;
        rustix::fs::futimens(made, &time.timestamps()).map_err(|errno| Failure::System("set the time of", errno))
    }

    fn top(&self) -> &Folder {
        self.folders.last().expect("the root folder stays open")
    }

    /// The entry at hand, as the user would write it.
    fn entry(&self) -> PathBuf {
        let mut entry = self.root.clone();
        for name in self.folders.iter().skip(self.floor).map(|folder| &folder.name).chain([&self.current]) {
            if !name.is_empty() {
                // A refused name may be absolute, and pushing that would forget where it came.
                entry.as_mut_os_string().push("/");
                entry.as_mut_os_string().push(OsStr::from_bytes(name));
            }
        }
        entry
    }

    fn clean_up(&mut self) {
        // What cannot be removed keeps its telling name; the error that matters is the transfer's.
        while let Some(folder) = self.folders.pop() {
            if let Some(begun) = self.begun.take() {
                let _ = removal::remove(folder.descriptor.as_fd(), &begun);
            }
            self.begun = folder.temporary;
        }
    }
}

/// Renames a folder to a name that nothing has yet.
fn rename_new(folder: &OwnedFd, from: &[u8], to: &[u8]) -> Result<(), Errno> {
    match rustix::fs::renameat_with(folder, from, folder, to, rustix::fs::RenameFlags::NOREPLACE) {
        // Some file systems cannot; there an empty folder made meanwhile is replaced.
        Err(Errno::INVAL) => rustix::fs::renameat(folder, from, folder, to),
        outcome => outcome,
    }
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(written) => {
                bytes = &bytes[written..];
                at += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Names that nothing else has: random per transfer, then counted.
struct Temporaries {
    token: u64,
    count: u64,
}

impl Temporaries {
    fn new() -> Self {
        let mut token = [0; 8];
        // Without randomness the names are only more likely to exist already, which is an error, not a danger.
        let _ = rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::NONBLOCK);
        Self { token: u64::from_le_bytes(token), count: 0 }
    }

    fn next(&mut self) -> Vec<u8> {
        self.count += 1;
        format!(".testyard-{:016x}-{}", self.token, self.count).into_bytes()
    }
}
