//! Trees between two processes of one host: the form without sums, large files past everybody's memory, and a stop.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use testyard_transfer::{
    Oversight, Refusal, Summary, TransferError, UnpackOptions, pack, pack_bytes, pack_into, unpack, unpack_bytes,
    unpack_from,
};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

fn open(folder: &Path) -> fs::File {
    fs::File::open(folder).expect("a folder")
}

/// Through a pipe, with both ends at work.
fn moved(from: &Path, path: &str, to: &Path, options: &UnpackOptions) -> Result<Summary, TransferError> {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let writer = writer;
            pack_into(open(from).as_fd(), Path::new(path), writer.as_fd(), Oversight::default())
        });
        let received = unpack_from(reader.as_fd(), open(to).as_fd(), Path::new("copy"), options, Oversight::default());
        drop(reader);
        let sent = sender.join().expect("no panic");
        let received = received?;
        assert_eq!(sent.expect("sent"), received);
        Ok(received)
    })
}

/// A tree received from these bytes.
fn received(stream: &[u8], to: &Path, options: &UnpackOptions) -> Result<Summary, TransferError> {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(stream));
        let received = unpack_from(reader.as_fd(), open(to).as_fd(), Path::new("copy"), options, Oversight::default());
        drop(reader);
        received
    })
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u32).map(|number| (number.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect()
}

#[test]
fn many_files_small_and_large_arrive_as_they_were() {
    let (from, to) = (folder(), folder());
    let root = from.path().join("tree");
    for number in 0..500 {
        let below = root.join(format!("{}", number % 23)).join("inner");
        fs::create_dir_all(&below).expect("folders");
        let file = below.join(format!("{number}"));
        fs::write(&file, noise(number * 37)).expect("a file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400 + number as u32 % 0o200)).expect("a mode");
    }
    fs::write(root.join("large"), noise(5_000_001)).expect("a file");
    fs::hard_link(root.join("large"), root.join("twin")).expect("a link");
    fs::hard_link(root.join("3/inner/3"), root.join("z")).expect("a link");
    let sparse = fs::File::create(root.join("sparse")).expect("a file");
    sparse.write_all_at(&noise(1_000_000), 8 << 20).expect("written");
    sparse.set_len(64 << 20).expect("a hole");
    fs::set_permissions(root.join("7/inner"), fs::Permissions::from_mode(0o500)).expect("a mode");
    let summary = moved(from.path(), "tree", to.path(), &UnpackOptions::default()).expect("moved");
    assert_eq!(summary.entries, 1 + 23 * 2 + 500 + 4);
    let same = std::process::Command::new("diff").arg("-r").arg(&root).arg(to.path().join("copy")).output();
    let same = same.expect("diff");
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    for path in ["7/inner", "7/inner/7", "22/inner/45", "large", "", "3"] {
        let (old, new) = (fs::metadata(root.join(path)), fs::metadata(to.path().join("copy").join(path)));
        let (old, new) = (old.expect(path), new.expect(path));
        assert_eq!((old.mode(), old.mtime(), old.mtime_nsec()), (new.mode(), new.mtime(), new.mtime_nsec()), "{path}");
    }
    let inode = |path: &str| fs::metadata(to.path().join("copy").join(path)).expect(path).ino();
    assert_eq!((inode("large"), inode("z")), (inode("twin"), inode("3/inner/3")));
    assert!(fs::metadata(to.path().join("copy/sparse")).expect("there").blocks() * 512 < 4 << 20);
    // Over itself: each file is replaced.
    moved(from.path(), "tree/.", to.path(), &UnpackOptions::default()).expect("merged");
    assert_eq!(fs::read_dir(to.path().join("copy")).expect("there").count(), 23 + 4);
}

#[test]
fn a_known_mask_changes_no_mode() {
    // The mask of this process is what it is; a wrong word about it is the caller's fault.
    let mask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(mask);
    let (from, to) = (folder(), folder());
    fs::create_dir(from.path().join("tree")).expect("a folder");
    for mode in [0o400, 0o644, 0o666, 0o777, 0o4755, 0o2755] {
        let file = from.path().join(format!("tree/{mode:o}"));
        fs::write(&file, "x").expect("a file");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("a mode");
    }
    let options = UnpackOptions { hostile: true, mask: Some(mask.as_raw_mode()), ..UnpackOptions::default() };
    moved(from.path(), "tree", to.path(), &options).expect("moved");
    for entry in fs::read_dir(to.path().join("copy")).expect("there") {
        let entry = entry.expect("an entry");
        let wanted = u32::from_str_radix(&entry.file_name().to_string_lossy(), 8).expect("a mode") & 0o777;
        assert_eq!(entry.metadata().expect("there").mode() & 0o7777, wanted, "{wanted:o}");
    }
}

#[test]
fn a_file_that_cannot_be_made_is_named_and_the_rest_removed() {
    let (from, to) = (folder(), folder());
    fs::create_dir_all(from.path().join("tree/a")).expect("folders");
    for number in 0..300 {
        fs::write(from.path().join(format!("tree/a/{number:03}")), "x").expect("a file");
    }
    // In the way of one of them.
    fs::create_dir_all(to.path().join("copy/a/123/inside")).expect("folders");
    let error = moved(from.path(), "tree/.", to.path(), &UnpackOptions::default()).expect_err("a folder is there");
    assert!(matches!(&error, TransferError::Folder { path } if path.ends_with("copy/a/123")), "{error}");
    let left = fs::read_dir(to.path().join("copy/a")).expect("there").filter_map(Result::ok);
    assert!(!left.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with(".testyard")));
}

#[test]
fn what_is_stopped_is_removed() {
    let (from, to) = (folder(), folder());
    fs::write(from.path().join("large"), noise(3_000_000)).expect("a file");
    let mut stream = Vec::new();
    pack(open(from.path()).as_fd(), Path::new("large"), &mut stream).expect("packed");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    rustix::io::ioctl_fionbio(&writer, true).expect("a pipe");
    let written = rustix::io::write(&writer, &stream).expect("as much as there is room");
    assert!(written < stream.len());
    let (stop, asked) = std::io::pipe().expect("a pipe");
    let moved = AtomicU64::new(0);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            until(|| moved.load(Ordering::Relaxed) > 0);
            drop(asked);
        });
        let oversight = Oversight { stop: Some(stop.as_fd()), moved: Some(&moved) };
        let options = UnpackOptions::default();
        unpack_from(reader.as_fd(), open(to.path()).as_fd(), Path::new("copy"), &options, oversight)
    });
    assert!(matches!(error, Err(TransferError::Stopped)), "{error:?}");
    assert_eq!(fs::read_dir(to.path()).expect("there").count(), 0);
    let oversight = Oversight { stop: Some(stop.as_fd()), moved: None };
    let sent = pack_into(open(from.path()).as_fd(), Path::new("large"), writer.as_fd(), oversight);
    assert!(matches!(sent, Err(TransferError::Stopped)), "{sent:?}");
}

