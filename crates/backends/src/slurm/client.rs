//! Slurm's own commands, run here or on a host of the cluster.

use std::ffi::OsString;
use std::process::Command;
use std::time::{Duration, Instant};

use testyard_link::shell::quoted_text;
use testyard_linux::pause;
use testyard_model::{Problem, ProblemKind, SlurmJob};

use super::ask::{Said, Unsaid, ask};
use super::job::{self, Asked, Job};

/// How long a command of Slurm's may take: its own clients try for some time to reach a controller that restarts.
const ANSWER: Duration = Duration::from_secs(30);
/// Between two looks at a job that waits: at first, and at most. The first look is taken at once, since a free node is
/// given while the job is asked for.
const LOOKS: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(2)];
/// How long a cancelled job may take to be gone: until then its node is killing it.
const GONE: Duration = Duration::from_secs(60);

/// Why there is no job.
#[derive(Debug)]
pub(super) struct Unsubmitted {
    pub(super) problem: Problem,
    /// Whether there is certainly none: else the answer may have been lost.
    pub(super) certain: bool,
}

/// A command line that leads to another host, and the variables that it wants.
type Way = (Vec<OsString>, Vec<(OsString, OsString)>);

/// Where Slurm's commands are.
#[derive(Debug, Clone)]
pub struct Slurm {
    /// What leads to the host on which they are, and its variables; nothing where that is this one.
    way: Option<Way>,
    /// What people call that host.
    host: String,
}

/// Makes a command of Slurm's do what is said here, whatever variables there are for people's own use of it: none that hide
/// jobs, and the same for a job that is given at once as for one that is submitted.
fn adapt(command: &mut Command, program: &str) {
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        if name.starts_with("SQUEUE_") || name.starts_with("SCANCEL_") {
            command.env_remove(name);
        }
        if let Some(what) = name.strip_prefix("SBATCH_").filter(|_| program == "salloc") {
            let own = format!("SALLOC_{what}");
            if std::env::var_os(&own).is_none() {
                command.env(own, value);
            }
        }
    }
}

/// The folder in which a program is found here, where that is none of the system's.
fn own_folder(program: &str) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let folder = std::env::split_paths(&path).find(|folder| folder.join(program).is_file())?;
    let folder = folder.to_str().filter(|folder| !folder.contains([',', ':', ' ']))?;
    (!job::SYSTEM_FOLDERS.contains(&folder)).then(|| folder.to_owned())
}

/// With what `ssh` ends where it is not the command there that failed.
const SSH_FAILED: i32 = 255;

/// How often a job that is ending is looked at, a tenth of a second apart, until its node has done with it.
const ENDING_LOOKS: u32 = 100;

/// What tells all of a job.
fn shown(id: u64) -> [String; 5] {
    ["scontrol".to_owned(), "show".to_owned(), "job".to_owned(), id.to_string(), "-o".to_owned()]
}

impl Slurm {
    /// Where a job is to be asked for.
    ///
    /// # Errors
    /// The way there cannot be gone.
    pub fn of(job: &SlurmJob) -> Result<Self, Problem> {
        let way = match &job.submit {
            None => None,
            Some(ssh) => {
                let (mut words, variables) = testyard_link::ssh_command_line(ssh, ANSWER)?;
                words.insert(0, "ssh".into());
                Some((words, variables))
            }
        };
        let host = job.submit.as_ref().map(|ssh| ssh.host.clone()).unwrap_or_default();
        Ok(Self { way, host })
    }

    fn run(&self, words: &[String], input: &str) -> Result<Said, Problem> {
        let program = &words[0];
        let mut command = match &self.way {
            None => {
                let mut command = Command::new(program);
                command.args(&words[1..]);
                adapt(&mut command, program);
                command
            }
            Some((way, variables)) => {
                let mut command = Command::new(&way[0]);
                command.args(&way[1..]).envs(variables.iter().map(|(name, value)| (name, value)));
                command.arg(words.iter().map(|word| quoted_text(word)).collect::<Vec<_>>().join(" "));
                command
            }
        };
        let absent = |place: &str| {
            Problem::new(ProblemKind::Unsupported, format!("there is no `{program}` {place}"))
                .hint("run it where Slurm's commands are: install slurm-client, or name such a host with --host")
        };
        match ask(&mut command, input, ANSWER) {
            Ok(said) if said.code == Some(SSH_FAILED) && self.way.is_some() => {
                Err(testyard_link::ssh_problem(&self.host, &said.errors))
            }
            Ok(said) if !said.success && said.errors.contains("not found") && self.way.is_some() => {
                Err(absent("on the host that was named"))
            }
            Ok(said) => Ok(said),
            Err(Unsaid::Start(error)) if error.kind() == std::io::ErrorKind::NotFound => Err(absent("here")),
            Err(Unsaid::Late(_)) => {
                Err(job::unreachable(&format!("`{program}` did not end within {} s", ANSWER.as_secs())))
            }
            Err(error) => Err(Problem::from_error(ProblemKind::System, &error).because(format!("while {program} ran"))),
        }
    }

