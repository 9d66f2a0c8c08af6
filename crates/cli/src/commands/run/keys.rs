//! Keys that are typed while tests run: each is read at once and none is shown.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Mutex, PoisonError};

use testyard_linux::signal::Signal;
use testyard_linux::terminal::{RawMode, is_in_foreground};
use testyard_model::Problem;
use testyard_runner::run::Interrupter;

use crate::streams::{Feeder, duplicate};

/// Keys that ask what runs.
const ASKS: &[u8] = b"t?\r\n";

/// Our terminal's keys, until they are given back.
pub(super) struct Keys {
    mode: Mutex<Option<RawMode>>,
}

impl Keys {
    /// None where nobody can type to us.
    pub(super) fn enter() -> Option<Self> {
        Some(Self { mode: Mutex::new(Some(read()?)) })
    }

    /// Answers keys until what it gives is dropped.
    pub(super) fn attend(&self, interrupter: Interrupter) -> Result<Feeder, Problem> {
        let stdin = duplicate(io::stdin().as_fd())?;
        Feeder::start(stdin, move |typed, _| {
            if typed.iter().any(|key| ASKS.contains(key)) {
                interrupter.ask();
            }
            true
        })
    }

    fn set(&self, mode: Option<RawMode>) {
        // What was there is restored as it is dropped.
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }
}

/// Stops this process as its terminal asked, with the terminal as the shell had it, and takes the keys again when the
/// process is continued in the foreground. The tests go on meanwhile.
pub(super) fn suspend(keys: Option<&Keys>) {
    keys.iter().for_each(|keys| keys.set(None));
    let stopped = Signal::STOP.send_to(rustix::process::getpid());
    debug_assert!(stopped.is_ok(), "a process may signal itself");
    keys.iter().for_each(|keys| keys.set(read()));
}

fn read() -> Option<RawMode> {
    is_in_foreground(io::stdin()).then(|| RawMode::enter_keys(io::stdin()).ok()).flatten()
}
