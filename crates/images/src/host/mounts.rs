//! Which of the host's mounts a machine sees. Pure.

use std::path::{Path, PathBuf};

use testyard_linux::mount::MountEntry;

use super::mask::{MaskEffect, MaskEntry};
use super::{HostOptions, covers};

/// Made anew in each machine.
pub(super) const OF_THE_KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Places whose mounts are not a machine's business unless they are exposed.
const ELSEWHERE: [&str; 6] = ["/run", "/tmp", "/var/tmp", "/boot", "/snap", "/var/lib/snapd"];
/// Local file systems. All else (network, fuse, autofs, overlay of other runtimes, pseudo) is skipped.
const LOCAL: [&str; 15] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "jfs", "reiserfs", "nilfs2", "erofs", "tmpfs",
    "ramfs", "rootfs",
];

/// What was chosen.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    pub(super) layers: Vec<MountEntry>,
    /// Those layers that are an exposed part of a mount which is not seen itself.
    pub(super) parts: Vec<PathBuf>,
    pub(super) skipped: Vec<(PathBuf, String)>,
}

/// The root, and the visible mounts below it that are local or exposed, sorted by path.
pub(super) fn choose(table: &[MountEntry], options: &HostOptions, plan: &[MaskEntry]) -> Chosen {
    let mut chosen = Chosen::default();
    for mount in visible(table) {
        let path = &mount.point;
        // The root is the root, whatever it is made of: inside somebody's container it is an overlay.
        if path == Path::new("/") {
            chosen.layers.push(mount.clone());
            continue;
        }
        if OF_THE_KERNEL.iter().any(|other| covers(Path::new(other), path)) {
            continue;
        }
        let masked = plan.iter().any(|entry| match entry.effect {
            MaskEffect::Hidden | MaskEffect::Empty { .. } | MaskEffect::Replaced { .. } => covers(&entry.path, path),
            MaskEffect::MountPoint => false,
        });
        let elsewhere = ELSEWHERE.iter().any(|other| covers(Path::new(other), path));
        let counts = LOCAL.contains(&mount.fs_type.as_str()) && !elsewhere && !masked;
        if counts || options.expose.iter().any(|exposed| covers(exposed, path)) {
            chosen.layers.push(mount.clone());
            continue;
        }
        // Of a mount that does not count, only the exposed part is a layer.
        let parts: Vec<_> = options.expose.iter().filter(|exposed| holds(table, mount, exposed)).cloned().collect();
        if parts.is_empty() {
            chosen.skipped.push((path.clone(), mount.fs_type.clone()));
        }
        for part in parts {
            chosen.layers.push(MountEntry { point: part.clone(), ..mount.clone() });
            chosen.parts.push(part);
        }
    }
    chosen.layers.sort_by(|one, other| one.point.cmp(&other.point));
    chosen.layers.dedup_by(|one, other| one.point == other.point);
    chosen.skipped.sort();
    chosen
}

/// Whether an exposed path lies in this mount and in none below it.
fn holds(table: &[MountEntry], mount: &MountEntry, exposed: &Path) -> bool {
    covers(&mount.point, exposed)
        && !table.iter().any(|other| {
            other.point != mount.point && covers(&mount.point, &other.point) && covers(&other.point, exposed)
        })
}

/// The mounts that a path can reach: neither mounted over at their own root nor below a later mount.
pub(super) fn visible(table: &[MountEntry]) -> Vec<&MountEntry> {
    table.iter().filter(|mount| !is_covered(table, mount) && is_placed(table, mount, 0)).collect()
}

fn is_covered(table: &[MountEntry], mount: &MountEntry) -> bool {
    table.iter().any(|other| other.id != mount.id && other.parent == mount.id && other.point == mount.point)
}

fn is_placed(table: &[MountEntry], mount: &MountEntry, depth: usize) -> bool {
    // A sibling above it came later: had it been there first, it would be the parent.
    let hidden = table.iter().any(|other| {
        other.id != mount.id
            && other.parent == mount.parent
            && other.point != mount.point
            && covers(&other.point, &mount.point)
    });
    // A table that is a circle is no table.
    if hidden || depth > 1000 {
        return false;
    }
    match table.iter().find(|other| other.id == mount.parent && other.id != mount.id) {
        None => true,
        Some(parent) if parent.point == mount.point => is_placed(table, parent, depth + 1),
        Some(parent) => !is_covered(table, parent) && is_placed(table, parent, depth + 1),
    }
}

#[cfg(test)]
mod tests {
    use testyard_linux::mount::parse_mount_table;

    use super::*;

    fn points(mounts: &[&MountEntry]) -> Vec<String> {
        mounts.iter().map(|mount| mount.point.display().to_string()).collect()
    }

    const TABLE: &str = "\
27 1 254:0 / / rw - ext4 /dev/vda rw
22 27 0:21 / /proc rw - proc proc rw
24 27 0:6 / /dev rw - devtmpfs devtmpfs rw
26 24 0:24 / /dev/pts rw - devpts devpts rw
29 26 0:26 / /dev/pts rw - devpts devpts rw
40 27 8:1 / /home rw - xfs /dev/sda1 rw
41 27 0:50 / /mnt/nfs rw - nfs4 server:/x rw
42 27 0:51 / /opt/scratch rw - tmpfs scratch rw
43 27 0:52 / /run rw - tmpfs tmpfs rw
44 43 0:53 / /run/user/1000 rw - tmpfs tmpfs rw
45 27 0:54 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw
46 27 8:2 / /srv/old/below rw - ext4 /dev/sdb rw
47 27 8:3 / /srv/old rw - ext4 /dev/sdc rw
";

    fn table() -> Vec<MountEntry> {
        parse_mount_table(TABLE.as_bytes()).expect("a table")
    }

    #[test]
    fn mounts_below_later_mounts_are_not_visible() {
        let table = table();
        let seen = points(&visible(&table));
        assert_eq!(seen.iter().filter(|point| *point == "/dev/pts").count(), 1);
        assert!(seen.contains(&"/srv/old".to_owned()) && !seen.contains(&"/srv/old/below".to_owned()));
    }

    #[test]
    fn local_mounts_count_and_others_only_where_exposed() {
        let table = table();
        let chosen = choose(&table, &HostOptions::default(), &[]);
        assert_eq!(points(&chosen.layers.iter().collect::<Vec<_>>()), ["/", "/home", "/opt/scratch", "/srv/old"]);
        assert!(chosen.skipped.contains(&("/mnt/nfs".into(), "nfs4".to_owned())));
        let options =
            HostOptions { expose: vec!["/mnt/nfs/data".into(), "/run/user".into()], ..HostOptions::default() };
        let chosen = choose(&table, &options, &[]);
        let exposed = points(&chosen.layers.iter().collect::<Vec<_>>());
        assert_eq!(exposed, ["/", "/home", "/mnt/nfs/data", "/opt/scratch", "/run/user", "/run/user/1000", "/srv/old"]);
    }

    #[test]
    fn a_masked_mount_is_no_layer() {
        let plan = [MaskEntry { path: "/home".into(), effect: MaskEffect::Empty { mode: 0o755 } }];
        let chosen = choose(&table(), &HostOptions::default(), &plan);
        assert!(!chosen.layers.iter().any(|mount| mount.point == Path::new("/home")));
    }
}
