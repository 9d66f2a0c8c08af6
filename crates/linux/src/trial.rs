//! Tests that change the process they run in: each gets a forked one, and leaves nothing when that ends.
//!
//! A test that this host cannot run says so on the real standard error, past the harness's capture.

use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;

use crate::mount::{TmpfsOptions, attach, make_all_private, tmpfs};
use crate::process::{
    self, CapabilitySet, CloneFlags, CloneOptions, Credentials, Forked, SingleThreaded, become_user, clone3,
};

/// The longest that one forked test may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// What a child that skips writes in front of its reason.
const SKIP: &str = "skip: ";

/// Runs the test in a forked process with one thread; its panic becomes this one's.
#[track_caller]
pub(crate) fn in_child(trial: impl FnOnce()) {
    redirect_panics();
    let (reader, writer) = std::io::pipe().expect("a pipe can be made");
    // SAFETY: glibc's fork leaves its allocator usable in the child, which is all that a test relies on.
    match unsafe { libc::fork() } {
        0 => run(writer, trial),
        pid => {
            drop(writer);
            let pid = Pid::from_raw(pid).expect("fork returns a pid");
            let said = await_child(pid, reader);
            match said.strip_prefix(SKIP) {
                Some(reason) => say_skipped(reason),
                None => assert!(said.is_empty(), "{said}"),
            }
        }
    }
}

fn run(writer: PipeWriter, trial: impl FnOnce()) -> ! {
    let _ = process::set_parent_death_signal(libc::SIGKILL);
    TELL.set(writer).expect("a child runs one test");
    process::set_subreaper(true).expect("anybody may reap");
    let code = if catch_unwind(AssertUnwindSafe(trial)).is_ok() { 0 } else { 101 };
    end(code)
}

/// Makes panics of forked processes go to the test that waits. Set before the fork: a thread that panics at that
/// moment holds the hook's lock, which the child could then never take.
fn redirect_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let Some(mut tell) = TELL.get() else { return usual(panic) };
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            let payload = panic.payload();
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            let _ = tell.write_all(format!("in the child at {place}: {text}\n").as_bytes());
        }));
    });
}

/// Ends the forked process, after everything that a failed test may have left below it.
fn end(code: i32) -> ! {
    let _ = process::kill_descendants(rustix::process::getpid());
    process::exit_immediately(code)
}

fn await_child(pid: Pid, mut reader: PipeReader) -> String {
    let pidfd = process::pidfd_open(pid).expect("the child is not waited for yet");
    let late = process::await_end(vec![pidfd.try_clone().expect("a descriptor can be copied")], DEADLINE);
    let late = late.expect("a child can be waited for") > 0;
    if late {
        process::kill_tree(pid).expect("the child can be ended");
    }
    let status = process::pidfd_wait(pidfd.as_fd(), false).expect("the child can be waited for").expect("it has ended");
    // Something below the child may still hold the pipe: what has not been said by now is not waited for.
    rustix::io::ioctl_fionbio(&reader, true).expect("a pipe may be non-blocking");
    let mut said = String::new();
    let _ = reader.read_to_string(&mut said);
    if late {
        return format!("the child took longer than {DEADLINE:?}; {said}");
    }
    if said.is_empty() && status != 0 { format!("the child ended with wait status {status:#x}") } else { said }
}

/// Where a forked process says why it fails or skips; empty in the harness.
static TELL: std::sync::OnceLock<PipeWriter> = std::sync::OnceLock::new();

/// Ends the child: this host lacks what the test needs.
pub(crate) fn skip(missing: &str) -> ! {
    let mut writer = TELL.get().expect("only a forked test skips");
    let _ = write!(writer, "{SKIP}{missing}");
    end(0)
}

fn say_skipped(missing: &str) {
    thread_local! {
        /// A test has a thread of its own, may fork more than once, and is one skip.
        static SAID: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    if SAID.replace(true) {
        return;
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("\nSKIPPED {test}: this host lacks {missing}\n");
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
    let reason = format!("this host lacks {missing}");
    testkit::skip::Skip { name: &test, reason: &reason, forced_by_host: true, whole_test: true }.record();
}

/// Goes on only as root of the host.
pub(crate) fn need_root() {
    if !testkit::user::is_host_root() {
        skip("root of the host");
    }
}

/// An ordinary user from here on, whoever that was before.
pub(crate) fn become_ordinary() {
    if rustix::process::geteuid().is_root() {
        process::limit_bounding_set(CapabilitySet::empty()).expect("root may give capabilities up");
        let user = Credentials { uid: 1000, gid: 1000, groups: vec![] };
        become_user(&user, false).expect("root may become anybody");
        // The change of user took the own /proc files away, which id maps are written through.
        process::set_dumpable(true).expect("a process may be dumpable");
    }
}

/// A private mount namespace with an empty tmpfs at the path returned.
pub(crate) fn stage() -> PathBuf {
    crate::namespace::unshare(CloneFlags::NEWNS).expect("root may make mount namespaces");
    make_all_private().expect("the namespace is ours");
    stage_here()
}

/// An empty tmpfs over `/tmp`, in the mount namespace that this process has already.
pub(crate) fn stage_here() -> PathBuf {
    let mount = tmpfs(&TmpfsOptions { mode: 0o777, ..TmpfsOptions::default() }).expect("a tmpfs can be made");
    attach(mount.as_fd(), Path::new("/tmp")).expect("it can be attached");
    PathBuf::from("/tmp")
}

/// Makes folders below a path and returns them.
pub(crate) fn folders<const N: usize>(at: &Path, names: [&str; N]) -> [PathBuf; N] {
    names.map(|name| {
        let path = at.join(name);
        fs::create_dir_all(&path).expect("a folder can be made");
        path
    })
}

/// Forks; the child runs the closure and exits with what it returns.
pub(crate) fn fork(flags: CloneFlags, body: impl FnOnce() -> i32) -> process::Child {
    let proof = SingleThreaded::check().expect("a forked test has one thread");
    match clone3(proof, flags, CloneOptions::default()).expect("a process can be made") {
        Forked::Parent(child) => child,
        Forked::Child => {
            let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(101);
            process::exit_immediately(code)
        }
    }
}

/// Waits for a child of [`fork`] and expects that all went well in it.
#[track_caller]
pub(crate) fn succeeds(child: &process::Child) {
    let status = process::pidfd_wait(child.pidfd.as_fd(), false).expect("it is our child").expect("it has ended");
    assert_eq!(status, 0, "wait status {status:#x}");
}
