//! A job as Slurm's commands take it and tell of it: all text, nothing is run here.

use testyard_model::{ByteSize, MachineId, Problem, ProblemKind, SlurmJob};

/// A job, as `scontrol show job -o` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    /// Its number.
    pub(super) id: u64,
    /// `PENDING`, `RUNNING`, `COMPLETING` …
    pub(super) state: String,
    /// Why it is in that state: `Resources`, `Priority`, `None` …
    pub(super) reason: String,
    /// Its node, once it has one.
    pub(super) node: String,
    /// Its processors.
    pub(super) cpus: u32,
    /// The memory that it has on its node; none where Slurm counts none.
    pub(super) memory: Option<ByteSize>,
}

impl Job {
    /// Reads what is shown of one; none where that is no job.
    pub(super) fn read(shown: &str) -> Option<Self> {
        let text = |name| field(shown, name).filter(|text| *text != "(null)").unwrap_or_default().to_owned();
        let number = |name| field(shown, name)?.split('-').next()?.parse::<u32>().ok();
        let id = field(shown, "JobId")?.parse().ok()?;
        let cpus = number("NumCPUs")?;
        let asked = |name| field(shown, name)?.parse::<ByteSize>().ok().filter(|memory| memory.0 > 0);
        // Where it is not told what it was given, what it asked for stands, for the node or for each processor.
        let memory = allocated_memory(shown).or_else(|| asked("MinMemoryNode")).or_else(|| {
            let each: ByteSize = asked("MinMemoryCPU")?;
            Some(ByteSize(each.0.saturating_mul(u64::from(cpus))))
        });
        Some(Self { id, state: text("JobState"), reason: text("Reason"), node: text("NodeList"), cpus, memory })
    }

    /// As its machine's folder keeps it: see [`Job::kept_number`] and [`Job::kept_room`].
    pub(super) fn kept(&self) -> String {
        let memory = self.memory.map_or_else(String::new, |memory| format!(" {}", memory.0));
        format!("{} {}{memory}\n", self.id, self.cpus)
    }

    /// The number of a job, as it was kept.
    pub(super) fn kept_number(text: &str) -> Option<u64> {
        text.split_ascii_whitespace().next()?.parse().ok()
    }

    /// The processors and the memory of a job, as they were kept.
    pub(super) fn kept_room(text: &str) -> Option<(u32, Option<ByteSize>)> {
        let mut words = text.split_ascii_whitespace().skip(1);
        let cpus = words.next()?.parse().ok()?;
        Some((cpus, words.next().and_then(|bytes| bytes.parse().ok()).map(ByteSize)))
    }

    /// Whether its node is there.
    pub(super) fn is_running(&self) -> bool {
        self.state == "RUNNING"
    }

    /// Whether it is over, or ending.
    pub(super) fn is_over(&self) -> bool {
        is_over(&self.state)
    }
}

/// Whether a state is that of a job which is over, or ending: Slurm has many words for one that is not.
pub(super) fn is_over(state: &str) -> bool {
    matches!(
        state,
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

/// What `scontrol show job -o` tells under a name.
fn field<'s>(shown: &'s str, name: &str) -> Option<&'s str> {
    shown.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// The name of a machine's job: nobody else has it, so that it is found and cancelled from the machine's row alone.
#[must_use]
pub fn job_name(machine: &MachineId) -> String {
    format!("testyard-{machine}")
}

/// A job, as a machine asks for one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// Its name, which no other has.
    pub(super) name: &'a str,
    pub(super) job: &'a SlurmJob,
    pub(super) cpus: Option<f64>,
    pub(super) memory: Option<ByteSize>,
}

