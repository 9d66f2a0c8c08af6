//! Descriptors by number: those that a program is started with, and those that a command expects.

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use crate::error::{Context, Result, checked};
use crate::signal;

/// Takes over the descriptors of these numbers, or none where one of them is not open. For the start of `main`,
/// before anything else opened one; the numbers must be those that the starting program promised.
#[must_use]
pub fn inherited_descriptors<const COUNT: usize>(numbers: [RawFd; COUNT]) -> Option<[OwnedFd; COUNT]> {
    for number in numbers {
        // SAFETY: F_SETFD takes a number and touches no memory; a closed descriptor is answered with EBADF.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
            return None;
        }
    }
    // SAFETY: each is open, and by contract nothing else in this new process owns it.
    Some(numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }))
}

/// The same under the next free number from `from` on, or as it was where that is not allowed.
#[must_use]
pub fn lifted(descriptor: OwnedFd, from: RawFd) -> OwnedFd {
    rustix::io::fcntl_dupfd_cloexec(&descriptor, from).unwrap_or(descriptor)
}

/// Makes three descriptors 0, 1 and 2 of this process, kept over exec. For a child that is about to exec.
///
/// # Errors
/// `EMFILE` at the limit of open files.
pub fn install_standard_streams(streams: [BorrowedFd<'_>; 3]) -> Result<()> {
    // None may sit at a number that an earlier one is about to take.
    let mut raised: Vec<OwnedFd> = Vec::with_capacity(3);
    for stream in streams {
        // SAFETY: F_DUPFD_CLOEXEC takes numbers, and a success is a new descriptor that nothing else owns.
        let copy = unsafe { libc::fcntl(stream.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
        checked(copy.into()).context("copy", || "a standard stream")?;
        // SAFETY: see above.
        raised.push(unsafe { OwnedFd::from_raw_fd(copy) });
    }
    for (number, stream) in (0..).zip(&raised) {
        // SAFETY: dup2 takes numbers. What was at 0 to 2 was this child's copy of its parent's streams.
        let copied = unsafe { libc::dup2(stream.as_raw_fd(), number) };
        checked(copied.into()).context("install", || "a standard stream")?;
    }
    Ok(())
}

/// Starts a program with descriptors at numbers of the caller's choice, and no others beside the standard streams.
///
/// # Errors
/// What fork and exec say.
pub fn spawn_with_descriptors(
    command: &mut std::process::Command,
    descriptors: &[(BorrowedFd<'_>, RawFd)],
) -> Result<std::process::Child> {
    let program = command.get_program().to_string_lossy().into_owned();
    install_descriptors(command, descriptors);
    command.spawn().context("start", || program)
}

/// Becomes a program, with descriptors as [`spawn_with_descriptors`] gives them; returns only the error.
pub fn execute_with_descriptors(
    command: &mut std::process::Command,
    descriptors: &[(BorrowedFd<'_>, RawFd)],
) -> crate::Error {
    use std::os::unix::process::CommandExt as _;

    install_descriptors(command, descriptors);
    let error = command.exec();
    crate::Error::new("execute", command.get_program().to_string_lossy(), error)
}

fn install_descriptors(command: &mut std::process::Command, descriptors: &[(BorrowedFd<'_>, RawFd)]) {
    use std::os::unix::process::CommandExt as _;

    let pairs: Vec<(RawFd, RawFd)> = descriptors.iter().map(|(fd, number)| (fd.as_raw_fd(), *number)).collect();
    let highest = pairs.iter().flat_map(|(from, to)| [*from, *to]).max().unwrap_or(2);
    let mut copies = vec![-1; pairs.len()];
    let install = move || {
        // Above all targets first, so that no target is overwritten before it was read.
        for (copy, (from, _)) in copies.iter_mut().zip(&pairs) {
            // SAFETY: fcntl takes numbers; it is allowed between fork and exec.
            *copy = unsafe { libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, highest + 1) };
            checked((*copy).into())?;
        }
        for (copy, (_, to)) in copies.iter().zip(&pairs) {
            // SAFETY: dup2 takes numbers; it is allowed between fork and exec.
            checked(unsafe { libc::dup2(*copy, *to) }.into())?;
        }
        Ok(())
    };
    // SAFETY: the closure only calls fcntl and dup2 on numbers and memory made before the fork.
    unsafe { command.pre_exec(install) };
}

/// Makes a program start with no signal blocked or ignored, whatever its parent blocks or was told to ignore (as
/// everything is that a shell starts in the background).
pub fn with_default_signals(command: &mut std::process::Command) -> &mut std::process::Command {
    use std::os::unix::process::CommandExt as _;

    let reset = || {
        signal::reset_handlers().map_err(|error| error.source)?;
        signal::unblock_all().map_err(|error| error.source)
    };
    // SAFETY: the closure only makes system calls that are allowed between fork and exec, on values of its own.
    unsafe { command.pre_exec(reset) }
}
