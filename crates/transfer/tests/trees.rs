//! Trees survive the stream, and no stream does what it must not.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use testyard_transfer::{Refusal, SpecialBits, Summary, TransferError, UnpackOptions, pack, unpack};

/// A folder in memory where there is one: creating files on disk is slow.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary folder can be made")
}

fn packed(root: &Path, path: &str) -> Vec<u8> {
    let mut stream = Vec::new();
    let root = fs::File::open(root).expect("the root is there");
    pack(root.as_fd(), Path::new(path), &mut stream).expect("the source can be read");
    stream
}

fn unpacked(stream: &[u8], root: &Path, path: &str) -> Result<Summary, TransferError> {
    unpacked_with(stream, root, path, &UnpackOptions::default())
}

fn unpacked_with(
    mut stream: &[u8],
    root: &Path,
    path: &str,
    options: &UnpackOptions,
) -> Result<Summary, TransferError> {
    let root = fs::File::open(root).expect("the root is there");
    unpack(&mut stream, root.as_fd(), Path::new(path), options)
}

/// Everything below a folder: path, type and mode, time, content or target, and link count of files.
fn listing(root: &Path) -> Vec<(PathBuf, u32, i64, Vec<u8>, u64)> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            let meta = fs::symlink_metadata(&path).expect("it was just listed");
            let (content, links) = if meta.is_dir() {
                todo.push(path.clone());
                (Vec::new(), 0)
            } else if meta.is_symlink() {
                use std::os::unix::ffi::OsStringExt as _;
                (fs::read_link(&path).expect("a link").into_os_string().into_vec(), 1)
            } else {
                (fs::read(&path).expect("a file"), meta.nlink())
            };
            let shown = path.strip_prefix(root).expect("below the root").to_owned();
            found.push((shown, meta.mode(), meta.mtime(), content, links));
        }
    }
    found.sort();
    found
}

/// What a random tree is made of.
#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>, u32),
    Link(String),
    Hard,
    Folder(Vec<(u8, Node)>, u32),
}

fn node() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        (prop::collection::vec(any::<u8>(), 0..300), 0_u32..0o1000).prop_map(|(data, mode)| Node::File(data, mode)),
        (any::<u8>(), 0_usize..200_000, 0_u32..0o1000)
            .prop_map(|(byte, size, mode)| Node::File(vec![byte; size], mode)),
        "[a-z./]{1,20}".prop_map(Node::Link),
        Just(Node::Hard),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        (prop::collection::vec((any::<u8>(), inner), 0..6), 0_u32..0o1000)
            .prop_map(|(nodes, mode)| Node::Folder(nodes, mode | 0o500))
    })
}

fn build(path: &Path, node: &Node, first: &mut Option<PathBuf>) {
    if path.symlink_metadata().is_ok() {
        return;
    }
    match node {
        Node::File(data, mode) => {
            fs::write(path, data).expect("a file can be written");
            fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o400)).expect("it is ours");
            first.get_or_insert(path.to_owned());
        }
        Node::Link(target) => symlink(target, path).expect("a link can be made"),
        Node::Hard => {
            if let Some(first) = first {
                fs::hard_link(first, path).expect("a hard link can be made");
            }
        }
        Node::Folder(nodes, mode) => {
            fs::create_dir(path).expect("a folder can be made");
            for (name, node) in nodes {
                build(&path.join(format!("n{name}")), node, first);
            }
            fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o700)).expect("it is ours");
        }
    }
}

fn tree(node: &Node) -> tempfile::TempDir {
    let root = folder();
    let nodes = vec![(0, node.clone()), (1, Node::File(b"one".to_vec(), 0o640)), (2, Node::Hard)];
    build(&root.path().join("tree"), &Node::Folder(nodes, 0o755), &mut None);
    backdate(&root.path().join("tree"));
    root
}

