//! A small Python project to be tested: a package, two test files, a suite.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The project's files, by their paths inside it.
const FILES: [(&str, &str); 6] = [
    ("calc/__init__.py", "VERSION = 1\n\n\ndef add(a, b):\n    return a + b\n"),
    (
        "tests/test_add.py",
        "import unittest\n\nimport calc\n\n\nclass Add(unittest.TestCase):\n    def test_small(self):\n        \
         self.assertEqual(calc.add(1, 2), 3)\n\n    def test_negative(self):\n        \
         self.assertEqual(calc.add(-1, 1), 0)\n",
    ),
    (
        "tests/test_version.py",
        "import unittest\n\nimport calc\n\n\nclass Version(unittest.TestCase):\n    def test_version(self):\n        \
         self.assertEqual(calc.VERSION, 1)\n",
    ),
    (".gitignore", "__pycache__\nbuild\n"),
    ("data/words.txt", "one\ntwo\nthree\n"),
    (
        "testyard.toml",
        "format = 1\n\n[suite]\nname = \"calc\"\n\n[[tests]]\nglob = \"tests/test_*.py\"\n\
         command = [\"python3\", \"-m\", \"unittest\", \"{file}\"]\n",
    ),
];

/// A project on disk; its folder belongs to the caller.
#[derive(Debug)]
pub struct PythonProject {
    folder: PathBuf,
}

impl PythonProject {
    /// How many unit tests it has; all pass.
    pub const TESTS: usize = 3;
    /// How many test files it has.
    pub const TEST_FILES: usize = 2;

    /// Writes it into a folder, which is made where it does not exist.
    ///
    /// # Panics
    ///
    /// Where a file cannot be written.
    #[must_use]
    pub fn write(folder: &Path) -> Self {
        let project = Self { folder: folder.to_owned() };
        for (path, text) in FILES {
            project.put(path, text);
        }
        project
    }

    /// Its top folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Writes one of its files.
    ///
    /// # Panics
    ///
    /// Where it cannot be written.
    pub fn put(&self, path: &str, text: &str) {
        let file = self.folder.join(path);
        let written = file.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&file, text));
        written.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// Changes its code so that `tests/test_add.py` fails, in both of its tests.
    ///
    /// # Panics
    ///
    /// As [`PythonProject::put`].
    pub fn break_addition(&self) {
        self.put("calc/__init__.py", "VERSION = 1\n\n\ndef add(a, b):\n    return a - b - 1\n");
    }

    /// Makes it a git repository with one commit.
    ///
    /// # Panics
    ///
    /// Where git fails.
    pub fn commit(&self) {
        for arguments in [
            &["init", "--quiet", "--initial-branch=main"][..],
            &["add", "--all"],
            &["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message=first"],
        ] {
            let mut command = Command::new("git");
            command.args(arguments).current_dir(&self.folder).stdin(Stdio::null());
            // Nothing of the developer's own configuration: no hooks, no signing.
            command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
            let status = command.status().unwrap_or_else(|error| panic!("git: {error}"));
            assert!(status.success(), "git {arguments:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unittest(project: &PythonProject) -> (bool, String) {
        let mut command = Command::new("python3");
        command.args(["-B", "-m", "unittest", "discover", "-s", "tests", "-t", "."]).current_dir(project.path());
        let output = command.output().expect("python3 starts");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[test]
    fn its_tests_pass_until_it_is_broken() {
        crate::require!(crate::Ability::Program("python3"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let project = PythonProject::write(folder.path());
        project.put("tests/__init__.py", "");
        let (passed, text) = unittest(&project);
        assert!(passed && text.contains(&format!("Ran {} tests", PythonProject::TESTS)), "{text}");
        project.break_addition();
        let (passed, text) = unittest(&project);
        assert!(!passed && text.contains("failures=2"), "{text}");
    }

    #[test]
    fn it_can_be_a_repository() {
        crate::require!(crate::Ability::Program("git"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let project = PythonProject::write(folder.path());
        project.commit();
        let output = Command::new("git").args(["ls-files"]).current_dir(project.path()).output().expect("git starts");
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), FILES.len());
    }
}
