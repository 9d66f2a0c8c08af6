//! What a test, a glob and the suite's defaults may say alike, and how they are joined.

use std::collections::BTreeMap;

use testyard_model::{ByteSize, Isolation, Network};

use super::Located;

/// Whom a test runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TestUser {
    /// The user who runs Testyard: the same ids and groups, no capabilities.
    #[default]
    Caller,
    /// Root inside the environment.
    Root,
}

/// What a test, a glob or the suite's defaults may say.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// Abilities that the test cannot do without.
    pub needs: Vec<Located<String>>,
    /// The least isolation it accepts.
    pub isolation: Option<Located<Isolation>>,
    /// Its network.
    pub network: Option<Located<Network>>,
    /// How long it may take, in milliseconds of wall time.
    pub timeout_ms: Option<u64>,
    /// Variables it gets, by name.
    pub env: BTreeMap<String, String>,
    /// What it uses and may use.
    pub resources: Resources,
    /// Whom it runs as.
    pub user: Option<TestUser>,
    /// Where it runs, relative to the suite's folder or absolute.
    pub cwd: Option<Located<String>>,
    /// Words to select it by.
    pub tags: Vec<String>,
    /// Whom to ask about it.
    pub owner: Option<String>,
    /// How often a failure is tried again.
    pub retries: Option<u32>,
    /// Files that come back to the working tree, as patterns below the suite's folder.
    pub outputs: Vec<String>,
    /// Files that are kept with the result, likewise.
    pub artifacts: Vec<String>,
    /// Files that it depends on, as patterns below the suite's folder; none means that it may depend on anything.
    pub inputs: Vec<String>,
    /// After how long it is called slow, in milliseconds of wall time.
    pub slow_after_ms: Option<u64>,
    /// The services that it uses, by name; none written is not the same as none used.
    pub services: Option<Vec<Located<String>>>,
    /// Whether it uses the suite's cluster.
    pub cluster: Option<Located<bool>>,
}

/// `resources = { … }`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resources {
    /// Processor time, in cores: a limit, and what the scheduler sets aside.
    pub cpus: Option<f64>,
    /// Memory: a limit, and what the scheduler sets aside.
    pub memory: Option<ByteSize>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Bytes it may write over its root.
    pub disk: Option<ByteSize>,
    /// Names of things of which there is one: tests that share a name never run at the same time.
    pub exclusive: Vec<String>,
}

impl Settings {
    /// These settings where they say something, else the defaults. Variables, tags, needs, inputs, outputs and
    /// exclusive names of both are joined.
    #[must_use]
    pub fn over(&self, defaults: &Self) -> Self {
        let own = self.clone();
        let mut env = defaults.env.clone();
        env.extend(own.env);
        Self {
            needs: joined(&defaults.needs, own.needs, |a, b| a.value == b.value),
            isolation: own.isolation.or_else(|| defaults.isolation.clone()),
            network: own.network.or_else(|| defaults.network.clone()),
            timeout_ms: own.timeout_ms.or(defaults.timeout_ms),
            env,
            resources: Resources {
                cpus: own.resources.cpus.or(defaults.resources.cpus),
                memory: own.resources.memory.or(defaults.resources.memory),
                pids: own.resources.pids.or(defaults.resources.pids),
                disk: own.resources.disk.or(defaults.resources.disk),
                exclusive: joined(&defaults.resources.exclusive, own.resources.exclusive, PartialEq::eq),
            },
            user: own.user.or(defaults.user),
            cwd: own.cwd.or_else(|| defaults.cwd.clone()),
            tags: joined(&defaults.tags, own.tags, PartialEq::eq),
            owner: own.owner.or_else(|| defaults.owner.clone()),
            retries: own.retries.or(defaults.retries),
            outputs: joined(&defaults.outputs, own.outputs, PartialEq::eq),
            artifacts: joined(&defaults.artifacts, own.artifacts, PartialEq::eq),
            inputs: joined(&defaults.inputs, own.inputs, PartialEq::eq),
            slow_after_ms: own.slow_after_ms.or(defaults.slow_after_ms),
            services: own.services.or_else(|| defaults.services.clone()),
            cluster: own.cluster.or_else(|| defaults.cluster.clone()),
        }
    }
}

fn joined<T: Clone>(first: &[T], second: Vec<T>, same: impl Fn(&T, &T) -> bool) -> Vec<T> {
    let mut all = first.to_vec();
    for item in second {
        if !all.iter().any(|other| same(other, &item)) {
            all.push(item);
        }
    }
    all
}