    /// The words that lead into a job's node; those that follow are `sh`, `-c` and a script without single quotes.
    ///
    /// # Errors
    /// The way to the host with Slurm's commands cannot be written as one.
    pub(super) fn step(&self, job: &Job) -> Result<Vec<String>, Problem> {
        let Some((way, variables)) = &self.way else {
            let mut step = job::step(job.id, job.cpus, own_folder("scancel").as_deref());
            step.extend([job::WITH_ITS_STEP.to_owned(), "step".to_owned()]);
            return Ok(step);
        };
        let text = |word: &OsString| {
            let odd = || Problem::new(ProblemKind::Usage, format!("{} is no text", word.display()));
            word.to_str().map(str::to_owned).ok_or_else(odd)
        };
        let way = way.iter().map(|word| Ok(quoted_text(&text(word)?))).collect::<Result<Vec<_>, Problem>>()?.join(" ");
        let step = job::step(job.id, job.cpus, None);
        // The login's shell reads what is in the outer quotes, once this host's has put the script into it.
        let around = job::WITH_ITS_STEP.replace('$', "\\$").replace('"', "\\\"");
        let line = format!("exec {way} \"exec {} '{around}' step sh -c '$3'\"", step.join(" "));
        let mut words = vec!["env".to_owned()];
        for (name, value) in variables {
            words.push(format!("{}={}", text(name)?, text(value)?));
        }
        words.extend(["sh".to_owned(), "-c".to_owned(), line, "step".to_owned()]);
        Ok(words)
    }

    /// Whether Slurm's commands are on this host, so that nothing but Slurm itself can be in the way.
    #[must_use]
    pub(super) fn is_here(&self) -> bool {
        self.way.is_none()
    }

    /// Asks for a job; its number. It is given one at once where a node is free. One that has to wait ends by itself once
    /// nobody was linked to it for `grace`.
    ///
    /// # Errors
    /// Slurm is not there or refuses.
    pub(super) fn submit(&self, asked: Asked<'_>, grace: Duration) -> Result<u64, Unsubmitted> {
        match self.ask_for(asked.job, &asked.allocation(), "", |said| job::granted(&said.errors)) {
            // What is busy may be waited for; and what Slurm refuses, it refuses again.
            Err(Unsubmitted { certain: true, problem }) if problem.kind != ProblemKind::Unavailable => {}
            // Where a node is prepared first, the job is there long before the answer.
            Err(unsubmitted) if !unsubmitted.certain => return self.find(asked.name).ok_or(unsubmitted),
            outcome => return outcome,
        }
        let guard = job::guard(grace.as_secs().max(1));
        let number = |said: &Said| said.output.trim().split(';').next()?.parse().ok();
        self.ask_for(asked.job, &asked.submission(), &guard, number)
    }

    fn ask_for(
        &self,
        job: &SlurmJob,
        words: &[String],
        input: &str,
        number: impl Fn(&Said) -> Option<u64>,
    ) -> Result<u64, Unsubmitted> {
        let said = self.run(words, input).map_err(|problem| {
            // A program that is not there has asked for nothing.
            Unsubmitted { certain: problem.kind == ProblemKind::Unsupported, problem }
        })?;
        number(&said).filter(|_| said.success).ok_or_else(|| Unsubmitted {
            problem: job::not_submitted(job, &said.errors),
            certain: !said.success && said.code.is_some() && job::is_certain(&said.errors),
        })
    }

    /// The number of the job of this name, where it is there.
    fn find(&self, name: &str) -> Option<u64> {
        self.queued(name, "%A").ok()?.split_ascii_whitespace().next()?.parse().ok()
    }

    /// Whether a job of this name is not over.
    fn is_any_left(&self, name: &str) -> Result<bool, Problem> {
        Ok(self.queued(name, "%T")?.lines().any(|state| !job::is_over(state.trim())))
    }

