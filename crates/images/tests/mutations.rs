//! Many wrong archives: whatever they hold, nothing outside the store changes, and a refusal leaves nothing.

mod support;

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use support::{Archive, root};
use testyard_images::{ImportOptions, Store};
use testyard_model::ByteSize;

fn options() -> ImportOptions {
    ImportOptions {
        flush: false,
        reserve: ByteSize(1),
        limit: ByteSize::mebibytes(4),
        entry_limit: 200,
        ..ImportOptions::new(0)
    }
}

/// Imports beside a folder that must stay as it is.
fn import(archive: &[u8]) -> Result<(), TestCaseError> {
    // In memory: hundreds of archives are unpacked.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let folder = folder.expect("a temporary folder");
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).expect("make");
    fs::write(outside.join("a"), "untouched").expect("write");
    let store = Store::open(&folder.path().join("images")).expect("a store");
    let imported = store.import(archive, None, &options());
    let names = |path: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(path).expect("list").map(|entry| entry.expect("entry").file_name()).collect();
        names.sort();
        names
    };
    prop_assert_eq!(names(folder.path()), ["images", "outside"]);
    prop_assert_eq!(names(&outside), ["a"]);
    prop_assert_eq!(fs::read_to_string(outside.join("a")).expect("read"), "untouched");
    prop_assert!(names(&store.path().join("temporary")).is_empty());
    match imported {
        Ok(image) => {
            prop_assert!(image.root.is_dir());
            prop_assert_eq!(store.list().expect("list").len(), 1);
        }
        Err(error) => {
            prop_assert!(!error.to_string().contains('\n'), "{}", error);
            prop_assert!(store.list().expect("list").is_empty());
        }
    }
    Ok(())
}

/// An archive with every kind of header in it.
fn rich() -> Vec<u8> {
    let mut archive = root()
        .file("etc/hostname", "box")
        .hard_link("etc/other", "etc/hostname")
        .pax(&[("path", b"etc/long name"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")])
        .file("short", "content")
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"4096")]);
    let mut map = b"1\n1024\n4\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"data");
    archive.header(b'0', b"sparse", b"", map.len() as u64, 0o644);
    archive.content(&map);
    archive.header(b'L', b"././@LongLink", b"", 120, 0);
    archive.content(&[b'n'; 120]);
    archive.file("cut", "x").end()
}

#[test]
fn the_rich_archive_itself_is_fine() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(&folder.path().join("images")).expect("a store");
    let image = store.import(&*rich(), None, &options()).expect("import");
    let sparse = fs::read(image.root.join("sparse")).expect("read");
    assert_eq!((sparse.len(), &sparse[1024..1028]), (4096, b"data".as_slice()));
    assert!(image.root.join("n".repeat(120)).is_file());
}

/// One change: where, and what.
#[derive(Debug, Clone)]
enum Change {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Double(prop::sample::Index),
    /// Overwrites a field of a header, its checksum put right.
    Field(prop::sample::Index, usize, Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<prop::sample::Index>;
    let field = prop::collection::vec(prop_oneof![Just(0), Just(b'7'), Just(b'/'), Just(b'.'), any::<u8>()], 1..16);
    prop_oneof![
        2 => (index(), any::<u8>()).prop_map(|(at, bits)| Change::Flip(at, bits)),
        1 => index().prop_map(Change::Cut),
        1 => index().prop_map(Change::Double),
        6 => (index(), 0_usize..500, field).prop_map(|(block, at, bytes)| Change::Field(block, at, bytes)),
    ]
}

fn apply(archive: &mut Vec<u8>, change: &Change) {
    if archive.len() < 1024 {
        return;
    }
    match change {
        Change::Flip(at, bits) => {
            let at = at.index(archive.len());
            archive[at] ^= bits;
        }
        Change::Cut(at) => archive.truncate(at.index(archive.len())),
        Change::Double(at) => {
            let begin = at.index(archive.len() / 512) * 512;
            let block = archive[begin..begin + 512].to_vec();
            archive.splice(begin..begin, block);
        }
        Change::Field(at, place, bytes) => {
            let begin = at.index(archive.len() / 512) * 512;
            let mut block: [u8; 512] = archive[begin..begin + 512].try_into().expect("512 bytes");
            let end = (place + bytes.len()).min(512);
            block[*place..end].copy_from_slice(&bytes[..end - place]);
            let mut fixed = Archive::default();
            fixed.block(block);
            archive[begin..begin + 512].copy_from_slice(&fixed.0);
        }
    }
}

/// Names made of what escapes are made of. `OUTSIDE` becomes the real path of a folder beside the store.
fn name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        5 => Just("a"), 5 => Just("b"), 3 => Just("c"), 3 => Just(".."), 1 => Just("."), 1 => Just(""), 2 => Just("outside"),
    ];
    (prop::bool::weighted(0.1), prop::collection::vec(part, 1..6))
        .prop_map(|(rooted, parts)| format!("{}{}", if rooted { "/" } else { "" }, parts.join("/")))
}

fn entry() -> impl Strategy<Value = (u8, String, String)> {
    let kind = prop_oneof![4 => Just(b'0'), 2 => Just(b'1'), 4 => Just(b'2'), 3 => Just(b'5'), 1 => Just(b'6'), 1 => Just(b'3')];
    (kind, name(), name())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_archives_do_no_harm(changes in prop::collection::vec(change(), 1..6), compressed in any::<bool>()) {
        let mut archive = rich();
        for change in &changes {
            apply(&mut archive, change);
        }
        if compressed {
            archive = zstd::encode_all(&*archive, 1).expect("in memory");
        }
        import(&archive)?;
    }

    #[test]
    fn hostile_names_do_no_harm(entries in prop::collection::vec(entry(), 1..14)) {
        let mut archive = Archive::default();
        for (kind, path, target) in &entries {
            let content: &[u8] = if *kind == b'0' { b"written" } else { b"" };
            archive = archive.entry(*kind, path, target, content);
        }
        import(&archive.end())?;
    }
}
