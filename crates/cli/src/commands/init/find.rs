//! What of a folder looks like tests. It reads names and the beginnings of files, runs nothing, and stops in trees that
//! are too large.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// How deep it looks.
const DEEPEST: usize = 6;
/// How many names it looks at.
const MOST: usize = 20_000;
/// How much of a file says what it is.
const BEGINNING: u64 = 16 << 10;
/// Programs that are named one by one.
const PROGRAMS: usize = 50;
/// Folders of what is made or fetched.
const NOT_OURS: [&str; 8] = ["target", "node_modules", "venv", "__pycache__", "build", "dist", "vendor", "fixtures"];
/// Folders of tests.
const TEST_FOLDERS: [&str; 4] = ["test", "tests", "t", "integration"];
/// Scripts beside tests that are none.
const NOT_TESTS: [&str; 7] = ["lib", "common", "helper", "helpers", "setup", "teardown", "functions"];

/// What a suite can be made of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) shell: Vec<Scripts>,
    pub(super) python: Option<Python>,
    pub(super) cargo: Option<Tool>,
    pub(super) go: Option<Tool>,
    /// Programs in folders of tests, below the suite's folder.
    pub(super) programs: Vec<String>,
}

/// Shell scripts that one pattern means.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scripts {
    pub(super) glob: String,
    pub(super) exclude: Vec<String>,
    /// The shell that runs them; none where each of them is executable.
    pub(super) shell: Option<&'static str>,
    pub(super) count: usize,
}

/// Python's test files.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Python {
    pub(super) globs: Vec<String>,
    pub(super) interpreter: String,
    pub(super) module: &'static str,
    pub(super) count: usize,
}

/// A project that a tool of its own tests.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tool {
    pub(super) command: Vec<&'static str>,
    /// Where its program is, where that is in the user's home: environments do not see it.
    pub(super) at_home: bool,
    /// It was not found.
    pub(super) missing: bool,
}

/// What there is outside the folder.
#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) path: Vec<PathBuf>,
    pub(super) home: Option<PathBuf>,
}

impl Host {
    pub(super) fn of_process() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        Self { path: std::env::split_paths(&path).collect(), home }
    }

    fn find(&self, program: &str) -> Option<PathBuf> {
        self.path.iter().map(|folder| folder.join(program)).find(|path| is_executable(path))
    }

    fn tool(&self, program: &str, command: Vec<&'static str>) -> Tool {
        let found = self.find(program);
        let at_home = self.home.as_ref().is_some_and(|home| found.as_ref().is_some_and(|path| path.starts_with(home)));
        Tool { command, at_home, missing: found.is_none() }
    }
}

impl Found {
    /// In few words each.
    pub(super) fn words(&self) -> Vec<String> {
        let mut words: Vec<String> =
            self.shell.iter().map(|scripts| format!("{} shell scripts ({})", scripts.count, scripts.glob)).collect();
        words.extend(self.python.as_ref().map(|python| format!("{} files for {}", python.count, python.module)));
        words.extend(self.cargo.as_ref().map(|tool| tool.command.join(" ")));
        words.extend(self.go.as_ref().map(|tool| tool.command.join(" ")));
        if !self.programs.is_empty() {
            words.push(format!("{} programs", self.programs.len()));
        }
        words
    }
}

/// Looks at a folder.
pub(super) fn look(folder: &Path, host: Host) -> Found {
    let mut files = Vec::new();
    let mut left = MOST;
    walk(folder, Path::new(""), DEEPEST, &mut left, &mut files);
    files.sort();
    let has = |name: &str| folder.join(name).is_file();
    let cargo = has("Cargo.toml").then(|| match host.find("cargo-nextest") {
        Some(_) => host.tool("cargo", vec!["cargo", "nextest", "run"]),
        None => host.tool("cargo", vec!["cargo", "test"]),
    });
    let go = has("go.mod").then(|| host.tool("go", vec!["go", "test", "./..."]));
    // Of a project with tools of its own, files in test folders are the tools' own.
    let programs = if cargo.is_some() || go.is_some() { Vec::new() } else { programs(folder, &files) };
    Found { shell: shell(folder, &files), python: python(folder, &files), cargo, go, programs }
}

