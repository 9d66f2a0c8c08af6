//! A receiver has what the sender has: random trees, random edits, one sync after the other, over a socket.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use proptest::prelude::*;
use testyard_sync::{Scan, Tree, TreeOptions};
use testyard_trees::{Manifest, Offer, Owner, ReceiveError, Received, SendError, Sent, Store, TreeHash, open_below};
use testyard_trees::{receive, send};

fn us() -> Owner {
    Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

fn root_of(path: &Path) -> OwnedFd {
    File::open(path).expect("a folder").into()
}

/// Sends a scan to a store, over a socket; what both ends say.
fn exchange(
    work: &Path,
    scan: &Scan,
    base: Option<(TreeHash, &Manifest)>,
    store: &Store,
    (overlays, packed): (bool, bool),
) -> (Result<Sent, SendError>, Result<Received, ReceiveError>) {
    let root = root_of(work);
    let (mut ours, mut theirs) = UnixStream::pair().expect("sockets");
    thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let mut output = theirs.try_clone().expect("a socket");
            let received = receive(store, us(), overlays, &mut theirs, &mut output);
            let _ = theirs.shutdown(std::net::Shutdown::Both);
            received
        });
        let mut input = ours.try_clone().expect("a socket");
        let open = |path: &Path| open_below(root.as_fd(), path);
        let offer = Offer { open: &open, manifest: scan.manifest(), hash: scan.hash, packed, base };
        let sent = send(offer, &mut input, &mut ours);
        let _ = ours.shutdown(std::net::Shutdown::Both);
        (sent, receiver.join().expect("no panic"))
    })
}

/// What is at each path of a tree: `d`, a link's target, or a file's mode and content.
type Seen = BTreeMap<PathBuf, Vec<u8>>;

/// What an overlay of a tree's layers shows.
fn merged(store: &Store, hash: TreeHash) -> Seen {
    let record = store.find(hash, us()).expect("it is there");
    let mut seen = Seen::new();
    for layer in record.layers.iter().rev() {
        lay(&store.layer(layer), Path::new(""), &mut seen);
    }
    seen
}

fn lay(layer: &Path, below: &Path, seen: &mut Seen) {
    for entry in fs::read_dir(layer.join(below)).expect("a folder") {
        let entry = entry.expect("an entry");
        let path = below.join(entry.file_name());
        let facts = entry.metadata().expect("it is there");
        let was_folder = seen.get(&path).is_some_and(|what| what == b"d");
        if facts.is_dir() {
            if !was_folder {
                seen.insert(path.clone(), b"d".to_vec());
            }
            lay(layer, &path, seen);
            continue;
        }
        seen.retain(|known, _| !known.starts_with(&path));
        if facts.file_type().is_char_device() {
            assert_eq!(facts.rdev(), 0, "a mark that something is gone");
            continue;
        }
        let what = match fs::read_link(layer.join(&path)) {
            Ok(target) => target.into_os_string().as_bytes().to_vec(),
            Err(_) => {
                assert_eq!(facts.mode() & 0o7777 & !0o755, 0, "{path:?}");
                [&[u8::from(facts.mode() & 0o100 != 0)], fs::read(layer.join(&path)).expect("a file").as_slice()]
                    .concat()
            }
        };
        seen.insert(path, what);
    }
}

/// What the working tree shows, without folders in which there is nothing.
fn shown(work: &Path, scan: &Scan) -> Seen {
    let mut seen = Seen::new();
    for entry in scan.manifest().entries() {
        for above in entry.path.ancestors().skip(1).filter(|above| *above != Path::new("")) {
            seen.insert(above.to_owned(), b"d".to_vec());
        }
        let path = work.join(entry.path);
        let what = match fs::read_link(&path) {
            Ok(target) => target.into_os_string().as_bytes().to_vec(),
            Err(_) => {
                let mode = fs::metadata(&path).expect("a file").permissions().mode();
                [&[u8::from(mode & 0o100 != 0)], fs::read(&path).expect("a file").as_slice()].concat()
            }
        };
        seen.insert(entry.path.to_owned(), what);
    }
    seen
}

