//! User namespaces made, filled and joined.

use std::fs;
use std::os::fd::AsFd;

use super::*;
use crate::identity::{namespace_inode, namespace_inode_of};
use crate::process::{descendants, wait_any_nohang};
use crate::trial::{become_ordinary, in_child, need_root};

fn own_map() -> String {
    let text = fs::read_to_string("/proc/self/uid_map").expect("the own map can be read");
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_process_with_many_threads_makes_a_user_namespace() {
    // Here, on a thread of the harness, and not in a forked child: that is the point.
    testkit::require!(testkit::Ability::Root);
    let range = [IdMap { inside: 0, outside: 1_000_000, count: 65_536 }];
    let namespace = new_user_namespace(&range, &range, false).expect("root may");
    let own = namespace_inode(std::path::Path::new("/proc/self/ns/user")).expect("it is there");
    assert_ne!(namespace_inode_of(namespace.as_fd()).expect("it is open"), own);
    in_child(|| {
        enter(namespace.as_fd(), CloneFlags::NEWUSER).expect("root may join it");
        assert_eq!(own_map(), "0 1000000 65536");
    });
}

#[test]
fn the_process_that_held_a_user_namespace_is_gone() {
    in_child(|| {
        become_ordinary();
        let uid = [IdMap::single(0, rustix::process::getuid().as_raw())];
        let gid = [IdMap::single(0, rustix::process::getgid().as_raw())];
        let namespace = new_user_namespace(&uid, &gid, true).expect("an ordinary user may map itself");
        assert!(descendants(rustix::process::getpid()).expect("/proc can be read").is_empty());
        assert_eq!(wait_any_nohang().expect("no child is no error"), None);
        enter(namespace.as_fd(), CloneFlags::NEWUSER).expect("its owner may join it");
        assert!(rustix::process::getuid().is_root());
        unshare(CloneFlags::NEWNS | CloneFlags::NEWUTS).expect("root of the namespace may");
        set_host_name("trial").expect("the name is ours");
    });
}

#[test]
fn a_map_of_ids_that_are_not_ours_is_refused_and_leaves_nothing() {
    in_child(|| {
        become_ordinary();
        let map = [IdMap { inside: 0, outside: 0, count: 10 }];
        let error = new_user_namespace(&map, &map, true).expect_err("those ids are others'");
        assert_eq!(error.errno(), rustix::io::Errno::PERM);
        assert!(error.to_string().contains("gid_map (0 0 10)"), "{error}");
        assert!(descendants(rustix::process::getpid()).expect("/proc can be read").is_empty());
    });
}

#[test]
fn a_process_is_joined_by_its_pidfd() {
    in_child(|| {
        need_root();
        let child = crate::trial::fork(CloneFlags::NEWUTS | CloneFlags::NEWIPC, || {
            loop {
                rustix::event::pause();
            }
        });
        let theirs = open(Some(child.pid), Kind::Uts).expect("it is our child");
        enter(child.pidfd.as_fd(), CloneFlags::NEWUTS | CloneFlags::NEWIPC).expect("root may join");
        let own = open(None, Kind::Uts).expect("it is ours");
        assert_eq!(namespace_inode_of(own.as_fd()).ok(), namespace_inode_of(theirs.as_fd()).ok());
        crate::process::kill_tree(child.pid).expect("it is ours");
    });
}
