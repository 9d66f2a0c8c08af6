//! Machines in words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use testyard_model::{MachineInfo, MachineState, Span};

use crate::output::{printable, table};

/// The machines as a table.
pub(crate) fn machines(machines: &[MachineInfo], now_ms: i64) -> String {
    let rows: Vec<Vec<String>> = machines
        .iter()
        .map(|machine| {
            vec![
                machine.name.to_string(),
                machine.state.to_string(),
                machine.spec.backend.to_string(),
                machine.spec.image.to_string(),
                age(machine.created_ms, now_ms),
                machine.cause.as_ref().map(|cause| cause.message.clone()).unwrap_or_default(),
            ]
        })
        .collect();
    table(&["NAME", "STATE", "BACKEND", "IMAGE", "AGE", ""], &rows)
}

/// Everything about one machine, a line each.
pub(crate) fn machine(machine: &MachineInfo, now_ms: i64) -> String {
    let spec = &machine.spec;
    let backend = match &machine.backend_reason {
        Some(reason) => format!("{} ({reason})", spec.backend),
        None => spec.backend.to_string(),
    };
    let mut lines = Lines::default();
    lines.add("name", &machine.name);
    lines.add("id", &machine.id);
    lines.add("state", &machine.state);
    if let Some(cause) = &machine.cause {
        lines.add("cause", &cause.message);
        for reason in &cause.causes {
            lines.add("", &format!("because: {reason}"));
        }
    }
    lines.add("backend", &backend);
    lines.add("image", &spec.image);
    lines.add("created", &format!("{} ago", age(machine.created_ms, now_ms)));
    lines.add_some("user", spec.user.as_ref());
    lines.add_some("cpus", spec.cpus.as_ref());
    lines.add_some("memory", spec.memory.as_ref());
    lines.add_some("disk", spec.disk.as_ref());
    lines.add_some("arch", spec.arch.as_ref());
    if spec.privileged {
        lines.add("privileged", &"yes: root inside is this host's root");
    }
    for exposed in &spec.expose {
        lines.add("exposed", exposed);
    }
    if let Some(network) = spec.network.private() {
        let address = network.address.map(|address| format!(", {address}")).unwrap_or_default();
        let out = if network.outbound { ", with a way out" } else { "" };
        lines.add("network", &format!("private:{}{address}{out}", network.name));
        for port in &network.publish {
            lines.add("published", &format!("127.0.0.1:{} leads to port {}", port.host, port.machine));
        }
        for folder in &network.share {
            lines.add("in common", &folder.display());
        }
    }
    lines.add_some("idle stop", spec.idle.as_ref());
    lines.add_some("lives for", spec.ttl.as_ref());
    lines.add_some("supervisor", machine.supervisor_pid.as_ref());
    for limit in &machine.limits {
        lines.add("limit", limit);
    }
    lines.text
}

/// What `create`, `start` and their kind say when they are done.
pub(crate) fn done(machine: &MachineInfo) -> String {
    let state = match machine.state {
        MachineState::Running => String::new(),
        state => format!(", now {state}"),
    };
    let reason = machine.backend_reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("machine {} on backend {}{reason}{state}", machine.name, machine.spec.backend)
}

#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn add(&mut self, key: &str, value: &impl std::fmt::Display) {
        let key = if key.is_empty() { String::new() } else { format!("{key}:") };
        self.text.push_str(&format!("{key:<12}{}\n", printable(&value.to_string())));
    }

    fn add_some(&mut self, key: &str, value: Option<&impl std::fmt::Display>) {
        if let Some(value) = value {
            self.add(key, value);
        }
    }
}

/// How long ago, in its largest unit.
pub(crate) fn age(then_ms: i64, now_ms: i64) -> String {
    let seconds = u64::try_from((now_ms - then_ms) / 1000).unwrap_or(0);
    let whole = [86_400, 3_600, 60].into_iter().find(|unit| seconds >= *unit).unwrap_or(1);
    Span(Duration::from_secs(seconds - seconds % whole)).to_string()
}

/// Milliseconds since 1970-01-01 UTC.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use testyard_model::{BackendName, ByteSize, MachineId, MachineSpec, Problem, ProblemKind};

    use super::*;

    fn example() -> MachineInfo {
        let mut spec = MachineSpec::new(BackendName::namespace());
        spec.memory = Some(ByteSize::mebibytes(512));
        spec.idle = "10m".parse().ok();
        MachineInfo {
            id: MachineId::from_bits(7),
            name: "m1".parse().expect("a name"),
            state: MachineState::Failed,
            spec,
            backend_reason: Some("user namespaces work here".to_owned()),
            created_ms: 1_000,
            cause: Some(Problem::new(ProblemKind::System, "its agent died").because("signal 9")),
            supervisor_pid: Some(42),
            limits: vec!["no limit on cpus".to_owned()],
        }
    }

    #[test]
    fn a_machine_is_told_line_by_line() {
        let told = machine(&example(), 3_700_000);
        let expected = "\
name:       m1
id:         haaaaaaaaa
state:      failed
cause:      its agent died
            because: signal 9
backend:    namespace (user namespaces work here)
image:      host
created:    1h ago
memory:     512M
idle stop:  10m
supervisor: 42
limit:      no limit on cpus
";
        assert_eq!(told, expected);
    }

    #[test]
    fn machines_are_told_in_columns() {
        let told = machines(&[example()], 65_000);
        assert_eq!(told, "NAME  STATE   BACKEND    IMAGE  AGE\nm1    failed  namespace  host   1m   its agent died\n");
    }

    #[test]
    fn ages_keep_their_largest_unit() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m"), (7_300, "2h"), (200_000, "2d"), (-5, "0s")] {
            assert_eq!(age(0, seconds * 1000), text);
        }
    }
}
