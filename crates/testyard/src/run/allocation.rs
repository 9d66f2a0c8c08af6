//! The machines of a run over a Slurm cluster: allocations, each held by a process of its own, so that they end with
//! this one, however it ends.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use testyard_backends::slurm::{Slurm, job_name};
use testyard_model::{HostKeys, MachineId, MachineName, PasswordSource, Problem, ProblemKind, SlurmJob, SshTransport};

use crate::yard::Testyard;

/// So long jobs that still wait for their nodes are taken back, again and again.
const PATIENCE: Duration = Duration::from_secs(120);

/// Nodes of a Slurm cluster for a run.
#[derive(Debug, Clone, PartialEq)]
pub struct SlurmNodes {
    /// What each of them is asked for with.
    pub job: SlurmJob,
    /// How many; above 0.
    pub count: usize,
    /// Processors of each; none means whole nodes.
    pub cpus: Option<usize>,
}

/// Allocations of this run. They are deleted when it is dropped.
#[derive(Debug)]
pub(super) struct Allocations {
    yard: Testyard,
    job: SlurmJob,
    held: Vec<Mutex<Held>>,
}

#[derive(Debug)]
struct Held {
    name: MachineName,
    keeper: Child,
    answers: Option<BufReader<ChildStdout>>,
}

impl Allocations {
    /// Asks for all of them at once.
    ///
    /// # Errors
    /// No process can be started.
    pub(super) fn begin(yard: &Testyard, nodes: &SlurmNodes) -> Result<Self, Problem> {
        let mut job = nodes.job.clone();
        job.exclusive |= nodes.cpus.is_none();
        let mut all = Self { yard: yard.clone(), job, held: Vec::with_capacity(nodes.count) };
        let run = MachineId::from_bits(u64::from_le_bytes(testyard_linux::random()));
        for number in 1..=nodes.count {
            // Process numbers are not enough: containers that share a home have the same.
            let name = format!("slurm-{run}-{number}");
            let name: MachineName = name.parse().map_err(|error| Problem::from_error(ProblemKind::Bug, &error))?;
            let held = start(yard, name, &arguments(&all.job, nodes.cpus))?;
            all.held.push(Mutex::new(held));
        }
        Ok(all)
    }

    /// Waits until the first of them answers; its number.
    ///
    /// # Errors
    /// One could not be had; `stop` became readable. All are to be dropped then.
    pub(super) fn wait_for_first(&mut self, stop: Option<BorrowedFd<'_>>) -> Result<usize, Problem> {
        let mut held: Vec<&mut Held> = self.held.iter_mut().map(held_in).collect();
        let answers = held.iter().filter_map(|one| Some(one.answers.as_ref()?.get_ref().as_fd()));
        let answered = first_readable(answers, stop)?;
        held[answered].take_answer()?;
        Ok(answered)
    }

    /// Waits until this one answers.
    ///
    /// # Errors
    /// It could not be had; `stop` became readable.
    pub(super) fn wait_for(&self, number: usize, stop: BorrowedFd<'_>) -> Result<(), Problem> {
        let mut held = self.held[number].lock().unwrap_or_else(PoisonError::into_inner);
        let Some(answers) = &held.answers else { return Ok(()) };
        first_readable(std::iter::once(answers.get_ref().as_fd()), Some(stop))?;
        held.take_answer()
    }

    pub(super) fn names(&self) -> Vec<MachineName> {
        let name = |held: &Mutex<Held>| held.lock().unwrap_or_else(PoisonError::into_inner).name.clone();
        self.held.iter().map(name).collect()
    }

    /// Takes back what still waits in Slurm's queue: whoever creates those machines then hears that there is no job.
    fn call_off(&mut self) {
        let Ok(slurm) = Slurm::of(&self.job) else { return };
        for held in self.held.iter_mut().map(held_in).filter(|held| held.answers.is_some()) {
            if let Ok(info) = self.yard.machines().info(&held.name) {
                // Where Slurm does not answer, the keepers and the jobs' guards do it.
                let _ = slurm.cancel(&job_name(&info.id), Duration::ZERO);
            }
        }
    }
}

impl Drop for Allocations {
    fn drop(&mut self) {
        // All at once: each keeper deletes its machine when its input ends, and then ends.
        self.held.iter_mut().map(held_in).for_each(|held| drop(held.keeper.stdin.take()));
        let begun = Instant::now();
        // One that waits for its node hears of the end only when its job is gone, which may be submitted just now.
        while self.held.iter_mut().map(held_in).any(Held::is_unanswered) && begun.elapsed() < PATIENCE {
            self.call_off();
            testyard_linux::pause(Duration::from_millis(100));
        }
        for held in self.held.iter_mut().map(held_in) {
            // What a keeper cannot delete, the next command's reaper does.
            let _ = held.keeper.wait();
        }
    }
}

/// The arguments of `create`, behind the name.
fn arguments(job: &SlurmJob, cpus: Option<usize>) -> Vec<String> {
    let mut words = vec!["--backend".to_owned(), "slurm-allocation".to_owned()];
    let optional = [
        ("--partition", job.partition.clone()),
        ("--account", job.account.clone()),
        ("--time", job.time.map(|span| span.to_string())),
        ("--wait", job.patience.map(|span| span.to_string())),
        ("--cpus", cpus.map(|cpus| cpus.to_string())),
    ];
    for (option, value) in optional {
        words.extend(value.into_iter().flat_map(|value| [option.to_owned(), value]));
    }
    words.extend(job.exclusive.then(|| "--exclusive".to_owned()));
    words.extend(job.submit.iter().flat_map(login));
    words
}

