//! What of the host a machine must not see. Pure: facts in, a list of masks out.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::covers;

/// What a masked path becomes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MaskEffect {
    /// Not there.
    Hidden,
    /// An empty folder with this mode, whatever the host has in it.
    Empty {
        /// Permission bits.
        mode: u32,
    },
    /// A file with another content.
    Replaced {
        /// The content.
        content: Vec<u8>,
        /// Permission bits.
        mode: u32,
    },
    /// A folder that exists, to be mounted on; what the host has in it is seen unless masked above.
    MountPoint,
}

/// One masked path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MaskEntry {
    /// Absolute, as on the host.
    pub path: PathBuf,
    /// What becomes of it.
    pub effect: MaskEffect,
}

/// A folder of the host and its permission bits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FolderFacts {
    /// Absolute, without links.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
}

/// What the plan is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MaskFacts {
    /// Folders to be seen empty: homes, `/run`, `/tmp` and their kind.
    pub emptied: Vec<FolderFacts>,
    /// Files and folders that hold secrets, present or possible: they stay hidden in an exposed folder, too,
    /// unless they are exposed themselves.
    pub secrets: Vec<PathBuf>,
    /// Files seen with another content: path, content, mode.
    pub replaced: Vec<(PathBuf, Vec<u8>, u32)>,
    /// Hidden whatever is exposed: Testyard's own folders.
    pub own: Vec<PathBuf>,
    /// Paths to show after all.
    pub expose: Vec<PathBuf>,
    /// Where something will be mounted.
    pub mount_points: Vec<PathBuf>,
    /// What folders hold that are emptied but have something exposed in them: name, and the mode of folders.
    pub listings: BTreeMap<PathBuf, Vec<(OsString, Option<u32>)>>,
}

/// Every mask, sorted by path, parents first; nothing below what is hidden or emptied but mount points.
#[must_use]
pub fn mask_plan(facts: &MaskFacts) -> Vec<MaskEntry> {
    let mut plan = Plan { facts, entries: BTreeMap::new() };
    for folder in &facts.emptied {
        plan.empty(folder);
    }
    for secret in &facts.secrets {
        // Exposed by itself, or something in it is: then its owner knows what it is.
        if !facts.expose.iter().any(|exposed| covers(secret, exposed)) {
            plan.put(secret, MaskEffect::Hidden);
        }
    }
    for (path, content, mode) in &facts.replaced {
        if !facts.expose.contains(path) {
            plan.put(path, MaskEffect::Replaced { content: content.clone(), mode: *mode });
        }
    }
    for own in &facts.own {
        plan.put(own, MaskEffect::Hidden);
    }
    plan.finish()
}

/// What stays hidden even in a folder that is shown as a whole: everything secret that is not exposed by its own name.
/// Sorted, parents first.
pub(super) fn hidden(facts: &MaskFacts) -> Vec<PathBuf> {
    let secret = facts.secrets.iter().chain(facts.replaced.iter().map(|(path, ..)| path));
    let kept = secret.filter(|path| !facts.expose.iter().any(|exposed| covers(path, exposed)));
    kept.chain(&facts.own).cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

struct Plan<'a> {
    facts: &'a MaskFacts,
    entries: BTreeMap<PathBuf, MaskEffect>,
}

