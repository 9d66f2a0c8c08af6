//! A job as Slurm's commands take it and tell of it: all text, nothing is run here.

use testyard_model::{ByteSize, MachineId, Problem, ProblemKind, SlurmJob};

/// A job's state, as `squeue` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its number.
    pub id: u64,
    /// `PENDING`, `RUNNING`, `COMPLETING` …
    pub state: String,
    /// Why it is in that state: `Resources`, `Priority`, `None` …
    pub reason: String,
    /// Its node, once it has one.
    pub node: String,
    /// Its processors.
    pub cpus: u32,
    /// The memory that it has on its node; none where Slurm counts none.
    pub memory: Option<ByteSize>,
}

/// What `squeue` is asked for: one line a job, which [`Job::read`] reads.
pub(super) const FORMAT: &str = "%A|%T|%r|%N|%C|%m";

impl Job {
    /// Reads a line; none where it is no such line.
    pub(super) fn read(line: &str) -> Option<Self> {
        let mut fields = line.trim().split('|');
        let mut next = || fields.next().map(str::to_owned);
        let id = next()?.parse().ok()?;
        let (state, reason, node) = (next()?, next()?, next()?);
        let cpus = next()?.parse().ok()?;
        let memory = next()?.parse::<ByteSize>().ok().filter(|memory| memory.0 > 0);
        Some(Self { id, state, reason, node, cpus, memory })
    }

    /// Whether its node is there.
    pub(super) fn is_running(&self) -> bool {
        self.state == "RUNNING"
    }

    /// Whether it is over, or ending: Slurm has many words for one that is not.
    pub(super) fn is_over(&self) -> bool {
        matches!(
            self.state.as_str(),
            "COMPLETED"
                | "COMPLETING"
                | "CANCELLED"
                | "FAILED"
                | "TIMEOUT"
                | "DEADLINE"
                | "NODE_FAIL"
                | "BOOT_FAIL"
                | "PREEMPTED"
                | "OUT_OF_MEMORY"
                | "REVOKED"
        )
    }
}

/// The name of a machine's job: nobody else has it, so that it is found and cancelled from the machine's row alone.
#[must_use]
pub fn job_name(machine: &MachineId) -> String {
    format!("testyard-{machine}")
}

/// `sbatch` and its words; the script comes by standard input.
pub(super) fn submission(name: &str, job: &SlurmJob, cpus: Option<f64>, memory: Option<ByteSize>) -> Vec<String> {
    let mut words: Vec<String> = ["sbatch", "--parsable", "--nodes=1", "--ntasks=1", "--no-requeue", "--export=NONE"]
        .map(str::to_owned)
        .to_vec();
    words.extend(["--chdir=/", "--output=/dev/null", "--error=/dev/null"].map(str::to_owned));
    words.push(format!("--job-name={name}"));
    let optional = [
        ("partition", job.partition.clone()),
        ("account", job.account.clone()),
        ("time", job.time.map(|time| minutes(time.0.as_secs()))),
        ("cpus-per-task", cpus.map(|cpus| (cpus.ceil().max(1.0) as u64).to_string())),
        ("mem", memory.map(|memory| format!("{}K", memory.0.div_ceil(1024)))),
    ];
    words.extend(optional.into_iter().filter_map(|(option, value)| Some(format!("--{option}={}", value?))));
    if job.exclusive {
        words.push("--exclusive".to_owned());
        if memory.is_none() {
            words.push("--mem=0".to_owned());
        }
    }
    words
}

