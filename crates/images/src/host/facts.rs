//! Looking up what a host has to mask.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use testyard_linux::mount::MountEntry;

use super::mask::{FolderFacts, MaskFacts};
use super::{HostError, HostOptions, mounts};

/// Seen empty. What runs there belongs to the host; what runs in a machine makes its own.
const EMPTIED: [&str; 13] = [
    "/root",
    "/run",
    "/tmp",
    "/var/tmp",
    "/proc",
    "/sys",
    "/dev",
    "/etc/ssl/private",
    "/etc/NetworkManager/system-connections",
    "/var/spool/cron/crontabs",
    "/var/lib/private",
    "/var/lib/sss/db",
    "/var/lib/AccountsService/users",
];
/// State of other runtimes, with other people's file systems and secrets in it.
const RUNTIMES: [&str; 14] = [
    "/var/lib/docker",
    "/var/lib/containers",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/lib/rancher",
    "/var/lib/etcd",
    "/var/lib/cni",
    "/var/lib/lxc",
    "/var/lib/lxd",
    "/var/lib/incus",
    "/var/lib/libvirt",
    "/var/lib/machines",
    "/var/lib/portables",
    "/var/snap",
];
/// Keys and passwords of the host itself.
const SECRETS: [&str; 17] = [
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/security/opasswd",
    "/etc/krb5.keytab",
    "/etc/munge/munge.key",
    "/etc/wireguard",
    "/etc/letsencrypt",
    "/etc/kubernetes",
    "/etc/rancher",
    "/etc/credstore",
    "/etc/credstore.encrypted",
    "/etc/docker/key.json",
    "/etc/ipsec.secrets",
    "/etc/ppp/chap-secrets",
    "/etc/ppp/pap-secrets",
    "/var/lib/systemd/credential.secret",
    "/var/lib/systemd/random-seed",
];
/// The same of a person, below a home.
const SECRETS_AT_HOME: [&str; 45] = [
    ".ssh",
    ".aws",
    ".azure",
    ".oci",
    ".kube",
    ".docker",
    ".gnupg",
    ".netrc",
    ".pgpass",
    ".my.cnf",
    ".mylogin.cnf",
    ".npmrc",
    ".yarnrc.yml",
    ".pypirc",
    ".git-credentials",
    ".vault-token",
    ".boto",
    ".s3cfg",
    ".databrickscfg",
    ".snowsql",
    ".terraform.d",
    ".terraformrc",
    ".password-store",
    ".gem/credentials",
    ".m2/settings.xml",
    ".gradle/gradle.properties",
    ".cargo/credentials",
    ".cargo/credentials.toml",
    ".config/gcloud",
    ".config/gh",
    ".config/glab-cli",
    ".config/hub",
    ".config/git/credentials",
    ".config/containers/auth.json",
    ".config/rclone",
    ".config/sops",
    ".config/op",
    ".config/doctl",
    ".config/hcloud",
    ".config/pip",
    ".config/pypoetry",
    ".local/share/keyrings",
    ".bash_history",
    ".zsh_history",
    ".python_history",
];
/// A file mounted over a file (as container runtimes do with `/etc/hosts`) is copied up to this size.
const MOUNTED_FILE_LIMIT: u64 = 1 << 20;

/// Reads what [`super::mask_plan`] decides on. What cannot be read is not there for this user anyway.
///
/// # Errors
/// None today but those of the options; a host without `/etc/passwd` has no homes.
pub fn gather_mask_facts(options: &HostOptions, table: &[MountEntry]) -> Result<MaskFacts, HostError> {
    super::check(options)?;
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let homes = homes(&passwd);
    let mut emptied: BTreeSet<FolderFacts> = homes.iter().cloned().collect();
    emptied.extend(EMPTIED.iter().chain(&RUNTIMES).filter_map(|path| folder(Path::new(path))));
    let mut secrets: BTreeSet<PathBuf> = SECRETS.iter().filter_map(|path| possible(Path::new(path))).collect();
    secrets.extend(host_keys());
    secrets.extend(swap_files());
    secrets.extend(options.sockets.iter().filter_map(|path| fs::canonicalize(path).ok()));
    secrets.extend(homes.iter().flat_map(|home| secrets_of(&home.path)));
    let mut replaced = locked_entries(&passwd);
    replaced.extend(mounted_files(table));
    let real = |paths: &[PathBuf]| paths.iter().filter_map(|path| fs::canonicalize(path).ok()).collect::<Vec<_>>();
    let mut facts = MaskFacts {
        emptied: emptied.into_iter().collect(),
        secrets: secrets.into_iter().collect(),
        replaced,
        own: real(&options.own),
        expose: options.expose.clone(),
        mount_points: options.mount_points.clone(),
        listings: BTreeMap::new(),
    };
    facts.expose.extend(real(&options.expose));
    facts.expose.sort();
    facts.expose.dedup();
    list_around_exposed(&mut facts);
    Ok(facts)
}

