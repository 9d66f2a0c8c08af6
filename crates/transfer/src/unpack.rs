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
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::crew::Crew;
use crate::error::{Refusal, TransferError};
use crate::failure::Failure;
use crate::format::{
    DIRECTORY, END, FILE, HARD_LINK, LEAVE, LINK, MAGIC, MAX_DEPTH, MAX_NAME, MAX_TARGET, Time, is_name, leads_outward,
};
use crate::local::LocalEnd;
use crate::making::{self, Made, Place};
use crate::oversight::Oversight;
use crate::pack::OPEN_FOLDER;
use crate::receiver::{Inlet, Receiver};
use crate::removal;
use crate::target::{self, Target};
use crate::{Summary, UnpackOptions};

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
    receive(Inlet::Checked(input), root, path, options, Oversight::default())
}

/// As [`unpack`], from a pipe or socket whose other end a process of this host has: what [`crate::pack_into`] sends
/// is understood, too. The descriptor becomes non-blocking.
///
/// # Errors
/// As [`unpack`]; and [`TransferError::Stopped`].
pub fn unpack_from(
    end: BorrowedFd<'_>,
    root: BorrowedFd<'_>,
    path: &Path,
    options: &UnpackOptions,
    oversight: Oversight<'_>,
) -> Result<Summary, TransferError> {
    let end = LocalEnd::new(end, oversight).map_err(|error| TransferError::stream("read", error))?;
    receive(Inlet::Local(end), root, path, options, oversight)
}

fn receive<'a>(
    input: Inlet<'a>,
    root: BorrowedFd<'_>,
    path: &Path,
    options: &UnpackOptions,
    oversight: Oversight<'a>,
) -> Result<Summary, TransferError> {
    let mut unpacker = Unpacker {
        stream: Receiver::new(input),
        options: *options,
        oversight,
        root: path.to_owned(),
        floor: 1,
        folders: Vec::new(),
        current: Vec::new(),
        begun: None,
        arrived: HashMap::new(),
        temporaries: Temporaries::new(),
        crew: Crew::new(*options),
        summary: Summary::default(),
    };
    match unpacker.run(root, path).and_then(|()| unpacker.crew.drain()) {
        Ok(()) => {
            // Everything was waited for.
            unpacker.crew.end();
            Ok(unpacker.summary)
        }
        Err(failure) => Err(unpacker.give_up(failure)),
    }
}

/// A folder on the way from the root to where the stream is.
struct Folder {
    place: Arc<Place>,
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

pub(crate) struct Unpacker<'a> {
    pub(crate) stream: Receiver<'a>,
    pub(crate) options: UnpackOptions,
    pub(crate) oversight: Oversight<'a>,
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
    pub(crate) crew: Crew,
    pub(crate) summary: Summary,
}

