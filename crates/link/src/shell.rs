//! Words for a shell on another host. Who writes a script for one quotes in it every text that others chose.

/// A word as a shell reads it, whatever is in it.
#[must_use]
pub fn quoted(word: impl AsRef<[u8]>) -> Vec<u8> {
    let mut text = vec![b'\''];
    for byte in word.as_ref() {
        match byte {
            b'\'' => text.extend(b"'\\''"),
            byte => text.push(*byte),
        }
    }
    text.push(b'\'');
    text
}

/// The same where the word and the script are text.
#[must_use]
pub fn quoted_text(word: &str) -> String {
    // What is added is text as well.
    String::from_utf8_lossy(&quoted(word)).into_owned()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for text in ["", "a b", "it's", "'", "$HOME `id` \\ \"x\" !y\n*", "ü"] {
            let script = [&b"printf %s "[..], &quoted(text)].concat();
            assert_eq!(quoted_text(text).as_bytes(), quoted(text));
            let script = OsStr::from_bytes(&script);
            let output = Command::new("sh").arg("-c").arg(script).output().expect("a shell");
            assert_eq!(String::from_utf8_lossy(&output.stdout), text);
        }
    }
}
