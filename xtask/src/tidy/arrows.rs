//! The root DAG: which crate may know which. A new arrow needs a decision record in `docs/adr`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Finding;
use crate::cargo::packages;

/// Each crate and what it points at. What those point at is allowed as well: arrows are read transitively.
const ARROWS: &[(&str, &[&str])] = &[
    ("testyard-model", &[]),
    ("testyard-protocol", &["testyard-model"]),
    ("testyard-linux", &["testyard-model"]),
    ("testyard-transfer", &["testyard-model"]),
    ("testyard-trees", &["testyard-model"]),
    ("testyard-docker", &["testyard-linux"]),
    (
        "testyard-agent",
        &["testyard-protocol", "testyard-linux", "testyard-transfer", "testyard-trees", "testyard-docker"],
    ),
    ("testyard-machine", &["testyard-protocol", "testyard-linux", "testyard-transfer", "testyard-trees"]),
    ("testyard-images", &["testyard-linux"]),
    ("testyard-link", &["testyard-machine"]),
    ("testyard-backends", &["testyard-link", "testyard-images"]),
    ("testyard-registry", &["testyard-model"]),
    ("testyard-sync", &["testyard-trees"]),
    ("testyard-cluster", &["testyard-model"]),
    ("testyard-probe", &["testyard-linux"]),
    ("testyard-engine", &["testyard-machine", "testyard-sync"]),
    ("testyard-runner", &["testyard-linux"]),
    (
        "testyard",
        &[
            "testyard-backends",
            "testyard-engine",
            "testyard-runner",
            "testyard-registry",
            "testyard-sync",
            "testyard-images",
            "testyard-probe",
            "testyard-cluster",
        ],
    ),
    ("testyard-measure", &["testyard-model"]),
    ("testyard-cli", &["testyard", "testyard-measure"]),
];

/// May be a dev-dependency of anything.
const FOR_TESTS: &str = "testkit";

/// Checks every arrow between our own packages.
pub(super) fn check(metadata: &Value) -> Vec<Finding> {
    let allowed = closure();
    let names: BTreeSet<&str> = packages(metadata).iter().filter_map(|package| package["name"].as_str()).collect();
    let mut findings = Vec::new();
    for package in packages(metadata) {
        let name = package["name"].as_str().unwrap_or_default();
        let manifest = relative_manifest(metadata, package);
        let in_crates = manifest.starts_with("crates/");
        if in_crates && !allowed.contains_key(name) {
            findings.push(Finding::new(&manifest, 0, "a new crate: give it its arrows in xtask/src/tidy/arrows.rs"));
            continue;
        }
        for (target, is_dev) in arrows_of(package).into_iter().filter(|(target, _)| names.contains(target)) {
            // Examples, benches and testing stand beside the DAG: they use crates, and no crate uses them.
            let fine = match allowed.get(name) {
                Some(targets) => targets.contains(target) || (is_dev && target == FOR_TESTS),
                None => allowed.contains_key(target) || target == FOR_TESTS,
            };
            if !fine {
                let what = format!("`{name}` may not depend on `{target}`: a new arrow needs a record in docs/adr");
                findings.push(Finding::new(&manifest, 0, what));
            }
        }
    }
    findings
}

/// Every crate with everything below it.
fn closure() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut below: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    // The table is in the order of the DAG: what a crate points at stands above it.
    for (name, targets) in ARROWS {
        let mut all: BTreeSet<&str> = targets.iter().copied().collect();
        for target in *targets {
            all.extend(below.get(target).into_iter().flatten());
        }
        below.insert(name, all);
    }
    below
}

/// The names a package depends on, each with whether only its tests do.
fn arrows_of(package: &Value) -> Vec<(&str, bool)> {
    let dependencies = package["dependencies"].as_array().map_or(&[][..], Vec::as_slice);
    dependencies.iter().filter_map(|d| Some((d["name"].as_str()?, d["kind"] == "dev"))).collect()
}

fn relative_manifest(metadata: &Value, package: &Value) -> String {
    let root = metadata["workspace_root"].as_str().unwrap_or_default();
    let manifest = package["manifest_path"].as_str().unwrap_or_default();
    manifest.strip_prefix(root).unwrap_or(manifest).trim_start_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn workspace(name: &str, target: &str, kind: Option<&str>) -> Value {
        json!({
            "workspace_root": "/w",
            "packages": [
                {"name": name, "manifest_path": format!("/w/crates/{name}/Cargo.toml"),
                 "dependencies": [{"name": target, "kind": kind}]},
                {"name": target, "manifest_path": format!("/w/elsewhere/{target}/Cargo.toml"), "dependencies": []},
            ],
        })
    }

    #[test]
    fn the_table_is_in_order() {
        let mut seen = BTreeSet::new();
        for (name, targets) in ARROWS {
            assert!(targets.iter().all(|target| seen.contains(target)), "{name}");
            assert!(seen.insert(name), "{name} stands twice");
        }
    }

    #[test]
    fn arrows_point_down_only() {
        for (name, target, kind, findings) in [
            ("testyard-agent", "testyard-model", None, 0),
            ("testyard-cli", "testyard-linux", None, 0),
            ("testyard-linux", "testyard-agent", None, 1),
            ("testyard-registry", "testyard-linux", None, 1),
            ("testyard-model", "testkit", Some("dev"), 0),
            ("testyard-model", "testkit", None, 1),
            ("testyard-unheard-of", "testyard-model", None, 1),
        ] {
            assert_eq!(check(&workspace(name, target, kind)).len(), findings, "{name} -> {target}");
        }
    }
}
