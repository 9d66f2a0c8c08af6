//! Building a Debian release from its archive, with mmdebstrap.
//!
//! The tool picks mirror, keys and proxy by its own defaults. It writes a tar archive to a pipe, and the importer
//! reads that: one way into the store, and the tree appears only when the tool has ended well.

mod tool;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use sha2::{Digest as _, Sha256};
use testyard_linux::Error as SystemError;
use testyard_model::{ImageReference, Problem, ProblemKind};

use self::tool::{EndedWell, Workplace, follow, installed};
use crate::import::{ImportError, ImportOptions};
use crate::store::{Image, Origin, Store, StoreError, hexadecimal};

/// A release that can be built: `debian:12`, `debian:bookworm`, `debian:stable`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The suite, as the archive calls it.
    pub suite: String,
    /// Packages beside those that every image has, separated by commas.
    pub packages: &'static str,
}

/// Numbers and their code names. A number not here is refused: nobody can guess a code name.
const RELEASES: [(&str, &str); 5] =
    [("10", "buster"), ("11", "bullseye"), ("12", "bookworm"), ("13", "trixie"), ("14", "forky")];
/// Suites that are no release by themselves.
const SUITES: [&str; 5] = ["stable", "oldstable", "testing", "unstable", "sid"];
/// Ubuntu's, which mmdebstrap can build where its archive and keys are at hand.
const UBUNTU: [(&str, &str); 6] = [
    ("20.04", "focal"),
    ("22.04", "jammy"),
    ("24.04", "noble"),
    ("24.10", "oracular"),
    ("25.04", "plucky"),
    ("25.10", "questing"),
];
/// The newest of Ubuntu's releases that are kept for long.
const LATEST_UBUNTU: &str = "noble";
/// The release whose Slurm clusters are tested with.
const USUAL_SLURM: &str = "bookworm";
/// Beside minbase: what nearly every test of a machine calls.
const INCLUDED: &str = "ca-certificates,iproute2,procps,sudo";
/// What nodes of a Slurm cluster are made of. Their daemons are never started while the image is built.
const SLURM: &str = "slurmctld,slurmd,slurm-client,slurm-wlm-basic-plugins,slurm-wlm-mysql-plugin,slurm-wlm-jwt-plugin,\
                     slurmdbd,slurmrestd,munge,openssh-server,openssh-client,mariadb-server,python3-venv,python3-pip,rsync";
/// Raised when the same release would be built differently.
const RECIPE: u32 = 2;
/// Where Ubuntu's keys are, on its own hosts and where their package is installed.
const UBUNTU_KEYS: [&str; 2] =
    ["/usr/share/keyrings/ubuntu-archive-keyring.gpg", "/etc/apt/trusted.gpg.d/ubuntu-keyring-2018-archive.gpg"];

impl Release {
    /// The release that a reference names; none where it is no distribution's name at all.
    ///
    /// # Errors
    /// A Debian or Ubuntu reference with an unknown tag.
    pub fn of(reference: &ImageReference) -> Option<Result<Self, BuildError>> {
        let ImageReference::Named { name, tag } = reference else { return None };
        let (numbers, suites): (&[(&str, &str)], &[&str]) = match name.as_str() {
            "debian" => (&RELEASES, &SUITES),
            "ubuntu" => (&UBUNTU, &[]),
            // Of Debian: `slurm:13` is what that release has.
            "slurm" => (&RELEASES, &[]),
            _ => return None,
        };
        let packages = if name == "slurm" { SLURM } else { "" };
        let code_name = numbers.iter().find(|(number, code_name)| number == tag || code_name == tag);
        let suite = match code_name {
            Some((_, code_name)) => Some(*code_name),
            None if tag == "latest" => Some(match name.as_str() {
                "debian" => "stable",
                "ubuntu" => LATEST_UBUNTU,
                _ => USUAL_SLURM,
            }),
            None => suites.iter().copied().find(|suite| suite == tag),
        };
        Some(suite.map(|suite| Self { suite: suite.to_owned(), packages }).ok_or_else(|| BuildError::Release {
            reference: reference.clone(),
            known: numbers.iter().map(|(number, _)| *number).collect::<Vec<_>>().join(", "),
        }))
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.suite)
    }
}