impl Asked<'_> {
    /// `sbatch` and its words; the script comes by standard input.
    pub(super) fn submission(self) -> Vec<String> {
        let words =
            ["sbatch", "--parsable", "--no-requeue", "--export=NONE", "--output=/dev/null", "--error=/dev/null"];
        self.with_options(&words)
    }

    /// `salloc` and its words: a job that runs nothing by itself, at once or not at all. What is submitted waits for the
    /// controller's next look at its queue even where nodes are free: a tenth of a second to some.
    pub(super) fn allocation(self) -> Vec<String> {
        // A node that has yet to boot is waited for as one of a job that was submitted.
        self.with_options(&["salloc", "--no-shell", "--immediate", "--wait-all-nodes=0"])
    }

    fn with_options(self, command: &[&str]) -> Vec<String> {
        let Self { name, job, cpus, memory } = self;
        let mut words: Vec<String> =
            command.iter().chain(&["--nodes=1", "--ntasks=1", "--chdir=/"]).map(|word| (*word).to_owned()).collect();
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
}

/// The number of the job that `salloc` was given, from what it said.
pub(super) fn granted(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.rsplit_once("Granted job allocation ")?.1.trim().parse().ok())
}

/// Where programs are on any node.
pub(super) const SYSTEM_FOLDERS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// A time limit as Slurm reads it, in `hours:minutes:seconds`.
fn minutes(seconds: u64) -> String {
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// What a job runs that had to wait for its node: it ends once nobody has been linked to it for `grace` seconds, so that a
/// job of whose machine nobody knows any more is not left until its time limit.
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

/// What a step runs around the words behind it: the job ends with its step, whoever was killed on the other side. Where
/// those words could not be run or were killed (for want of memory, say), whoever is on the other side ends it, and hears
/// why. A controller that restarts is asked again, ten minutes long.
pub(super) const WITH_ITS_STEP: &str = r#""$@"; code=$?; [ $code -ge 64 ] && exit $code; n=0; until scancel "$SLURM_JOB_ID" >/dev/null 2>&1 || [ $? -eq 127 ] || [ $n -ge 120 ]; do n=$((n+1)); sleep 5; done; exit $code"#;

/// The command that leads into a running job: [`WITH_ITS_STEP`] and the words behind it are run there by `sh -c`, with
/// the command's standard streams. Nothing of this host's variables goes along; what Testyard keeps there is on the node's
/// own disks, whatever the user's home is on. `commands` is the folder with Slurm's commands, where that is none of the
/// system's.
pub(super) fn step(id: u64, cpus: u32, commands: Option<&str>) -> Vec<String> {
    let folders = format!("{}{}", SYSTEM_FOLDERS.join(":"), commands.map(|own| format!(":{own}")).unwrap_or_default());
    let export =
        format!("--export=PATH={folders},LANG=C.UTF-8,XDG_CACHE_HOME=/dev/null/none,XDG_STATE_HOME=/dev/null/none");
    let words = ["srun", "--nodes=1", "--ntasks=1", "--overlap", "--quiet", "--unbuffered", "--chdir=/", "--mpi=none"];
    let mut words = words.map(str::to_owned).to_vec();
    words.extend([format!("--jobid={id}"), format!("--cpus-per-task={cpus}"), export]);
    words.extend(["sh".to_owned(), "-c".to_owned()]);
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

/// Whether what `sbatch` said means that there is certainly no job: not that its answer may have been lost.
pub(super) fn is_certain(said: &str) -> bool {
    !said.contains("timed out") && !said.contains("onnection reset")
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
    let given = field(shown, "AllocTRES").or_else(|| field(shown, "TRES"))?;
    let memory = given.split(',').find_map(|one| one.strip_prefix("mem="))?;
    memory.parse().ok()
}

/// How a job ended, from `scontrol show job -o`; none while it has not. `of_memory` says that its step was killed for want
/// of memory, at some time: that is why it ended where Slurm knows of no other reason, since the step ends the job.
#[must_use]
pub(super) fn ending(name: &str, shown: &str, of_memory: bool) -> Option<Problem> {
    let (id, state) = (field(shown, "JobId").unwrap_or_default(), ending_state(shown)?);
    let (why, hint) = match state.split('+').next().unwrap_or(state) {
        "TIMEOUT" | "DEADLINE" => ("its time limit has passed", "ask for more: --time"),
        "PREEMPTED" => ("another job was given its node", "use a partition whose jobs are not preempted"),
        "NODE_FAIL" | "BOOT_FAIL" => OF_NODE,
        "OUT_OF_MEMORY" => OF_MEMORY,
        "CANCELLED" | "COMPLETED" | "COMPLETING" | "FAILED" if of_memory => return Some(out_of_memory(name, id)),
        "CANCELLED" => ("it was cancelled, or its link was lost", "create it anew"),
        "COMPLETED" | "COMPLETING" | "FAILED" => ("it was over", "create it anew"),
        _ => return None,
    };
    Some(ended(name, why, &format!("job {id} is {state}"), hint))
}

/// The state of a job. Until its node has done with it, only that is its state; why it ends may be told already.
fn ending_state(shown: &str) -> Option<&str> {
    Some(match (field(shown, "JobState")?, field(shown, "Reason")) {
        ("COMPLETING", Some("TimeLimit")) => "TIMEOUT",
        ("COMPLETING", Some("OutOfMemory")) => "OUT_OF_MEMORY",
        ("COMPLETING", Some("NodeDown")) => "NODE_FAIL",
        ("COMPLETING", _) if field(shown, "PreemptTime").is_some_and(|time| time != "None") => "PREEMPTED",
        (state, _) => state,
    })
}

/// The node that has not done with a job of which nothing else is told.
pub(super) fn undone_on(shown: &str) -> Option<&str> {
    field(shown, "NodeList").filter(|_| ending_state(shown) == Some("COMPLETING"))
}

/// Whether a node is down or does not answer, from `scontrol show node -o`.
pub(super) fn is_lost(node: &str) -> bool {
    let words = ["*", "DOWN", "NOT_RESPONDING"];
    field(node, "State").is_some_and(|state| words.iter().any(|word| state.contains(word)))
}

/// How a job ended whose link broke, and whose node never had done with it.
pub(super) fn node_failed(name: &str, id: u64, node: &str) -> Problem {
    ended(name, OF_NODE.0, &format!("node {node} of job {id} does not answer, or is down"), OF_NODE.1)
}

/// How a step ended whose job may go on.
pub(super) fn out_of_memory(name: &str, id: impl std::fmt::Display) -> Problem {
    let (why, hint) = OF_MEMORY;
    ended(name, why, &format!("the machine's step of job {id} is OUT_OF_MEMORY"), hint)
}

/// What is said of a job that lost its node, and the next step.
const OF_NODE: (&str, &str) = ("its node failed", "see the node: sinfo -R");
/// What is said of a job that took too much, and the next step.
const OF_MEMORY: (&str, &str) = ("it used more memory than it was given", "ask for more: --memory");

fn ended(name: &str, why: &str, cause: &str, hint: &str) -> Problem {
    let message = format!("the allocation of machine {name} has ended: {why}");
    Problem::new(ProblemKind::Unavailable, message).because(cause).hint(hint)
}

/// Whether Slurm's last words on a step are that the kernel killed processes of it for want of memory: `srun` hands on
/// those of the node, and has its own.
pub(super) fn is_of_memory(said: &Problem) -> bool {
    let words = ["oom_kill event", "oom-kill event"];
    said.causes.iter().any(|line| line.ends_with("Out Of Memory") || words.iter().any(|word| line.contains(word)))
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
        let job = SlurmJob::default();
        let asked = Asked { name: "testyard-x", job: &job, cpus: None, memory: None };
        for plain in [asked.submission().join(" "), asked.allocation().join(" ")] {
            assert!(
                plain.contains("--job-name=testyard-x") && !plain.contains("--partition") && !plain.contains("--mem")
            );
        }
        let job = SlurmJob {
            partition: Some("gpu".to_owned()),
            time: Some(Span(Duration::from_secs(5_430))),
            account: Some("lab".to_owned()),
            ..SlurmJob::default()
        };
        let large = Asked { job: &job, cpus: Some(1.5), memory: Some(ByteSize(1 << 30)), ..asked };
        for words in [large.submission(), large.allocation()] {
            for word in ["--partition=gpu", "--time=1:30:30", "--account=lab", "--cpus-per-task=2", "--mem=1048576K"] {
                assert!(words.iter().any(|one| one == word), "{word} in {words:?}");
            }
        }
        let whole = Asked { job: &SlurmJob { exclusive: true, ..job.clone() }, ..asked }.submission();
        assert!(whole.ends_with(&["--exclusive".to_owned(), "--mem=0".to_owned()]));
    }

    #[test]
    fn what_is_given_at_once_has_a_number() {
        assert_eq!(granted("salloc: Granted job allocation 47\nsalloc: Nodes n1 are ready for job\n"), Some(47));
        assert_eq!(granted("salloc: error: Unable to allocate resources: Requested nodes are busy\n"), None);
        assert_eq!(granted("salloc: Pending job allocation 47\n"), None);
    }

    #[test]
    fn what_is_shown_of_a_job_is_read() {
        let shown = "JobId=42 JobName=testyard-x UserId=me(1000) JobState=RUNNING Reason=None Dependency=(null) \
                     ReqNodeList=(null) ExcNodeList=(null) NodeList=n2 BatchHost=n2 NumNodes=1 NumCPUs=2 NumTasks=1 \
                     TRES=cpu=2,mem=4000M,node=1 MinCPUsNode=2 MinMemoryCPU=2000M MinTmpDiskNode=0\n";
        let job = Job::read(shown).expect("a job");
        assert!(job.is_running() && !job.is_over());
        assert_eq!((job.id, job.node.as_str(), job.cpus), (42, "n2", 2));
        assert_eq!(job.memory, Some(ByteSize(4000 << 20)));
        let waits = waiting("Resources");
        assert_eq!((waits.memory, waits.is_running(), waits.is_over()), (None, false, false));
        assert_eq!((waits.cpus, waits.reason.as_str(), waits.node.as_str()), (1, "Resources", ""));
        assert!(Job::read(&shown.replace("RUNNING", "COMPLETING")).is_some_and(|job| job.is_over()));
        for (asked, memory) in [("MinMemoryNode=100M", 100 << 20), ("MinMemoryCPU=100M", 200 << 20)] {
            let job = Job::read(&format!("JobId=1 JobState=RUNNING NumCPUs=2 TRES=cpu=2,node=1 {asked}"));
            assert_eq!(job.and_then(|job| job.memory), Some(ByteSize(memory)), "{asked}");
        }
        for bad in ["", "JobId=x JobState=RUNNING NumCPUs=1", "JobId=42", "slurm_load_jobs error: …"] {
            assert_eq!(Job::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_a_machine_keeps_of_its_job_is_read_again() {
        let job = Job { cpus: 2, memory: Some(ByteSize(1 << 30)), ..waiting("None") };
        let kept = job.kept();
        assert_eq!((Job::kept_number(&kept), Job::kept_room(&kept)), (Some(43), Some((2, job.memory))));
        let kept = Job { memory: None, ..job }.kept();
        assert_eq!(Job::kept_room(&kept), Some((2, None)));
        // One that is asked for, and one of an earlier version.
        for (kept, number) in [("", None), ("7\n", Some(7))] {
            assert_eq!((Job::kept_number(kept), Job::kept_room(kept)), (number, None));
        }
    }

    #[test]
    fn an_answer_that_may_be_lost_is_no_refusal() {
        let failed = "sbatch: error: Batch job submission failed: ";
        assert!(is_certain(&format!("{failed}Unable to contact slurm controller (connect failure)")));
        assert!(is_certain(&format!("{failed}Invalid partition name specified")));
        assert!(!is_certain(&format!("{failed}Socket timed out on send/recv operation")));
    }

    /// A job that has no node yet.
    fn waiting(reason: &str) -> Job {
        let shown = format!("JobId=43 JobState=PENDING Reason={reason} NodeList=(null) NumCPUs=1-2 MinMemoryNode=0");
        Job::read(&shown).expect("a job")
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
        let problem = pending(&waiting("BadConstraints"), 5);
        assert_eq!(problem.kind, ProblemKind::TimedOut);
        assert_eq!(problem.causes, ["Slurm's reason: BadConstraints (no node has what it asks for)"]);
    }

    #[test]
    fn the_end_of_an_allocation_is_named() {
        let told = |state: &str| ending("gpu", &format!("JobId=7 JobName=x JobState={state} Reason=None"), false);
        assert_eq!(told("RUNNING"), None);
        for (state, word) in [("TIMEOUT", "time limit"), ("PREEMPTED", "another job"), ("NODE_FAIL", "node failed")] {
            let problem = told(state).expect("it has ended");
            assert!(problem.message.contains(word) && problem.causes == [format!("job 7 is {state}")], "{problem:?}");
        }
        assert_eq!(ending("gpu", "slurm_load_jobs error: Invalid job id specified", false), None);
        for (rest, word) in [
            ("Reason=TimeLimit PreemptTime=None", "time limit"),
            ("Reason=NodeDown PreemptTime=None", "node failed"),
            ("Reason=None PreemptTime=2026-01-01T00:00:00", "another job"),
            ("Reason=None PreemptTime=None", "it was over"),
        ] {
            let problem = ending("gpu", &format!("JobId=7 JobState=COMPLETING {rest}"), false).expect("it is ending");
            assert!(problem.message.contains(word), "{problem:?}");
        }
        let shown = |state: &str, reason: &str| format!("JobId=7 JobState={state} Reason={reason} NodeList=n2");
        assert_eq!(undone_on(&shown("COMPLETING", "None")), Some("n2"));
        assert_eq!([undone_on(&shown("COMPLETING", "NodeDown")), undone_on(&shown("COMPLETED", "None"))], [None; 2]);
        let lost = |state: &str| is_lost(&format!("NodeName=n2 Arch=x86_64 State={state} ThreadsPerCore=1"));
        assert!(["DOWN", "IDLE*+COMPLETING", "ALLOCATED+NOT_RESPONDING"].into_iter().all(lost));
        assert!(!["IDLE", "IDLE+COMPLETING", "IDLE+DRAIN"].into_iter().any(lost));
        assert!(node_failed("gpu", 7, "n2").message.contains("its node failed"));
        // A step that lost a process long ago is no reason where there is another.
        for (state, word) in [("TIMEOUT", "time limit"), ("CANCELLED", "more memory"), ("RUNNING", "")] {
            let problem = ending("gpu", &format!("JobId=7 JobName=x JobState={state} Reason=None"), true);
            assert_eq!(problem.is_none(), word.is_empty(), "{state}");
            assert!(problem.is_none_or(|problem| problem.message.contains(word)), "{state}");
        }
        let lost = |line: &str| Problem::new(ProblemKind::Unavailable, "the connection broke").because(line);
        for line in [
            "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
            "slurmstepd-n1: error: Detected 3 oom-kill event(s) in StepId=7.0. Some of your processes may have been killed",
            "srun: error: n1: task 0: Out Of Memory",
        ] {
            assert!(is_of_memory(&lost(line)), "{line}");
        }
        assert!(!is_of_memory(&lost("srun: error: n1: task 0: Killed")));
        let problem = out_of_memory("gpu", 7);
        assert!(problem.message.contains("more memory") && problem.causes[0].contains("OUT_OF_MEMORY"), "{problem:?}");
    }
}
