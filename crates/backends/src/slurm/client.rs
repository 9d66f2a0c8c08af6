//! Slurm's own commands, run here or on a host of the cluster.

use std::ffi::OsString;
use std::process::Command;
use std::time::{Duration, Instant};

use testyard_link::shell::quoted_text;
use testyard_linux::pause;
use testyard_model::{ByteSize, Problem, ProblemKind, SlurmJob};

use super::ask::{Said, Unsaid, ask};
use super::job::{self, Job};

/// How long a command of Slurm's may take: its own clients try for some time to reach a controller that restarts.
const ANSWER: Duration = Duration::from_secs(30);
/// Between two looks at a job that waits.
const LOOKS: [Duration; 2] = [Duration::from_millis(40), Duration::from_secs(2)];
/// How long a cancelled job may take to be gone: until then its node is killing it.
const GONE: Duration = Duration::from_secs(60);

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

/// With what `ssh` ends where it is not the command there that failed.
const SSH_FAILED: i32 = 255;

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
    pub fn step(&self, job: &Job) -> Result<Vec<String>, Problem> {
        let step = job::step(job.id, job.cpus);
        let Some((way, variables)) = &self.way else { return Ok(step) };
        let text = |word: &OsString| {
            let odd = || Problem::new(ProblemKind::Usage, format!("{} is no text", word.display()));
            word.to_str().map(str::to_owned).ok_or_else(odd)
        };
        let way = way.iter().map(|word| Ok(quoted_text(&text(word)?))).collect::<Result<Vec<_>, Problem>>()?.join(" ");
        // The login's shell reads what is between the outer quotes, and hands the script on whole.
        let line = format!("exec {way} \"exec {} sh -c '$3'\"", step.join(" "));
        let mut words = vec!["env".to_owned()];
        for (name, value) in variables {
            words.push(format!("{}={}", text(name)?, text(value)?));
        }
        words.extend(["sh".to_owned(), "-c".to_owned(), line, "step".to_owned()]);
        Ok(words)
    }

    /// Asks for a job; its number. It ends by itself once nobody was linked to it for `grace`.
    ///
    /// # Errors
    /// Slurm is not there or refuses.
    pub fn submit(
        &self,
        name: &str,
        job: &SlurmJob,
        cpus: Option<f64>,
        memory: Option<ByteSize>,
        grace: Duration,
    ) -> Result<u64, Problem> {
        let said = self.run(&job::submission(name, job, cpus, memory), &job::guard(grace.as_secs().max(1)))?;
        let number = said.output.trim().split(';').next().and_then(|number| number.parse().ok());
        number.filter(|_| said.success).ok_or_else(|| job::not_submitted(job, &said.errors))
    }

    /// The newest job of this name that is not over.
    ///
    /// # Errors
    /// Slurm does not answer.
    pub fn find(&self, name: &str) -> Result<Option<Job>, Problem> {
        Ok(self.all(name)?.into_iter().filter(|job| !job.is_over()).max_by_key(|job| job.id))
    }

    /// The same, with the memory that it has.
    ///
    /// # Errors
    /// As [`Slurm::find`].
    pub fn look(&self, name: &str) -> Result<Option<Job>, Problem> {
        Ok(self.find(name)?.map(|job| self.with_limits(job)))
    }

    /// `squeue` tells what was asked for, be it for each processor or for the node; what a job was given is told of it
    /// alone.
    fn with_limits(&self, job: Job) -> Job {
        // Where that is not told, what was asked for stands.
        match self.run(&shown(job.id), "").ok().and_then(|said| job::allocated_memory(&said.output)) {
            Some(memory) => Job { memory: Some(memory), ..job },
            None => job,
        }
    }

    fn all(&self, name: &str) -> Result<Vec<Job>, Problem> {
        let name = format!("--name={name}");
        let words = ["squeue", "--noheader", "--me", &name, "-o", job::FORMAT].map(str::to_owned);
        let said = self.run(&words, "")?;
        if !said.success {
            return Err(job::unreachable(&said.errors));
        }
        Ok(said.output.lines().filter_map(Job::read).collect())
    }

    /// Waits until a job has its node.
    ///
    /// # Errors
    /// It has none in time, and why; it is over.
    pub fn await_node(&self, machine: &str, name: &str, id: u64, patience: Duration) -> Result<Job, Problem> {
        let until = Instant::now() + patience;
        let mut look = LOOKS[0];
        loop {
            let job = self.all(name)?.into_iter().find(|job| job.id == id);
            match job {
                Some(job) if job.is_running() => return Ok(self.with_limits(job)),
                Some(job) if !job.is_over() => {
                    if Instant::now() >= until {
                        return Err(job::pending(&job, patience.as_secs()));
                    }
                }
                _ => {
                    let over = Problem::new(ProblemKind::Unavailable, format!("job {id} was over before it began"));
                    return Err(self.ending(machine, id).unwrap_or(over));
                }
            }
            pause(look.min(until.saturating_duration_since(Instant::now())));
            look = (look * 3 / 2).min(LOOKS[1]);
        }
    }

    /// Cancels every job of this name, and waits until none is left. None there is no error.
    ///
    /// # Errors
    /// Slurm does not answer, or does not end them.
    pub fn cancel(&self, name: &str) -> Result<(), Problem> {
        let until = Instant::now() + GONE;
        let mut look = LOOKS[0];
        let mut asked = false;
        // What is completing is Slurm's own matter, which may wait long for a node that does not answer.
        while self.find(name)?.is_some() {
            if !asked {
                let name = format!("--name={name}");
                // What it runs is of no use to anybody any more: its guard and its steps need no time to end.
                for words in [["--full", "--signal=KILL", "--me", &name].as_slice(), &["--me", &name]] {
                    let words: Vec<String> =
                        std::iter::once(&"scancel").chain(words).map(|word| (*word).to_owned()).collect();
                    // Whether they are gone is looked at.
                    self.run(&words, "")?;
                }
                asked = true;
            }
            if Instant::now() >= until {
                let message = format!("Slurm does not end the jobs {name}");
                return Err(Problem::new(ProblemKind::TimedOut, message).hint("see them: squeue --me"));
            }
            pause(look);
            look = (look * 3 / 2).min(LOOKS[1]);
        }
        Ok(())
    }

    /// How a job ended, where Slurm knows.
    #[must_use]
    pub fn ending(&self, machine: &str, id: u64) -> Option<Problem> {
        let words = shown(id);
        for _ in 0..20 {
            let shown = self.run(&words, "").ok()?.output;
            // Until its node has done with it, only that is told.
            if !shown.contains("JobState=COMPLETING") {
                return job::ending(machine, &shown);
            }
            pause(Duration::from_millis(100));
        }
        job::ending(machine, &self.run(&words, "").ok()?.output)
    }
}