/// Why a release was not built. Nothing of it is in the store.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Not the name of a distribution that can be built.
    #[error("{0} cannot be built: only releases of Debian and Ubuntu can, such as debian:12, and slurm")]
    Unknown(ImageReference),
    /// A distribution's, but no release of it.
    #[error("{reference} is not a release; known are {known} and their code names")]
    Release {
        /// As it was written.
        reference: ImageReference,
        /// The numbers there are.
        known: String,
    },
    /// mmdebstrap is not installed.
    #[error("mmdebstrap is not installed")]
    NoTool,
    /// Nothing could tell whether what comes from the archive is the distribution's own.
    #[error("the keys of Ubuntu's archive are not installed")]
    NoKeys,
    /// An ordinary user without the means to make other ids.
    #[error("building a release as an ordinary user needs {0}")]
    NoRange(&'static str),
    /// The tool could not be started.
    #[error("cannot start mmdebstrap")]
    Start(#[source] std::io::Error),
    /// The tool failed.
    #[error("mmdebstrap could not build {release} ({status}); the end of {}:\n{}", .log.display(), .tail.join("\n"))]
    Tool {
        /// What was built.
        release: Release,
        /// How it ended.
        status: ExitStatus,
        /// The whole log, kept until the next build of it.
        log: PathBuf,
        /// Its last lines.
        tail: Vec<String>,
    },
    /// What the tool wrote could not be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<SystemError> for BuildError {
    fn from(error: SystemError) -> Self {
        Self::Store(error.into())
    }
}

impl BuildError {
    /// As people and programs see it.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Import(error) => error.problem(),
            Self::Store(error) => error.problem(),
            Self::Unknown(reference) => Problem::from_error(ProblemKind::Usage, self)
                .hint(format!("import its root file system instead: testyard image import {reference} ARCHIVE.tar.gz")),
            Self::Release { .. } => Problem::from_error(ProblemKind::Usage, self),
            Self::NoTool => {
                Problem::from_error(ProblemKind::Unsupported, self).hint("install it: apt-get install mmdebstrap")
            }
            Self::NoKeys => {
                Problem::from_error(ProblemKind::Unsupported, self).hint("install them: apt-get install ubuntu-keyring")
            }
            Self::NoRange(_) => Problem::from_error(ProblemKind::Unsupported, self)
                .hint("install it: apt-get install uidmap")
                .hint("give yourself a range: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"),
            Self::Start(_) => Problem::from_error(ProblemKind::System, self),
            Self::Tool { release, log, .. } => Problem::from_error(ProblemKind::Unavailable, self)
                .hint(format!("read the whole log: {}", log.display()))
                .hint(format!("see whether the archive answers: mmdebstrap --simulate {release} /dev/null"))
                .hint("for another distribution, import its root file system: testyard image import NAME ARCHIVE"),
        }
    }
}

/// What a build tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildProgress {
    /// An equal build was found or waited for.
    Found,
    /// A line of the tool's log.
    Line(String),
}

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Build it even where an equal build is in the store.
    pub refresh: bool,
    /// Bounds and time of the import; its name is that of the reference.
    pub import: ImportOptions,
}

impl Store {
    /// Builds the release that a reference names, or finds the one that was built before.
    ///
    /// # Errors
    /// Any [`BuildError`]; then nothing stays but the log.
    pub fn build(
        &self,
        reference: &ImageReference,
        options: &BuildOptions,
        progress: &mut dyn FnMut(BuildProgress),
    ) -> Result<Image, BuildError> {
        let release = Release::of(reference).ok_or_else(|| BuildError::Unknown(reference.clone()))??;
        let ImageReference::Named { name, tag } = reference else {
            return Err(BuildError::Unknown(reference.clone()));
        };
        let key = key(&release);
        let lock = self.lock_build(&key)?;
        if !options.refresh
            && let Some(image) = self.built(&key)?
        {
            progress(BuildProgress::Found);
            self.name(name, tag, &image.record.digest)?;
            return Ok(self.find(reference)?);
        }
        require_tools()?;
        require_keys(&release)?;
        // What stays is told by whoever prunes.
        let _ = Self::sweep(self.path());
        let log = self.path().join(format!("{release}.log"));
        let import = ImportOptions { name: Some((name.clone(), tag.clone())), ..options.import.clone() };
        let image = self.run(&release, &key, &log, &import, progress)?;
        self.remember_build(&key, &image.record.digest)?;
        drop(lock);
        Ok(image)
    }