impl Unpacker<'_> {
    fn run(&mut self, root: BorrowedFd<'_>, path: &Path) -> Result<(), Failure> {
        let start = self.stream.array::<8>()?;
        if start[..7] != MAGIC {
            return Err(Refusal::NotAStream.into());
        }
        self.stream.form(start[7], self.options.checked)?;
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
                self.enter(Place::existing(folder, self.root.clone()), Vec::new(), None);
                self.contents()?;
                self.end()
            }
            Target::Named(folder, name) => {
                let named = path.file_name().is_some_and(|given| given.as_bytes() == name);
                let outer = if named { path.parent().unwrap_or(path) } else { path };
                self.enter(Place::existing(folder, outer.to_owned()), Vec::new(), None);
                if !named {
                    self.root.push(OsStr::from_bytes(&name));
                }
                self.floor = 2;
                if kind == DIRECTORY {
                    self.directory(name)?;
                    self.contents()?;
                    self.end()?;
                    self.leave()
                } else {
                    self.root_file(&name)?;
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
                FILE => self.file(&name)?,
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
            match rustix::fs::openat(&top.place.descriptor, &*name, OPEN_FOLDER, Mode::empty()) {
                Ok(existing) => {
                    let shown = top.place.shown.join(OsStr::from_bytes(&name));
                    self.enter(Place::existing(existing, shown), name, None);
                    return Ok(());
                }
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(Failure::NotAFolder),
                Err(errno) => return Err(Failure::System("open", errno)),
            }
        }
        let made_as = self.begin(&name);
        let outer = &self.top().place;
        rustix::fs::mkdirat(&outer.descriptor, &*made_as, Mode::RWXU)
            .map_err(|errno| Failure::System("make the folder", errno))?;
        let made = rustix::fs::openat(&outer.descriptor, &*made_as, OPEN_FOLDER, Mode::empty())
            .map_err(|errno| Failure::System("open the new folder", errno))?;
        let made = outer.made_in(made, &name);
        let temporary = self.begun.take();
        self.enter(made, name, Some((mode, time)));
        self.folders.last_mut().expect("entered just now").temporary = temporary;
        self.current.clear();
        Ok(())
    }

    fn enter(&mut self, place: Place, name: Vec<u8>, made: Option<(u32, Time)>) {
        let place = Arc::new(place);
        self.folders.push(Folder { place, name, fresh: made.is_some(), last: None, made, temporary: None });
    }

    fn leave(&mut self) -> Result<(), Failure> {
        let folder = self.folders.pop().expect("the root folder is left last");
        if self.folders.len() >= self.floor {
            self.current.clone_from(&folder.name);
        }
        self.begun = folder.temporary;
        folder.place.leave(folder.made, &self.options)?;
        if self.begun.is_some() {
            // Nothing is to come into it under its own name.
            self.crew.drain()?;
        }
        if let Some(temporary) = &self.begun {
            let outer = &self.top().place.descriptor;
            making::rename_new(outer, temporary, &folder.name)
                .map_err(|errno| Failure::System("make the folder", errno))?;
            self.begun = None;
        }
        self.current.clear();
        Ok(())
    }

    /// The one file of a stream: under a temporary name until the stream's end was right.
    fn root_file(&mut self, name: &[u8]) -> Result<(), Failure> {
        let (mode, time, _) = (self.stream.number()?, self.stream.time()?, self.stream.number()?);
        let made = Made { made_as: self.begin(name), becomes: Some(name.to_vec()), mode, time };
        let mut checksum = self.stream.hasher();
        let (file, has_mode) = made.open(&self.top().place, &self.options)?;
        self.content(&file, 0, None, &mut checksum)?;
        made.settle(&file, has_mode, &self.options)
    }

    /// Receives a file, whole and checked. A small one is left to the crew.
    fn file(&mut self, name: &[u8]) -> Result<(), Failure> {
        let (mode, time, number) = (self.stream.number()?, self.stream.time()?, self.stream.number()?);
        let mut checksum = self.stream.hasher();
        let start = self.crew.contents().len();
        let next = self.small_content(&mut checksum)?;
        let made_as = self.begin(name);
        let becomes = self.begun.is_some().then(|| name.to_vec());
        let made = Made { made_as, becomes, mode, time };
        if let Some(next) = next {
            let (file, has_mode) = made.open(&self.top().place, &self.options)?;
            let at = self.write_collected(&file, start)?;
            self.content(&file, at, Some(next), &mut checksum)?;
            made.settle(&file, has_mode, &self.options)?;
            self.commit(name)?;
        } else {
            // It is the crew's to remove what it does not finish.
            self.begun = None;
            let place = Arc::clone(&self.top().place);
            self.crew.add(&place, made, start)?;
        }
        if number != 0 {
            let mut names: Vec<_> = self.folders[1..].iter().map(|folder| folder.name.clone()).collect();
            names.push(name.to_vec());
            self.arrived.insert(number, names);
        }
        Ok(())
    }

    fn link(&mut self, name: &[u8]) -> Result<(), Failure> {
        let time = self.stream.time()?;
        let target = self.stream.text(MAX_TARGET, Refusal::LinkTarget)?;
        if target.is_empty() || target.contains(&0) {
            return Err(Refusal::LinkTarget.into());
        }
        self.require_sum(self.stream.checksum())?;
        self.summary.outward_links += u64::from(leads_outward(&target, self.folders.len() - self.floor));
        let made_as = self.begin(name);
        let folder = &self.top().place.descriptor;
        rustix::fs::symlinkat(&*target, folder, &*made_as).map_err(|errno| Failure::System("make the link", errno))?;
        if let Some((uid, gid)) = making::owner(&self.options) {
            rustix::fs::chownat(folder, &*made_as, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| Failure::System("give away", errno))?;
        }
        rustix::fs::utimensat(folder, &*made_as, &time.timestamps(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| Failure::System("set the time of", errno))?;
        self.commit(name)
    }

    fn hard_link(&mut self, name: &[u8]) -> Result<(), Failure> {
        let number = self.stream.number()?;
        self.require_sum(self.stream.checksum())?;
        let names = self.arrived.get(&number).ok_or(Refusal::HardLink)?.clone();
        self.crew.drain()?;
        let (first, way) = names.split_last().expect("at least the file's own name");
        // Folders that are still open may go by a temporary name: start at the last one both share.
        let shared = self.folders[1..].iter().zip(way).take_while(|(folder, name)| folder.name == **name).count();
        let made_as = self.begin(name);
        let start = self.folders[shared].place.descriptor.as_fd();
        let rest: PathBuf = way[shared..].iter().map(|name| OsStr::from_bytes(name)).collect();
        let top = &self.top().place.descriptor;
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
        let whole = self.sum_is(self.stream.checksum())?;
        if whole && entries == self.summary.entries && bytes == self.summary.bytes {
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
        making::replace(&self.top().place.descriptor, temporary, name)?;
        self.begun = None;
        Ok(())
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

    /// Removes what was not finished. What failed first is the error, which the crew may know and the stream not.
    fn give_up(mut self, failure: Failure) -> TransferError {
        let error = failure.at(self.entry());
        let error = self.crew.end().unwrap_or(error);
        // What cannot be removed keeps its telling name.
        while let Some(folder) = self.folders.pop() {
            if let Some(begun) = self.begun.take() {
                let _ = removal::remove(folder.place.descriptor.as_fd(), &begun);
            }
            self.begun = folder.temporary;
        }
        error
    }
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
