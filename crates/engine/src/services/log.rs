//! What a service writes: the end of it kept, each line seen once.

/// What is kept of a service's output: its end.
const KEPT: usize = 64 << 10;
/// A line longer than this is matched by its beginning alone.
const LONGEST_LINE: usize = 16 << 10;

/// The end of what a service wrote.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogEnd {
    /// At most the last 64 KiB.
    pub bytes: Vec<u8>,
    /// How much it wrote in all.
    pub written: u64,
}

/// Takes output as it comes.
#[derive(Debug, Default)]
pub(super) struct Log {
    kept: Vec<u8>,
    written: u64,
}

impl Log {
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.written += bytes.len() as u64;
        self.kept.extend_from_slice(bytes);
        // Cut seldom, so that each byte is moved once at most.
        if self.kept.len() > 2 * KEPT {
            self.kept.drain(..self.kept.len() - KEPT);
        }
    }

    pub(super) fn end(&self) -> LogEnd {
        let start = self.kept.len().saturating_sub(KEPT);
        LogEnd { bytes: self.kept[start..].to_vec(), written: self.written }
    }
}

/// Looks for a line that matches, also one that is not ended yet.
#[derive(Debug)]
pub(super) struct LineWatch {
    pattern: regex::bytes::Regex,
    line: Vec<u8>,
    found: bool,
}

impl LineWatch {
    pub(super) fn new(pattern: regex::bytes::Regex) -> Self {
        Self { pattern, line: Vec::new(), found: false }
    }

    pub(super) fn found(&self) -> bool {
        self.found
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.found {
                return;
            }
            let room = LONGEST_LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            let text = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
            self.found = self.pattern.is_match(text.strip_suffix(b"\r").unwrap_or(text));
            if piece.ends_with(b"\n") {
                self.line.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_and_everything_is_counted() {
        let mut log = Log::default();
        log.take(b"first ");
        for _ in 0..5 * KEPT {
            log.take(b"x");
        }
        log.take(b"last");
        let end = log.end();
        assert_eq!((end.bytes.len(), end.written), (KEPT, 5 * KEPT as u64 + 10));
        assert!(end.bytes.ends_with(b"xlast"));
    }

    #[test]
    fn lines_match_whatever_the_pieces() {
        let found = |pieces: &[&str]| {
            let mut watch = LineWatch::new(regex::bytes::Regex::new("^ready \\d+$").expect("a pattern"));
            pieces.iter().for_each(|piece| watch.take(piece.as_bytes()));
            watch.found()
        };
        assert!(found(&["a\nready 1\n"]));
        assert!(found(&["a\nrea", "dy", " 1"]), "a prompt has no line end");
        assert!(found(&["ready 1\r\n"]));
        assert!(!found(&["not ready 1\nready x\n"]));
        assert!(!found(&["ready", "\n", " 1\n"]));
        assert!(!found(&[&"x".repeat(3 * LONGEST_LINE), "ready 1"]), "a long line is one line");
    }
}
