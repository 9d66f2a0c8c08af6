//! A container's processes: its init, the one that attends it, and how they end.
//!
//! The init is process 1 of a pid namespace: its end is the end of all that the command started. It dies with whoever
//! attends it, so that a killed `docker run` leaves nothing.

use std::fs::OpenOptions;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use testyard_linux::namespace::{self, IdMap};
use testyard_linux::process::{self, Child, CloneFlags, CloneOptions, Forked, SingleThreaded};
use testyard_linux::signal::{Signal, SignalFd};
use testyard_linux::{Error, Result, signal};

use crate::joining::{Command, code_of, explain};
use crate::records::{Process, Record, Records};
use crate::root::{self, Volume};
use crate::{Failure, Outcome, clock, say, warn};

/// Signals that are passed on to the command.
const PASSED_ON: [Signal; 6] = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];

/// What a container is made from.
pub(crate) struct Making {
    pub(crate) host_name: String,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) command: Command,
}

/// What the init says about its root before the command starts: one byte, or why there is none.
const OWN_ROOT: u8 = b'+';
const SHARED_ROOT: u8 = b'-';

/// Makes the container and stays with it to its end.
pub(crate) fn attend(records: &Records, record: Record, making: &Making) -> Outcome {
    let removed = record.clone();
    let outcome = attended(records, record, making, None);
    if outcome.is_err() {
        records.remove(&removed);
    }
    outcome
}

/// Makes the container and leaves it to a process of its own; says its id.
pub(crate) fn detach(records: &Records, record: Record, making: &Making) -> Outcome {
    let (told, tell) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Error::new("make", "a pipe", errno))?;
    let id = record.id.clone();
    match process::clone3(SingleThreaded::check()?, CloneFlags::NONE, CloneOptions::default())? {
        Forked::Parent(_) => {
            drop(tell);
            let mut said = [0; 4096];
            let length = read(&told, &mut said);
            match said[..length].split_first() {
                Some((b'+', _)) => {
                    say(id);
                    Ok(0)
                }
                Some((code, words)) => {
                    Err(Failure { message: String::from_utf8_lossy(words).into_owned(), code: *code })
                }
                None => Err(Failure::daemon("the container's keeper ended")),
            }
        }
        Forked::Child => {
            let outcome = apart(records, &record).map_err(Failure::from);
            let outcome = outcome.and_then(|()| attended(records, record.clone(), making, Some(&tell)));
            if let Err(failure) = outcome {
                records.remove(&record);
                let mut said = vec![failure.code];
                said.extend(failure.message.bytes());
                let _ = rustix::io::write(&tell, &said);
            }
            process::exit_immediately(0)
        }
    }
}

/// Leaves the caller's session and streams.
fn apart(records: &Records, record: &Record) -> Result<()> {
    process::set_session()?;
    let path = records.log(&record.id);
    let failed = |error| Error::new("open", path.display(), error);
    let log = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
    let null = OpenOptions::new().read(true).open("/dev/null").map_err(failed)?;
    process::install_standard_streams([null.as_fd(), log.as_fd(), log.as_fd()])
}

/// Makes it, waits for its end, and writes down how that was. `started` hears once it runs.
fn attended(records: &Records, mut record: Record, making: &Making, started: Option<&OwnedFd>) -> Outcome {
    let signals = SignalFd::new(&PASSED_ON)?;
    let (child, told) = make(records, making)?;
    record.process = Some(Process::of(child.pid)?);
    records.update(&record)?;
    await_start(records, &child, &told, making)?;
    if let Some(started) = started {
        let _ = rustix::io::write(started, b"+");
    }
    let status = await_end(&child, &signals)?;
    record.exit_code = Some(code_of(status));
    record.ended = clock::now();
    if record.auto_remove {
        records.remove(&record);
    } else {
        records.update(&record)?;
    }
    Ok(code_of(status))
}

fn make(records: &Records, making: &Making) -> std::result::Result<(Child, OwnedFd), Failure> {
    let base = records.root()?;
    let broken = |errno| Error::new("make", "a pipe", errno);
    let (told, tell) = pipe_with(PipeFlags::CLOEXEC).map_err(broken)?;
    let (go, let_go) = pipe_with(PipeFlags::CLOEXEC).map_err(broken)?;
    let mut flags = CloneFlags::NEWNS | CloneFlags::NEWPID | CloneFlags::NEWIPC | CloneFlags::NEWUTS;
    let mapped = !may_mount();
    if mapped {
        flags = flags | CloneFlags::NEWUSER;
    }
    match process::clone3(SingleThreaded::check()?, flags, CloneOptions::default())? {
        Forked::Child => {
            drop((told, let_go));
            let code = match init(&go, &base, making, &tell) {
                Ok(code) => code,
                Err(error) => {
                    let _ = rustix::io::write(&tell, error.with_cause().as_bytes());
                    125
                }
            };
            process::exit_immediately(code.into())
        }
        Forked::Parent(child) => {
            drop((tell, go));
            if mapped {
                let own = |outside| [IdMap::single(0, outside)];
                let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                namespace::write_id_maps(child.pid, &own(uid), &own(gid), true)?;
            }
            rustix::io::write(&let_go, b"x").map_err(broken)?;
            Ok((child, told))
        }
    }
}

