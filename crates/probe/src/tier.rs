//! What `backend = "auto"` means on a host: decided from a [`Report`] and nothing else.

use serde::{Deserialize, Serialize};
use testyard_model::BackendName;

use crate::report::Report;

/// How a machine gets a root that can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootKind {
    /// Idmapped layers in a user namespace with a range of ids: everything works in it.
    IdmappedLayers,
    /// One overlay over a tree of metadata whose data lies in the host's own folders: everything belongs to the
    /// namespace's root, but there is only one id.
    MetadataTree,
    /// An overlay for each top-level folder: files of others can be neither changed nor deleted.
    ComposedRoot,
    /// The host's own.
    None,
}

/// The strongest backend that this host can give, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// The backend.
    pub backend: BackendName,
    /// How its machines' roots are made.
    pub root: RootKind,
    /// Why it is this one, and not a stronger one; a lower-case fragment.
    pub reason: String,
    /// What it cannot isolate or limit here, in plain sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
}

/// Without these there is no container.
const CONTAINER: [&str; 6] =
    ["user-namespace", "mount-namespace", "pid-namespace", "ipc-namespace", "uts-namespace", "fresh-proc"];

/// Whether an ability decides which backend it is, not only what that can isolate or limit.
pub(crate) fn decides(ability: &str) -> bool {
    CONTAINER.contains(&ability) || ["user-namespace-range", "idmapped-mount", "overlay-user"].contains(&ability)
}

/// Decides from the abilities; pure.
#[must_use]
pub fn choose_tier(report: &Report) -> Tier {
    let lacking: Vec<&str> = CONTAINER.into_iter().filter(|ability| !report.has(ability)).collect();
    if let Some(first) = lacking.first() {
        return host(format!("no containers of our own: {}", why_not(report, first)));
    }
    let idmapped = ["user-namespace-range", "idmapped-mount"];
    let missing_range = idmapped.into_iter().find(|ability| !report.has(ability));
    let (root, reason) = if report.has("root") && missing_range.is_none() {
        (RootKind::IdmappedLayers, "user namespaces with a range of ids over idmapped layers work".to_owned())
    } else if !report.has("overlay-user") {
        let overlay = why_not(report, "overlay-user");
        return host(format!("no containers of our own: no overlay in a user namespace: {overlay}"));
    } else {
        // Why root did not get the stronger one is worth a word; an ordinary user never could.
        let weaker = match missing_range {
            Some(ability) if report.has("root") => format!("; one id only, because {}", why_not(report, ability)),
            _ => String::new(),
        };
        if report.has("overlay-data-only") {
            (RootKind::MetadataTree, format!("user namespaces and data-only overlay layers work{weaker}"))
        } else {
            let data_only = why_not(report, "overlay-data-only");
            (
                RootKind::ComposedRoot,
                format!("user namespaces and overlays work; no data-only layers: {data_only}{weaker}"),
            )
        }
    };
    Tier { backend: BackendName::namespace(), root, reason, limits: limits(report, root) }
}

fn host(reason: String) -> Tier {
    let limits = vec![
        "tests share the host's files, processes and network; only `isolation = \"none\"` and `\"workspace\"` are met"
            .to_owned(),
        "a child that clears every mark and double-forks outlives its test".to_owned(),
    ];
    Tier { backend: BackendName::host(), root: RootKind::None, reason, limits }
}

fn limits(report: &Report, root: RootKind) -> Vec<String> {
    let mut limits = Vec::new();
    match root {
        RootKind::MetadataTree => limits.push(
            "one user id: no chown to another, no su, no device nodes, nothing that this user cannot read".to_owned(),
        ),
        RootKind::ComposedRoot => limits.push(
            "one user id, and files of others can be neither changed nor deleted: no apt, no /etc/passwd, no rm in /usr"
                .to_owned(),
        ),
        RootKind::IdmappedLayers | RootKind::None => {}
    }
    for (ability, sentence) in [
        ("network-namespace", "no private network"),
        ("cgroup-memory", "no memory limit and no peak memory"),
        ("cgroup-pids", "no limit of processes"),
        ("cgroup-cpu", "no limit of processor time"),
        ("cgroup-io", "no disk traffic in results"),
        ("seccomp", "no system call filter"),
    ] {
        if !report.has(ability) {
            limits.push(format!("{sentence}: {}", why_not(report, ability)));
        }
    }
    limits
}

