//! Attending a command that runs in a machine: its streams, its signals, its end.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::termios::{isatty, tcgetwinsize};
use testyard::Machine;
use testyard_linux::signal::{Signal, SignalFd};
use testyard_linux::terminal::RawMode;
use testyard_machine::client::{Awaited, ClientError, Connection, Finished};
use testyard_model::{Problem, ProblemKind};
use testyard_protocol::{Exec, RawText, TerminalSize};

use crate::streams::{Feeder, Streams, duplicate, write_whole};

/// What is passed on to the command instead of ending us.
const PASSED_ON: [Signal; 6] = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];

/// Runs a command with our standard streams to its end.
pub(crate) fn run(connection: &mut Connection, mut exec: Exec) -> Result<Finished, Problem> {
    let signals = SignalFd::new(&PASSED_ON).map_err(local)?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let mut streams = Streams::prepare([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()], &mut exec)?;
    exec.quiet = true;
    let mut command = connection.exec(exec, &streams.attached()).map_err(|error| error.problem())?;
    let _feeder = streams.sent()?;
    loop {
        let awaited: Vec<BorrowedFd<'_>> = [signals.as_fd()].into_iter().chain(streams.awaited()).collect();
        match command.wait_or(&awaited, None).map_err(|error| error.problem())? {
            Awaited::Finished(finished) => {
                streams.drain();
                return streams.lost().map_or(Ok(finished), Err);
            }
            Awaited::Readable(0) => {
                while let Some(received) = signals.read().map_err(local)? {
                    let told = command.signal(received.signal.number());
                    told.map_err(|error| error.problem())?;
                }
            }
            Awaited::Readable(index) => streams.relay(index - 1),
            Awaited::Started | Awaited::DeadlinePassed => {}
        }
    }
}

/// Whether our standard input is a terminal, which a terminal in the machine needs.
pub(crate) fn has_terminal() -> bool {
    isatty(io::stdin())
}

/// Runs a command on a terminal of its own, shown in ours, to its end.
pub(crate) fn run_on_terminal(machine: Machine, mut exec: Exec) -> Result<Finished, Problem> {
    if !has_terminal() {
        return Err(Problem::new(ProblemKind::Usage, "standard input is not a terminal")
            .hint("leave out --terminal (-t), or start this in a terminal"));
    }
    let stdin = io::stdin();
    exec.terminal = Some(size());
    if let Some(kind) = std::env::var_os("TERM").filter(|_| !exec.env.iter().any(|(name, _)| name.0 == b"TERM")) {
        exec.env.push((RawText::from("TERM"), kind.into()));
    }
    // Before any thread is started: all of them must leave these signals to the descriptor.
    let signals = SignalFd::new(&[&PASSED_ON[..], &[Signal::WINCH]].concat()).map_err(local)?;
    let session = machine.into_session()?;
    let mut command = session.exec(exec, &[]).map_err(|error| error.problem())?;
    let mut raw = RawMode::enter(&stdin).map_err(local)?;

    let handle = command.handle();
    let watcher = Feeder::watch(duplicate(signals.as_fd())?, move || {
        while let Ok(Some(received)) = signals.read() {
            let signal = received.signal;
            // A command that has just ended needs no news.
            let _ = if signal == Signal::WINCH { handle.resize(size()) } else { handle.signal(signal.number()) };
        }
        true
    })?;
    let keys = match command.stdin.take() {
        Some(mut writer) => {
            Some(Feeder::start(duplicate(stdin.as_fd())?, move |bytes, _| writer.write_all(bytes).is_ok())?)
        }
        None => None,
    };
    let screen = command.stdout.take().map(|mut reader| {
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count) = reader.read(&mut buffer) {
                if count == 0 || write_whole(io::stdout().as_fd(), &buffer[..count]).is_err() {
                    break;
                }
            }
        })
    });
    let finished = command.wait();
    if let Some(screen) = screen {
        // Its end was sent before the command's.
        let _ = screen.join();
    }
    drop((keys, watcher));
    let restored = raw.restore().map_err(local);
    let finished = finished.map_err(|error: ClientError| error.problem())?;
    restored.map(|()| finished)
}

fn size() -> TerminalSize {
    let known = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin()));
    match known {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => TerminalSize { rows: size.ws_row, columns: size.ws_col },
        _ => TerminalSize { rows: 24, columns: 80 },
    }
}

/// As people see it.
pub(crate) fn local(error: testyard_linux::Error) -> Problem {
    Problem::from_error(ProblemKind::System, &error)
}