/// A time limit as Slurm reads it, in `hours:minutes:seconds`.
fn minutes(seconds: u64) -> String {
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// What the job itself runs: it ends once nobody has been linked to it for `grace` seconds, so that a job of whose
/// machine nobody knows any more is not left until its time limit.
pub(super) fn guard(grace: u64) -> String {
    let look = grace.clamp(1, 10);
    format!(
        "#!/bin/sh\n\
         trap 'exit 0' TERM INT\n\
         alone=0\n\
         while [ $alone -lt {grace} ]; do\n\
         sleep {look} & wait $!\n\
         if steps=$(squeue -h -s -j \"$SLURM_JOB_ID\" -o %i 2>/dev/null); then\n\
         case $(echo \"$steps\" | grep -v '[.][be]') in '') alone=$((alone + {look}));; *) alone=0;; esac\n\
         fi\n\
         done\n"
    )
}

/// The command that leads into a running job: the words behind it are run there, with its standard streams. Nothing of
/// this host's variables goes along; what Testyard keeps there is on the node's own disks, whatever the user's home is on.
pub(super) fn step(id: u64, cpus: u32) -> Vec<String> {
    let export = "--export=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin,LANG=C.UTF-8,\
                  XDG_CACHE_HOME=/dev/null/none,XDG_STATE_HOME=/dev/null/none";
    let words = ["srun", "--nodes=1", "--ntasks=1", "--overlap", "--quiet", "--unbuffered", "--chdir=/", "--mpi=none"];
    let mut words = words.map(str::to_owned).to_vec();
    words.extend([format!("--jobid={id}"), format!("--cpus-per-task={cpus}"), export.to_owned()]);
    words
}

/// Why there is no job, from what `sbatch` said.
pub(super) fn not_submitted(job: &SlurmJob, said: &str) -> Problem {
    let said = last_line(said);
    let partition = job.partition.as_deref().unwrap_or("the default one");
    if said.to_ascii_lowercase().contains("partition name") {
        return Problem::new(ProblemKind::Usage, format!("the Slurm cluster has no partition {partition}"))
            .because(said)
            .hint("see those there are: sinfo -s");
    }
    if said.contains("node configuration") || said.contains("Memory") || said.contains("CPU") {
        return Problem::new(ProblemKind::Usage, format!("no node of partition {partition} has what was asked for"))
            .because(said)
            .hint("ask for less (--cpus, --memory), or see what there is: sinfo -N -o '%N %c %m'");
    }
    if is_unreachable(&said) {
        return unreachable(&said);
    }
    Problem::new(ProblemKind::Usage, "Slurm refused the job").because(said)
}

/// Whether a command says that the controller does not answer.
pub(super) fn is_unreachable(said: &str) -> bool {
    ["contact", "Unable to contact", "onnection", "onfiguration file", "Socket timed out", "uthentication"]
        .iter()
        .any(|word| said.contains(word))
}

pub(super) fn unreachable(said: &str) -> Problem {
    Problem::new(ProblemKind::Unavailable, "Slurm's controller does not answer")
        .because(last_line(said))
        .hint("see whether it runs: scontrol ping")
}

/// Why a job that waits has no node yet, for people.
#[must_use]
pub(super) fn pending(job: &Job, seconds: u64) -> Problem {
    let message = format!("job {} had no node within {seconds} s: it is {}", job.id, job.state.to_ascii_lowercase());
    let meaning = match job.reason.as_str() {
        "Resources" | "None" => "its nodes are in use by others",
        "Priority" => "other jobs come first",
        "PartitionDown" | "PartitionInactive" => "its partition is down",
        "PartitionNodeLimit" | "PartitionTimeLimit" => "it asks for more than its partition gives",
        "BadConstraints" | "PartitionConfig" => "no node has what it asks for",
        reason if reason.contains("ReqNodeNotAvail") || reason.contains("down") || reason.contains("DOWN") => {
            "nodes that it needs are down or drained"
        }
        reason if reason.contains("Limit") || reason.contains("MaxCpu") => "a limit of the account or partition",
        _ => "see its reason in Slurm's documentation",
    };
    Problem::new(ProblemKind::TimedOut, message)
        .because(format!("Slurm's reason: {} ({meaning})", job.reason))
        .hint("wait longer: --wait 30m, or ask for less; see the queue: squeue")
}

/// The memory that a job has on its node, from `scontrol show job -o`: what it was given, whatever it asked for and in
/// which way.
pub(super) fn allocated_memory(shown: &str) -> Option<ByteSize> {
    // Older ones tell what was given and what was asked for as one.
    let given = ["AllocTRES=", "TRES="].iter().find_map(|name| {
        let mut words = shown.split_ascii_whitespace();
        words.find_map(|word| word.strip_prefix(name))
    })?;
    let memory = given.split(',').find_map(|one| one.strip_prefix("mem="))?;
    memory.parse().ok()
}

/// How a job ended, from `scontrol show job -o`; none while it has not.
#[must_use]
pub(super) fn ending(name: &str, shown: &str) -> Option<Problem> {
    let field = |name: &str| {
        let start = shown.find(name)? + name.len();
        shown[start..].split_ascii_whitespace().next()
    };
    let (id, state) = (field("JobId=").unwrap_or_default(), field("JobState=")?);
    let (why, hint) = match state.split('+').next().unwrap_or(state) {
        "TIMEOUT" | "DEADLINE" => ("its time limit has passed", "ask for more: --time"),
        "PREEMPTED" => ("another job was given its node", "use a partition whose jobs are not preempted"),
        "NODE_FAIL" | "BOOT_FAIL" => ("its node failed", "see the node: sinfo -R"),
        "OUT_OF_MEMORY" => ("it used more memory than it was given", "ask for more: --memory"),
        "CANCELLED" => ("it was cancelled", "create it anew"),
        "COMPLETED" | "COMPLETING" | "FAILED" => ("it was over", "create it anew"),
        _ => return None,
    };
    let message = format!("the allocation of machine {name} has ended: {why}");
    Some(Problem::new(ProblemKind::Unavailable, message).because(format!("job {id} is {state}")).hint(hint))
}

pub(super) fn last_line(said: &str) -> String {
    let line = said.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing");
    line.to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use testyard_model::Span;

    use super::*;

    #[test]
    fn a_job_is_asked_for_as_slurm_reads_it() {
        let plain = submission("testyard-x", &SlurmJob::default(), None, None).join(" ");
        assert!(plain.contains("--job-name=testyard-x") && !plain.contains("--partition") && !plain.contains("--mem"));
        let job = SlurmJob {
            partition: Some("gpu".to_owned()),
            time: Some(Span(Duration::from_secs(5_430))),
            account: Some("lab".to_owned()),
            ..SlurmJob::default()
        };
        let words = submission("testyard-x", &job, Some(1.5), Some(ByteSize(1 << 30)));
        for word in ["--partition=gpu", "--time=1:30:30", "--account=lab", "--cpus-per-task=2", "--mem=1048576K"] {
            assert!(words.iter().any(|one| one == word), "{word} in {words:?}");
        }
        let whole = submission("testyard-x", &SlurmJob { exclusive: true, ..job }, None, None);
        assert!(whole.ends_with(&["--exclusive".to_owned(), "--mem=0".to_owned()]));
    }

    #[test]
    fn what_squeue_says_is_read() {
        let job = Job::read("42|RUNNING|None|n2|2|4000M\n").expect("a job");
        assert!(job.is_running() && !job.is_over());
        assert_eq!((job.id, job.node.as_str(), job.cpus), (42, "n2", 2));
        assert_eq!(job.memory, Some(ByteSize(4000 << 20)));
        let waits = Job::read("43|PENDING|Resources||1|0").expect("a job");
        assert_eq!((waits.memory, waits.is_running(), waits.is_over()), (None, false, false));
        assert!(Job::read("44|COMPLETING|None|n1|1|0").is_some_and(|job| job.is_over()));
        for bad in ["", "x|RUNNING|None|n|1|1", "42|RUNNING", "slurm_load_jobs error: …"] {
            assert_eq!(Job::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_memory_is_what_was_given() {
        let told =
            |text: &str| allocated_memory(&format!("JobId=7 JobState=RUNNING NumCPUs=2 {text} MinMemoryCPU=500M"));
        assert_eq!(told("TRES=cpu=2,mem=1000M,node=1,billing=2"), Some(ByteSize(1000 << 20)));
        assert_eq!(
            told("ReqTRES=cpu=1,mem=1M,node=1 AllocTRES=cpu=2,mem=1.50G,node=1"),
            Some(ByteSize(3 << 29)),
            "newer ones tell both"
        );
        assert_eq!((told("TRES=cpu=2,node=1"), allocated_memory("")), (None, None));
    }

    #[test]
    fn refusals_name_what_to_change() {
        let job = SlurmJob { partition: Some("nope".to_owned()), ..SlurmJob::default() };
        let said = "sbatch: error: invalid partition specified: nope\n\
                    sbatch: error: Batch job submission failed: Invalid partition name specified\n";
        let problem = not_submitted(&job, said);
        assert_eq!(
            (problem.kind, problem.message.as_str()),
            (ProblemKind::Usage, "the Slurm cluster has no partition nope")
        );
        let said = "sbatch: error: Batch job submission failed: Requested node configuration is not available";
        assert!(not_submitted(&job, said).hints[0].contains("--memory"));
        let said = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)";
        assert_eq!(not_submitted(&job, said).kind, ProblemKind::Unavailable);
        let waits = Job::read("43|PENDING|BadConstraints||1|0").expect("a job");
        let problem = pending(&waits, 5);
        assert_eq!(problem.kind, ProblemKind::TimedOut);
        assert_eq!(problem.causes, ["Slurm's reason: BadConstraints (no node has what it asks for)"]);
    }

    #[test]
    fn the_end_of_an_allocation_is_named() {
        let told = |state: &str| ending("gpu", &format!("JobId=7 JobName=x JobState={state} Reason=None"));
        assert_eq!(told("RUNNING"), None);
        for (state, word) in [("TIMEOUT", "time limit"), ("PREEMPTED", "another job"), ("NODE_FAIL", "node failed")] {
            let problem = told(state).expect("it has ended");
            assert!(problem.message.contains(word) && problem.causes == [format!("job 7 is {state}")], "{problem:?}");
        }
        assert_eq!(ending("gpu", "slurm_load_jobs error: Invalid job id specified"), None);
    }
}
