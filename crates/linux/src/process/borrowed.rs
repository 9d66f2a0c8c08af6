//! Children that borrow their parent's memory until they exec: nothing is copied, and no page is copied on write.
//!
//! Forking even a small process costs its page tables and, on both sides, a fault for each page that is written
//! afterwards. Where a child only execs, that is most of what starting it takes.

use std::mem::MaybeUninit;

use rustix::process::Pid;

use super::SingleThreaded;
use crate::error::{Error, Result, checked, malformed};

/// Bytes of the child's stack, in units of 16 for the alignment that every architecture is content with. Untouched
/// pages of it cost nothing.
const STACK_UNITS: usize = 512 * 1024 / 16;

/// What is handed to the child, and what it leaves.
struct Work<F, T> {
    act: Option<F>,
    left: Option<T>,
}

/// Runs `act` in a new process that borrows this one's memory, while this one stands still; until `act` execs, which
/// gives nothing, or returns, which ends the process with status 127 and gives what was returned.
///
/// What `act` does to memory, this process sees; what it does to descriptors, credentials, folders, signals and
/// limits is the child's own. Whatever it allocated when it execs stays allocated here. Should it hang before, so
/// does this process, except for SIGKILL.
///
/// # Errors
/// `EAGAIN` at the limit of processes, `ENOMEM`.
pub fn run_borrowed<T>(_proof: SingleThreaded, act: impl FnOnce() -> T) -> Result<(Pid, Option<T>)> {
    run_on(&mut Box::<[u128]>::new_uninit_slice(STACK_UNITS), act)
}

fn run_on<F: FnOnce() -> T, T>(stack: &mut [MaybeUninit<u128>], act: F) -> Result<(Pid, Option<T>)> {
    let mut work = Work { act: Some(act), left: None };
    let top = stack.as_mut_ptr_range().end.cast::<libc::c_void>();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child runs `in_child` on a stack that nobody else uses, with a pointer to `work`. Both outlive it:
    // with CLONE_VFORK this call returns only once the child has left this memory by exec or by ending. The proof
    // says that no other thread uses this memory meanwhile.
    let returned = unsafe { libc::clone(in_child::<F, T>, top, flags, (&raw mut work).cast()) };
    let pid = checked(returned.into()).map_err(|source| Error::new("make", "a process", source))?;
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::new("make", "a process", malformed("clone returned no pid")))?;
    Ok((pid, work.left))
}

/// What the child runs. A panic in it ends it: nothing unwinds out of a function that C calls.
extern "C" fn in_child<F: FnOnce() -> T, T>(work: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `run_on` passes its own `Work<F, T>`, and stands still while this runs: this is the only reference.
    let work = unsafe { &mut *work.cast::<Work<F, T>>() };
    work.left = work.act.take().map(|act| act());
    127
}
