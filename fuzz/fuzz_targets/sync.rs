//! Any bytes as what a sender says of a tree: never a panic, nothing outside of the store, no half a tree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use testyard_trees::{Delta, Manifest, Owner, Store, receive};

fuzz_target!(|bytes: &[u8]| {
    // A list that is understood is written as it was read.
    if let Ok(delta) = Delta::decode(bytes)
        && let Ok(manifest) = delta.apply(&Manifest::default())
    {
        let again = Delta::between(&Manifest::default(), &manifest).encode();
        assert_eq!(Delta::decode(&again).and_then(|delta| delta.apply(&Manifest::default())), Ok(manifest));
    }
    let outer = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let store = Store::open(&outer.path().join("store")).expect("a store");
    let owner = Owner { uid: own_uid(), gid: own_gid() };
    let packed = bytes.first().is_some_and(|first| first % 2 == 1);
    let mut stream = b"tysync01".to_vec();
    stream.push(u8::from(packed));
    stream.extend_from_slice(bytes.get(1..).unwrap_or_default());
    let mut answers = Vec::new();
    let outcome = receive(&store, owner, false, &mut stream.as_slice(), &mut answers);
    assert_eq!(store.trees(owner).len(), usize::from(outcome.is_ok()));
    assert_eq!(std::fs::read_dir(outer.path()).expect("still there").count(), 1);
});

fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").map_or(0, |facts| facts.uid())
}

fn own_gid() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").map_or(0, |facts| facts.gid())
}
