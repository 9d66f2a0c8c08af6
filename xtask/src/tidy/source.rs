//! The rules of Rust files: a head that says what the module is for, and sizes that one can read at a sitting.

use super::Finding;
use super::blank::blanked;
use super::words::has_word;

/// Lines of a file without its test module.
const FILE_LINES: usize = 500;
/// Lines of a file, tests and all.
const FILE_LINES_HARD: usize = 800;
/// Lines of a function, from its name to its closing brace.
const FUNCTION_LINES: usize = 60;
/// The one place for `unsafe`.
const UNSAFE_FOLDER: &str = "crates/linux/";

/// Everything wrong with one Rust file.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let code = blanked(text);
    let mut findings = Vec::new();
    // A file called `tests` says what it is for by its name.
    if !path.ends_with("/tests.rs") && !has_module_comment(text) {
        findings.push(Finding::new(path, 1, "no `//!`: say what the module is for, and what it refuses to know"));
    }
    let lines = text.lines().count();
    let modules = test_modules(&code);
    let tests: usize = modules.iter().map(|(first, last)| last - first + 1).sum();
    // A table of cases may be as long as there are cases.
    let in_tests =
        |line: usize| is_test_file(path) || modules.iter().any(|(first, last)| (*first..=*last).contains(&line));
    if lines > FILE_LINES_HARD {
        findings.push(Finding::new(path, 0, format!("{lines} lines; {FILE_LINES_HARD} at most: split it by idea")));
    } else if lines - tests > FILE_LINES && !is_test_file(path) {
        let own = lines - tests;
        findings.push(Finding::new(path, 0, format!("{own} lines without tests; {FILE_LINES} at most: split by idea")));
    }
    for function in functions(&code).into_iter().filter(|function| !in_tests(function.first)) {
        let length = function.last - function.first + 1;
        if length > FUNCTION_LINES {
            let what = format!("`{}` has {length} lines; {FUNCTION_LINES} at most", function.name);
            findings.push(Finding::new(path, function.first, what));
        }
    }
    if !path.starts_with(UNSAFE_FOLDER) {
        let lines = code.lines().enumerate().filter(|(_, line)| has_word(line, "unsafe"));
        findings.extend(lines.map(|(index, _)| {
            Finding::new(path, index + 1, "`unsafe` belongs in crates/linux, behind a safe function")
        }));
    }
    findings
}

/// Everything wrong with one Python file: ruff and mypy know the rest.
pub(super) fn python(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let ours = ["python/", "benches/"].iter().any(|folder| path.starts_with(folder));
    let head = text.lines().find(|line| !line.is_empty() && !line.starts_with('#'));
    if ours && head.is_some_and(|line| !line.starts_with("\"\"\"") && !line.starts_with("r\"\"\"")) {
        findings.push(Finding::new(path, 1, "no docstring: say what the module is for"));
    }
    let lines = text.lines().count();
    if lines > FILE_LINES && !is_test_file(path) {
        findings.push(Finding::new(path, 0, format!("{lines} lines; {FILE_LINES} at most: split it by idea")));
    }
    findings
}

/// Files of tests only: their length is that of the cases.
fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs")
}

/// Whether `//!` comes before any code.
fn has_module_comment(text: &str) -> bool {
    let head = text.lines().find(|line| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with("#!") && (!line.starts_with("//") || line.starts_with("//!"))
    });
    head.is_some_and(|line| line.trim_start().starts_with("//!"))
}

/// A function's name and lines, from 1.
struct Function {
    name: String,
    first: usize,
    last: usize,
}

/// Each function with a body, wherever it stands.
fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        // `fn (` is a function pointer's type, not a function.
        if name.is_empty() {
            continue;
        }
        if let Some((_, close)) = body(code, at) {
            found.push(Function { name, first: line_of(code, at), last: line_of(code, close) });
        }
    }
    found
}

