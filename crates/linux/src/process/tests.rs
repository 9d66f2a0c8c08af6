//! Real processes: made, waited for, ended, changed.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::io::Errno;

use super::*;
use crate::namespace::{IdMap, loopback_up, set_host_name, write_id_maps};
use crate::trial::{become_ordinary, fork, in_child, need_root, succeeds};

fn status_line(name: &str) -> String {
    let text = fs::read_to_string("/proc/self/status").expect("the own status can be read");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.expect("the line is there").trim().to_owned()
}

#[test]
fn a_process_with_several_threads_is_told() {
    // The harness runs this on a thread of its own.
    assert_eq!(SingleThreaded::check().expect_err("there are several threads").errno(), Errno::BUSY);
    in_child(|| {
        SingleThreaded::check().expect("a forked process has one thread");
    });
}

/// A child in new namespaces of every sort, with these maps, that looks around.
fn all_namespaces(uids: &[IdMap], gids: &[IdMap], deny_setgroups: bool) {
    let (mut told, tell) = std::io::pipe().expect("a pipe can be made");
    let child = fork(CloneFlags::ALL, || {
        let mut ready = [0];
        told.read_exact(&mut ready).expect("the parent says when the maps are written");
        become_user(&Credentials::default(), true).expect("root of the namespace exists");
        assert_eq!(rustix::process::getpid().as_raw_nonzero().get(), 1);
        assert!(rustix::process::getuid().is_root());
        set_host_name("trial").expect("the name is ours");
        assert_eq!(rustix::system::uname().nodename().to_bytes(), b"trial");
        loopback_up().expect("the network is ours");
        std::net::TcpListener::bind("127.0.0.1:8080").expect("loopback is up and every port is free");
        let proc = crate::mount::proc().expect("a fresh proc can be made");
        crate::mount::attach(proc.as_fd(), Path::new("/proc")).expect("and attached");
        assert_eq!(fs::read_link("/proc/self").expect("it is a link"), Path::new("1"));
        0
    });
    write_id_maps(child.pid, uids, gids, deny_setgroups).expect("the maps can be written");
    std::io::Write::write_all(&mut { tell }, b"!").expect("the child reads");
    succeeds(&child);
}

#[test]
fn root_makes_a_process_with_all_namespaces_and_a_range_of_ids() {
    in_child(|| {
        need_root();
        let range = [IdMap { inside: 0, outside: 1_000_000, count: 65_536 }];
        all_namespaces(&range, &range, false);
    });
}

#[test]
fn an_ordinary_user_makes_a_process_with_all_namespaces() {
    in_child(|| {
        become_ordinary();
        let uid = rustix::process::getuid().as_raw();
        let gid = rustix::process::getgid().as_raw();
        all_namespaces(&[IdMap::single(0, uid)], &[IdMap::single(0, gid)], true);
    });
}

#[test]
fn wait_statuses_are_those_of_waitpid() {
    in_child(|| {
        let child = fork(CloneFlags::NONE, || 3);
        assert_eq!(pidfd_wait(child.pidfd.as_fd(), false).expect("it is our child"), Some(3 << 8));
        let child = fork(CloneFlags::NONE, || {
            loop {
                rustix::event::pause();
            }
        });
        assert_eq!(pidfd_wait(child.pidfd.as_fd(), true).expect("it is our child"), None);
        assert_eq!(wait_any_nohang().expect("there is a child"), None);
        pidfd_signal(child.pidfd.as_fd(), libc::SIGKILL).expect("it is our child");
        assert_eq!(await_end(vec![child.pidfd], std::time::Duration::from_secs(5)).expect("poll works"), 0);
        let (pid, status, usage) = wait_any_nohang().expect("there is a child").expect("it has ended");
        assert_eq!((pid, status), (child.pid, libc::SIGKILL));
        assert!(usage.max_rss_bytes > 0);
        assert_eq!(wait_any_nohang().expect("no child is no error"), None);
    });
}

/// Starts a child that starts a grandchild in a session of its own; both wait. Returns the child once both are there.
fn start_family() -> Child {
    let (mut ready, started) = std::io::pipe().expect("a pipe can be made");
    let child = fork(CloneFlags::NONE, move || {
        fork(CloneFlags::NONE, || {
            set_session().expect("a new process leads no group");
            std::io::Write::write_all(&mut { started }, b"!").expect("the test reads");
            loop {
                rustix::event::pause();
            }
        });
        loop {
            rustix::event::pause();
        }
    });
    ready.read_exact(&mut [0]).expect("the grandchild says that it runs");
    child
}

