//! The manifest's own laws.

use std::path::PathBuf;

use proptest::prelude::*;
use testyard_sync::{ContentHash, Entry, EntryKind, Manifest};

fn entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![
        (any::<bool>(), 0_u8..4)
            .prop_map(|(executable, n)| EntryKind::File { executable, content: ContentHash([n; 32]) }),
        "[ab]{1,2}".prop_map(|target| EntryKind::Link { target: target.into() }),
    ];
    ("[abc]{1,2}(/[abc-]{1,2}){0,2}", kind).prop_map(|(path, kind)| Entry { path: PathBuf::from(path), kind })
}

fn manifest() -> impl Strategy<Value = Manifest> {
    prop::collection::vec(entry(), 0..12).prop_map(Manifest::new)
}

proptest! {
    #[test]
    fn the_hash_knows_no_order(manifest in manifest(), seed in any::<u64>()) {
        let mut entries = manifest.entries().to_vec();
        entries.sort_by_key(|entry| (entry.path.as_os_str().len() as u64 ^ seed, entry.path.clone()));
        prop_assert_eq!(Manifest::new(entries).hash(), manifest.hash());
    }

    #[test]
    fn the_hash_tells_different_trees_apart(a in manifest(), b in manifest()) {
        prop_assert_eq!(a.hash() == b.hash(), a == b);
    }

    #[test]
    fn a_diff_leads_from_one_to_the_other(a in manifest(), b in manifest()) {
        let changes = a.diff(&b);
        prop_assert_eq!(changes.is_empty(), a == b);
        let mut entries: Vec<Entry> =
            a.entries().iter().filter(|e| !changes.removed.contains(&e.path) && !changes.modified.contains(&e.path)).cloned().collect();
        entries.extend(b.entries().iter().filter(|e| changes.added.contains(&e.path) || changes.modified.contains(&e.path)).cloned());
        prop_assert_eq!(Manifest::new(entries), b.clone());
        for entry in b.entries() {
            prop_assert_eq!(b.find(&entry.path), Some(&entry.kind));
        }
    }
}
