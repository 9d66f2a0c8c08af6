//! Every key of the format, table by table: what the parser accepts and the schema must list.

/// The keys that tests, globs and defaults share, after those that are a table's own.
macro_rules! with_settings {
    ($($own:literal),*) => {
        &[
            $($own,)*
            "needs",
            "isolation",
            "network",
            "timeout",
            "env",
            "resources",
            "user",
            "cwd",
            "tags",
            "owner",
            "retries",
            "outputs",
            "artifacts",
            "inputs",
            "slow-after",
            "services",
            "cluster",
        ]
    };
}

/// The keys of one table.
pub(super) type Keys = &'static [&'static str];

pub(super) const TOP: Keys = &["format", "suite", "sync", "run", "cluster", "service", "test", "tests", "quarantine"];
pub(super) const SUITE: Keys =
    &["name", "backend", "image", "matrix", "defaults", "prepare", "restore", "inputs", "prepare-timeout"];
pub(super) const SYNC: Keys = &["always", "git"];
pub(super) const RUN: Keys = &["jobs", "fail-fast", "no-skip"];
pub(super) const RESOURCES: Keys = &["cpus", "memory", "pids", "disk", "exclusive"];
pub(super) const DEFAULTS: Keys = with_settings!();
pub(super) const TEST: Keys = with_settings!("name", "command");
pub(super) const GLOB: Keys = with_settings!("glob", "exclude", "command");
pub(super) const QUARANTINE: Keys = &["test", "owner", "reason", "until"];
pub(super) const MATRIX: Keys = &["image", "backend", "env", "exclude", "include"];
pub(super) const VARIANT: Keys = &["image", "backend", "env"];
pub(super) const SERVICE: Keys =
    &["name", "command", "env", "cwd", "user", "ready", "scope", "after", "stop", "may-end"];
pub(super) const CLUSTER: Keys =
    &["kind", "nodes", "cpus", "memory", "partitions", "accounting", "outbound", "user", "password", "image", "source"];
pub(super) const READY: Keys = &["port", "log", "command", "timeout"];
pub(super) const STOP: Keys = &["signal", "timeout"];