#[test]
fn a_tree_is_listed_and_ended_whole() {
    in_child(|| {
        let child = start_family();
        let below = descendants(child.pid).expect("/proc can be read");
        assert_eq!(below.len(), 1, "{below:?}");
        let own = descendants(rustix::process::getpid()).expect("/proc can be read");
        assert_eq!(own, [child.pid, below[0]]);
        assert_eq!(kill_tree(child.pid).expect("the tree is ours"), KillReport { killed: 2, remaining: 0 });
        assert!(descendants(child.pid).expect("/proc can be read").is_empty());
    });
}

#[test]
fn a_subreaper_finds_orphans() {
    in_child(|| {
        set_subreaper(true).expect("anybody may reap");
        let child = start_family();
        pidfd_signal(child.pidfd.as_fd(), libc::SIGKILL).expect("it is our child");
        pidfd_wait(child.pidfd.as_fd(), false).expect("it is our child");
        let report = kill_descendants(rustix::process::getpid()).expect("the orphan is ours");
        assert_eq!(report, KillReport { killed: 1, remaining: 0 });
    });
}

#[test]
fn a_mark_in_the_environment_is_found() {
    in_child(|| {
        let mark = format!("{}", rustix::process::getpid().as_raw_nonzero());
        assert_eq!(environment_marked("TESTYARD_TRIAL", &mark).expect("/proc can be read"), []);
        let entry = std::ffi::CString::new(format!("TESTYARD_TRIAL={mark}")).expect("no NUL in it");
        let (mut ready, started) = std::io::pipe().expect("a pipe can be made");
        let child = fork(CloneFlags::NONE, move || {
            // The pipe closes at exec: that is when the mark is there.
            let _open = started;
            drop(execute(c"/bin/sleep", &[c"sleep".to_owned(), c"60".to_owned()], &[entry]));
            1
        });
        assert_eq!(ready.read(&mut [0]).expect("a pipe can be read"), 0);
        assert_eq!(environment_marked("TESTYARD_TRIAL", &mark).expect("/proc can be read"), [child.pid]);
        assert_eq!(environment_marked("TESTYARD_TRIA", &mark).expect("/proc can be read"), []);
        kill_tree(child.pid).expect("it is ours");
    });
}

#[test]
fn who_gives_everything_up_has_nothing() {
    in_child(|| {
        need_root();
        drop_all_capabilities().expect("root may give up");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status_line(set), "0000000000000000", "{set}");
        }
    });
}

#[test]
fn another_user_has_its_groups_and_keeps_capabilities_only_where_asked() {
    let user = Credentials { uid: 1000, gid: 1001, groups: vec![7, 8] };
    for keep in [false, true] {
        in_child(|| {
            need_root();
            limit_bounding_set(CapabilitySet::KILL).expect("root may limit itself");
            become_user(&user, keep).expect("root may become anybody");
            assert_eq!(status_line("Uid"), "1000\t1000\t1000\t1000");
            assert_eq!(status_line("Gid"), "1001\t1001\t1001\t1001");
            assert_eq!(status_line("Groups"), "7 8");
            assert_eq!(status_line("CapBnd"), format!("{:016x}", CapabilitySet::KILL.bits()));
            assert_eq!(status_line("CapEff") != "0000000000000000", keep);
            drop_all_capabilities().expect("anybody may give up");
            assert_eq!(status_line("CapEff"), "0000000000000000");
            become_user(&Credentials::default(), false).expect_err("there is no way back");
        });
    }
}

#[test]
fn descriptors_are_closed_but_those_named() {
    in_child(|| {
        let open = |_| std::mem::ManuallyDrop::new(fs::File::open("/dev/null").expect("it is there"));
        let files: Vec<_> = (0..5).map(open).collect();
        let [first, second, third, fourth, fifth] = files.as_slice() else { panic!("five were opened") };
        close_range_from(first.as_raw_fd(), &[fourth.as_fd(), second.as_fd()]).expect("the kernel is recent");
        let is_open = |file: &fs::File| rustix::io::fcntl_getfd(file).is_ok();
        assert_eq!([first, second, third, fourth, fifth].map(|file| is_open(file)), [false, true, false, true, false]);
    });
}