#[derive(Debug, Clone)]
enum Edit {
    Write(String, Vec<u8>, usize, bool),
    Link(String, String),
    Remove(String),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let path = "[a-c\u{e9}]{1,2}(/[a-c]{1,2}){0,2}";
    let content =
        (prop::collection::vec(any::<u8>(), 0..40), prop_oneof![Just(0_usize), Just(1), Just(3000), Just(9000)]);
    let edit = prop_oneof![
        6 => (path, content, any::<bool>()).prop_map(|(path, (bytes, times), exec)| Edit::Write(path, bytes, times, exec)),
        1 => (path, "[a-c/.]{1,6}").prop_map(|(path, target)| Edit::Link(path, target)),
        3 => path.prop_map(Edit::Remove),
    ];
    prop::collection::vec(edit, 0..25)
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_dir() => {
            for entry in fs::read_dir(path).expect("a folder") {
                remove(&entry.expect("an entry").path());
            }
            fs::remove_dir(path).expect("it is empty");
        }
        Ok(_) => fs::remove_file(path).expect("it is there"),
        Err(_) => {}
    }
}

fn make_way(work: &Path, path: &Path) {
    for above in path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev().filter(|above| *above != Path::new(""))
    {
        let full = work.join(above);
        if !fs::symlink_metadata(&full).is_ok_and(|facts| facts.is_dir()) {
            remove(&full);
            fs::create_dir(&full).expect("there is room");
        }
    }
}

