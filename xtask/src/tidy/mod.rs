//! The rules of the tree that no compiler checks, each with its reason. Also a test: see the end of this file.

mod arrows;
mod blank;
mod documents;
mod source;
mod tree;
mod words;

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use crate::cargo;
use crate::fault::Outcome;

/// One place where a rule is broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// The file, from the workspace's top folder.
    path: String,
    /// The line, from 1; 0 for the whole file.
    line: usize,
    /// What is wrong, and what to do.
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.what),
            line => write!(f, "{}:{line}: {}", self.path, self.what),
        }
    }
}

/// Prints what is untidy; fails if anything is.
pub(crate) fn report() -> Outcome<ExitCode> {
    let findings = findings()?;
    for finding in &findings {
        println!("{finding}");
    }
    println!("tidy: {} findings", findings.len());
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything in the tree that breaks a rule, in the order of paths.
pub(crate) fn findings() -> Outcome<Vec<Finding>> {
    let root = cargo::workspace_root();
    let mut findings = arrows::check(&cargo::metadata(false)?);
    for file in tree::text_files(&root)? {
        findings.extend(check_file(&root, &file.path, &file.text));
    }
    findings.sort();
    Ok(findings)
}

fn check_file(root: &Path, path: &str, text: &str) -> Vec<Finding> {
    let mut findings = words::check(path, text);
    findings.extend(documents::trailing_whitespace(path, text));
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
    match extension {
        Some("rs") => findings.extend(source::check(path, text)),
        Some("py") => findings.extend(source::python(path, text)),
        Some("md") => findings.extend(documents::links(root, path, text)),
        _ if path.ends_with("Cargo.toml") => findings.extend(documents::manifest(path, text)),
        _ => {}
    }
    findings
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_tidy() {
        let findings = super::findings().expect("the workspace can be read");
        let shown: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(shown.is_empty(), "{}", shown.join("\n"));
    }
}