#[test]
fn a_child_borrows_memory_until_it_execs() {
    in_child(|| {
        set_session().expect("a forked process leads no group");
        let proof = SingleThreaded::check().expect("a forked process has one thread");
        let mut seen = 0;
        let (pid, left) = run_borrowed(proof, || {
            seen += 1;
            set_session().expect("a new process leads no group");
            "it returned".to_owned()
        })
        .expect("a process can be made");
        assert_eq!((seen, left.as_deref()), (1, Some("it returned")));
        assert_ne!(rustix::process::getsid(None).expect("it has one"), pid);
        let exec = |arguments: &[std::ffi::CString]| {
            run_borrowed(proof, || execute(c"/bin/sh", arguments, &[]).errno()).expect("a process can be made")
        };
        let script = ["sh", "-c", "exit 3"].map(|word| std::ffi::CString::new(word).expect("no NUL in it"));
        let (second, left) = exec(&script);
        assert_eq!(left, None);
        let status = |of: Pid| {
            let pidfd = pidfd_open(of).expect("it is not waited for yet");
            pidfd_wait(pidfd.as_fd(), false).expect("it is our child")
        };
        assert_eq!((status(pid), status(second)), (Some(127 << 8), Some(3 << 8)));
    });
}

#[test]
fn a_child_takes_descriptors_below_a_number_and_leaves_its_parents_alone() {
    in_child(|| {
        let open = || fs::File::open("/dev/null").expect("it is there");
        let (low, other) = (open(), open());
        let high = lifted(open().into(), 200);
        assert_eq!(high.as_raw_fd(), 200);
        let proof = SingleThreaded::check().expect("a forked process has one thread");
        let options = CloneOptions { below: Some(200), ..CloneOptions::default() };
        let numbers = [low.as_raw_fd(), other.as_raw_fd(), high.as_raw_fd()];
        let is_open = |number: i32| Path::new(&format!("/proc/self/fd/{number}")).exists();
        match clone3(proof, CloneFlags::NONE, options).expect("a process can be made") {
            Forked::Child => {
                let seen = numbers.map(is_open);
                drop(other);
                exit_immediately(if seen == [true, true, false] { 7 } else { 8 });
            }
            Forked::Parent(child) => {
                assert_eq!(pidfd_wait(child.pidfd.as_fd(), false).expect("it is our child"), Some(7 << 8));
                // What the child closed, it closed for itself.
                assert_eq!(numbers.map(is_open), [true; 3]);
            }
        }
        // A limit of open files is raised, and given back.
        set_resource_limit(Resource::Nofile, Some(500), Some(600)).expect("limits may be lowered");
        let before = OpenFiles::raise().expect("there is something to raise");
        assert_eq!(rustix::process::getrlimit(Resource::Nofile).current, Some(600));
        assert_eq!(OpenFiles::raise(), None);
        before.restore().expect("a limit may be lowered");
        assert_eq!(rustix::process::getrlimit(Resource::Nofile).current, Some(500));
    });
}

#[test]
fn limits_hold() {
    in_child(|| {
        set_resource_limit(Resource::Nofile, Some(512), Some(512)).expect("limits may be lowered");
        assert_eq!(rustix::process::getrlimit(Resource::Nofile).maximum, Some(512));
        set_dumpable(false).expect("anybody may hide");
        assert_eq!(status_line("Tgid"), rustix::process::getpid().as_raw_nonzero().to_string());
    });
}

#[test]
#[cfg(debug_assertions)]
#[expect(
    clippy::disallowed_methods,
    reason = "the failpoints read the environment of a forked child, which has one thread"
)]
fn a_failpoint_ends_its_process_also_as_pid_1() {
    use crate::step::{Step, prepare, reach};
    for flags in [CloneFlags::NONE, CloneFlags::NEWPID] {
        in_child(|| {
            need_root();
            let log = format!("/tmp/testyard-trial-{}", rustix::process::getpid().as_raw_nonzero());
            let child = fork(flags, || {
                // SAFETY: this process has one thread.
                unsafe { std::env::set_var("TESTYARD_KILL_AT", Step::AgentRoot.as_str()) };
                // SAFETY: as above.
                unsafe { std::env::set_var("TESTYARD_STEP_LOG", &log) };
                prepare();
                reach(Step::AgentEntered);
                reach(Step::AgentRoot);
                0
            });
            let status = pidfd_wait(child.pidfd.as_fd(), false).expect("it is our child").expect("it has ended");
            let reached = fs::read_to_string(&log).expect("the log was written");
            fs::remove_file(&log).expect("the log is ours");
            assert_eq!(status, if flags == CloneFlags::NONE { libc::SIGKILL } else { 137 << 8 });
            let steps: Vec<&str> = reached.lines().filter_map(|line| line.split(' ').nth(1)).collect();
            assert_eq!(steps, [Step::AgentEntered.as_str(), Step::AgentRoot.as_str()]);
        });
    }
}
