//! What a sender may say: a conversation that was spoiled anywhere leaves a receiver with a whole tree, or with none.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;

use proptest::prelude::*;
use testyard_sync::{Tree, TreeOptions};
use testyard_trees::{Delta, Manifest, Offer, Owner, Store, open_below, receive, send};

/// How a conversation is spoiled.
#[derive(Debug, Clone)]
enum Spoil {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, prop::sample::Index),
    Remove(prop::sample::Index, u8),
}

impl Spoil {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Flip(at, mask) => {
                let at = at.index(bytes.len());
                bytes[at] ^= mask;
            }
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Self::Insert(at, new) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
            Self::Repeat(from, to) => {
                let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                let again = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.extend(again);
            }
            Self::Remove(at, count) => {
                let at = at.index(bytes.len());
                let end = bytes.len().min(at + usize::from(*count));
                bytes.drain(at..end);
            }
        }
    }
}

fn spoils() -> impl Strategy<Value = Vec<Spoil>> {
    let at = any::<prop::sample::Index>;
    let one = prop_oneof![
        6 => (at(), 1_u8..).prop_map(|(at, mask)| Spoil::Flip(at, mask)),
        1 => at().prop_map(Spoil::Cut),
        2 => (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, new)| Spoil::Insert(at, new)),
        1 => (at(), at()).prop_map(|(from, to)| Spoil::Repeat(from, to)),
        2 => (at(), 1_u8..40).prop_map(|(at, count)| Spoil::Remove(at, count)),
    ];
    prop::collection::vec(one, 1..4)
}

fn us() -> Owner {
    Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

/// Writes down what passes.
struct Heard<'w> {
    socket: UnixStream,
    said: &'w mut Vec<u8>,
}

impl Write for Heard<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.socket.write(bytes)?;
        self.said.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// What a sender says of a small tree, packed or not, with the pauses taken out.
fn said(packed: bool) -> Vec<u8> {
    static SAID: [OnceLock<Vec<u8>>; 2] = [OnceLock::new(), OnceLock::new()];
    SAID[usize::from(packed)].get_or_init(|| converse(packed)).clone()
}

fn converse(packed: bool) -> Vec<u8> {
    let (work, place) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    fs::create_dir_all(work.path().join("sub/deep")).expect("folders");
    for (name, text) in [("a", "one"), ("sub/b", ""), ("sub/deep/c", "three and more"), ("sub-d", "four")] {
        fs::write(work.path().join(name), text).expect("there is room");
    }
    std::os::unix::fs::symlink("sub/b", work.path().join("link")).expect("a link");
    File::create(work.path().join("hole")).and_then(|file| file.set_len(100_000)).expect("there is room");
    let scan = Tree::open(work.path(), TreeOptions::default()).expect("a tree").scan().expect("a scan");
    let store = Store::open(place.path()).expect("a store");
    let (ours, mut theirs) = UnixStream::pair().expect("sockets");
    let root = File::open(work.path()).expect("a folder");
    let mut said = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut output = theirs.try_clone().expect("a socket");
            receive(&store, us(), false, &mut theirs, &mut output).expect("received");
        });
        let open = |path: &Path| open_below(root.as_fd(), path);
        let offer = Offer { open: &open, manifest: scan.manifest(), hash: scan.hash, packed, base: None };
        let mut input = ours.try_clone().expect("a socket");
        send(offer, &mut input, &mut Heard { socket: ours, said: &mut said }).expect("sent");
    });
    said
}

/// Receives what was said, into a store of its own.
fn hear(bytes: &[u8]) -> Result<(), TestCaseError> {
    let outer = tempfile::tempdir().expect("a folder");
    let store = Store::open(&outer.path().join("store")).expect("a store");
    let outcome = receive(&store, us(), false, &mut &*bytes, &mut Vec::new());
    prop_assert_eq!(store.trees(us()).len(), usize::from(outcome.is_ok()));
    prop_assert_eq!(fs::read_dir(outer.path()).expect("still there").count(), 1, "something is beside the store");
    if let Ok(received) = outcome {
        let layer = store.layer(&store.find(received.hash, us()).expect("it is there").layers[0]);
        let scan = Tree::open(&layer, TreeOptions::default()).expect("a tree").scan().expect("a scan");
        prop_assert_eq!(scan.hash, received.hash, "a tree is there under another's hash");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_spoiled_conversation_is_a_whole_tree_or_none(packed in any::<bool>(), spoils in spoils()) {
        let mut bytes = said(packed);
        spoils.iter().for_each(|spoil| spoil.apply(&mut bytes));
        hear(&bytes)?;
    }

    #[test]
    fn any_bytes_are_a_whole_tree_or_none(packed in any::<bool>(), tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = b"tysync01".to_vec();
        bytes.push(u8::from(packed));
        bytes.extend(&tail);
        hear(&bytes)?;
        // A list that is understood is written as it was read.
        if let Ok(manifest) = Delta::decode(&tail).and_then(Delta::into_whole) {
            let again = Delta::decode(&Delta::encode_whole(&manifest)).and_then(Delta::into_whole);
            prop_assert_eq!(again, Ok(manifest));
        }
    }

    #[test]
    fn a_list_with_something_below_a_file_is_no_tree(paths in prop::collection::btree_set("[ab.]{1,2}(/[ab.]{1,2}){0,2}", 1..9)) {
        use testyard_trees::{Entry, EntryKind};
        let named = paths.iter().filter(|path| path.split('/').all(|name| name != "." && name != ".."));
        let named: Vec<&String> = named.collect();
        let entry = |path: &&String| Entry { path: path.as_str().into(), kind: EntryKind::Link { target: "x".into() } };
        let list = Delta::encode_whole(&Manifest::new(named.iter().map(entry).collect()));
        let below = |path: &String| named.iter().any(|other| path.strip_prefix(other.as_str()).is_some_and(|rest| rest.starts_with('/')));
        let is_tree = !named.iter().any(|path| below(path));
        prop_assert_eq!(Delta::decode(&list).and_then(Delta::into_whole).is_ok(), is_tree, "{:?}", named);
    }
}

#[test]
fn what_was_not_spoiled_is_received() {
    for packed in [false, true] {
        let bytes = said(packed);
        let outer = tempfile::tempdir().expect("a folder");
        let store = Store::open(outer.path()).expect("a store");
        receive(&store, us(), false, &mut bytes.as_slice(), &mut Vec::new()).expect("received");
    }
}