/// Gives everything a time of its own that is long past, so that no time is right by chance.
fn backdate(path: &Path) {
    let meta = fs::symlink_metadata(path).expect("it was made");
    if meta.is_dir() {
        for entry in fs::read_dir(path).expect("a readable folder") {
            backdate(&entry.expect("an entry").path());
        }
    }
    let time = Timespec { tv_sec: 1_000_000_000 + i64::from(meta.ino() as u32 % 10_000), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("it is ours");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_tree_survives(node in node()) {
        let from = tree(&node);
        let stream = packed(from.path(), "tree");
        let to = folder();
        unpacked(&stream, to.path(), "copy").expect("our own stream");
        prop_assert_eq!(listing(&from.path().join("tree")), listing(&to.path().join("copy")));
        // Again, over itself: into the folder that is there now.
        let contents = packed(from.path(), "tree/.");
        unpacked(&contents, to.path(), "copy").expect("merging into the same");
        // A folder that was there has the time of its last change, which is now.
        let timeless = |root: &Path| -> Vec<_> {
            listing(root).into_iter().map(|(path, mode, _, content, links)| (path, mode, content, links)).collect()
        };
        prop_assert_eq!(timeless(&from.path().join("tree")), timeless(&to.path().join("copy")));
    }

    #[test]
    fn a_changed_stream_is_refused_and_leaves_nothing(
        node in node(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
        cut in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
    ) {
        let from = tree(&node);
        let mut stream = packed(from.path(), "tree");
        let whole = stream.clone();
        if truncate {
            stream.truncate(cut.index(stream.len()));
        } else {
            for (at, change) in changes {
                let at = at.index(stream.len());
                stream[at] ^= change;
            }
            prop_assume!(stream != whole);
        }
        let outer = folder();
        let root = outer.path().join("root");
        fs::create_dir(&root).expect("an empty folder");
        let options = UnpackOptions { hostile: true, ..UnpackOptions::default() };
        unpacked_with(&stream, &root, "copy", &options).expect_err("it was changed");
        prop_assert_eq!(listing(&root), Vec::new());
        prop_assert_eq!(fs::read_dir(outer.path()).expect("ours").count(), 1);
    }

    #[test]
    fn a_broken_merge_leaves_each_file_old_or_new(
        old in node(),
        new in node(),
        change in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
    ) {
        let (old, new) = (tree(&old), tree(&new));
        let (before, sent) = (listing(&old.path().join("tree")), listing(&new.path().join("tree")));
        let mut stream = packed(new.path(), "tree/.");
        if truncate {
            stream.truncate(cut.index(stream.len()));
        } else {
            let at = change.index(stream.len());
            stream[at] ^= 0x41;
        }
        // The mode and time of the root folder are not used, so a change there is no error.
        let _ = unpacked(&stream, old.path(), "tree");
        let top = old.path().join("tree");
        // A folder by itself holds nothing that could be half old and half new.
        for entry in listing(&top).into_iter().filter(|entry| !top.join(&entry.0).is_dir()) {
            let same = |other: &&(PathBuf, u32, i64, Vec<u8>, u64)| other.0 == entry.0 && other.3 == entry.3;
            prop_assert!(before.iter().chain(&sent).any(|other| same(&other)), "{:?} is neither", entry.0);
        }
    }
}

#[test]
fn a_file_goes_where_cp_would_put_it() {
    let (from, to) = (folder(), folder());
    fs::write(from.path().join("a"), "new").expect("written");
    fs::create_dir(to.path().join("there")).expect("made");
    fs::write(to.path().join("old"), "old").expect("written");
    let stream = packed(from.path(), "a");
    for (target, lands) in [("b", "b"), ("there", "there/a"), ("there/", "there/a"), ("old", "old"), ("/c", "c")] {
        unpacked(&stream, to.path(), target).expect(target);
        assert_eq!(fs::read_to_string(to.path().join(lands)).expect(lands), "new");
    }
    let missing = unpacked(&stream, to.path(), "nowhere/b").expect_err("no such folder");
    assert!(missing.to_string().contains("nowhere"), "{missing}");
    unpacked(&stream, to.path(), "new/").expect_err("not a folder");
    assert_eq!(fs::read_dir(to.path()).expect("ours").count(), 4);
}

#[test]
fn files_and_folders_never_replace_each_other() {
    let (from, to) = (folder(), folder());
    fs::create_dir_all(from.path().join("t/x")).expect("made");
    fs::create_dir_all(to.path().join("t")).expect("made");
    fs::write(to.path().join("t/x"), "mine").expect("written");
    let error = unpacked(&packed(from.path(), "t"), to.path(), ".").expect_err("a file is in the way");
    assert!(error.to_string().contains("t/x"), "{error}");
    assert_eq!(fs::read_to_string(to.path().join("t/x")).expect("kept"), "mine");

    let error = unpacked(&packed(to.path(), "t"), from.path(), ".").expect_err("a folder is in the way");
    assert!(error.to_string().contains("t/x"), "{error}");
    assert_eq!(listing(&from.path().join("t")).len(), 1);
}

#[test]
fn links_in_the_way_are_not_followed() {
    let (from, to, outside) = (folder(), folder(), folder());
    fs::create_dir_all(from.path().join("t/d")).expect("made");
    fs::write(from.path().join("t/d/f"), "new").expect("written");
    fs::write(from.path().join("t/g"), "new").expect("written");
    fs::write(outside.path().join("g"), "secret").expect("written");
    fs::create_dir(to.path().join("t")).expect("made");
    symlink(outside.path(), to.path().join("t/d")).expect("linked");
    symlink(outside.path().join("g"), to.path().join("t/g")).expect("linked");
    unpacked(&packed(from.path(), "t"), to.path(), ".").expect_err("a link is no folder");
    assert_eq!(fs::read_to_string(outside.path().join("g")).expect("kept"), "secret");
    assert_eq!(fs::read_dir(outside.path()).expect("ours").count(), 1);
}

#[test]
fn paths_do_not_leave_their_root() {
    let outer = folder();
    fs::create_dir_all(outer.path().join("root/in")).expect("made");
    fs::write(outer.path().join("secret"), "secret").expect("written");
    symlink("../../../../../../../../../", outer.path().join("root/up")).expect("linked");
    let root = fs::File::open(outer.path().join("root")).expect("there");
    for path in ["../secret", "up/secret", "/../secret"] {
        let refused = pack(root.as_fd(), Path::new(path), &mut Vec::new());
        assert!(matches!(refused, Err(TransferError::File { .. })), "{path}");
    }
    let stream = packed(outer.path(), "secret");
    unpacked(&stream, &outer.path().join("root"), "../stolen").expect("`..` of a root is the root");
    assert!(outer.path().join("root/stolen").exists());
}

#[test]
fn special_bits_and_owners_follow_the_options() {
    let (from, to) = (folder(), folder());
    fs::write(from.path().join("s"), "x").expect("written");
    fs::set_permissions(from.path().join("s"), fs::Permissions::from_mode(0o4755)).expect("ours");
    let stream = packed(from.path(), "s");
    let keep = UnpackOptions { special_bits: SpecialBits::Keep, ..UnpackOptions::default() };
    for (name, options, mode) in [
        ("stripped", UnpackOptions::default(), 0o755),
        ("kept", keep, 0o4755),
        ("hostile", UnpackOptions { hostile: true, ..keep }, 0o755),
    ] {
        unpacked_with(&stream, to.path(), name, &options).expect(name);
        assert_eq!(fs::metadata(to.path().join(name)).expect(name).mode() & 0o7777, mode, "{name}");
    }
    if rustix::process::geteuid().is_root() {
        let given = UnpackOptions { owner: Some((1234, 4321)), ..keep };
        unpacked_with(&stream, to.path(), "given", &given).expect("root may give away");
        let meta = fs::metadata(to.path().join("given")).expect("made");
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1234, 4321, 0o4755));
    }
}

