//! Rust source with its comments, strings and characters blanked out, so that what remains can be searched.

/// The same text, as many bytes and lines, with spaces for everything that is not code.
pub(super) fn blanked(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match token_end(bytes, at) {
            Some(end) => end.min(bytes.len()),
            None => {
                at += 1;
                continue;
            }
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    // Code outside strings and comments may hold letters beyond ASCII; those bytes were left alone.
    String::from_utf8_lossy(&out).into_owned()
}

/// Where the comment, string or character that begins here ends, if one does.
fn token_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let in_word = at > 0 && is_word(bytes[at - 1]);
    match rest[0] {
        b'/' if rest.get(1) == Some(&b'/') => Some(at + position(rest, b'\n')),
        b'/' if rest.get(1) == Some(&b'*') => Some(at + block_comment(rest)),
        b'"' => Some(at + quoted(rest, b'"')),
        b'r' | b'b' | b'c' if !in_word => prefixed(rest).map(|length| at + length),
        b'\'' => character(rest).map(|length| at + length),
        _ => None,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn position(bytes: &[u8], wanted: u8) -> usize {
    bytes.iter().position(|byte| *byte == wanted).unwrap_or(bytes.len())
}

/// Block comments nest in Rust.
fn block_comment(rest: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at + 1 < rest.len() {
        match &rest[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Strings and characters behind a prefix: `r#"…"#`, `b"…"`, `br"…"`, `c"…"`, `b'…'`.
fn prefixed(rest: &[u8]) -> Option<usize> {
    let letters = rest.iter().take(2).take_while(|byte| matches!(byte, b'r' | b'b' | b'c')).count();
    let after = &rest[letters..];
    let hashes = after.iter().take_while(|byte| **byte == b'#').count();
    if rest[..letters].contains(&b'r') && after.get(hashes) == Some(&b'"') {
        let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
        let body = letters + hashes + 1;
        let found = rest[body..].windows(close.len()).position(|window| window == close);
        return Some(found.map_or(rest.len(), |length| body + length + close.len()));
    }
    match after.first() {
        Some(b'"') => Some(letters + quoted(after, b'"')),
        Some(b'\'') if rest[0] == b'b' && letters == 1 => Some(letters + quoted(after, b'\'')),
        _ => None,
    }
}

/// A character literal; none for a lifetime.
fn character(rest: &[u8]) -> Option<usize> {
    match rest.get(1)? {
        b'\\' => Some(quoted(rest, b'\'')),
        first => {
            let width = match first {
                0..=0x7f => 1,
                0x80..=0xdf => 2,
                0xe0..=0xef => 3,
                _ => 4,
            };
            (rest.get(1 + width) == Some(&b'\'')).then_some(width + 2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left() {
        for (source, expected) in [
            ("a // unsafe {\nb", "a b"),
            ("a /* x /* y */ { */ b", "a b"),
            (r#"f("{ \" }") {"#, "f( ) {"),
            (r##"f(r#"a"{"#, b'{') {"##, "f( , ) {"),
            ("fn f<'a>(x: &'a str) -> '{' {", "fn f<'a>(x: &'a str) -> {"),
            (r"x('\'', '\u{7b}') {", "x( , ) {"),
            (r#"a br"{" c"{" for_r"#, "a for_r"),
        ] {
            let left = blanked(source);
            assert_eq!(left.len(), source.len(), "{source}");
            assert_eq!(left.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{source}");
        }
    }

    #[test]
    fn lines_stay_where_they_are() {
        let source = "let a = \"one\ntwo\n\";\nfn b() {}\n";
        assert_eq!(blanked(source).lines().count(), source.lines().count());
        assert!(blanked(source).ends_with("fn b() {}\n"));
    }
}
