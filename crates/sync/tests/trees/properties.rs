//! The manifest's own laws.

use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;
use testyard_sync::{ContentHash, Entry, EntryKind, EntryRef, Manifest};
use testyard_trees::{Delta, ListError};

fn entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![
        (any::<bool>(), 0_u8..4)
            .prop_map(|(executable, n)| EntryKind::File { executable, content: ContentHash([n; 32]) }),
        "[ab](/|//b|/[.]/b)?".prop_map(|target| EntryKind::Link { target: target.into() }),
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
    fn a_text_and_its_entries_are_the_whole(manifest in manifest()) {
        let again = |text: &[u8]| Manifest::of_text(text.to_vec(), manifest.len(), manifest.placed());
        prop_assert_eq!(again(manifest.text()), Some(manifest.clone()));
        prop_assert_eq!(again(&[manifest.text(), b"x"].concat()), None);
        if let Some((_, shorter)) = manifest.text().split_last() {
            prop_assert_eq!(again(shorter), None);
        }
        let turned: Vec<_> = manifest.placed().collect::<Vec<_>>().into_iter().rev().collect();
        let turned = Manifest::of_text(manifest.text().to_vec(), 0, turned.into_iter());
        prop_assert!(turned.is_none_or(|turned| turned.entries().is_sorted_by(|a, b| a.path.as_os_str() < b.path.as_os_str())));
    }

    #[test]
    fn entries_change_in_their_places(
        manifest in manifest(),
        others in prop::collection::vec((any::<prop::sample::Index>(), entry()), 0..4),
    ) {
        prop_assume!(!manifest.is_empty());
        let kinds: BTreeMap<usize, EntryKind> =
            others.into_iter().map(|(at, entry)| (at.index(manifest.len()), entry.kind)).collect();
        let mut entries: Vec<Entry> = manifest.entries().map(|entry| entry.owned()).collect();
        kinds.iter().for_each(|(number, kind)| entries[*number].kind = kind.clone());
        let mut changed = manifest.clone();
        changed.change(&kinds.into_iter().collect::<Vec<_>>());
        prop_assert_eq!(changed, Manifest::new(entries));
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
}