/// Names of files below, those of which a pattern can be made.
fn walk(top: &Path, below: &Path, deepest: usize, left: &mut usize, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(top.join(below)) else { return };
    for entry in entries.flatten() {
        if *left == 0 {
            return;
        }
        *left -= 1;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte));
        let Ok(kind) = entry.file_type() else { continue };
        if !plain || name.starts_with('.') {
            continue;
        }
        let path = below.join(&name);
        let is_suite = || top.join(&path).join(super::FILE).exists();
        if kind.is_dir() && deepest > 0 && !NOT_OURS.contains(&name.as_str()) && !is_suite() {
            walk(top, &path, deepest - 1, left, files);
        } else if kind.is_file() {
            files.push(path);
        }
    }
}

fn shell(folder: &Path, files: &[PathBuf]) -> Vec<Scripts> {
    let mut scripts: Vec<(String, Vec<&PathBuf>)> = Vec::new();
    for file in files.iter().filter(|file| ending(file) == "sh") {
        let stem = stem(file);
        let glob = match test_folder(file) {
            Some(top) => format!("{top}/**/*.sh"),
            None if stem.starts_with("test_") || stem.starts_with("test-") => {
                beside(file, &format!("{}*.sh", &stem[..5]))
            }
            None if stem.ends_with("_test") || stem.ends_with("-test") => {
                beside(file, &format!("*{}.sh", &stem[stem.len() - 5..]))
            }
            None => continue,
        };
        match scripts.iter_mut().find(|(other, _)| *other == glob) {
            Some((_, files)) => files.push(file),
            None => scripts.push((glob, vec![file])),
        }
    }
    let made = scripts.into_iter().map(|(glob, files)| {
        let (none, tests): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| NOT_TESTS.contains(&stem(file)));
        let executable = tests.iter().all(|file| is_executable(&folder.join(file)));
        let bash =
            tests.iter().any(|file| beginning(&folder.join(file)).lines().next().is_some_and(|l| l.contains("bash")));
        let shell = if executable { None } else { Some(if bash { "bash" } else { "sh" }) };
        let exclude = none.iter().map(|file| file.display().to_string()).collect();
        Scripts { glob, exclude, shell, count: tests.len() }
    });
    made.filter(|scripts| scripts.count > 0).collect()
}

fn python(folder: &Path, files: &[PathBuf]) -> Option<Python> {
    let is_test = |file: &&PathBuf| {
        let stem = stem(file);
        ending(file) == "py" && (stem.starts_with("test_") || stem.ends_with("_test"))
    };
    let tests: Vec<&PathBuf> = files.iter().filter(is_test).collect();
    if tests.is_empty() {
        return None;
    }
    let mut globs = BTreeSet::new();
    for file in &tests {
        let pattern = if stem(file).starts_with("test_") { "test_*.py" } else { "*_test.py" };
        match file.components().next().filter(|_| file.components().count() > 1) {
            Some(top) => globs.insert(format!("{}/**/{pattern}", top.as_os_str().display())),
            None => globs.insert(pattern.to_owned()),
        };
    }
    let told = ["pyproject.toml", "setup.cfg", "tox.ini", "pytest.ini"]
        .iter()
        .any(|name| beginning(&folder.join(name)).contains("pytest"));
    let conftest = files.iter().any(|file| stem(file) == "conftest");
    let texts: Vec<String> = tests.iter().take(PROGRAMS).map(|file| beginning(&folder.join(file))).collect();
    let unittest = !told && !conftest && texts.iter().all(|text| text.contains("unittest") && !text.contains("pytest"));
    let own = [".venv", "venv"].into_iter().map(|name| format!("{name}/bin/python"));
    let interpreter = own.into_iter().find(|path| folder.join(path).exists()).unwrap_or_else(|| "python3".to_owned());
    let module = if unittest { "unittest" } else { "pytest" };
    Some(Python { globs: globs.into_iter().collect(), interpreter, module, count: tests.len() })
}

