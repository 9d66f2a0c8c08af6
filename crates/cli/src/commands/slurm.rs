//! Options of jobs: of `testyard create --backend slurm-allocation` and `testyard run --on slurm`.

use testyard_model::{SlurmJob, Span, SshTransport};

/// What a job is asked for with.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "On a Slurm cluster")]
pub(super) struct JobOptions {
    /// For how long a node is allocated, such as 30m [default: the partition's]
    #[arg(long, value_name = "DURATION")]
    time: Option<Span>,
    /// On whose account
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// How long to wait for a node [default: 5m]
    #[arg(long, value_name = "DURATION")]
    wait: Option<Span>,
}

impl JobOptions {
    /// The first option that was given.
    pub(super) fn given(&self) -> [(&'static str, bool); 3] {
        [("--time", self.time.is_some()), ("--account", self.account.is_some()), ("--wait", self.wait.is_some())]
    }

    /// As a job.
    pub(super) fn job(&self, partition: Option<String>, exclusive: bool, submit: Option<SshTransport>) -> SlurmJob {
        let Self { time, account, wait } = self;
        SlurmJob { partition, time: *time, account: account.clone(), exclusive, patience: *wait, submit }
    }
}
