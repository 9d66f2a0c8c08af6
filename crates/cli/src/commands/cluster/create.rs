//! `testyard cluster create`

use testyard_cluster::spec::Partition;
use testyard_cluster::{ClusterKind, ClusterName, ClusterSpec, User, UserName};
use testyard_model::{ByteSize, Exposure, ImageReference, Problem, ProblemKind};

use super::Outcome;
use super::change::tell;
use crate::commands::create::exposed_exist;
use crate::output::Output;
use crate::yard;

/// Create a cluster.
///
/// Once this returns every node is idle, has answered a job, and its SSH server answers; otherwise
/// nothing of it is left. The controller runs on the first node, which takes jobs as well.
///
/// Examples:
///     testyard cluster create slurm lab --nodes 3
///     testyard cluster create slurm ci --nodes 2 --password secret --ssh-port 2222 --accounting
///     testyard cluster create slurm big --nodes 4 --cpus 16 --partitions debug,long:1-2,gpu:4 --gpus 2
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Create {
    /// What runs it: slurm
    #[arg(value_parser = ["slurm"])]
    kind: String,
    /// Its name, with which its nodes' names begin: lower-case letters, digits and `-`
    name: ClusterName,
    /// How many nodes
    #[arg(long, short, default_value_t = 1, value_name = "N")]
    nodes: u16,
    /// Processors that each node declares, whatever the host has
    #[arg(long, default_value_t = 4, value_name = "N")]
    cpus: u16,
    /// Memory that each node declares
    #[arg(long, short, default_value = "4G", value_name = "SIZE")]
    memory: ByteSize,
    /// Its partitions, the first being the default one; with nodes behind a colon where it has not all: gpu:1-2+4
    #[arg(long, default_value = "debug", value_delimiter = ',', value_name = "NAME[:NODES],…")]
    partitions: Vec<Partition>,
    /// Account for jobs: slurmdbd over MariaDB, on the first node
    #[arg(long)]
    accounting: bool,
    /// Answer HTTP on the first node, at a port of this host's 127.0.0.1
    #[arg(long)]
    slurmrestd: bool,
    /// Graphics processors that each node pretends to have
    #[arg(long, default_value_t = 0, value_name = "N")]
    gpus: u16,
    /// Hold jobs by control groups, which end them as OUT_OF_MEMORY; needs root, and root in its nodes is this host's
    #[arg(long)]
    cgroups: bool,
    /// Let the nodes reach what this host reaches
    #[arg(long)]
    outbound: bool,
    /// The port of this host's 127.0.0.1 that leads to the first node's SSH server [default: a free one]
    #[arg(long, value_name = "PORT")]
    ssh_port: Option<u16>,
    /// Who has a home in it; the first is whom its commands run as; may be repeated
    #[arg(long, short, default_value = "slurm", value_name = "NAME")]
    user: Vec<UserName>,
    /// The users' password, in this cluster alone [default: none, keys only]
    #[arg(long, value_name = "PASSWORD", env = "TESTYARD_CLUSTER_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// What its nodes start from: host, where it has the programs, or an image such as slurm
    #[arg(long, short, default_value = "host")]
    image: ImageReference,
    /// Show a path of this host on every node, as `testyard create --expose` does; may be repeated
    #[arg(long, value_name = "PATH[:ro|:rw]")]
    expose: Vec<Exposure>,
}

impl Create {
    pub(super) fn run(self, output: Output) -> Outcome {
        let (name, spec) = self.parts()?;
        let cluster = yard::open()?.clusters().create(&name, &spec)?;
        tell(&cluster, "created", output)
    }

    /// Its name, and what it is to be.
    pub(crate) fn parts(self) -> Result<(ClusterName, ClusterSpec), Problem> {
        exposed_exist(&self.expose)?;
        let user = |name| User { name, password: self.password.clone() };
        let spec = ClusterSpec {
            kind: ClusterKind::Slurm,
            cpus: self.cpus,
            memory: self.memory,
            accounting: self.accounting,
            slurmrestd: self.slurmrestd,
            gpus: self.gpus,
            cgroups: self.cgroups,
            outbound: self.outbound,
            users: self.user.into_iter().map(user).collect(),
            partitions: self.partitions,
            ssh_port: self.ssh_port,
            image: self.image,
            expose: self.expose,
            ..ClusterSpec::new(self.nodes)
        };
        spec.check().map_err(|error| Problem::from_error(ProblemKind::Usage, &error))?;
        Ok((self.name, spec))
    }
}
