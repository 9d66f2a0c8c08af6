//! Real groups, each named after the process that tests it and removed at the end.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use rustix::io::Errno;

use super::*;
use crate::mount::{RootMount, pivot_into};
use crate::process::{CloneFlags, descendants, pidfd_wait};
use crate::trial::{fork, in_child, need_root, skip, stage, succeeds};

fn hierarchy() -> Hierarchy {
    need_root();
    let hierarchy = Hierarchy::detect().expect("the tables can be read");
    if hierarchy == Hierarchy::None || hierarchy.writable().is_empty() {
        skip("control groups that can be written");
    }
    hierarchy
}

/// Runs the test in a forked process, and removes its groups also when it fails.
#[track_caller]
fn with_groups(trial: impl FnOnce()) {
    in_child(|| {
        let outcome = catch_unwind(AssertUnwindSafe(trial));
        for hierarchy in [Hierarchy::detect(), Hierarchy::detect_v2()].into_iter().flatten() {
            for what in ["life", "limits", "half", "nest", "pivot", "hand", "two"] {
                if let Ok(group) = Group::open(&hierarchy, &name(what)) {
                    let _ = group.remove();
                }
            }
        }
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    });
}

fn name(what: &str) -> String {
    format!("testyard-trial-{}-{what}", rustix::process::getpid().as_raw_nonzero())
}

/// The paths of a group, for looking at it from outside.
fn paths(hierarchy: &Hierarchy, name: &str) -> Vec<PathBuf> {
    match hierarchy {
        Hierarchy::V1(mounts) => mounts.iter().map(|mount| mount.own.join(name)).collect(),
        Hierarchy::V2(mount) => vec![mount.base.join(name)],
        Hierarchy::None => Vec::new(),
    }
}

fn exists(hierarchy: &Hierarchy, name: &str) -> Vec<bool> {
    paths(hierarchy, name).iter().map(|path| path.exists()).collect()
}

#[test]
fn a_group_is_made_used_and_removed() {
    with_groups(|| {
        let hierarchy = hierarchy();
        let name = name("life");
        let group = Group::create(&hierarchy, &name).expect("a group can be made");
        assert!(exists(&hierarchy, &name).iter().all(|exists| *exists));
        let unavailable = group.set_limits(Some(64 << 20), Some(20), Some(1.5)).expect("limits can be set");
        let child = fork(CloneFlags::NONE, || {
            group.attach_self().expect("the group can be joined");
            let filled = vec![1_u8; 16 << 20];
            let mut sum = 0_u64;
            for round in 0..5_u64 {
                sum += filled.iter().map(|byte| u64::from(*byte) + round).sum::<u64>();
            }
            i32::from(sum == 0)
        });
        succeeds(&child);
        let usage = group.usage();
        let has = |controller| hierarchy.controllers().expect("they can be read").contains(&controller);
        if has(Controller::Memory) {
            assert!(!unavailable.contains(&"memory"));
            assert!(usage.memory_peak.is_some_and(|peak| peak > (16 << 20) && peak <= (64 << 20)), "{usage:?}");
        }
        if has(Controller::CpuAccounting) {
            assert!(usage.cpu_us.is_some_and(|cpu| cpu > 0), "{usage:?}");
        }
        assert_eq!((usage.pids, usage.oom_kills), (Some(0), Some(0)), "{usage:?}");
        group.reset().expect("the accounts can be reset");
        let usage = group.usage();
        assert!(usage.memory_peak.is_none_or(|peak| peak < (16 << 20)), "{usage:?}");
        let identity = group.identity().expect("it is there");
        assert_eq!(Group::open(&hierarchy, &name).expect("it is there").identity().expect("it is"), identity);
        group.remove().expect("it is ours");
        assert!(!exists(&hierarchy, &name).iter().any(|exists| *exists));
        assert!(Group::open(&hierarchy, &name).expect_err("it is gone").is_absent());
    });
}

#[test]
fn limits_hold() {
    with_groups(|| {
        let hierarchy = hierarchy();
        let group = Group::create(&hierarchy, &name("limits")).expect("a group can be made");
        let unavailable = group.set_limits(Some(32 << 20), Some(3), None).expect("limits can be set");
        if !unavailable.is_empty() {
            group.remove().expect("it is ours");
            skip("limits of memory and processes");
        }
        let eater = fork(CloneFlags::NONE, || {
            group.attach_self().expect("the group can be joined");
            i32::from(vec![1_u8; 128 << 20].iter().all(|byte| *byte == 1))
        });
        let status = pidfd_wait(eater.pidfd.as_fd(), false).expect("it is our child");
        assert_eq!((status, group.usage().oom_kills), (Some(libc::SIGKILL), Some(1)));
        let bomb = fork(CloneFlags::NONE, || {
            group.attach_self().expect("the group can be joined");
            let mut made = 0;
            for _ in 0..10 {
                // SAFETY: the child ends at once.
                match unsafe { libc::fork() } {
                    0 => loop {
                        rustix::event::pause();
                    },
                    -1 => break,
                    _ => made += 1,
                }
            }
            made
        });
        let status = pidfd_wait(bomb.pidfd.as_fd(), false).expect("it is our child");
        assert_eq!(status, Some(2 << 8), "two children beside itself");
        assert_eq!(group.list_processes().expect("they can be listed").len(), 2);
        group.set_limits(Some(256 << 20), None, None).expect("a limit can be raised");
        group.set_limits(Some(128 << 20), None, None).expect("and lowered");
        assert_eq!(group.set_limits(None, None, Some(-1.0)).expect_err("nonsense").errno(), Errno::INVAL);
        group.remove().expect("it ends what is inside");
    });
}