#[test]
fn what_is_no_file_is_passed_over_by_name() {
    let (from, to) = (folder(), folder());
    fs::create_dir(from.path().join("t")).expect("made");
    rustix::fs::mkfifoat(CWD, from.path().join("t/pipe"), rustix::fs::Mode::RUSR).expect("made");
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("t/socket")).expect("bound");
    let root = fs::File::open(from.path()).expect("there");
    let mut stream = Vec::new();
    let summary = pack(root.as_fd(), Path::new("t"), &mut stream).expect("the rest is fine");
    assert_eq!(summary.skipped, [PathBuf::from("t/pipe"), PathBuf::from("t/socket")]);
    unpacked(&stream, to.path(), ".").expect("whole");
    assert_eq!(listing(to.path()).len(), 1);
    assert!(matches!(
        pack(root.as_fd(), Path::new("t/pipe"), &mut Vec::new()),
        Err(TransferError::Special { .. } | TransferError::File { .. })
    ));
}

#[test]
fn holes_stay_holes() {
    let (from, to) = (folder(), folder());
    let file = fs::File::create(from.path().join("sparse")).expect("made");
    file.set_len(1 << 30).expect("a hole");
    std::os::unix::fs::FileExt::write_all_at(&file, b"here", 1 << 29).expect("written");
    let stream = packed(from.path(), "sparse");
    assert!(stream.len() < 1 << 20, "{}", stream.len());
    unpacked(&stream, to.path(), "sparse").expect("our own");
    let meta = fs::metadata(to.path().join("sparse")).expect("made");
    assert!(meta.len() == 1 << 30 && meta.blocks() * 512 < 1 << 20, "{meta:?}");
}

#[test]
fn files_without_a_size_are_read_to_their_end() {
    let to = folder();
    let root = fs::File::open("/").expect("there");
    let mut stream = Vec::new();
    pack(root.as_fd(), Path::new("/proc/version"), &mut stream).expect("readable by all");
    unpacked(&stream, to.path(), "version").expect("our own");
    assert_eq!(fs::read(to.path().join("version")).ok(), fs::read("/proc/version").ok());
}

/// Builds streams that `pack` never would: the bytes, and those of them that checksums of records cover.
struct Forged(Vec<u8>, Vec<u8>);

