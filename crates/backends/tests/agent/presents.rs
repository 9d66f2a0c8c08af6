//! Synced trees on the machine itself: what was shown last is what is seen.

use std::path::Path;
use std::sync::Barrier;
use std::thread;

use testyard_machine::Connection;
use testyard_machine::client::synced;
use testyard_protocol::Place;
use testyard_trees::{Entry, EntryKind, Manifest, Offer, TreeHash};

use crate::fixture::{Machine, run};

/// Where trees are shown.
const SHOWN: &str = "/shown/tree";

/// Brings a tree of one link `which` to the machine.
fn bring(connection: &mut Connection, target: &str) -> TreeHash {
    let link = Entry { path: "which".into(), kind: EntryKind::Link { target: target.into() } };
    let manifest = Manifest::new(vec![link]);
    let hash = manifest.hash();
    let open = |path: &Path| panic!("{} has no content", path.display());
    let offer = Offer { open: &open, manifest: &manifest, hash, packed: false, base: None };
    connection.sync_tree(None, offer).expect("sent");
    hash
}

fn show(connection: &mut Connection, hash: TreeHash, path: &str) {
    let there = connection.present_synced(synced(&[hash], Path::new(path), None)).expect("shown");
    assert!(there, "the machine has it");
}

fn seen(connection: &mut Connection, path: &str) -> String {
    run(connection, Place::Machine, &format!("readlink {path}/which")).ok()
}

/// How many mounts there are at a path of the machine.
fn mounts(connection: &mut Connection, path: &str) -> String {
    run(connection, Place::Machine, &format!("grep -c ' {path} ' /proc/self/mountinfo")).text
}

#[test]
fn two_clients_at_once_leave_one_tree_and_the_machine_knows_which() {
    const ROUNDS: usize = 20;
    let machine = Machine::namespace();
    let mut clients = [machine.connect(), machine.connect()];
    let trees = ["a", "b"].map(|name| bring(&mut clients[0], name));
    let [client, _] = &mut clients;
    trees.iter().for_each(|tree| show(client, *tree, SHOWN));
    // Kernels before 6.5 keep the old one below.
    let replaces = mounts(client, SHOWN) == "1";
    let barrier = &Barrier::new(2);
    for round in 0..ROUNDS {
        let path = &format!("/shown/round-{round}");
        thread::scope(|scope| {
            for (client, hash) in clients.iter_mut().zip(trees) {
                scope.spawn(move || {
                    barrier.wait();
                    show(client, hash, path);
                });
            }
        });
        let [client, _] = &mut clients;
        assert!(!replaces || mounts(client, path) == "1", "both are there, round {round}");
        // The machine does nothing for a tree that it takes for the one that is seen.
        for number in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            show(client, trees[number], path);
            assert_eq!(seen(client, path), ["a", "b"][number], "round {round}");
        }
    }
}

#[test]
fn a_tree_within_another_is_shown_again_after_that_was_replaced() {
    let machine = Machine::namespace();
    let mut client = machine.connect();
    let [outer, inner, next] = ["outer", "inner", "next"].map(|name| bring(&mut client, name));
    let below = format!("{SHOWN}/below");
    show(&mut client, outer, SHOWN);
    show(&mut client, inner, &below);
    assert_eq!(seen(&mut client, &below), "inner");
    show(&mut client, next, SHOWN);
    assert_eq!(seen(&mut client, SHOWN), "next");
    show(&mut client, inner, &below);
    assert_eq!((seen(&mut client, &below), seen(&mut client, SHOWN)), ("inner".to_owned(), "next".to_owned()));
}

#[test]
fn many_clients_at_once_are_all_answered() {
    let machine = Machine::namespace();
    let mut client = machine.connect();
    let trees = ["a", "b"].map(|name| bring(&mut client, name));
    for round in 0..10 {
        thread::scope(|scope| {
            for number in 0..4 {
                let mut other = machine.connect();
                scope.spawn(move || show(&mut other, trees[(round + number) % 2], SHOWN));
            }
        });
    }
    show(&mut client, trees[1], SHOWN);
    assert_eq!(seen(&mut client, SHOWN), "b");
}