/// Whether this process may mount in the machine, or needs a user namespace for it.
fn may_mount() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Waits until the init has a root and the command was started, or says why not.
fn await_start(records: &Records, child: &Child, told: &OwnedFd, making: &Making) -> std::result::Result<(), Failure> {
    let mut said = [0; 4096];
    let first = read(told, &mut said[..1]);
    if first == 1 && said[0] == SHARED_ROOT && records.is_first("shared-root") {
        warn(
            "docker: the kernel allows no layer over this machine's root: what the container writes stays in the machine",
        );
    }
    if first == 1 && matches!(said[0], OWN_ROOT | SHARED_ROOT) {
        // The rest is closed by the command's exec, or says why that failed.
        let length = read(told, &mut said);
        let Some(errno) = said[..length].first_chunk::<4>().map(|bytes| i32::from_le_bytes(*bytes)) else {
            return Ok(());
        };
        return Err(explain(&making.command, Errno::from_raw_os_error(errno)));
    }
    let length = first + read(told, &mut said[first..]);
    let _ = process::pidfd_wait(child.pidfd.as_fd(), false);
    Err(Failure::daemon(String::from_utf8_lossy(&said[..length])))
}

/// Passes signals on until the init has ended; its wait status.
fn await_end(child: &Child, signals: &SignalFd) -> Result<i32> {
    loop {
        let mut polled = [PollFd::new(&child.pidfd, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::new("wait for", "a container", errno)),
        }
        while let Some(received) = signals.read()? {
            // It may just have ended.
            let _ = process::pidfd_signal(child.pidfd.as_fd(), received.signal.number());
        }
        if let Some(status) = process::pidfd_wait(child.pidfd.as_fd(), true)? {
            return Ok(status);
        }
    }
}

/// The container's process 1: makes its root, starts the command and collects what ends.
fn init(go: &OwnedFd, base: &std::path::Path, making: &Making, tell: &OwnedFd) -> Result<u8> {
    process::set_parent_death_signal(Signal::KILL.number())?;
    if read(go, &mut [0]) == 0 {
        // Who made this is gone already.
        return Ok(137);
    }
    let own = root::enter(base, &making.volumes)?;
    namespace::set_host_name(&making.host_name)?;
    let signals = SignalFd::new(&[&PASSED_ON[..], &[Signal::CHLD]].concat())?;
    let said = rustix::io::write(tell, &[if own { OWN_ROOT } else { SHARED_ROOT }]);
    said.map_err(|errno| Error::new("tell", "who attends", errno))?;
    match process::clone3(SingleThreaded::check()?, CloneFlags::NONE, CloneOptions::default())? {
        Forked::Child => {
            let unblocked = signal::unblock_all();
            let errno = unblocked.map_or_else(|error| error.errno(), |()| making.command.become_it().errno());
            let _ = rustix::io::write(tell, &errno.raw_os_error().to_le_bytes());
            process::exit_immediately(127)
        }
        Forked::Parent(child) => {
            process::close_range_from(3, &[signals.as_fd(), child.pidfd.as_fd()])?;
            collect(&child, &signals)
        }
    }
}

fn collect(command: &Child, signals: &SignalFd) -> Result<u8> {
    loop {
        let mut polled = [PollFd::new(signals, PollFlags::IN)];
        // An interrupted wait is taken up again.
        let _ = poll(&mut polled, None);
        while let Some(received) = signals.read()? {
            if received.signal != Signal::CHLD {
                let _ = process::pidfd_signal(command.pidfd.as_fd(), received.signal.number());
            }
        }
        while let Some((pid, status, _)) = process::wait_any_nohang()? {
            if pid == command.pid {
                return Ok(code_of(status));
            }
        }
    }
}

fn read(from: &OwnedFd, into: &mut [u8]) -> usize {
    rustix::io::retry_on_intr(|| rustix::io::read(from, &mut *into)).unwrap_or(0)
}
