//! Our own words among what a session says as errors.

/// A piece of error output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// What is not ours.
    Other(Vec<u8>),
    /// What is behind the word: `ready 12`.
    Word(String),
}

/// Finds the lines that begin with a word, wherever they begin: what somebody else wrote before need not end in a line.
#[derive(Debug)]
pub(super) struct Filter {
    word: Vec<u8>,
    held: Vec<u8>,
}

impl Filter {
    pub(super) fn new(word: &str) -> Self {
        Self { word: word.into(), held: Vec::new() }
    }

    /// Takes what was read. What may be the beginning of the word waits for the rest.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Piece> {
        self.held.extend_from_slice(bytes);
        let mut found = Vec::new();
        loop {
            let Some(at) = self.held.windows(self.word.len()).position(|window| window == self.word) else {
                let most = self.held.len().min(self.word.len().saturating_sub(1));
                let kept =
                    (0..=most).rev().find(|length| self.word.starts_with(&self.held[self.held.len() - length..]));
                let free = self.held.len() - kept.unwrap_or(0);
                found.push(Piece::Other(self.held.drain(..free).collect()));
                return found;
            };
            found.push(Piece::Other(self.held.drain(..at).collect()));
            let Some(end) = self.held.iter().position(|byte| *byte == b'\n') else { return found };
            let line: Vec<u8> = self.held.drain(..=end).collect();
            found.push(Piece::Word(String::from_utf8_lossy(&line[self.word.len()..]).trim().to_owned()));
        }
    }

    /// What was held back at the end of all.
    pub(super) fn rest(&mut self) -> Piece {
        Piece::Other(std::mem::take(&mut self.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_wherever_they_are_cut() {
        let text = b"before\nno line w0rd ready 12\nmiddle w0 w0r\nw0rd end 3\nafter w0r";
        for size in 1..text.len() {
            let mut filter = Filter::new("w0rd");
            let (mut other, mut words) = (Vec::new(), Vec::new());
            let mut pieces: Vec<Piece> = text.chunks(size).flat_map(|bytes| filter.feed(bytes)).collect();
            pieces.push(filter.rest());
            for piece in pieces {
                match piece {
                    Piece::Other(bytes) => other.extend(bytes),
                    Piece::Word(word) => words.push(word),
                }
            }
            assert_eq!(String::from_utf8_lossy(&other), "before\nno line middle w0 w0r\nafter w0r", "{size}");
            assert_eq!(words, ["ready 12", "end 3"], "{size}");
        }
    }
}
