//! `testyard run --watch`: who is told of Ctrl-C and Ctrl-Z, and which tests a change concerns.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::pipe::{PipeFlags, pipe_with};
use testyard::run::Trees;
use testyard_linux::signal::{Signal, SignalFd};
use testyard_model::{Problem, ProblemKind};
use testyard_runner::plan::{ChangedInputs, Plan};
use testyard_runner::result::Verdict;
use testyard_runner::run::Interrupter;

use super::keys::{self, Keys};
use crate::attend;
use crate::output::Output;
use crate::streams::{Feeder, duplicate};

/// Tests that are run again whatever changed: suite and name.
pub(super) type Failed = BTreeSet<(String, String)>;

/// Interrupts by the user: for the run that goes on, else for whoever waits.
pub(super) struct Interrupts {
    told: Arc<Mutex<Told>>,
    stop: OwnedFd,
    _feeder: Feeder,
}

/// Who is told: the run that goes on, and whoever reads keys for it.
#[derive(Default)]
struct Told {
    running: Option<Interrupter>,
    keys: Option<Arc<Keys>>,
}

/// While this lives, a run is told.
pub(super) struct Running<'a>(&'a Interrupts);

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Interrupts {
    /// To be called before any thread is started. Where a terminal is drawn over and its keys are read, Ctrl-Z must
    /// give it back first.
    pub(super) fn begin(live: bool) -> Result<Self, Problem> {
        let suspended_by: &[Signal] = if live { &[Signal::TSTP] } else { &[] };
        let all = [&[Signal::INT, Signal::TERM, Signal::HUP], suspended_by].concat();
        let signals = SignalFd::new(&all).map_err(attend::local)?;
        let (stop, told) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|errno| Problem::new(ProblemKind::System, "cannot make a pipe").because(errno))?;
        let all: Arc<Mutex<Told>> = Arc::default();
        let told_of = Arc::clone(&all);
        let watched = duplicate(signals.as_fd())?;
        let feeder = Feeder::watch(watched, move || {
            while let Ok(Some(received)) = signals.read() {
                if received.signal == Signal::TSTP {
                    let keys = lock(&told_of).keys.clone();
                    keys::suspend(keys.as_deref());
                    continue;
                }
                if let Some(running) = &lock(&told_of).running {
                    running.interrupt();
                }
                // Whoever waits after the run ends, too. A full pipe has told enough.
                let _ = rustix::io::write(&told, b"x");
            }
            true
        })?;
        Ok(Self { told: all, stop, _feeder: feeder })
    }

    /// Readable once the user has asked to stop, for whoever waits before or after a run.
    pub(super) fn stopped(&self) -> Result<OwnedFd, Problem> {
        duplicate(self.stop.as_fd())
    }

    /// From now on a run is told, and the keys that are read for it.
    pub(super) fn go_to(&self, interrupter: Interrupter, keys: Option<Arc<Keys>>) -> Running<'_> {
        *lock(&self.told) = Told { running: Some(interrupter), keys };
        Running(self)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // With its keys, which gives the terminal back.
        *lock(&self.0.told) = Told::default();
    }
}

/// Waits until something is saved; none when the user has had enough.
pub(super) fn await_change(
    trees: &Trees,
    interrupts: &Interrupts,
    output: Output,
) -> Result<Option<Vec<PathBuf>>, Problem> {
    output.say("waiting for changes; Ctrl-C ends");
    let changed = trees.await_change(interrupts.stop.as_fd())?;
    if let Some(changed) = &changed {
        let more = if changed.len() > 1 { format!(" and {} more", changed.len() - 1) } else { String::new() };
        let first = changed.first().map(|path| path.display().to_string()).unwrap_or_default();
        output.say(format_args!("changed: {first}{more}"));
    }
    Ok(changed)
}

/// Whether a test is to be run again until it passes.
pub(super) fn is_open(verdict: &Verdict) -> bool {
    !(verdict.is_success() || matches!(verdict, Verdict::Skipped(_)))
}