/// Where a person with this home has keys and passwords, present or possible.
pub fn secrets_of(home: &Path) -> impl Iterator<Item = PathBuf> {
    // Few folders, and following the links of a path is a call to the kernel for each of its names.
    let mut folders: BTreeMap<PathBuf, Option<PathBuf>> = BTreeMap::new();
    SECRETS_AT_HOME.iter().filter_map(move |name| {
        let path = home.join(name);
        let folder = path.parent()?;
        let real = folders.entry(folder.to_owned()).or_insert_with(|| fs::canonicalize(folder).ok());
        Some(real.as_ref()?.join(path.file_name()?))
    })
}

/// Every person's home that exists, `/root`'s kind included, and every folder in `/home`.
fn homes(passwd: &str) -> BTreeSet<FolderFacts> {
    let mut paths: Vec<PathBuf> = passwd
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            let uid: u32 = fields.get(2)?.parse().ok()?;
            let person = uid == 0 || (1000..65_534).contains(&uid);
            person.then(|| PathBuf::from(fields.get(5).copied().unwrap_or_default()))
        })
        .collect();
    if let Ok(entries) = fs::read_dir("/home") {
        paths.extend(entries.flatten().map(|entry| entry.path()));
    }
    // A home that is `/` or a system folder is no home, and emptying it would leave no root.
    let own = |path: &Path| path.components().count() > 2 || path.starts_with("/root");
    let system = |path: &Path| ["/usr", "/bin", "/sbin", "/etc", "/lib"].iter().any(|other| path.starts_with(other));
    paths
        .into_iter()
        .filter_map(|path| folder(&path))
        .filter(|home| own(&home.path) && !system(&home.path) && home.path != Path::new("/var/lib"))
        .collect()
}

/// A folder that exists, under its real path.
fn folder(path: &Path) -> Option<FolderFacts> {
    let path = fs::canonicalize(path).ok()?;
    let facts = fs::symlink_metadata(&path).ok()?;
    facts.is_dir().then(|| FolderFacts { path, mode: facts.permissions().mode() & 0o7777 })
}

/// A path whose folder exists, under the folder's real path: the thing itself may come later.
fn possible(path: &Path) -> Option<PathBuf> {
    Some(fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?))
}

fn host_keys() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/etc/ssh") else { return Vec::new() };
    let key = |name: &OsString| name.to_string_lossy().starts_with("ssh_host_");
    entries.flatten().filter(|entry| key(&entry.file_name())).map(|entry| entry.path()).collect()
}

fn swap_files() -> Vec<PathBuf> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let files = swaps.lines().skip(1).filter(|line| line.contains(" file") || line.contains("\tfile"));
    // The kernel writes blanks in names as \040; such a swap file is rare enough to be matched by its folder only.
    files.filter_map(|line| fs::canonicalize(line.split_whitespace().next()?).ok()).collect()
}

/// `/etc/shadow` and `/etc/gshadow` with every password locked: login programs work, nothing can be cracked.
fn locked_entries(passwd: &str) -> Vec<(PathBuf, Vec<u8>, u32)> {
    let names = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.to_owned()).collect()
    };
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    let shadow: String = names(passwd).iter().map(|name| format!("{name}:*:19000:0:99999:7:::\n")).collect();
    let gshadow: String = names(&group).iter().map(|name| format!("{name}:*::\n")).collect();
    [("/etc/shadow", shadow), ("/etc/gshadow", gshadow)]
        .into_iter()
        .filter(|(path, _)| Path::new(path).exists())
        .map(|(path, text)| (PathBuf::from(path), text.into_bytes(), 0o640))
        .collect()
}

/// Files that are mount points: no layer can be one, so their present content is shown.
fn mounted_files(table: &[MountEntry]) -> Vec<(PathBuf, Vec<u8>, u32)> {
    let mut files = Vec::new();
    for mount in mounts::visible(table) {
        let kernel = mounts::OF_THE_KERNEL.iter().any(|path| mount.point.starts_with(path));
        let Ok(facts) = fs::symlink_metadata(&mount.point) else { continue };
        if !kernel
            && facts.is_file()
            && facts.len() <= MOUNTED_FILE_LIMIT
            && let Ok(content) = fs::read(&mount.point)
        {
            files.push((mount.point.clone(), content, facts.permissions().mode() & 0o7777));
        }
    }
    files
}

/// Lists the emptied folders in which something is exposed, all the way down to it.
fn list_around_exposed(facts: &mut MaskFacts) {
    for exposed in &facts.expose {
        for folder in exposed.ancestors().skip(1) {
            let within = facts.emptied.iter().any(|emptied| folder.starts_with(&emptied.path));
            if !within || facts.listings.contains_key(folder) {
                continue;
            }
            let Ok(entries) = fs::read_dir(folder) else { continue };
            let mut listing: Vec<_> = entries
                .flatten()
                .filter_map(|entry| {
                    let facts = entry.metadata().ok()?;
                    Some((entry.file_name(), facts.is_dir().then(|| facts.permissions().mode() & 0o7777)))
                })
                .collect();
            listing.sort();
            facts.listings.insert(folder.to_owned(), listing);
        }
    }
}
