//! One end of a pipe or socket between two processes of one host.
//!
//! What a pipe carries from file to file the kernel may hand on by the page (`splice`): one copy in all, as `cp`
//! makes, and none of it in this process.

use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use crate::oversight::Oversight;

/// The most that one system call moves, so that a stop is noticed soon.
const AT_ONCE: u64 = 1 << 20;

/// One end; it waits by polling, never in a read or write.
pub(crate) struct LocalEnd<'a> {
    end: BorrowedFd<'a>,
    oversight: Oversight<'a>,
}

impl<'a> LocalEnd<'a> {
    /// Makes the end non-blocking, and as wide as it may be.
    pub(crate) fn new(end: BorrowedFd<'a>, oversight: Oversight<'a>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(end, true)?;
        crate::widen(end);
        Ok(Self { end, oversight })
    }

    /// Hands pages of a file on, from its position. 0 at its end.
    pub(crate) fn splice_from(&self, file: BorrowedFd<'_>, most: u64) -> io::Result<usize> {
        self.attempt(PollFlags::OUT, || {
            rustix::pipe::splice(file, None, self.end, None, most.min(AT_ONCE) as usize, flags())
        })
    }

    /// Moves what is there into a file. 0 at the stream's end.
    pub(crate) fn splice_into(&self, file: BorrowedFd<'_>, at: u64, most: u64) -> io::Result<usize> {
        self.attempt(PollFlags::IN, || {
            let mut at = at;
            rustix::pipe::splice(self.end, None, file, Some(&mut at), most.min(AT_ONCE) as usize, flags())
        })
    }

    fn attempt(&self, what: PollFlags, mut act: impl FnMut() -> Result<usize, Errno>) -> io::Result<usize> {
        loop {
            self.oversight.wait(self.end, what)?;
            match act() {
                Err(Errno::AGAIN | Errno::INTR) => {}
                outcome => return Ok(outcome?),
            }
        }
    }
}

fn flags() -> SpliceFlags {
    SpliceFlags::MOVE | SpliceFlags::NONBLOCK
}

impl Read for LocalEnd<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.end;
        self.attempt(PollFlags::IN, || rustix::io::read(end, &mut *buffer))
    }
}

impl Write for LocalEnd<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.attempt(PollFlags::OUT, || rustix::io::write(self.end, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