fn apply(work: &Path, edit: &Edit) {
    match edit {
        Edit::Write(path, bytes, times, executable) => {
            make_way(work, Path::new(path));
            let path = work.join(path);
            remove(&path);
            let mut content = bytes.clone();
            content.extend((0..*times).flat_map(|line| format!("line {line} of many\n").into_bytes()));
            fs::write(&path, content).expect("there is room");
            let mode = if *executable { 0o700 } else { 0o640 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
        }
        Edit::Link(path, target) => {
            make_way(work, Path::new(path));
            remove(&work.join(path));
            symlink(target, work.join(path)).expect("there is room");
        }
        Edit::Remove(path) => remove(&work.join(path)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_receiver_has_what_the_sender_has(
        rounds in prop::collection::vec(edits(), 1..5),
        overlays in any::<bool>(),
        packed in any::<bool>(),
        with_base in any::<bool>(),
    ) {
        // The marks of an overlay are root's to make.
        let overlays = overlays && us().uid == 0;
        let (work, place) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let store = Store::open(place.path()).expect("a store");
        let tree = Tree::open(work.path(), TreeOptions::default()).expect("a tree");
        let mut before: Vec<(Scan, Seen)> = Vec::new();
        for edits in rounds {
            for edit in &edits {
                apply(work.path(), edit);
            }
            let scan = tree.scan().expect("a scan");
            let base = before.last().filter(|_| with_base).map(|(scan, _)| (scan.hash, scan.manifest()));
            let (sent, received) = exchange(work.path(), &scan, base, &store, (overlays, packed));
            prop_assert_eq!(received.expect("received").hash, scan.hash);
            sent.expect("sent");
            let now = shown(work.path(), &scan);
            prop_assert_eq!(merged(&store, scan.hash), now.clone());
            before.push((scan, now));
        }
        // Those before are as they were.
        for (scan, seen) in before {
            prop_assert_eq!(merged(&store, scan.hash), seen);
        }
    }
}

#[test]
fn of_a_large_file_only_what_changed_travels_and_holes_stay_holes() {
    let (work, place) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let store = Store::open(place.path()).expect("a store");
    let tree = Tree::open(work.path(), TreeOptions::default()).expect("a tree");
    let mut state = 7_u64;
    let mut noise = |length: usize| -> Vec<u8> {
        (0..length)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect()
    };
    let mut bytes = noise(4 << 20);
    fs::write(work.path().join("large"), &bytes).expect("there is room");
    let sparse = File::create(work.path().join("sparse")).expect("a file");
    sparse.set_len(64 << 20).expect("a hole");
    let first = tree.scan().expect("a scan");
    let (sent, received) = exchange(work.path(), &first, None, &store, (false, false));
    received.expect("received");
    assert!(sent.expect("sent").bytes < 5 << 20, "a hole travels as its length");
    let record = store.find(first.hash, us()).expect("it is there");
    let facts = fs::metadata(store.layer(&record.layers[0]).join("sparse")).expect("a file");
    assert!(facts.len() == 64 << 20 && facts.blocks() < 1000, "{} blocks", facts.blocks());

    let at = 1_234_567;
    bytes.splice(at..at + 3, noise(1000));
    fs::write(work.path().join("large"), &bytes).expect("there is room");
    let second = tree.scan_again(&first).expect("a scan");
    let base = Some((first.hash, first.manifest()));
    let (sent, received) = exchange(work.path(), &second, base, &store, (false, false));
    received.expect("received");
    let sent = sent.expect("sent");
    assert!(sent.files == 1 && sent.bytes < 200 << 10, "{sent:?}");
    assert_eq!(merged(&store, second.hash), shown(work.path(), &second));
}

#[test]
fn a_file_that_changes_is_noticed_and_what_came_before_is_used_again() {
    let (work, place) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let store = Store::open(place.path()).expect("a store");
    let tree = Tree::open(work.path(), TreeOptions::default()).expect("a tree");
    for number in 0..300 {
        fs::write(work.path().join(format!("{number:03}")), vec![b'x'; 2000 + number]).expect("there is room");
    }
    let scan = tree.scan().expect("a scan");
    fs::write(work.path().join("299"), "other").expect("there is room");
    let (sent, received) = exchange(work.path(), &scan, None, &store, (false, false));
    assert!(matches!(sent, Err(SendError::Changed(path)) if path == Path::new("299")));
    assert!(matches!(received, Err(ReceiveError::Changed)));
    assert!(store.find(scan.hash, us()).is_none() && store.trees(us()).is_empty(), "half a tree is none");

    let again = tree.scan_again(&scan).expect("a scan");
    let (sent, received) = exchange(work.path(), &again, None, &store, (false, false));
    received.expect("received");
    assert_eq!(sent.expect("sent").files, 1, "the others were there");
    assert_eq!(merged(&store, again.hash), shown(work.path(), &again));

    store.sweep(&|folder, name| remove(&folder.join(name))).expect("swept");
    assert_eq!(fs::read_dir(place.path().join("making")).expect("a folder").count(), 0);
    assert_eq!(merged(&store, again.hash), shown(work.path(), &again));
}

#[test]
fn trees_that_nothing_names_are_removed_and_those_in_use_stay() {
    let (work, place) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let store = Store::open(place.path()).expect("a store");
    let tree = Tree::open(work.path(), TreeOptions::default()).expect("a tree");
    let mut all = Vec::new();
    for number in 0..5 {
        fs::write(work.path().join("file"), format!("{number}")).expect("there is room");
        let scan = tree.scan().expect("a scan");
        exchange(work.path(), &scan, None, &store, (false, false)).1.expect("received");
        all.push(scan.hash);
    }
    store.forget(1, &[format!("{}-", all[0])]);
    store.sweep(&|folder, name| remove(&folder.join(name))).expect("swept");
    let there: Vec<bool> = all.iter().map(|hash| store.find(*hash, us()).is_some()).collect();
    assert_eq!(there, [true, false, false, false, true]);
    assert_eq!(merged(&store, all[0])[Path::new("file")], b"\x000");
    assert_eq!(fs::read_dir(place.path().join("layers")).expect("a folder").count(), 4, "two layers, and their lists");
}

#[test]
fn a_sender_sends_nothing_that_it_did_not_list() {
    // A receiver that asks for what it was never offered.
    let work = tempfile::tempdir().expect("a folder");
    fs::write(work.path().join("listed"), "x").expect("there is room");
    symlink("/etc/passwd", work.path().join("link")).expect("there is room");
    let scan = Tree::open(work.path(), TreeOptions::default()).expect("a tree").scan().expect("a scan");
    for needed in [&[1_u8, 5][..], &[1, 0], &[2, 0, 0], &[0xff; 12]] {
        let root = root_of(work.path());
        let open = |path: &Path| open_below(root.as_fd(), path);
        let offer = Offer { open: &open, manifest: scan.manifest(), hash: scan.hash, packed: false, base: None };
        let mut says = b"tysync01".to_vec();
        says.push(2);
        says.extend((needed.len() as u32).to_le_bytes());
        says.extend(needed);
        let mut sent = Vec::new();
        let outcome = send(offer, &mut says.as_slice(), &mut sent);
        assert!(outcome.is_err(), "{needed:?}");
        assert!(!sent.windows(5).any(|window| window == b"root:"), "{needed:?}");
    }
}
