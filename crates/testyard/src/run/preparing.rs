//! What suites have done before their first test and after their last: `prepare` once a key, kept as a layer of the
//! machine; `restore` once a run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fd::BorrowedFd;
use testyard_engine::{Attendance, EnvironmentRun, WarmMachine};
use testyard_model::{CommandStatus, EnvironmentSpec, Isolation, Problem, ProblemKind, Span};
use testyard_protocol::{Linger, RawText};
use testyard_runner::cancel::Cancel;
use testyard_runner::job::{Job, JobEvent, Preparation};

use super::executor::user_of;
use super::trees::Trees;

/// Bytes of a failed command's output that are shown.
const SHOWN: usize = 4096;

/// A suite's layer, or why there is none; nothing while nobody has made it.
type Slot = Arc<Mutex<Option<Result<String, Problem>>>>;

/// The preparations of a run.
#[derive(Debug, Default)]
pub(super) struct Preparations {
    /// By suite and machine.
    layers: Mutex<HashMap<(String, String), Slot>>,
    restores: Mutex<Vec<Restore>>,
}

/// Something to be done after a suite's tests.
#[derive(Debug)]
struct Restore {
    suite: String,
    machine: Arc<WarmMachine>,
    root: PathBuf,
    top: PathBuf,
    preparation: Arc<Preparation>,
    layer: Option<String>,
}

/// What is run, and where.
struct Task<'a> {
    machine: &'a WarmMachine,
    suite: &'a str,
    root: &'a Path,
    /// Where the tree is to be seen, and where it is taken from.
    top: &'a Path,
    tree: &'a Path,
    preparation: &'a Preparation,
    layer: Option<String>,
    linger: Linger,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Preparations {
    /// The layer over which a job's environment is made; none where its suite prepares nothing.
    ///
    /// # Errors
    /// `prepare` failed, or cannot be seen by this test.
    pub(super) fn layer(
        &self,
        machine: &WarmMachine,
        job: &Job,
        trees: &Trees,
        cancel: &Cancel,
        events: &dyn Fn(JobEvent),
    ) -> Result<Option<String>, Problem> {
        let Some(preparation) = job.preparation.as_ref().filter(|one| one.prepare.is_some()) else { return Ok(None) };
        if job.isolation < Isolation::Namespace {
            let message =
                format!("isolation `{}` sees nothing of what `prepare` of suite `{}` made", job.isolation, job.suite);
            return Err(Problem::new(ProblemKind::Usage, message).hint("write isolation = \"namespace\""));
        }
        let key = (job.suite.clone(), machine.name().to_owned());
        let slot = Arc::clone(lock(&self.layers).entry(key).or_default());
        let mut slot = lock(&slot);
        match &*slot {
            Some(Ok(layer)) => return Ok(Some(layer.clone())),
            Some(Err(problem)) => return Err(again(problem)),
            None => {}
        }
        events(JobEvent::Preparing(format!("prepare of suite {}", job.suite)));
        let made = prepared(machine, job, preparation, trees, cancel);
        if !made.as_ref().is_err_and(|problem| problem.kind == ProblemKind::Interrupted || problem.kind.is_transient())
        {
            *slot = Some(made.clone());
        }
        made.map(Some)
    }

    /// A machine that was started again has no layers any more: the next attempt prepares again.
    pub(super) fn forget(&self, machine: &WarmMachine, job: &Job) {
        lock(&self.layers).remove(&(job.suite.clone(), machine.name().to_owned()));
    }

    /// Remembers what is to be done after a suite's tests, once; on a machine that outlives them.
    pub(super) fn remember(&self, machine: Option<&Arc<WarmMachine>>, job: &Job, top: &Path, layer: Option<&str>) {
        let preparation = job.preparation.as_ref().filter(|one| one.restore.is_some());
        let (Some(machine), Some(preparation)) = (machine, preparation) else { return };
        let mut restores = lock(&self.restores);
        if !restores.iter().any(|one| one.suite == job.suite && one.machine.name() == machine.name()) {
            restores.push(Restore {
                suite: job.suite.clone(),
                machine: Arc::clone(machine),
                root: job.root.clone(),
                top: top.to_owned(),
                preparation: Arc::clone(preparation),
                layer: layer.map(str::to_owned),
            });
        }
    }

    /// Runs every `restore` that is due; what went wrong.
    pub(super) fn restore(&self, trees: &Trees) -> Vec<Problem> {
        let due = std::mem::take(&mut *lock(&self.restores));
        let run = |one: &Restore| -> Result<(), Problem> {
            let Some(argv) = &one.preparation.restore else { return Ok(()) };
            let tree = trees.shown(&one.top);
            let task = Task {
                machine: &one.machine,
                suite: &one.suite,
                root: &one.root,
                top: &one.top,
                tree: &tree,
                preparation: &one.preparation,
                layer: one.layer.clone(),
                linger: Linger::Never,
            };
            task.run("restore", argv, None).map(drop)
        };
        due.iter().filter_map(|one| run(one).err()).collect()
    }
}

/// As the tests after the first are told of it: its output is shown once.
fn again(problem: &Problem) -> Problem {
    let mut problem = problem.clone();
    problem.causes = vec!["its output is shown with the first test".to_owned()];
    problem
}

