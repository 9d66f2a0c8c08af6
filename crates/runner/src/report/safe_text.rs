//! Whatever a test printed, made safe to show: no escape sequence, control character or invalid byte reaches a
//! terminal or a report. The raw bytes stay in the captured output.

use std::fmt::Write as _;
use std::io;

use crate::capture::Captured;

/// Turns bytes into text that is safe to show, piece by piece; how they are cut does not matter.
///
/// Escape sequences are dropped, `\r\n` and `\r` become line ends, other control characters and those that
/// reverse the direction of writing are spelled out (`\x07`, `\u{202e}`), invalid bytes become `\u{fffd}`.
#[derive(Debug, Default)]
pub struct SafeText {
    state: State,
    partial: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After a carriage return.
    Return,
    /// After an escape character.
    Escape,
    /// In a control sequence, up to its final letter.
    Sequence,
    /// In a string sequence (a window title, a link), up to its terminator.
    Text7,
    /// After an escape character in a string sequence.
    Text7Escape,
}

impl SafeText {
    /// Adds the safe form of these bytes.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        let joined;
        let mut rest = if self.partial.is_empty() {
            bytes
        } else {
            self.partial.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.partial);
            &joined
        };
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.characters(text, out);
                    return;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.characters(std::str::from_utf8(valid).unwrap_or_default(), out);
                    let Some(length) = error.error_len() else {
                        // A character that the next piece may complete.
                        self.partial = after.to_vec();
                        return;
                    };
                    self.character('\u{fffd}', out);
                    rest = &after[length..];
                }
            }
        }
    }

    /// What was still open at the end.
    pub fn finish(&mut self, out: &mut String) {
        if !std::mem::take(&mut self.partial).is_empty() {
            self.character('\u{fffd}', out);
        }
        if std::mem::take(&mut self.state) == State::Return {
            out.push('\n');
        }
    }

    fn characters(&mut self, text: &str, out: &mut String) {
        let mut rest = text;
        while !rest.is_empty() {
            if self.state == State::Text {
                // Most output is plain: it is copied in one go.
                let plain = rest.bytes().position(|byte| !(b' '..=b'~').contains(&byte) && byte != b'\n');
                let plain = plain.unwrap_or(rest.len());
                out.push_str(&rest[..plain]);
                rest = &rest[plain..];
            }
            if let Some(character) = rest.chars().next() {
                self.character(character, out);
                rest = &rest[character.len_utf8()..];
            }
        }
    }

    fn character(&mut self, character: char, out: &mut String) {
        self.state = match (self.state, character) {
            (State::Return, '\n') => {
                out.push('\n');
                State::Text
            }
            (State::Return, '\r') => State::Return,
            (State::Return, _) => {
                out.push('\n');
                self.state = State::Text;
                return self.character(character, out);
            }
            (State::Text, '\r') => State::Return,
            (State::Text, '\u{1b}') => State::Escape,
            (State::Text, '\u{9b}') => State::Sequence,
            (State::Text, '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}') => State::Text7,
            (State::Text, _) => {
                show(character, out);
                State::Text
            }
            (State::Escape, '[') => State::Sequence,
            (State::Escape, 'P' | 'X' | ']' | '^' | '_') => State::Text7,
            // What lies between is part of a longer escape, such as the choice of a character set.
            (State::Escape, ' '..='/') => State::Escape,
            (State::Sequence, '\u{20}'..='\u{3f}') => State::Sequence,
            (State::Text7, '\u{7}' | '\u{9c}') => State::Text,
            (State::Text7, '\u{1b}') => State::Text7Escape,
            // An unended title must not swallow the rest of the output.
            (State::Text7 | State::Escape | State::Sequence | State::Text7Escape, '\n' | '\r') => {
                self.state = State::Text;
                return self.character(character, out);
            }
            (State::Text7, _) => State::Text7,
            (State::Escape | State::Sequence, '\u{1b}') => State::Escape,
            (State::Escape | State::Sequence | State::Text7Escape, _) => State::Text,
        };
    }
}

fn show(character: char, out: &mut String) {
    let turns = matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if matches!(character, '\n' | '\t') || !(character.is_control() || turns) {
        out.push(character);
    } else if character.is_ascii() {
        // Writing to a string cannot fail.
        let _ = write!(out, "\\x{:02x}", u32::from(character));
    } else {
        let _ = write!(out, "\\u{{{:x}}}", u32::from(character));
    }
}

/// A name or message on one line.
#[must_use]
pub fn safe_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut safe = SafeText::default();
    safe.push(text.as_bytes(), &mut out);
    safe.finish(&mut out);
    if out.contains(['\n', '\t']) { out.replace('\n', "\\n").replace('\t', " ") } else { out }
}

/// The beginning and end of captured output as safe text, with a line between them that says what is left out.
///
/// # Errors
/// Where the output's file cannot be read.
pub fn safe_ends(captured: &Captured, most: usize) -> io::Result<String> {
    let (head, left_out, tail) = captured.ends(most)?;
    let mut out = String::new();
    let mut safe = SafeText::default();
    safe.push(&head, &mut out);
    safe.finish(&mut out);
    if left_out > 0 {
        let _ = write!(out, "\n[... {left_out} bytes left out ...]\n");
        safe.push(&tail, &mut out);
        safe.finish(&mut out);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn safe(bytes: &[u8]) -> String {
        let mut out = String::new();
        let mut text = SafeText::default();
        text.push(bytes, &mut out);
        text.finish(&mut out);
        out
    }

    #[test]
    fn shows_what_people_can_read() {
        for (bytes, shown) in [
            (b"plain\n\ttext".as_slice(), "plain\n\ttext"),
            (b"\x1b[31mred\x1b[0m and \x1b[1;4mbold", "red and bold"),
            (b"\x1b]0;title\x07after\x1b]8;;http://x\x1b\\link", "afterlink"),
            (b"\x1b]0;unended\nnext", "\nnext"),
            (b"\x1b(Bok", "ok"),
            (b"10%\r50%\r\rdone\r\nend\r", "10%\n50%\ndone\nend\n"),
            (b"bell\x07 nul\0", "bell\\x07 nul\\x00"),
            (b"bad \xff\xfe byte, cut \xe2\x82", "bad \u{fffd}\u{fffd} byte, cut \u{fffd}"),
            ("ok \u{20ac} \u{202e}turned".as_bytes(), "ok \u{20ac} \\u{202e}turned"),
            ("\u{9b}31mred".as_bytes(), "red"),
        ] {
            assert_eq!(safe(bytes), shown);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_unsafe_is_shown_however_it_is_cut(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"\x1b[]m\r\n\x07\xc2\x9b\\P".to_vec())], 0..200),
            cuts in prop::collection::vec(0..200_usize, 0..5),
        ) {
            let whole = safe(&bytes);
            prop_assert!(!whole.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let mut out = String::new();
            let mut text = SafeText::default();
            for pair in cuts.windows(2) {
                text.push(&bytes[pair[0]..pair[1]], &mut out);
            }
            text.finish(&mut out);
            prop_assert_eq!(out, whole);
        }
    }
}
