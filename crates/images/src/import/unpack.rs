//! Writing the entries of an archive into a temporary folder, decided by [`Layout`].

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode as FileMode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use testyard_model::ByteSize;

use super::architecture::architecture;
use super::layout::{Standing, split};
use super::measured::hash_zeros;
use super::notes::Notes;
use super::whiteout::{self, Mark};
use super::{ImportError, ImportOptions, Layout, Node, NodeKind, Refusal, next_of, ownership_of_caller};
use crate::archive::{ArchiveReader, Entry, EntryKind};
use crate::store::{Ownership, Staged};
use testyard_linux::Error as SystemError;
use testyard_linux::files::layer_marks::{self, WhiteoutForm};

/// An unpacked tree, not yet in the store.
pub(super) struct Unpacked {
    pub(super) layout: Layout,
    pub(super) ownership: Ownership,
    pub(super) bytes: u64,
    pub(super) arch: Option<String>,
    pub(super) warnings: Vec<String>,
    /// A layer below which no other shows at all.
    pub(super) opaque: bool,
}

/// What an archive is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TreeKind {
    /// A whole root file system.
    Root,
    /// A layer over others: its whiteouts and opaque directories are kept, in overlay's form.
    Layer,
}

/// How often free space is looked at.
const SPACE_STEP: u64 = 16 << 20;
/// Room for content between archive and file.
const BUFFER: usize = 256 << 10;
/// The most that the index of a tree may take: millions of long names.
const INDEX_LIMIT: ByteSize = ByteSize::mebibytes(512);
/// The largest id that a machine's range of 65,536 shows as itself.
const ID_LIMIT: u32 = 65_535;

struct Unpacker<'a> {
    kind: TreeKind,
    options: &'a ImportOptions,
    path: std::path::PathBuf,
    root: OwnedFd,
    ownership: Ownership,
    layout: Layout,
    /// The last parent, opened: neighbours in an archive share it.
    parent: Option<(Vec<u8>, OwnedFd)>,
    bytes: u64,
    /// Bytes written since the free space was last looked at.
    unchecked: u64,
    entries: u64,
    /// Bytes of names, targets and attributes, which stay in memory until the end.
    index_bytes: u64,
    buffer: Vec<u8>,
    notes: Notes,
    opaque: bool,
    /// Whiteouts that would show in an opaque folder.
    showing: Vec<Vec<u8>>,
}

/// Unpacks into `root/` of a temporary folder. `begun` are the entries that were read before, none with content left
/// to read but the last.
pub(super) fn unpack<R: Read>(
    mut reader: ArchiveReader<R>,
    begun: Vec<Entry>,
    staged: &Staged,
    kind: TreeKind,
    options: &ImportOptions,
) -> Result<Unpacked, ImportError> {
    let mut unpacker = Unpacker::new(staged, kind, options)?;
    let mut last = Vec::new();
    let mut begun = begun.into_iter();
    while let Some(entry) = next_of(&mut begun, &mut reader, &last)? {
        unpacker.entry(&mut reader, &entry).map_err(|error| error.named(&entry.path))?;
        last = entry.path;
    }
    unpacker.finish()
}

impl<'a> Unpacker<'a> {
    fn new(staged: &Staged, kind: TreeKind, options: &'a ImportOptions) -> Result<Self, ImportError> {
        let path = staged.path();
        let failed = |errno: Errno| SystemError::new("make", path.join("root").display(), errno);
        rustix::fs::mkdirat(staged.directory(), "root", FileMode::RWXU).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::openat(staged.directory(), "root", flags, FileMode::empty()).map_err(failed)?;
        Ok(Self {
            kind,
            options,
            root,
            ownership: ownership_of_caller(),
            layout: Layout::new(),
            parent: None,
            bytes: 0,
            unchecked: 0,
            entries: 0,
            index_bytes: 0,
            buffer: vec![0; BUFFER],
            notes: Notes::default(),
            opaque: false,
            showing: Vec::new(),
            path,
        })
    }