/// Waits, within reason, without a clock of its own.
fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..10_000_000 {
        if holds() {
            return;
        }
        std::thread::yield_now();
    }
}

/// The beginning of a file in the local form.
fn local(chunks: &[&[u8]]) -> Vec<u8> {
    let head: [&[u8]; 4] = [b"TYFILES\x03", &[2, 1, 0, b'f'], &[0xa4, 1, 0, 0], &[0; 16]];
    [head.concat(), chunks.concat()].concat()
}

fn run_of(length: u64, bytes: &[u8], count: u64) -> Vec<u8> {
    [&(u32::MAX - 1).to_le_bytes(), &length.to_le_bytes()[..], bytes, &count.to_le_bytes()].concat()
}

#[test]
fn a_file_that_became_shorter_ends_where_it_ended() {
    let to = folder();
    let end = [&[6][..], &1_u64.to_le_bytes(), &3_u64.to_le_bytes()].concat();
    let stream = local(&[&run_of(6, b"abc\0\0\0", 3), &[0; 4], &end]);
    received(&stream, to.path(), &UnpackOptions::default()).expect("as far as it went");
    assert_eq!(fs::read(to.path().join("copy")).expect("there"), b"abc");
}

#[test]
fn a_hostile_run_is_refused() {
    let refused = |stream: &[u8], options: &UnpackOptions, wanted: Refusal| {
        let to = folder();
        match received(stream, to.path(), options) {
            Err(TransferError::Refused { reason, .. }) => assert_eq!(reason, wanted),
            other => panic!("expected {wanted}, got {other:?}"),
        }
        assert_eq!(fs::read_dir(to.path()).expect("there").count(), 0);
    };
    let any = UnpackOptions::default();
    refused(&local(&[&run_of(3, b"abc", 4)]), &any, Refusal::TooLarge);
    refused(&local(&[&run_of(u64::MAX, b"abc", 4)]), &any, Refusal::TooLarge);
    let limited = UnpackOptions { limit: Some(2), ..any };
    refused(&local(&[&run_of(3, b"abc", 3)]), &limited, Refusal::OverLimit(2));
    let wrong = [&[6][..], &2_u64.to_le_bytes(), &3_u64.to_le_bytes()].concat();
    refused(&local(&[&run_of(3, b"abc", 3), &[0; 4], &wrong]), &any, Refusal::Closing);
    // Where sums are asked for, and where a stream comes from anywhere.
    let checked = UnpackOptions { checked: true, ..any };
    refused(&local(&[&run_of(3, b"abc", 3)]), &checked, Refusal::Version(3));
    let to = folder();
    let stream = local(&[&run_of(3, b"abc", 3)]);
    let anywhere = unpack(&mut stream.as_slice(), open(to.path()).as_fd(), Path::new("copy"), &any);
    assert!(matches!(anywhere, Err(TransferError::Refused { reason: Refusal::Version(3), .. })), "{anywhere:?}");
}

#[test]
fn bytes_become_a_file_and_a_file_bytes() {
    let to = folder();
    let content = noise(700_000);
    let mut stream = Vec::new();
    pack_bytes(&mut content.as_slice(), 0o640, &mut stream).expect("packed");
    let root = open(to.path());
    unpack(&mut stream.as_slice(), root.as_fd(), Path::new("file"), &UnpackOptions::default()).expect("a file");
    let made = fs::metadata(to.path().join("file")).expect("there");
    assert_eq!((made.mode() & 0o777, made.len()), (0o640, 700_000));
    let nameless = unpack(&mut stream.as_slice(), root.as_fd(), Path::new("."), &UnpackOptions::default());
    assert!(matches!(nameless, Err(TransferError::Folder { .. })), "{nameless:?}");

    let mut again = Vec::new();
    pack(root.as_fd(), Path::new("file"), &mut again).expect("packed");
    let mut out = Vec::new();
    unpack_bytes(&mut again.as_slice(), &mut out).expect("one file");
    assert!(out == content);
    let last = again.len() - 100;
    again[last] ^= 1;
    unpack_bytes(&mut again.as_slice(), &mut Vec::new()).expect_err("changed on the way");
    let mut folder = Vec::new();
    pack(root.as_fd(), Path::new("."), &mut folder).expect("packed");
    let error = unpack_bytes(&mut folder.as_slice(), &mut Vec::new()).expect_err("a folder");
    assert!(matches!(error, TransferError::Single), "{error}");
}