fn why_not(report: &Report, ability: &str) -> String {
    match report.probe(ability) {
        Some(probe) => format!("{ability}: {}", probe.reason),
        None => format!("{ability} was not probed"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ability::abilities;
    use crate::host::{CgroupLayout, HostFacts};
    use crate::report::{Answer, Probe, REPORT_VERSION};

    /// A report of a made-up host that can do just these things.
    pub(crate) fn report(uid: u32, able: &[&str]) -> Report {
        let probes = abilities()
            .iter()
            .map(|ability| {
                let yes = able.contains(&ability.name);
                Probe {
                    name: ability.title.to_owned(),
                    ability: ability.name.to_owned(),
                    answer: if yes { Answer::Yes } else { Answer::No },
                    reason: if yes { "done".to_owned() } else { "refused".to_owned() },
                    provide: None,
                    detail: None,
                    millis: 1,
                }
            })
            .collect();
        let host = HostFacts {
            kernel: "6.18".into(),
            architecture: "x86_64".into(),
            distribution: None,
            boot_id: "boot".into(),
            uid,
            user: None,
            is_full_root: uid == 0,
            user_ids: 4_294_967_295,
            container: None,
            cgroups: CgroupLayout::V2,
            processors: 2,
            memory_bytes: 1 << 30,
            memory_available_bytes: 1 << 29,
            state_folder: "/state".into(),
            state_free_bytes: Some(1 << 30),
            state_network_file_system: None,
        };
        let tier = host_tier();
        Report { version: REPORT_VERSION, host, probes, tier }
    }

    fn host_tier() -> Tier {
        Tier { backend: BackendName::host(), root: RootKind::None, reason: String::new(), limits: Vec::new() }
    }

    fn tier(uid: u32, able: &[&str]) -> Tier {
        choose_tier(&report(uid, able))
    }

    fn all_but(missing: &[&str]) -> Vec<&'static str> {
        abilities().iter().map(|ability| ability.name).filter(|name| !missing.contains(name)).collect()
    }

    #[test]
    fn a_host_that_can_everything_gets_idmapped_layers_and_no_limits() {
        let tier = tier(0, &all_but(&[]));
        assert_eq!((tier.backend.as_str(), tier.root), ("namespace", RootKind::IdmappedLayers));
        assert!(tier.limits.is_empty(), "{:?}", tier.limits);
    }

    #[test]
    fn an_ordinary_user_gets_the_best_root_there_is() {
        let user = ["root", "overlay-root", "idmapped-mount", "user-namespace-range"];
        let best = tier(1000, &all_but(&user));
        assert_eq!((best.backend.as_str(), best.root), ("namespace", RootKind::MetadataTree));
        assert_eq!(best.limits.len(), 1);
        let composed = tier(1000, &all_but(&[&user[..], &["overlay-data-only"]].concat()));
        assert_eq!((composed.backend.as_str(), composed.root), ("namespace", RootKind::ComposedRoot));
        assert!(composed.reason.contains("overlay-data-only: refused"), "{}", composed.reason);
    }

    #[test]
    fn root_without_idmapped_mounts_is_told_why() {
        let tier = tier(0, &all_but(&["idmapped-mount"]));
        assert_eq!(tier.root, RootKind::MetadataTree);
        assert!(tier.reason.ends_with("one id only, because idmapped-mount: refused"), "{}", tier.reason);
    }

    #[test]
    fn without_a_container_the_host_is_all_there_is() {
        for missing in CONTAINER {
            let tier = tier(0, &all_but(&[missing]));
            assert_eq!((tier.backend.as_str(), tier.root), ("host", RootKind::None), "{missing}");
            assert!(tier.reason.contains(&format!("{missing}: refused")), "{}", tier.reason);
            assert!(!tier.limits.is_empty());
        }
        let tier = tier(1000, &all_but(&["root", "overlay-user"]));
        assert_eq!(tier.backend.as_str(), "host");
        assert!(tier.reason.contains("overlay-user"), "{}", tier.reason);
    }

    #[test]
    fn what_cannot_be_limited_is_said() {
        let tier = tier(0, &all_but(&["cgroup-memory", "network-namespace"]));
        assert_eq!(tier.backend.as_str(), "namespace");
        assert_eq!(
            tier.limits,
            [
                "no private network: network-namespace: refused",
                "no memory limit and no peak memory: cgroup-memory: refused"
            ]
        );
    }

    #[test]
    fn what_decides_the_backend_is_enough_to_decide_it() {
        let all: Vec<&str> = abilities().iter().map(|ability| ability.name).collect();
        let deciding: Vec<&str> = all.iter().copied().filter(|name| decides(name)).collect();
        assert_eq!(deciding.len(), CONTAINER.len() + 3, "each is an ability");
        for uid in [0, 1000] {
            for without in deciding.iter().copied().chain(["none"]) {
                let backend = |names: &[&str]| {
                    let able: Vec<&str> = names.iter().copied().filter(|name| *name != without).collect();
                    choose_tier(&report(uid, &able)).backend
                };
                // What is no process is always known.
                let known: Vec<&str> = deciding.iter().copied().chain(["root"]).collect();
                assert_eq!(backend(&all), backend(&known), "{without}");
            }
        }
    }
}