#[test]
fn a_group_that_exists_in_one_tree_is_made_in_none() {
    with_groups(|| {
        let hierarchy = hierarchy();
        let name = name("half");
        let last = paths(&hierarchy, &name).pop().expect("there is a tree");
        std::fs::create_dir(&last).expect("it can be made");
        let error = Group::create(&hierarchy, &name).expect_err("it exists");
        assert_eq!(error.errno(), Errno::EXIST);
        std::fs::remove_dir(&last).expect("it is still there");
        assert!(!exists(&hierarchy, &name).iter().any(|exists| *exists));
        for bad in ["", ".", "..", "a/../b", "/a", "../a"] {
            let error = Group::create(&hierarchy, bad).expect_err("it is no name");
            assert_eq!(error.errno(), Errno::INVAL, "{bad:?}");
        }
    });
}

#[test]
fn nested_groups_go_with_everything_that_runs_in_them() {
    with_groups(|| {
        let hierarchy = hierarchy();
        let name = name("nest");
        let group = Group::create(&hierarchy, &format!("{name}/inner")).expect("groups can be made");
        let child_group = group.child("environment").expect("a child can be made");
        assert_eq!(child_group.name(), format!("{name}/inner/environment"));
        let (mut ready, started) = std::io::pipe().expect("a pipe can be made");
        fork(CloneFlags::NONE, || {
            child_group.attach_self().expect("the group can be joined");
            crate::process::set_session().expect("it leads no group");
            (&started).write_all(b"!").expect("the test reads");
            loop {
                rustix::event::pause();
            }
        });
        ready.read_exact(&mut [0]).expect("the child says that it runs");
        assert_eq!(group.list_processes().expect("they can be listed").len(), 1);
        drop(child_group);
        Group::open(&hierarchy, &name).expect("it is there").remove().expect("it is ours");
        assert!(!exists(&hierarchy, &name).iter().any(|exists| *exists));
        let left = descendants(rustix::process::getpid()).expect("/proc can be read");
        assert_eq!(left.len(), 1, "only a zombie");
        group.remove().expect("that it is gone already is no error");
    });
}

#[test]
fn a_group_is_used_where_no_path_leads_to_it() {
    with_groups(|| {
        let hierarchy = hierarchy();
        let name = name("pivot");
        let group = Group::create(&hierarchy, &name).expect("a group can be made");
        let inside = fork(CloneFlags::NONE, || {
            let root = stage();
            pivot_into(&root, RootMount::Mounted).expect("the root can be exchanged");
            let environment = group.child("environment").expect("a group can be made");
            let command = fork(CloneFlags::NONE, || {
                environment.attach_self().expect("the group can be joined");
                0
            });
            succeeds(&command);
            assert!(environment.usage().pids == Some(0));
            environment.remove().expect("it is ours");
            0
        });
        succeeds(&inside);
        group.remove().expect("it is ours");
        assert!(!exists(&hierarchy, &name).iter().any(|exists| *exists));
    });
}

#[test]
fn a_group_that_was_handed_on_serves_its_owner() {
    with_groups(|| {
        let hierarchy = hierarchy();
        let group = Group::create(&hierarchy, &name("hand")).expect("a group can be made");
        group.chown(1000, 1000).expect("root may");
        let owner = fork(CloneFlags::NONE, || {
            group.attach_self().expect("the group can be joined");
            crate::trial::become_ordinary();
            let child = group.child("own").expect("the owner may make groups");
            child.attach_self().expect("and join them");
            group.set_limits(None, Some(1), None).expect_err("but not change its limits");
            group.attach_self().expect("and leave them");
            child.remove().expect("and remove them");
            0
        });
        succeeds(&owner);
        group.remove().expect("it is ours");
    });
}

#[test]
fn the_second_version_works_beside_the_first() {
    with_groups(|| {
        need_root();
        let hierarchy = Hierarchy::detect_v2().expect("the tables can be read");
        if hierarchy == Hierarchy::None {
            skip("a mounted cgroup v2");
        }
        let name = name("two");
        let group = Group::create(&hierarchy, &name).expect("a group can be made");
        let leaf = group.child("leaf").expect("a child can be made");
        let proof = crate::process::SingleThreaded::check().expect("there is one thread");
        let options = crate::process::CloneOptions { cgroup: leaf.clone_into(), ..Default::default() };
        let child = match crate::process::clone3(proof, CloneFlags::NONE, options).expect("a process can be made") {
            crate::process::Forked::Parent(child) => child,
            crate::process::Forked::Child => loop {
                rustix::event::pause();
            },
        };
        assert_eq!(leaf.list_processes().expect("they can be listed"), [child.pid]);
        group.kill().expect("it is ours");
        assert_eq!(pidfd_wait(child.pidfd.as_fd(), false).expect("it is our child"), Some(libc::SIGKILL));
        assert!(leaf.usage().cpu_us.is_some());
        let unavailable = leaf.set_limits(Some(1 << 30), Some(10), Some(1.0)).expect("nothing is refused");
        let has = |controller| hierarchy.controllers().expect("they can be read").contains(&controller);
        assert_eq!(unavailable.contains(&"memory"), !has(Controller::Memory));
        group.remove().expect("it is ours");
        assert!(!exists(&hierarchy, &name).iter().any(|exists| *exists));
    });
}
