//! Asking whoever sits at the terminal for a password: as `ssh` does it, with nothing shown of what is typed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use testyard::{Answer, Question};
use testyard_linux::signal::Signal;
use testyard_linux::terminal::{RawMode, is_in_foreground};

use crate::streams::write_whole;

/// What ends what is typed, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Typed {
    /// This is it.
    Whole,
    /// Nothing is to be said.
    Nothing,
    /// The process is to end, as by Ctrl-C.
    Interrupt,
}

/// Asks at our terminal; none where there is none that this process may read.
pub(crate) fn answer() -> Option<Answer> {
    is_in_foreground(io::stdin()).then_some(ask as Answer)
}

fn ask(question: &Question<'_>, until: &[BorrowedFd<'_>]) -> Option<String> {
    let mut keys = RawMode::enter_secret(io::stdin()).ok()?;
    let again = if question.again { "Permission denied, please try again.\n" } else { "" };
    show(&format!("{again}{}", harmless(question.text)));
    let mut line = Vec::new();
    let typed = read(&mut line, until);
    show("\n");
    // One that hung up cannot be restored.
    let _ = keys.restore();
    if typed == Typed::Interrupt {
        // The terminal would have sent it.
        let _ = Signal::INT.send_to(rustix::process::getpid());
    }
    (typed == Typed::Whole).then(|| String::from_utf8(line).ok()).flatten()
}

/// Reads keys until a line is whole, or one of the descriptors can be read.
fn read(line: &mut Vec<u8>, until: &[BorrowedFd<'_>]) -> Typed {
    let stdin = io::stdin();
    let mut buffer = [0; 256];
    loop {
        let descriptors = until.iter().copied().chain([stdin.as_fd()]);
        let mut polled: Vec<_> = descriptors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match rustix::event::poll(&mut polled, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return Typed::Nothing,
            Ok(_) => {}
        }
        if polled[..until.len()].iter().any(|fd| !fd.revents().is_empty()) {
            return Typed::Nothing;
        }
        match rustix::io::read(&stdin, &mut buffer) {
            Ok(0) => return Typed::Nothing,
            Ok(count) => {
                if let Some(typed) = buffer[..count].iter().find_map(|key| take(line, *key)) {
                    return typed;
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => return Typed::Nothing,
        }
    }
}

/// Takes one key.
fn take(line: &mut Vec<u8>, key: u8) -> Option<Typed> {
    match key {
        b'\n' | b'\r' => return Some(Typed::Whole),
        // Ctrl-C, Ctrl-D, Ctrl-U, and both keys that take one character back.
        3 => return Some(Typed::Interrupt),
        4 if line.is_empty() => return Some(Typed::Nothing),
        4 => return Some(Typed::Whole),
        21 => line.clear(),
        8 | 127 => {
            // All bytes of it.
            while line.pop().is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000) {}
        }
        0..32 => {}
        key => line.push(key),
    }
    None
}

/// The other host's words, which are not to move the cursor.
fn harmless(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// Shows it at the terminal, wherever our streams lead.
fn show(text: &str) {
    let terminal = File::options().write(true).open("/dev/tty");
    // Where it cannot be shown, nobody sees that something is asked: as with ssh.
    let _ = match &terminal {
        Ok(terminal) => write_whole(terminal.as_fd(), text.as_bytes()),
        Err(_) => write_whole(io::stderr().as_fd(), text.as_bytes()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(keys: &str, line: &str, end: Option<Typed>) {
        let mut seen = Vec::new();
        let ended = keys.bytes().find_map(|key| take(&mut seen, key));
        assert_eq!((String::from_utf8_lossy(&seen).as_ref(), ended), (line, end), "{keys:?}");
    }

    #[test]
    fn what_is_typed_may_be_mended() {
        check("secret\r", "secret", Some(Typed::Whole));
        check("see\u{7f}cret\n", "secret", Some(Typed::Whole));
        check("grün\u{7f}\u{7f}", "gr", None);
        check("wrong\u{15}right\n", "right", Some(Typed::Whole));
        check("\u{7f}\u{1b}a", "a", None);
        check("half\u{3}", "half", Some(Typed::Interrupt));
        check("\u{4}", "", Some(Typed::Nothing));
        check("all\u{4}", "all", Some(Typed::Whole));
    }

    #[test]
    fn the_other_hosts_words_move_no_cursor() {
        assert_eq!(harmless("word\u{1b}[2J: "), "word?[2J: ");
    }
}