/// The options that lead to the host on which Slurm's commands are.
fn login(ssh: &SshTransport) -> Vec<String> {
    let host = match ssh.port {
        Some(port) if ssh.host.contains(':') => format!("[{}]:{port}", ssh.host),
        Some(port) => format!("{}:{port}", ssh.host),
        None => ssh.host.clone(),
    };
    let host = ssh.user.as_ref().map_or_else(|| host.clone(), |user| format!("{user}@{host}"));
    let shown = |path: &PathBuf| path.display().to_string();
    let accepts = matches!(ssh.host_keys, HostKeys::AcceptNew);
    let (file, variable) = match &ssh.password {
        Some(PasswordSource::File(file)) => (Some(shown(file)), None),
        Some(PasswordSource::Variable(name)) => (None, Some(name.clone())),
        None => (None, None),
    };
    let options = [
        ("--host", Some(host)),
        ("--identity", ssh.identity.as_ref().map(shown)),
        ("--jump", ssh.jump.clone()),
        ("--ssh-config", ssh.config.as_ref().map(shown)),
        ("--known-hosts", ssh.known_hosts.as_ref().map(shown)),
        ("--host-keys", accepts.then(|| "accept-new".to_owned())),
        ("--password-file", file),
        ("--password-variable", variable),
    ];
    options.into_iter().filter_map(|(option, value)| Some([option.to_owned(), value?])).flatten().collect()
}

/// Starts a keeper, and tells it what to create.
fn start(yard: &Testyard, name: MachineName, arguments: &[String]) -> Result<Held, Problem> {
    let failed = |error: std::io::Error| {
        Problem::new(ProblemKind::System, "cannot start a keeper of allocations").because(error)
    };
    let mut command = Command::new(&yard.options().program);
    command.args(["hold", "--for", "a run over Slurm"]).env("TESTYARD_HOME", yard.options().home.state());
    // Ctrl-C is for this process, which then has a last word.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut keeper = command.spawn().map_err(failed)?;
    let answers = keeper.stdout.take().map(BufReader::new);
    let words: Vec<&str> = std::iter::once(name.as_str()).chain(arguments.iter().map(String::as_str)).collect();
    let line = serde_json::to_string(&words).map_err(|error| Problem::from_error(ProblemKind::Bug, &error))?;
    if let Some(input) = &mut keeper.stdin {
        input.write_all(format!("create {line}\n").as_bytes()).map_err(failed)?;
    }
    Ok(Held { name, keeper, answers })
}

fn held_in(held: &mut Mutex<Held>) -> &mut Held {
    held.get_mut().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until one of these can be read, and says which; `stop` comes before them.
fn first_readable<'fd>(
    answers: impl Iterator<Item = BorrowedFd<'fd>>,
    stop: Option<BorrowedFd<'fd>>,
) -> Result<usize, Problem> {
    let mut polled: Vec<PollFd<'_>> =
        answers.chain(stop).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    loop {
        match poll(&mut polled, None) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Problem::new(ProblemKind::System, "cannot wait for allocations").because(errno)),
            Ok(_) => break,
        }
    }
    let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    match polled.iter().position(ready) {
        Some(first) if stop.is_none() || !polled.last().is_some_and(ready) => Ok(first),
        _ => Err(Problem::new(ProblemKind::Interrupted, "the allocations were called off")),
    }
}

impl Held {
    /// Whether its keeper lives and has not told yet what became of its machine.
    fn is_unanswered(&mut self) -> bool {
        self.answers.is_some() && matches!(self.keeper.try_wait(), Ok(None))
    }

    /// Reads what became of the machine; then there are no answers any more.
    fn take_answer(&mut self) -> Result<(), Problem> {
        let Some(answers) = &mut self.answers else { return Ok(()) };
        let mut line = String::new();
        let read = answers.read_line(&mut line);
        let answer: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        self.answers = None;
        match (read, answer.get("error")) {
            (Ok(1..), None) if answer.is_object() => Ok(()),
            (_, Some(error)) => Err(serde_json::from_value(error.clone())
                .unwrap_or_else(|_| Problem::new(ProblemKind::Unavailable, error.to_string()))),
            _ => Err(Problem::new(ProblemKind::Unavailable, format!("the keeper of {} has ended", self.name))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_is_told_where_slurms_commands_are() {
        let ssh = SshTransport {
            host: "fe80::1".to_owned(),
            user: Some("me".to_owned()),
            port: Some(2222),
            identity: Some("/keys/one".into()),
            jump: None,
            config: None,
            known_hosts: Some("/known".into()),
            host_keys: HostKeys::AcceptNew,
            password: Some(PasswordSource::Variable("SECRET".to_owned())),
            agent: testyard_model::AgentUse::Auto,
        };
        let job = SlurmJob { submit: Some(ssh.clone()), ..SlurmJob::default() };
        let words = arguments(&job, Some(2)).join(" ");
        let told = "--backend slurm-allocation --cpus 2 --host me@[fe80::1]:2222 --identity /keys/one \
                    --known-hosts /known --host-keys accept-new --password-variable SECRET";
        assert_eq!(words, told);
        let plain = SshTransport { host: "login".to_owned(), user: None, port: None, ..ssh };
        assert!(login(&plain).starts_with(&["--host".to_owned(), "login".to_owned()]));
    }
}
