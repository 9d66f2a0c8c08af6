//! Any bytes as a root file system archive: no panic, no memory without bound, nothing outside the store.
#![no_main]

use libfuzzer_sys::fuzz_target;
use testyard_fuzz::{is_clean, store_in, with_sums};

fuzz_target!(|archive: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, options) = store_in(folder.path());
    if store.import(&*with_sums(archive), None, &options).is_err() {
        is_clean(&store);
    }
    let beside = std::fs::read_dir(folder.path()).expect("list").count();
    assert_eq!(beside, 1);
});
