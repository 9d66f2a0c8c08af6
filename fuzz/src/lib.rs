//! What the targets that import archives share.

use std::path::Path;

use testyard_images::{ImportOptions, Store};
use testyard_model::ByteSize;

/// A store below a folder, with bounds so small that every one of them is met.
pub fn store_in(folder: &Path) -> (Store, ImportOptions) {
    let store = Store::open(&folder.join("images")).expect("a store");
    let options = ImportOptions {
        flush: false,
        reserve: ByteSize(1),
        limit: ByteSize::mebibytes(4),
        entry_limit: 1000,
        ..ImportOptions::new(0)
    };
    (store, options)
}

/// Headers with a right checksum are rare among random bytes: puts those of whole blocks right.
pub fn with_sums(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    for block in archive.chunks_exact_mut(512).filter(|block| block.iter().any(|byte| *byte != 0)) {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    archive
}

/// After a refusal nothing half-made is in the store.
pub fn is_clean(store: &Store) {
    assert_eq!(std::fs::read_dir(store.path().join("temporary")).expect("temporary").count(), 0);
}
