//! The manifest's own laws.

use std::path::PathBuf;

use proptest::prelude::*;
use testyard_sync::{ContentHash, Entry, EntryKind, EntryRef, Manifest};
use testyard_trees::{Delta, ListError};

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
        let mut entries: Vec<Entry> = manifest.entries().map(|entry| entry.owned()).collect();
        entries.sort_by_key(|entry| (entry.path.as_os_str().len() as u64 ^ seed, entry.path.clone()));
        prop_assert_eq!(Manifest::new(entries).hash(), manifest.hash());
    }

    #[test]
    fn the_hash_tells_different_trees_apart(a in manifest(), b in manifest()) {
        prop_assert_eq!(a.hash() == b.hash(), a == b);
    }

    #[test]
    fn a_diff_leads_from_one_to_the_other(a in manifest(), b in manifest()) {
        let changes = a.diff(&b, |_, _| false);
        prop_assert_eq!(changes.is_empty(), a == b);
        let has = |paths: &[PathBuf], entry: &EntryRef<'_>| paths.iter().any(|path| path == entry.path);
        let stays = |entry: &EntryRef<'_>| !has(&changes.removed, entry) && !has(&changes.modified, entry);
        let comes = |entry: &EntryRef<'_>| has(&changes.added, entry) || has(&changes.modified, entry);
        let mut entries: Vec<Entry> = a.entries().filter(stays).map(|entry| entry.owned()).collect();
        entries.extend(b.entries().filter(comes).map(|entry| entry.owned()));
        prop_assert_eq!(Manifest::new(entries), b.clone());
        for entry in b.entries() {
            prop_assert_eq!(b.find(entry.path), Some(entry.kind));
        }
    }

    #[test]
    fn a_delta_leads_from_one_to_the_other(a in manifest(), b in manifest()) {
        let delta = Delta::between(&a, &b);
        let read = Delta::decode(&delta.encode()).expect("what was written");
        prop_assert_eq!(&read, &delta);
        match read.apply(&a) {
            Ok(made) => prop_assert_eq!(made, b),
            // A list can say that something is a file and a folder; no disk can.
            Err(error) => prop_assert!(matches!(error, ListError::Conflict(_)), "{error}"),
        }
    }

    #[test]
    fn an_entry_changes_in_its_place(manifest in manifest(), at in any::<prop::sample::Index>(), new in entry()) {
        prop_assume!(!manifest.is_empty());
        let number = at.index(manifest.len());
        let mut entries: Vec<Entry> = manifest.entries().map(|entry| entry.owned()).collect();
        entries[number].kind = new.kind.clone();
        prop_assert_eq!(manifest.with(&[(number, new.kind)]), Manifest::new(entries));
    }
}