impl Plan<'_> {
    fn put(&mut self, path: &Path, effect: MaskEffect) {
        self.entries.insert(path.to_owned(), effect);
    }

    /// A folder is seen empty, or, where something in it is exposed, without all the rest.
    fn empty(&mut self, folder: &FolderFacts) {
        let exposed_above = self.facts.expose.iter().any(|exposed| covers(exposed, &folder.path));
        if exposed_above {
            return;
        }
        let exposed_below = self.facts.expose.iter().any(|exposed| covers(&folder.path, exposed));
        let listing = self.facts.listings.get(&folder.path).filter(|_| exposed_below);
        let Some(listing) = listing else {
            self.put(&folder.path, MaskEffect::Empty { mode: folder.mode });
            return;
        };
        for (name, mode) in listing {
            let path = folder.path.join(name);
            match mode {
                Some(mode) => self.empty(&FolderFacts { path, mode: *mode }),
                None if self.facts.expose.contains(&path) => {}
                None => self.put(&path, MaskEffect::Hidden),
            }
        }
    }

    fn finish(self) -> Vec<MaskEntry> {
        let mount_points: BTreeSet<&PathBuf> = self.facts.mount_points.iter().collect();
        let mut entries = self.entries.clone();
        for point in &mount_points {
            let ancestors: Vec<_> = point.ancestors().collect();
            // A folder that must exist cannot be hidden: it becomes an empty one.
            for ancestor in &ancestors {
                if let Some(effect @ (MaskEffect::Hidden | MaskEffect::Replaced { .. })) = entries.get_mut(*ancestor) {
                    *effect = MaskEffect::Empty { mode: 0o755 };
                }
            }
            for ancestor in ancestors.iter().rev() {
                let below = ancestor
                    .ancestors()
                    .skip(1)
                    .any(|above| matches!(entries.get(above), Some(MaskEffect::Empty { .. })));
                if below || ancestor == &point.as_path() {
                    entries.entry((*ancestor).to_owned()).or_insert(MaskEffect::MountPoint);
                }
            }
        }
        let mut plan: Vec<MaskEntry> = Vec::with_capacity(entries.len());
        let mut closed: Option<PathBuf> = None;
        for (path, effect) in entries {
            let below = closed.as_ref().is_some_and(|closed| covers(closed, &path));
            if below && effect != MaskEffect::MountPoint {
                // A mount point inside needs its way; nothing else does.
                continue;
            }
            if !below && matches!(effect, MaskEffect::Hidden | MaskEffect::Empty { .. }) {
                closed = Some(path.clone());
            }
            plan.push(MaskEntry { path, effect });
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> MaskFacts {
        let folder = |path: &str, mode| FolderFacts { path: path.into(), mode };
        MaskFacts {
            emptied: vec![folder("/root", 0o700), folder("/home/ann", 0o750), folder("/tmp", 0o1777)],
            secrets: vec!["/etc/ssh/ssh_host_rsa_key".into(), "/home/ann/.ssh".into(), "/home/ann/.netrc".into()],
            replaced: vec![("/etc/shadow".into(), b"root:*:\n".to_vec(), 0o640)],
            own: vec!["/srv/testyard".into()],
            ..MaskFacts::default()
        }
    }

    fn check(facts: &MaskFacts, expected: &[&str]) {
        let told: Vec<_> = mask_plan(facts)
            .into_iter()
            .map(|entry| match entry.effect {
                MaskEffect::Hidden => format!("- {}", entry.path.display()),
                MaskEffect::Empty { mode } => format!("{mode:o} {}", entry.path.display()),
                MaskEffect::Replaced { .. } => format!("= {}", entry.path.display()),
                MaskEffect::MountPoint => format!("+ {}", entry.path.display()),
            })
            .collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn secrets_and_own_folders_are_hidden_wherever_they_lie() {
        let facts = MaskFacts { expose: vec!["/home/ann".into(), "/home/ann/.netrc".into()], ..facts() };
        let expected = ["/etc/shadow", "/etc/ssh/ssh_host_rsa_key", "/home/ann/.ssh", "/srv/testyard"];
        assert_eq!(hidden(&facts), expected.map(PathBuf::from));
    }

    #[test]
    fn everything_is_masked_unless_exposed() {
        check(
            &facts(),
            &[
                "= /etc/shadow",
                "- /etc/ssh/ssh_host_rsa_key",
                "750 /home/ann",
                "700 /root",
                "- /srv/testyard",
                "1777 /tmp",
            ],
        );
    }

    #[test]
    fn secrets_stay_hidden_in_an_exposed_home() {
        let facts = MaskFacts { expose: vec!["/home/ann".into(), "/root".into()], ..facts() };
        check(
            &facts,
            &[
                "= /etc/shadow",
                "- /etc/ssh/ssh_host_rsa_key",
                "- /home/ann/.netrc",
                "- /home/ann/.ssh",
                "- /srv/testyard",
                "1777 /tmp",
            ],
        );
        let facts =
            MaskFacts { expose: vec!["/home/ann".into(), "/home/ann/.ssh".into(), "/etc/shadow".into()], ..facts };
        check(
            &facts,
            &["- /etc/ssh/ssh_host_rsa_key", "- /home/ann/.netrc", "700 /root", "- /srv/testyard", "1777 /tmp"],
        );
    }

    #[test]
    fn an_exposed_part_shows_nothing_beside_it() {
        let listing = |names: &[(&str, Option<u32>)]| names.iter().map(|(name, mode)| (name.into(), *mode)).collect();
        let facts = MaskFacts {
            expose: vec!["/home/ann/data/public".into()],
            listings: BTreeMap::from([
                ("/home/ann".into(), listing(&[(".bashrc", None), ("data", Some(0o755)), ("mail", Some(0o700))])),
                ("/home/ann/data".into(), listing(&[("public", Some(0o755)), ("private", Some(0o755)), ("x", None)])),
            ]),
            ..facts()
        };
        check(
            &facts,
            &[
                "= /etc/shadow",
                "- /etc/ssh/ssh_host_rsa_key",
                "- /home/ann/.bashrc",
                "- /home/ann/.netrc",
                "- /home/ann/.ssh",
                "755 /home/ann/data/private",
                "- /home/ann/data/x",
                "700 /home/ann/mail",
                "700 /root",
                "- /srv/testyard",
                "1777 /tmp",
            ],
        );
    }

    #[test]
    fn own_folders_stay_hidden_whatever_is_exposed() {
        let facts = MaskFacts { expose: vec!["/".into(), "/srv/testyard".into()], ..facts() };
        check(
            &facts,
            &[
                "= /etc/shadow",
                "- /etc/ssh/ssh_host_rsa_key",
                "- /home/ann/.netrc",
                "- /home/ann/.ssh",
                "- /srv/testyard",
            ],
        );
    }

    #[test]
    fn mount_points_exist_with_the_way_to_them() {
        let facts = MaskFacts {
            mount_points: vec!["/home/ann/work/tree".into(), "/opt/tree".into(), "/srv/testyard/tree".into()],
            ..facts()
        };
        check(
            &facts,
            &[
                "= /etc/shadow",
                "- /etc/ssh/ssh_host_rsa_key",
                "750 /home/ann",
                "+ /home/ann/work",
                "+ /home/ann/work/tree",
                "+ /opt/tree",
                "700 /root",
                "755 /srv/testyard",
                "+ /srv/testyard/tree",
                "1777 /tmp",
            ],
        );
    }
}
