//! Any bytes as a root file system archive: no panic, no memory without bound, nothing outside the store.
#![no_main]

use libfuzzer_sys::fuzz_target;
use testyard_images::{ImportOptions, Store};
use testyard_model::ByteSize;

fuzz_target!(|archive: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(&folder.path().join("images")).expect("a store");
    let options = ImportOptions {
        flush: false,
        reserve: ByteSize(1),
        limit: ByteSize::mebibytes(4),
        entry_limit: 1000,
        ..ImportOptions::new(0)
    };
    // Headers with a right checksum are rare among random bytes: put those of whole blocks right.
    let mut archive = archive.to_vec();
    for block in archive.chunks_exact_mut(512).filter(|block| block.iter().any(|byte| *byte != 0)) {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    if store.import(&*archive, None, &options).is_err() {
        let left = std::fs::read_dir(store.path().join("temporary")).expect("temporary").count();
        assert_eq!(left, 0);
    }
    let beside = std::fs::read_dir(folder.path()).expect("list").count();
    assert_eq!(beside, 1);
});