/// The tests of a plan that a change concerns, and those that failed; none where there are none. A test file concerns
/// itself; any other file those tests that declare it among their inputs, and those that declare none of every suite whose
/// folder, or whose tree, it lies in.
pub(super) fn concerned(mut plan: Plan, changed: &[PathBuf], failed: &Failed) -> Option<Plan> {
    let changed: BTreeSet<PathBuf> = changed.iter().cloned().collect();
    let files: BTreeSet<PathBuf> = plan.tests.iter().filter_map(|test| test.file.clone()).collect();
    let others: Vec<&PathBuf> = changed.iter().filter(|path| !files.contains(*path)).collect();
    let names: Vec<String> = plan.suites.iter().map(|suite| suite.name.clone()).collect();
    // A file that lies in one suite is no other suite's business.
    let roots: Vec<PathBuf> = plan.suites.iter().map(|suite| suite.root.clone()).collect();
    let concerns = |suite: usize, path: &PathBuf| {
        path.starts_with(&roots[suite]) || !roots.iter().any(|root| path.starts_with(root))
    };
    let mut inputs = ChangedInputs::default();
    let suites = &plan.suites;
    plan.tests.retain(|test| {
        let own = test.file.as_ref().is_some_and(|file| changed.contains(file));
        own || failed.contains(&(names[test.suite].clone(), test.name.clone()))
            || match test.inputs.is_empty() {
                true => others.iter().any(|path| concerns(test.suite, path)),
                false => inputs.has(&suites[test.suite], test, &changed),
            }
    });
    (!plan.tests.is_empty()).then_some(plan)
}

#[cfg(test)]
mod tests {
    use testyard_runner::filter::Filter;
    use testyard_runner::history::NoHistory;
    use testyard_runner::plan::Selection;

    use super::*;

    #[test]
    fn a_test_file_concerns_itself_and_any_other_file_its_suite() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |path: &str| folder.path().join(path);
        for suite in ["one", "two"] {
            std::fs::create_dir(at(suite)).expect("a folder");
            let text = "format = 1\n[[test]]\nname = \"plain\"\ncommand = \"true\"\n\
                        [[tests]]\nglob = \"*.sh\"\ncommand = [\"sh\", \"{file}\"]\n";
            std::fs::write(at(suite).join("testyard.toml"), text).expect("a suite");
            std::fs::write(at(suite).join("a.sh"), "").expect("a test");
            std::fs::write(at(suite).join("b.sh"), "").expect("a test");
        }
        let names = |changed: &[&str], failed: &[(&str, &str)]| -> Vec<String> {
            let plan = Plan::load(&[], folder.path(), &Selection::of(Filter::All), &NoHistory).expect("a plan");
            let changed: Vec<PathBuf> = changed.iter().map(|path| at(path)).collect();
            let failed = failed.iter().map(|(suite, name)| ((*suite).to_owned(), (*name).to_owned())).collect();
            let plan = concerned(plan, &changed, &failed);
            let Some(plan) = plan else { return Vec::new() };
            plan.tests.iter().map(|test| format!("{}::{}", plan.suites[test.suite].name, test.name)).collect()
        };
        assert_eq!(names(&["one/a.sh"], &[]), ["one::a.sh"]);
        assert_eq!(names(&["one/a.sh"], &[("two", "b.sh")]), ["one::a.sh", "two::b.sh"]);
        assert_eq!(names(&["two/source.c"], &[]), ["two::plain", "two::a.sh", "two::b.sh"]);
        assert_eq!(names(&["Cargo.toml"], &[]).len(), 6);
        assert!(names(&["one/../x"], &[]).len() > 1 && names(&[], &[]).is_empty());
        let text = "format = 1\n[[test]]\nname = \"docs\"\ncommand = \"true\"\ninputs = [\"docs/**\", \"../shared/*\"]\n\
                    [[test]]\nname = \"any\"\ncommand = \"true\"\n";
        std::fs::write(at("one/testyard.toml"), text).expect("a suite");
        assert_eq!(names(&["one/source.c"], &[]), ["one::any"]);
        assert_eq!(names(&["one/docs/a/b.md"], &[]), ["one::docs", "one::any"]);
        assert!(names(&["shared/x"], &[]).contains(&"one::docs".to_owned()));
        assert!(!names(&["Cargo.toml"], &[]).contains(&"one::docs".to_owned()));
        assert_eq!(names(&["one/testyard.toml"], &[]), ["one::docs", "one::any"]);
    }
}