    fn run(
        &self,
        release: &Release,
        key: &str,
        log: &Path,
        import: &ImportOptions,
        progress: &mut dyn FnMut(BuildProgress),
    ) -> Result<Image, BuildError> {
        let place = Workplace::find(&self.staging())?;
        let mut child = match place.start(release) {
            Ok(child) => child,
            Err(error) => {
                place.clear()?;
                return Err(error);
            }
        };
        let output = child.stdout.take().expect("piped above");
        let errors = child.stderr.take().expect("piped above");
        let origin = |_| Origin::Built { release: release.suite.clone(), key: key.to_owned() };
        // The importer must not admit the tree of a tool that fails after its last byte: the reader asks first.
        let mut ended = None;
        let (imported, tail) = std::thread::scope(|scope| {
            let importer = scope.spawn(|| {
                let source = EndedWell { output, child: &mut child, status: &mut ended };
                self.import_as(source, import, origin)
            });
            let tail = follow(errors, log, &mut |line| progress(BuildProgress::Line(line)));
            (importer.join(), tail)
        });
        let status = match ended {
            Some(status) => status,
            // The importer stopped reading, so the tool's next write fails; it has closed its log already.
            None => child.wait().map_err(BuildError::Start)?,
        };
        place.clear()?;
        let imported = match imported {
            Ok(imported) => imported,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        match imported {
            Ok(image) => Ok(image),
            // A full disk or a refused entry is the importer's own; a broken archive is the tool's.
            Err(error) if status.success() || !matches!(error, ImportError::Archive(_)) => Err(error.into()),
            Err(_) => Err(BuildError::Tool { release: release.clone(), status, log: log.to_owned(), tail }),
        }
    }
}

/// Names what is built and how: equal keys, equal images.
fn key(release: &Release) -> String {
    let more = if release.packages.is_empty() { String::new() } else { format!(" {}", release.packages) };
    let text = format!("{RECIPE} mmdebstrap minbase {INCLUDED} {} {}{more}", release.suite, std::env::consts::ARCH);
    hexadecimal(&Sha256::digest(text)[..16])
}

fn require_tools() -> Result<(), BuildError> {
    if !installed("mmdebstrap") {
        return Err(BuildError::NoTool);
    }
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    if !installed("newuidmap") {
        return Err(BuildError::NoRange("newuidmap, of the package uidmap"));
    }
    let user = rustix::process::geteuid().as_raw();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(user)).then(|| fields[0].to_owned())
    });
    let has_range = |path: &str| {
        let ranges = fs::read_to_string(path).unwrap_or_default();
        ranges
            .lines()
            .filter_map(|line| line.split(':').next())
            .any(|owner| owner == user.to_string() || Some(owner) == name.as_deref())
    };
    if has_range("/etc/subuid") && has_range("/etc/subgid") {
        Ok(())
    } else {
        Err(BuildError::NoRange("a range of subordinate ids in /etc/subuid and /etc/subgid"))
    }
}

/// Without its keys an archive is asked for in vain.
fn require_keys(release: &Release) -> Result<(), BuildError> {
    let is_ubuntus = UBUNTU.iter().any(|(_, code_name)| *code_name == release.suite);
    if is_ubuntus && !UBUNTU_KEYS.iter().any(|path| Path::new(path).is_file()) {
        return Err(BuildError::NoKeys);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(reference: &str) -> Option<Result<String, String>> {
        let reference = reference.parse().expect("a reference");
        Release::of(&reference).map(|release| release.map(|it| it.suite).map_err(|error| error.to_string()))
    }

    #[test]
    fn numbers_and_code_names_are_releases() {
        for (reference, suite) in [
            ("debian:12", "bookworm"),
            ("debian:bookworm", "bookworm"),
            ("debian:13", "trixie"),
            ("debian:11", "bullseye"),
            ("debian", "stable"),
            ("debian:sid", "sid"),
            ("ubuntu:22.04", "jammy"),
            ("ubuntu:noble", "noble"),
            ("ubuntu", "noble"),
            ("slurm", "bookworm"),
            ("slurm:13", "trixie"),
        ] {
            assert_eq!(release(reference), Some(Ok(suite.to_owned())), "{reference}");
        }
        let of = |text: &str| Release::of(&text.parse().expect("a reference")).expect("known").expect("a release");
        assert!(of("slurm").packages.contains("slurmctld") && key(&of("slurm")) != key(&of("debian:12")));
        assert_eq!(release("mine:1"), None);
        assert_eq!(release("host"), None);
        let refused = release("debian:99").expect("a distribution").expect_err("no release");
        assert_eq!(refused, "debian:99 is not a release; known are 10, 11, 12, 13, 14 and their code names");
    }

    #[test]
    fn every_error_has_a_next_step() {
        for error in [
            BuildError::NoTool,
            BuildError::NoKeys,
            BuildError::NoRange("x"),
            BuildError::Unknown(ImageReference::Host),
        ] {
            assert!(!error.problem().hints.is_empty(), "{error}");
        }
    }
}