    /// A field of each job of this name, a line each.
    fn queued(&self, name: &str, field: &str) -> Result<String, Problem> {
        let words = ["squeue", "--noheader", "--me", &format!("--name={name}"), "-o", field].map(str::to_owned);
        let said = self.run(&words, "")?;
        if said.success { Ok(said.output) } else { Err(job::unreachable(&said.errors)) }
    }

    /// A job as it is now; none where Slurm does not know it any more.
    fn look(&self, id: u64) -> Result<Option<Job>, Problem> {
        let said = self.run(&shown(id), "")?;
        match Job::read(&said.output) {
            None if !said.success && job::is_unreachable(&said.errors) => Err(job::unreachable(&said.errors)),
            job => Ok(job),
        }
    }

    /// Waits until a job has its node.
    ///
    /// # Errors
    /// It has none in time, and why; it is over.
    pub(super) fn await_node(&self, machine: &str, id: u64, patience: Duration) -> Result<Job, Problem> {
        let until = Instant::now() + patience;
        let mut look = LOOKS[0];
        loop {
            match self.look(id)? {
                Some(job) if job.is_running() => return Ok(job),
                Some(job) if !job.is_over() => {
                    if Instant::now() >= until {
                        return Err(job::pending(&job, patience.as_secs()));
                    }
                }
                _ => {
                    let over = Problem::new(ProblemKind::Unavailable, format!("job {id} was over before it began"));
                    return Err(self.ending(machine, id, false).unwrap_or(over));
                }
            }
            pause(look.min(until.saturating_duration_since(Instant::now())));
            look = (look * 3 / 2).min(LOOKS[1]);
        }
    }

    /// Cancels every job of this name, and waits until none is left. None there is no error: a job whose step has just
    /// ended has ended itself. So long as it may come `late`, it is waited for.
    ///
    /// # Errors
    /// Slurm does not answer, or does not end them.
    pub fn cancel(&self, name: &str, late: Duration) -> Result<(), Problem> {
        let certain = Instant::now() + late;
        let until = certain + GONE;
        let mut look = LOOKS[0];
        let mut asked = false;
        // What is completing is Slurm's own matter, which may wait long for a node that does not answer.
        loop {
            let is_any_left = self.is_any_left(name)?;
            if !is_any_left && Instant::now() >= certain {
                return Ok(());
            }
            if is_any_left && !asked {
                self.end(name)?;
                asked = true;
                // Most are gone once that has been said.
                continue;
            }
            if Instant::now() >= until {
                let message = format!("Slurm does not end the jobs {name}");
                return Err(Problem::new(ProblemKind::TimedOut, message).hint("see them: squeue --me"));
            }
            pause(look);
            look = (look * 3 / 2).min(LOOKS[1]);
        }
    }

    /// Ends the jobs of this name. What they run is of no use to anybody any more: their guards and their steps need no
    /// time to end. Whether they are gone is to be looked at.
    fn end(&self, name: &str) -> Result<(), Problem> {
        for how in [["scancel", "--full", "--signal=KILL"].as_slice(), &["scancel"]] {
            let which = ["--me".to_owned(), format!("--name={name}")];
            let words: Vec<String> = how.iter().map(|word| (*word).to_owned()).chain(which).collect();
            self.run(&words, "")?;
        }
        Ok(())
    }

    /// How a job ended, where Slurm knows. `of_memory` says that its step was killed for want of memory.
    #[must_use]
    pub fn ending(&self, machine: &str, id: u64, of_memory: bool) -> Option<Problem> {
        let words = shown(id);
        let mut shown = self.run(&words, "").ok()?.output;
        let mut node = None;
        for look in 1..=ENDING_LOOKS {
            let Some(undone) = job::undone_on(&shown) else { break };
            node = Some(undone.to_owned());
            // One that has failed is never done with it.
            if look % 10 == 0 && self.has_lost(undone) {
                break;
            }
            pause(Duration::from_millis(100));
            shown = self.run(&words, "").ok()?.output;
        }
        match node.filter(|node| !of_memory && self.has_lost(node)) {
            Some(node) => Some(job::node_failed(machine, id, &node)),
            None => job::ending(machine, &shown, of_memory),
        }
    }

    fn has_lost(&self, node: &str) -> bool {
        let words = ["scontrol", "show", "node", node, "-o"].map(str::to_owned);
        self.run(&words, "").is_ok_and(|said| job::is_lost(&said.output))
    }
}