    fn entry<R: Read>(&mut self, reader: &mut ArchiveReader<R>, entry: &Entry) -> Result<(), ImportError> {
        self.count(entry)?;
        let refused = |reason| ImportError::Refused { entry: entry.path.clone(), reason };
        let place = self.layout.place(&entry.path).map_err(refused)?;
        if entry.path.contains(&0) {
            return Err(refused(Refusal::Nul));
        }
        match (whiteout::mark_of(entry, &place).map_err(refused)?, self.kind) {
            (None, _) => {}
            (Some(_), TreeKind::Root) => return Err(refused(Refusal::Whiteout)),
            (Some(mark), TreeKind::Layer) => return self.mark(entry, &place, mark),
        }
        if matches!(entry.kind, EntryKind::CharacterDevice { .. } | EntryKind::BlockDevice) {
            return self.device(entry, &place).map_err(refused);
        }
        let mut node = self.node(entry).map_err(refused)?;
        let directory = node.is_directory();
        if place.is_empty() && !directory {
            return Err(refused(Refusal::ReplacesDirectory));
        }
        let standing = self.layout.standing(&place, directory).map_err(refused)?;
        let failed = |errno: Errno| ImportError::Write { entry: entry.path.clone(), source: errno.into() };
        // A link onto itself would be unlinked before it is made.
        let existing = self.hard_link_target(entry)?;
        if existing.as_ref() == Some(&place) {
            return Ok(());
        }
        self.imply_parents(&place).map_err(failed)?;
        match standing {
            Standing::Directory => {
                self.layout.update(&place, node);
                return Ok(());
            }
            Standing::Other => {
                self.notes.add("entries that a later one replaced", &entry.path);
                self.unlink(&place).map_err(failed)?;
            }
            Standing::Whiteout => {
                self.unlink(&place).map_err(failed)?;
                // The two together say: this directory, and nothing of the one below.
                if directory {
                    node.make_opaque();
                }
            }
            Standing::Nothing => {}
        }
        if let Some(existing) = existing {
            self.hard_link(&place, &existing).map_err(failed)?;
            self.layout.link(place, &existing);
            return Ok(());
        }
        let node = self.create(reader, entry, &place, node)?;
        self.layout.put(place, node);
        Ok(())
    }

    /// A machine has its own `/dev`; a device anywhere else can only be a way past that.
    fn device(&mut self, entry: &Entry, place: &[u8]) -> Result<(), Refusal> {
        if !split(place).0.split(|byte| *byte == b'/').any(|part| part == b"dev") {
            return Err(Refusal::Device);
        }
        self.notes.add("device nodes were left out", &entry.path);
        Ok(())
    }

    fn unlink(&mut self, place: &[u8]) -> rustix::io::Result<()> {
        let (parent, name) = self.parent_of(place)?;
        rustix::fs::unlinkat(parent, name, AtFlags::empty())
    }

    /// A whiteout or its kind. It speaks of the layers below only, wherever in the archive it stands.
    fn mark(&mut self, entry: &Entry, place: &[u8], mark: Mark) -> Result<(), ImportError> {
        let failed = |errno: Errno| ImportError::Write { entry: entry.path.clone(), source: errno.into() };
        match mark {
            Mark::Device => {
                return Err(ImportError::Refused { entry: entry.path.clone(), reason: Refusal::WhiteoutDevice });
            }
            Mark::Bookkeeping => self.notes.add("bookkeeping of another tool was left out", &entry.path),
            Mark::Opaque if split(place).0.is_empty() => self.opaque = true,
            Mark::Opaque => {
                self.imply_parents(place).map_err(failed)?;
                self.layout.make_opaque(split(place).0);
            }
            Mark::Gone(gone) => match self.layout.get(&gone).map(|node| &node.kind) {
                None => {
                    self.imply_parents(&gone).map_err(failed)?;
                    let (parent, name) = self.parent_of(&gone).map_err(failed)?;
                    if layer_marks::make_whiteout(parent, name).map_err(failed)? == WhiteoutForm::Attribute {
                        self.showing.push(gone.clone());
                    }
                    self.layout.put(gone, Node { kind: NodeKind::Whiteout, ..Node::implied_directory() });
                }
                Some(NodeKind::Directory) => self.layout.make_opaque(&gone),
                Some(_) => {}
            },
        }
        Ok(())
    }