/// The layer's name, once it is there.
fn prepared(
    machine: &WarmMachine,
    job: &Job,
    preparation: &Preparation,
    trees: &Trees,
    cancel: &Cancel,
) -> Result<String, Problem> {
    let top = super::trees::top_of(&job.root);
    let argv = preparation.prepare.as_deref().unwrap_or_default();
    let key = key_of(job, preparation, &trees.hash_of(&job.root, &preparation.inputs)?);
    if machine.has_layer(&key)? {
        return Ok(key);
    }
    let tree = trees.shown(&top);
    let task = Task {
        machine,
        suite: &job.suite,
        root: &job.root,
        top: &top,
        tree: &tree,
        preparation,
        layer: None,
        linger: Linger::Always,
    };
    let environment = task.run("prepare", argv, Some(cancel))?;
    let environment =
        environment.ok_or_else(|| Problem::new(ProblemKind::Bug, "the environment of `prepare` did not stay"))?;
    let sealed = machine.seal(environment, &key);
    // One that is gone needs no end.
    let _ = machine.release(environment);
    sealed.map(|()| key)
}

/// What decides whether `prepare` is run again. The machine itself stands for the image and the backend.
fn key_of(job: &Job, preparation: &Preparation, inputs: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    };
    let image = job.image.as_ref().map(ToString::to_string).unwrap_or_default();
    add("testyard layer 1");
    add(&image);
    add(&job.root.to_string_lossy());
    add(preparation.network.as_str());
    add(&format!("{:?}", preparation.user));
    for word in preparation.prepare.iter().flatten() {
        add(word);
    }
    add("env");
    for (name, value) in &preparation.env {
        add(name);
        add(value);
    }
    add("inputs");
    add(inputs);
    hasher.finalize().to_hex()[..40].to_owned()
}

impl Task<'_> {
    /// Runs a command to its end; its environment, where that stays.
    fn run(
        &self,
        what: &str,
        argv: &[String],
        cancel: Option<&Cancel>,
    ) -> Result<Option<testyard_model::EnvironmentId>, Problem> {
        let spec = EnvironmentSpec {
            network: self.preparation.network,
            source: Some(self.top.to_path_buf()),
            layer: self.layer.clone(),
            ..EnvironmentSpec::new(Isolation::Namespace, user_of(self.preparation.user))
        };
        let mut env: Vec<(RawText, RawText)> =
            self.preparation.env.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
        env.push(("TESTYARD_SUITE".into(), self.suite.into()));
        let run = EnvironmentRun {
            spec: &spec,
            argv: argv.iter().map(|word| RawText::from(word.as_str())).collect(),
            cwd: Some(self.root),
            env,
            tree: Some(self.tree),
            timeout: Some(self.preparation.timeout),
            ports: Vec::new(),
            linger: self.linger,
        };
        let mut output = Tail::default();
        let descriptor: Option<BorrowedFd<'_>> = cancel.and_then(|cancel| cancel.descriptor().ok());
        let attendance = Attendance {
            output: &mut |_, bytes| output.take(bytes),
            cancel: descriptor,
            cancelled: &|| cancel.is_some_and(|cancel| super::executor::is_cancelled(cancel, descriptor)),
            started: &mut || (),
            running: None,
        };
        let failed = |reason: String| {
            Problem::new(ProblemKind::System, format!("`{what}` of suite `{}` failed: {reason}", self.suite))
        };
        let ended = self.machine.run(run, attendance).map_err(|problem| match problem.kind {
            ProblemKind::Command => failed(problem.message),
            _ => problem.because(format!("while `{what}` of suite `{}` was run", self.suite)),
        })?;
        if ended.status.success() {
            return Ok(ended.lingering);
        }
        if let Some(environment) = ended.lingering {
            // One that is gone needs no end.
            let _ = self.machine.release(environment);
        }
        if cancel.is_some_and(|cancel| cancel.reason().is_some()) {
            return Err(Problem::new(
                ProblemKind::Interrupted,
                format!("`{what}` of suite `{}` was ended", self.suite),
            ));
        }
        Err(failed(reason_of(ended.status, self.preparation.timeout)).because(output.text()))
    }
}

fn reason_of(status: CommandStatus, timeout: Duration) -> String {
    match status {
        CommandStatus::TimedOut => format!("it took longer than {}", Span(timeout)),
        CommandStatus::Exited(code) => format!("exit code {code}"),
        CommandStatus::Signalled(signal) => format!("signal {signal}"),
    }
}

/// The end of what a command wrote.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > 2 * SHOWN {
            self.cut = true;
            self.bytes.drain(..self.bytes.len() - SHOWN);
        }
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let text = text.trim_end();
        match (text.is_empty(), self.cut) {
            (true, _) => "it wrote nothing".to_owned(),
            (false, true) => format!("it wrote at the end: …{text}"),
            (false, false) => format!("it wrote: {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_much_output_is_kept() {
        let mut tail = Tail::default();
        assert_eq!(tail.text(), "it wrote nothing");
        tail.take(b"some\n");
        assert_eq!(tail.text(), "it wrote: some");
        for _ in 0..10_000 {
            tail.take(b"more and more\n");
        }
        tail.take(b"the end\n");
        assert!(tail.text().ends_with("the end") && tail.text().len() < 3 * SHOWN);
    }
}
