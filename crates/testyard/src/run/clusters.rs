//! The clusters of a run's suites: made by the first test that uses one, found there by the others, gone with the run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use testyard_cluster::{ClusterInfo, ClusterName, ClusterSpec, SshAccess, User};
use testyard_model::{Access, Exposure, Problem, ProblemKind};
use testyard_registry::Lease;
use testyard_runner::cluster::SuiteCluster;
use testyard_runner::job::Job;

use crate::yard::Testyard;

/// What a suite may say is what a cluster may be.
const _: () = assert!(
    SuiteCluster::MOST_NODES == ClusterSpec::MAX_NODES && SuiteCluster::MOST_CPUS == ClusterSpec::MAX_CPUS,
    "the suite file has limits of its own"
);

type Slot = Arc<Mutex<Option<Result<Made, Problem>>>>;

/// A cluster that was made for this run.
#[derive(Debug)]
struct Made {
    info: ClusterInfo,
    /// The way in.
    login: Option<Login>,
    /// Abandoned when this process is killed: the reaper then removes the cluster.
    lease: Option<Lease>,
}

/// The clusters of a run, one a suite.
#[derive(Debug)]
pub(super) struct Clusters {
    yard: Testyard,
    made: Mutex<HashMap<PathBuf, Slot>>,
}

impl Clusters {
    /// None yet.
    pub(super) fn new(yard: Testyard) -> Self {
        Self { yard, made: Mutex::default() }
    }

    /// The job with what it is told of its suite's cluster, which is ready then. `top` is the working tree.
    pub(super) fn told(&self, job: &Job, wanted: &SuiteCluster, top: &Path) -> Result<Job, Problem> {
        let slot =
            Arc::clone(self.made.lock().unwrap_or_else(PoisonError::into_inner).entry(job.root.clone()).or_default());
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        // A passing trouble is tried again by the next test.
        if !matches!(&*slot, Some(Ok(_))) && !matches!(&*slot, Some(Err(problem)) if !problem.kind.is_transient()) {
            *slot = Some(self.make(wanted, top));
        }
        match &*slot {
            Some(Ok(made)) => Ok(with_variables(job, made)),
            Some(Err(problem)) => Err(problem.clone()),
            None => Err(Problem::new(ProblemKind::Bug, "a suite's cluster was neither made nor refused")),
        }
    }

    fn make(&self, wanted: &SuiteCluster, top: &Path) -> Result<Made, Problem> {
        let name = fresh_name()?;
        let spec = spec_of(wanted, top)?;
        let purpose = format!("a run's suite, process {}", std::process::id());
        let (info, _, lease) = self.yard.clusters().create_held(&name, &spec, &purpose)?;
        let login = info.ssh.as_ref().map(Login::write).transpose()?;
        Ok(Made { info, login, lease: Some(lease) })
    }

    /// Removes all of them. What fails is told, and done by the reaper.
    pub(super) fn end(&self) -> Vec<Problem> {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        let end = |slot: Slot| -> Result<(), Problem> {
            let made = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(Ok(Made { info, lease, .. })) = made else { return Ok(()) };
            self.yard.clusters().delete(&info.name)?;
            let registry = self.yard.registry()?;
            lease.map_or(Ok(()), |lease| lease.release(&registry).map_err(|error| error.problem()))
        };
        made.into_values().filter_map(|slot| end(slot).err()).collect()
    }
}

/// A name that no other run uses.
fn fresh_name() -> Result<ClusterName, Problem> {
    format!("suite-{:08x}", u32::from_ne_bytes(testyard_linux::random()))
        .parse()
        .map_err(|error| Problem::from_error(ProblemKind::Bug, &error))
}