    /// What the entry says of itself, its content aside.
    fn node(&mut self, entry: &Entry) -> Result<Node, Refusal> {
        let kind = match &entry.kind {
            EntryKind::Directory => NodeKind::Directory,
            EntryKind::Fifo => NodeKind::Fifo,
            EntryKind::SymbolicLink(target) => {
                if target.contains(&0) {
                    return Err(Refusal::Nul);
                }
                if target.len() > 4095 {
                    return Err(Refusal::TargetTooLong(target.len()));
                }
                NodeKind::SymbolicLink { target: target.clone() }
            }
            _ => NodeKind::File { size: entry.size, hash: [0; 32] },
        };
        let link = matches!(kind, NodeKind::SymbolicLink { .. });
        let mut attributes = BTreeMap::new();
        for (name, value) in &entry.attributes {
            if name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.") {
                return Err(Refusal::OverlayAttribute(name.clone()));
            }
            let capability = name == b"security.capability" && self.ownership == Ownership::Kept;
            if !link && name.len() <= 255 && (capability || name.starts_with(b"user.")) {
                attributes.insert(name.clone(), value.clone());
            } else {
                self.notes.add("extended attributes were left out", &entry.path);
            }
        }
        if self.ownership == Ownership::Kept && (entry.uid > ID_LIMIT || entry.gid > ID_LIMIT) {
            self.notes.add("ids above 65535 show as nobody in machines", &entry.path);
        }
        // A link's own mode means nothing and differs between writers.
        let mode = if link { 0o777 } else { entry.mode };
        Ok(Node { kind, mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, attributes, implied: false })
    }

    fn hard_link_target(&self, entry: &Entry) -> Result<Option<Vec<u8>>, ImportError> {
        let EntryKind::HardLink(target) = &entry.kind else { return Ok(None) };
        let refused = |reason| ImportError::Refused { entry: entry.path.clone(), reason };
        let existing = self.layout.place(target).map_err(|_| refused(Refusal::HardLinkOut(target.clone())))?;
        match self.layout.get(&existing) {
            Some(node) if !node.is_directory() && node.kind != NodeKind::Whiteout => Ok(Some(existing)),
            _ => Err(refused(Refusal::HardLink(target.clone()))),
        }
    }

    fn create<R: Read>(
        &mut self,
        reader: &mut ArchiveReader<R>,
        entry: &Entry,
        place: &[u8],
        mut node: Node,
    ) -> Result<Node, ImportError> {
        let failed = |errno: Errno| ImportError::Write { entry: entry.path.clone(), source: errno.into() };
        if let NodeKind::File { hash, .. } = &mut node.kind {
            self.charge(entry)?;
            let (parent, name) = self.parent_of(place).map_err(failed)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(parent, name, flags, FileMode::RUSR | FileMode::WUSR).map_err(failed)?;
            *hash = self.content(reader, entry, file.as_fd())?;
            self.settle(file.as_fd(), &node).map_err(failed)?;
            return Ok(node);
        }
        let ownership = self.ownership;
        let (parent, name) = self.parent_of(place).map_err(failed)?;
        match &node.kind {
            NodeKind::Directory => rustix::fs::mkdirat(parent, name, FileMode::RWXU).map_err(failed)?,
            NodeKind::SymbolicLink { target } => {
                rustix::fs::symlinkat(target.as_slice(), parent, name).map_err(failed)?;
            }
            NodeKind::Fifo | NodeKind::Whiteout | NodeKind::File { .. } => {
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(parent, name, kind, FileMode::RUSR, 0).map_err(failed)?;
            }
        }
        if !node.is_directory() {
            if ownership == Ownership::Kept {
                let (uid, gid) = owner(&node);
                rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            }
            if node.kind == NodeKind::Fifo {
                rustix::fs::chmodat(parent, name, mode(&node), AtFlags::empty()).map_err(failed)?;
            }
            rustix::fs::utimensat(parent, name, &times(&node), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        }
        Ok(node)
    }

    /// Copies a file's content; its SHA-256, as if there were no holes.
    fn content<R: Read>(
        &mut self,
        reader: &mut ArchiveReader<R>,
        entry: &Entry,
        file: BorrowedFd<'_>,
    ) -> Result<[u8; 32], ImportError> {
        let mut hash = Sha256::new();
        let mut hashed = 0;
        let failed = |errno: Errno| ImportError::Write { entry: entry.path.clone(), source: errno.into() };
        let mut buffer = std::mem::take(&mut self.buffer);
        let copied = reader.read_content(entry, &mut buffer, |offset, bytes| {
            hash_zeros(&mut hash, offset - hashed);
            hash.update(bytes);
            hashed = offset + bytes.len() as u64;
            let mut done = 0;
            while done < bytes.len() {
                match rustix::io::pwrite(file, &bytes[done..], offset + done as u64) {
                    Ok(written) => done += written,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Ok(())
        });
        self.buffer = buffer;
        copied?.map_err(failed)?;
        if hashed < entry.size {
            hash_zeros(&mut hash, entry.size - hashed);
            rustix::fs::ftruncate(file, entry.size).map_err(failed)?;
        }
        Ok(hash.finalize().into())
    }

    fn hard_link(&mut self, place: &[u8], existing: &[u8]) -> rustix::io::Result<()> {
        let (old_parent, old_name) = split(existing);
        let old_parent = open_beneath(self.root.as_fd(), old_parent, OFlags::PATH)?;
        let (parent, name) = self.parent_of(place)?;
        rustix::fs::linkat(old_parent, old_name, parent, name, AtFlags::empty())
    }

    /// Owner, then mode, then attributes: each may clear the ones after it.
    fn settle(&self, file: BorrowedFd<'_>, node: &Node) -> rustix::io::Result<()> {
        if self.ownership == Ownership::Kept {
            let (uid, gid) = owner(node);
            rustix::fs::fchown(file, uid, gid)?;
        }
        rustix::fs::fchmod(file, mode(node))?;
        for (name, value) in &node.attributes {
            rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty())?;
        }
        rustix::fs::futimens(file, &times(node))
    }

    fn imply_parents(&mut self, place: &[u8]) -> rustix::io::Result<()> {
        for missing in self.layout.missing_parents(place) {
            let (parent, name) = self.parent_of(missing)?;
            rustix::fs::mkdirat(parent, name, FileMode::RWXU)?;
            self.layout.put(missing.to_vec(), Node::implied_directory());
        }
        Ok(())
    }

    /// The opened parent of a place, and the last name of it.
    fn parent_of<'p>(&mut self, place: &'p [u8]) -> rustix::io::Result<(BorrowedFd<'_>, &'p [u8])> {
        let (path, name) = split(place);
        if self.parent.as_ref().is_none_or(|(cached, _)| cached != path) {
            self.parent = Some((path.to_vec(), open_beneath(self.root.as_fd(), path, OFlags::PATH)?));
        }
        let (_, parent) = self.parent.as_ref().expect("just set");
        Ok((parent.as_fd(), name))
    }

    /// Keeps an archive of endless names from filling the memory.
    fn count(&mut self, entry: &Entry) -> Result<(), ImportError> {
        self.entries += 1;
        if self.entries > self.options.entry_limit {
            return Err(ImportError::TooMany { limit: self.options.entry_limit });
        }
        let target = match &entry.kind {
            EntryKind::SymbolicLink(target) => target.len(),
            _ => 0,
        };
        let attributes: usize = entry.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.index_bytes += (entry.path.len() + target + attributes) as u64;
        if self.index_bytes > INDEX_LIMIT.0 {
            return Err(ImportError::IndexTooLarge { entry: entry.path.clone(), limit: INDEX_LIMIT });
        }
        if self.entries.is_multiple_of(4096) || self.entries == 1 {
            return self.check_space(entry, 0);
        }
        Ok(())
    }

    /// A file's whole size counts before its first byte is written: towards the limit with its holes, on the disk
    /// without.
    fn charge(&mut self, entry: &Entry) -> Result<(), ImportError> {
        self.bytes = self.bytes.saturating_add(entry.size);
        if self.bytes > self.options.limit.0 {
            return Err(ImportError::TooLarge { entry: entry.path.clone(), limit: self.options.limit });
        }
        let stored = entry.stored();
        self.unchecked = self.unchecked.saturating_add(stored);
        if self.unchecked < SPACE_STEP {
            return Ok(());
        }
        self.unchecked = 0;
        self.check_space(entry, stored)
    }

    fn check_space(&self, entry: &Entry, wanted: u64) -> Result<(), ImportError> {
        let failed = |errno: Errno| SystemError::new("measure the disk of", self.path.display(), errno);
        let free = rustix::fs::fstatvfs(&self.root).map_err(failed)?;
        let free = free.f_bavail.saturating_mul(free.f_frsize);
        if free >= self.options.reserve.0.saturating_add(wanted) {
            return Ok(());
        }
        Err(ImportError::NoSpace {
            path: self.path.parent().unwrap_or(&self.path).to_owned(),
            entry: entry.path.clone(),
            free: ByteSize(free),
            reserve: self.options.reserve,
        })
    }

    /// An opaque folder hides all that lower layers have in it: a whiteout there says nothing, and may show.
    fn remove_showing(&mut self) -> Result<(), ImportError> {
        for place in std::mem::take(&mut self.showing) {
            let still = self.layout.get(&place).is_some_and(|node| node.kind == NodeKind::Whiteout);
            let parent = self.layout.get(split(&place).0);
            let whole = self.opaque && !place.contains(&b'/');
            if still && (whole || parent.is_some_and(Node::is_opaque)) {
                let failed = |errno: Errno| ImportError::Write { entry: place.clone(), source: errno.into() };
                self.unlink(&place).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Unpacked, ImportError> {
        if self.layout.len() == 1 && self.kind == TreeKind::Root {
            return Err(ImportError::Empty);
        }
        self.remove_showing()?;
        self.parent = None;
        // Children come after their parents in byte order, so backwards no closed folder is in the way.
        for (path, _, node) in self.layout.nodes().rev().filter(|(_, _, node)| node.is_directory()) {
            open_beneath(self.root.as_fd(), path, OFlags::RDONLY)
                .and_then(|directory| self.settle(directory.as_fd(), node))
                .map_err(|errno| ImportError::Write { entry: path.to_vec(), source: errno.into() })?;
        }
        if self.options.flush {
            rustix::fs::syncfs(&self.root)
                .map_err(|errno| SystemError::new("write to the disk", self.path.display(), errno))?;
        }
        let arch = architecture(self.root.as_fd());
        Ok(Unpacked {
            arch,
            warnings: self.notes.sentences(),
            ownership: self.ownership,
            bytes: self.bytes,
            layout: self.layout,
            opaque: self.opaque,
        })
    }
}

/// Opens a folder of the tree; a link on the way is an error, for [`Layout`] has resolved them all.
fn open_beneath(root: BorrowedFd<'_>, path: &[u8], access: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(
        root,
        path,
        access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        FileMode::empty(),
        resolve,
    )
}

fn owner(node: &Node) -> (Option<Uid>, Option<Gid>) {
    // The reader refuses the id that means "leave it".
    (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)))
}

fn mode(node: &Node) -> FileMode {
    FileMode::from_raw_mode(node.mode)
}

fn times(node: &Node) -> Timestamps {
    // What file systems hold; a forged date is cut to it.
    let time = Timespec { tv_sec: node.mtime.clamp(0, u32::MAX.into()), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