fn programs(folder: &Path, files: &[PathBuf]) -> Vec<String> {
    let is_program = |file: &&PathBuf| {
        test_folder(file).is_some() && !["sh", "py"].contains(&ending(file)) && is_executable(&folder.join(file))
    };
    files.iter().filter(is_program).take(PROGRAMS).map(|file| file.display().to_string()).collect()
}

/// The way to the folder of tests in which a file lies.
fn test_folder(file: &Path) -> Option<String> {
    let parent = file.parent()?;
    let depth = parent
        .components()
        .position(|part| part.as_os_str().to_str().is_some_and(|name| TEST_FOLDERS.contains(&name)))?;
    let way: PathBuf = parent.components().take(depth + 1).collect();
    Some(way.display().to_string())
}

fn beside(file: &Path, pattern: &str) -> String {
    file.with_file_name(pattern).display().to_string()
}

fn stem(file: &Path) -> &str {
    file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
}

fn ending(file: &Path) -> &str {
    file.extension().and_then(|ending| ending.to_str()).unwrap_or_default()
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

fn beginning(path: &Path) -> String {
    let mut bytes = Vec::new();
    // What cannot be read says nothing.
    let _ = File::open(path).and_then(|file| file.take(BEGINNING).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str, u32)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text, mode) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("below the folder")).expect("ours");
            fs::write(&path, text).expect("ours");
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).expect("ours");
        }
        folder
    }

    #[test]
    fn each_kind_is_found() {
        let folder = folder(&[
            ("tests/a.sh", "#!/bin/sh\n", 0o755),
            ("tests/deep/b.sh", "#!/bin/sh\n", 0o755),
            ("tests/lib.sh", "", 0o644),
            ("tools/test_x.sh", "#!/bin/bash\n", 0o644),
            ("tests/probe", "#!/bin/sh\n", 0o755),
            ("py/test_a.py", "import unittest\n", 0o644),
            ("target/tests/c.sh", "", 0o755),
            (".hidden/tests/c.sh", "", 0o755),
            ("other/testyard.toml", "", 0o644),
            ("other/tests/d.sh", "", 0o755),
        ]);
        let found = look(folder.path(), Host::default());
        let scripts = |glob: &str, exclude: &[&str], shell, count| Scripts {
            glob: glob.to_owned(),
            exclude: exclude.iter().map(ToString::to_string).collect(),
            shell,
            count,
        };
        assert_eq!(
            found,
            Found {
                shell: vec![
                    scripts("tests/**/*.sh", &["tests/lib.sh"], None, 2),
                    scripts("tools/test_*.sh", &[], Some("bash"), 1),
                ],
                python: Some(Python {
                    globs: vec!["py/**/test_*.py".to_owned()],
                    interpreter: "python3".to_owned(),
                    module: "unittest",
                    count: 1,
                }),
                programs: vec!["tests/probe".to_owned()],
                ..Found::default()
            }
        );
    }

    #[test]
    fn tools_are_looked_for_where_the_user_has_them() {
        let folder = folder(&[
            ("Cargo.toml", "", 0o644),
            ("go.mod", "", 0o644),
            ("tests/fixture", "", 0o755),
            ("home/bin/cargo", "", 0o755),
            ("home/bin/cargo-nextest", "", 0o755),
        ]);
        let home = folder.path().join("home");
        let found = look(folder.path(), Host { path: vec![home.join("bin")], home: Some(home) });
        let cargo = Tool { command: vec!["cargo", "nextest", "run"], at_home: true, missing: false };
        let go = Tool { command: vec!["go", "test", "./..."], at_home: false, missing: true };
        assert_eq!((found.cargo, found.go), (Some(cargo), Some(go)));
        assert_eq!(found.programs, [""; 0], "they are the tools' own");
    }

    #[test]
    fn pytest_is_told_by_its_configuration() {
        let folder = folder(&[("a_test.py", "import unittest", 0o644), ("pyproject.toml", "[tool.pytest]", 0o644)]);
        let python = look(folder.path(), Host::default()).python.expect("a test file");
        assert_eq!((python.module, &python.globs[..]), ("pytest", &["*_test.py".to_owned()][..]));
        assert_eq!(look(tempfile::tempdir().expect("a folder").path(), Host::default()), Found::default());
    }
}