/// What the suite asks for, as clusters are asked for.
fn spec_of(wanted: &SuiteCluster, top: &Path) -> Result<ClusterSpec, Problem> {
    let usage = |message: String| Problem::new(ProblemKind::Usage, message);
    let mut spec = ClusterSpec::new(wanted.nodes);
    spec.cpus = wanted.cpus.unwrap_or(spec.cpus);
    spec.memory = wanted.memory.unwrap_or(spec.memory);
    spec.accounting = wanted.accounting;
    spec.outbound = wanted.outbound;
    if !wanted.partitions.is_empty() {
        let read = |text: &String| text.parse().map_err(|error| usage(format!("[cluster] {error}")));
        spec.partitions = wanted.partitions.iter().map(read).collect::<Result<_, _>>()?;
    }
    if let Some(name) = &wanted.user {
        let name = name.parse().map_err(|error| usage(format!("[cluster] {error}")))?;
        spec.users = vec![User { name, password: None }];
    }
    for user in &mut spec.users {
        user.password.clone_from(&wanted.password);
    }
    if let Some(image) = &wanted.image {
        spec.image = image.clone();
    }
    if wanted.source {
        spec.expose = vec![Exposure { path: top.to_owned(), access: Access::ReadOnly }];
    }
    spec.check().map_err(|error| usage(format!("[cluster] {error}")))?;
    Ok(spec)
}

/// What `ssh -F` takes to log in to a cluster. A machine shows neither the host's file nor the key beside it, so that each
/// test there gets a copy where its other temporary files are.
#[derive(Debug)]
struct Login {
    /// The host's file.
    config: PathBuf,
    /// What is in it, with a `%s` for the folder of the other two.
    text: String,
    /// The private key.
    key: String,
    /// The line of `known_hosts`.
    known: String,
}

/// Puts a login where the test can read it, unless it can already, and becomes the test's command.
const PLACE_LOGIN: &str = r#"if ! test -r "$TESTYARD_CLUSTER_SSH"; then
folder=${TMPDIR:-/tmp}/testyard-cluster
(umask 077 && mkdir -p "$folder" && printf '%s' "$TESTYARD_CLUSTER_KEY" > "$folder/identity" &&
printf '%s' "$TESTYARD_CLUSTER_KNOWN" > "$folder/known_hosts" &&
printf "$TESTYARD_CLUSTER_CONFIG" "$folder" "$folder" > "$folder/config") || exit 126
TESTYARD_CLUSTER_SSH=$folder/config
fi
unset TESTYARD_CLUSTER_KEY TESTYARD_CLUSTER_KNOWN TESTYARD_CLUSTER_CONFIG folder
exec "$@""#;

impl Login {
    /// Of a cluster that was just made; what is written goes with the cluster's folder.
    fn write(ssh: &SshAccess) -> Result<Self, Problem> {
        let failed =
            |error| Problem::new(ProblemKind::System, "cannot keep the way into a suite's cluster").because(error);
        let key = std::fs::read_to_string(&ssh.identity).map_err(failed)?;
        let folder = ssh.identity.parent().unwrap_or(Path::new("/"));
        let SshAccess { host, port, user, host_key, .. } = ssh;
        let text = format!(
            "Host cluster\nHostName {host}\nPort {port}\nUser {user}\nIdentityFile \"%s/identity\"\n\
             IdentitiesOnly yes\nHostKeyAlias cluster\nUserKnownHostsFile \"%s/known_hosts\"\n\
             GlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\nBatchMode yes\nLogLevel ERROR\n"
        );
        let (config, known) = (folder.join("config"), format!("cluster {host_key}\n"));
        std::fs::write(folder.join("known_hosts"), &known).map_err(failed)?;
        std::fs::write(&config, text.replace("%s", &folder.display().to_string())).map_err(failed)?;
        Ok(Self { config, text, key, known })
    }
}

fn with_variables(job: &Job, made: &Made) -> Job {
    let (mut job, info) = (job.clone(), &made.info);
    let mut tell = |name: &str, value: String| job.env.insert(format!("TESTYARD_CLUSTER{name}"), value);
    tell("", info.name.to_string());
    tell("_NODES", info.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(" "));
    if let Some(ssh) = &info.ssh {
        tell("_HOST", ssh.host.to_string());
        tell("_PORT", ssh.port.to_string());
        tell("_USER", ssh.user.to_string());
    }
    if let Some(password) = &info.spec.user().password {
        tell("_PASSWORD", password.clone());
    }
    if let Some(login) = &made.login {
        tell("_SSH", login.config.display().to_string());
        tell("_CONFIG", login.text.clone());
        tell("_KEY", login.key.clone());
        tell("_KNOWN", login.known.clone());
        job.argv.splice(0..0, ["/bin/sh", "-c", PLACE_LOGIN, "sh"].map(str::to_owned));
    }
    job
}
