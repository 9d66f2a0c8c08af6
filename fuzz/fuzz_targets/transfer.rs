//! Any bytes as a stream of files: never a panic, never anything outside of the target.
#![no_main]

use std::os::fd::AsFd as _;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use testyard_transfer::{UnpackOptions, unpack};

fuzz_target!(|bytes: &[u8]| {
    let outer = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let root = outer.path().join("root");
    std::fs::create_dir(&root).expect("an empty folder");
    let folder = std::fs::File::open(&root).expect("made just before");
    // Most of the format lies behind its first bytes.
    let mut stream = b"TYFILES\x01".to_vec();
    stream.extend_from_slice(bytes);
    let options = UnpackOptions { hostile: true, limit: Some(1 << 20), ..UnpackOptions::default() };
    let outcome = unpack(&mut stream.as_slice(), folder.as_fd(), Path::new("copy"), &options);
    let left = std::fs::read_dir(&root).expect("still there").count();
    assert_eq!(left, usize::from(outcome.is_ok()));
    assert_eq!(std::fs::read_dir(outer.path()).expect("still there").count(), 1);
});