impl Forged {
    fn new() -> Self {
        Self::of(b"TYFILES\x04")
    }

    fn of(bytes: &[u8]) -> Self {
        Self(bytes.to_vec(), bytes.to_vec())
    }

    fn name(self, kind: u8, name: &[u8]) -> Self {
        self.raw(&[kind]).raw(&(name.len() as u16).to_le_bytes()).raw(name)
    }

    fn folder(self, name: &[u8]) -> Self {
        self.name(1, name).raw(&[0; 16])
    }

    fn file(self, name: &[u8], content: &[u8]) -> Self {
        let mut this = self.name(2, name).raw(&[0; 20]);
        this.0.extend((content.len() as u32).to_le_bytes());
        this.0.extend(content);
        this.0.extend([0; 4]);
        let mut checksum = blake3::Hasher::new();
        checksum.update(blake3::hash(&this.1).as_bytes()).update(content);
        this.raw(checksum.finalize().as_bytes())
    }

    fn link(self, name: &[u8], target: &[u8]) -> Self {
        self.name(3, name).raw(&[0; 12]).raw(&(target.len() as u16).to_le_bytes()).raw(target).sum()
    }

    fn sum(self) -> Self {
        let sum = blake3::hash(&self.1);
        self.raw(sum.as_bytes())
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self.1.extend(bytes);
        self
    }

    #[track_caller]
    fn refused(self, expected: Refusal, named: &str) {
        let outer = folder();
        let root = outer.path().join("root");
        fs::create_dir(&root).expect("made");
        match unpacked(&self.0, &root, "copy") {
            Err(TransferError::Refused { entry, reason }) => {
                assert_eq!(reason, expected);
                assert_eq!(entry, Path::new(named));
            }
            other => panic!("expected {expected}, got {other:?}"),
        }
        assert_eq!(listing(outer.path()).len(), 1, "something was left");
    }
}

#[test]
fn a_hostile_sender_is_refused_by_name() {
    for name in [&b"../x"[..], b"/etc/x", b"..", b".", b"", b"a/b", b"a\0b"] {
        let entry = if name.is_empty() { "copy".to_owned() } else { format!("copy/{}", String::from_utf8_lossy(name)) };
        Forged::new().folder(b"t").file(name, b"").refused(Refusal::Name, &entry);
    }
    Forged::new().folder(b"t").file(b"a", b"1").file(b"a", b"2").refused(Refusal::Order, "copy/a");
    Forged::new().folder(b"t").link(b"a", b"/etc").folder(b"a").refused(Refusal::Order, "copy/a");
    Forged::new().folder(b"t").name(7, b"sda").refused(Refusal::Kind(7), "copy");
    Forged::new().folder(b"t").link(b"l", b"").refused(Refusal::LinkTarget, "copy/l");
    let damaged = Forged::new().folder(b"t").name(3, b"l").raw(&[0; 12]).raw(&[1, 0, b'x']).raw(&[0; 32]);
    damaged.refused(Refusal::Checksum, "copy/l");
    Forged::new().folder(b"t").name(4, b"h").raw(&[9, 0, 0, 0]).sum().refused(Refusal::HardLink, "copy/h");
    let sized = |chunk: &[u8]| Forged::new().folder(b"t").name(2, b"f").raw(&[0; 20]).raw(chunk);
    sized(&[0, 0, 0, 0xf0]).refused(Refusal::TooLarge, "copy/f");
    sized(&[0xff; 12]).refused(Refusal::TooLarge, "copy/f");
    sized(&[0; 36]).refused(Refusal::Checksum, "copy/f");
    Forged::new().name(3, b"l").refused(Refusal::Kind(3), "copy");
    Forged::of(b"#!/bin/sh\n").refused(Refusal::NotAStream, "copy");
    Forged::of(b"TYFILES\x03").refused(Refusal::Version(3), "copy");
    let deep = (0..1000).fold(Forged::new(), |stream, _| stream.folder(b"d"));
    let Err(error) = unpacked(&deep.0, folder().path(), "copy") else { panic!("it was accepted") };
    assert!(matches!(error, TransferError::Refused { reason: Refusal::TooDeep, .. }), "{error}");
}

#[test]
fn a_limit_on_bytes_holds() {
    let (from, to) = (folder(), folder());
    fs::write(from.path().join("f"), [0; 1000]).expect("written");
    let stream = packed(from.path(), "f");
    let options = UnpackOptions { limit: Some(999), ..UnpackOptions::default() };
    let error = unpacked_with(&stream, to.path(), "f", &options).expect_err("one too many");
    assert_eq!(error.problem().kind, testyard_model::ProblemKind::Exhausted);
    assert_eq!(fs::read_dir(to.path()).expect("ours").count(), 0);
}
