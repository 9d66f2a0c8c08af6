//! Any bytes as a stream of files: never a panic, never anything outside of the target.
#![no_main]

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use testyard_transfer::{Oversight, UnpackOptions, unpack, unpack_from};

fuzz_target!(|bytes: &[u8]| {
    let outer = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let root = outer.path().join("root");
    std::fs::create_dir(&root).expect("an empty folder");
    let folder = std::fs::File::open(&root).expect("made just before");
    let options = UnpackOptions { hostile: true, limit: Some(1 << 20), ..UnpackOptions::default() };
    // Most of the format lies behind its first bytes, of which there are two kinds.
    let (local, bytes) = bytes.split_first().map_or((false, bytes), |(first, rest)| (first % 2 == 1, rest));
    let mut stream = if local { b"TYFILES\x03".to_vec() } else { b"TYFILES\x04".to_vec() };
    stream.extend_from_slice(bytes);
    let outcome = if local {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        // As much as a pipe holds, so that one thread is enough.
        let _ = writer.write_all(&stream[..stream.len().min(64 * 1024)]);
        drop(writer);
        unpack_from(reader.as_fd(), folder.as_fd(), Path::new("copy"), &options, Oversight::default())
    } else {
        unpack(&mut stream.as_slice(), folder.as_fd(), Path::new("copy"), &options)
    };
    let left = std::fs::read_dir(&root).expect("still there").count();
    assert_eq!(left, usize::from(outcome.is_ok()));
    assert_eq!(std::fs::read_dir(outer.path()).expect("still there").count(), 1);
});