/// The braces of the body that follows the head at `at`; none where a `;` ends the head.
fn body(code: &str, at: usize) -> Option<(usize, usize)> {
    let mut nesting = 0_i32;
    for (offset, byte) in code.as_bytes()[at..].iter().enumerate() {
        match byte {
            b'(' | b'[' => nesting += 1,
            b')' | b']' => nesting -= 1,
            b';' if nesting == 0 => return None,
            b'{' if nesting == 0 => return Some((at + offset, closing(code, at + offset))),
            _ => {}
        }
    }
    None
}

/// Where the brace that opens at `open` closes; the end of the text where it does not.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0_i32;
    for (offset, byte) in code.as_bytes()[open..].iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return open + offset;
        }
    }
    code.len().saturating_sub(1)
}

fn line_of(code: &str, at: usize) -> usize {
    code.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// First and last line of each `#[cfg(test)] mod … { … }`.
fn test_modules(code: &str) -> Vec<(usize, usize)> {
    let marks = code.match_indices("#[cfg(test)]");
    marks
        .filter_map(|(at, mark)| {
            let rest = &code[at + mark.len()..];
            let module = rest.find("mod ")?;
            // Only attributes may stand between the mark and its module.
            if rest[..module].contains(['{', '}', ';']) {
                return None;
            }
            let (_, close) = body(code, at + mark.len() + module)?;
            Some((line_of(code, at), line_of(code, close)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(path: &str, text: &str) -> Vec<String> {
        check(path, text).into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn a_good_file_has_no_findings() {
        let text = "//! Good.\n\n/// A trait.\npub trait A {\n    fn a(&self);\n}\nfn b(f: fn (u8)) {}\n";
        assert!(whats("crates/a/src/lib.rs", text).is_empty());
    }

    #[test]
    fn python_files_have_a_docstring_and_an_end() {
        assert!(python("python/src/a.py", "#!/usr/bin/env x\n\"\"\"What a is for.\"\"\"\n").is_empty());
        assert!(python("python/src/a.py", "").is_empty());
        assert_eq!(python("python/src/a.py", "import os\n").len(), 1);
        assert_eq!(python("python/src/a.py", &"\"\"\"A.\"\"\"\n".repeat(501)).len(), 1);
        assert!(python("examples/a.py", "import os\n").is_empty());
    }

    #[test]
    fn heads_and_unsafe_are_seen() {
        assert!(whats("crates/a/src/a/tests.rs", "fn a() {}\n").is_empty());
        assert!(whats("a.rs", "// Not a module comment.\nfn a() {}\n")[0].contains("no `//!`"));
        assert!(whats("a.rs", "#!/usr/bin/env x\n// Licence.\n//! Good.\n").is_empty());
        let text = "//! A.\n// unsafe is fine in words\nfn a() { unsafe { b() } }\n";
        assert!(whats("crates/a/src/lib.rs", text)[0].starts_with("crates/a/src/lib.rs:3: `unsafe`"));
        assert!(whats("crates/linux/src/lib.rs", text).is_empty());
    }

    #[test]
    fn long_functions_are_named() {
        let text = format!("//! A.\nfn long() {{\n{}}}\nfn short() {{}}\n", "    \"}\";\n".repeat(59));
        assert_eq!(whats("a.rs", &text), ["a.rs:2: `long` has 61 lines; 60 at most"]);
        assert!(whats("crates/a/tests/a.rs", &text).is_empty());
        let tests = text.replace("//! A.\n", "//! A.\n#[cfg(test)]\nmod tests {\n") + "}\n";
        assert!(whats("a.rs", &tests).is_empty());
    }

    #[test]
    fn tests_do_not_count_into_the_soft_limit() {
        let tests = format!("#[cfg(test)]\n#[allow(x)]\nmod tests {{\n{}}}\n", "    // x\n".repeat(200));
        let text = format!("//! A.\n{}{tests}", "const A: u8 = 0;\n".repeat(490));
        assert!(whats("a.rs", &text).is_empty());
        let text = format!("//! A.\n{}{tests}", "const A: u8 = 0;\n".repeat(501));
        assert!(whats("a.rs", &text)[0].contains("502 lines without tests"));
        let text = format!("//! A.\n{tests}{}", "const A: u8 = 0;\n".repeat(600));
        assert!(whats("a.rs", &text)[0].contains("800 at most"));
    }
}
