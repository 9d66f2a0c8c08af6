//! What a node's first command does: files, accounts, and the two daemons that wait for nobody.
//!
//! The script goes in through standard input, so that no key of it is ever an argument that others see.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::files::{self, ControlGroups, NodeFile, Secrets};
use crate::layout::{Layout, Node};
use crate::names::UserName;

/// A user's account, as it is written into a node's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The name.
    pub name: UserName,
    /// The password's hash as `/etc/shadow` has it; `*` where no password opens the account.
    pub hash: String,
    /// What each user's own `ssh` proves itself with, between nodes.
    pub key: KeyPair,
}

/// A key of OpenSSH's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPair {
    /// The file that only its owner reads.
    pub private: String,
    /// One line.
    pub public: String,
}

/// What a node is told beside the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSetup {
    /// Everybody with a home.
    pub accounts: Vec<Account>,
    /// The key by which the nodes' SSH servers are known.
    pub host_key: KeyPair,
    /// Keys and passwords.
    pub secrets: Secrets,
    /// Which control groups nodes have.
    pub groups: ControlGroups,
    /// Whether jobs and states of an earlier life are to be forgotten: the cluster has another name now.
    pub forget: bool,
}

/// The first user id of those whom the image does not know.
const FIRST_ID: u32 = 5000;

/// With what the script ends where a node has too few ids: its daemons run as different users.
pub const TOO_FEW_IDS: u8 = 4;

/// With what the script ends where the files of the image are nobody's, and cannot be changed.
pub const FILES_OF_NOBODY: u8 = 5;

/// With what the script ends where programs are missing; their names are on its error output.
pub const MISSING_PROGRAMS: u8 = 3;

/// What a node needs, and the Debian package that has it.
const PROGRAMS: [(&str, &str); 6] = [
    ("munged", "munge"),
    ("slurmd", "slurmd"),
    ("srun", "slurm-client"),
    ("sshd", "openssh-server"),
    ("setpriv", "util-linux"),
    ("bash", "bash"),
];

/// What accounting needs.
const ACCOUNTING: [(&str, &str); 3] = [
    ("slurmdbd", "slurmdbd"),
    ("mariadbd", "mariadb-server"),
    ("/usr/lib/*/slurm-wlm/accounting_storage_mysql.so", "slurm-wlm-mysql-plugin"),
];

/// What HTTP needs.
const REST: [(&str, &str); 2] =
    [("slurmrestd", "slurmrestd"), ("/usr/lib/*/slurm-wlm/auth_jwt.so", "slurm-wlm-jwt-plugin")];

/// What the controller needs beside that.
fn programs_of_controller(layout: &Layout) -> Vec<(&'static str, &'static str)> {
    let mut programs = vec![("slurmctld", "slurmctld")];
    if layout.spec.accounting {
        programs.extend(ACCOUNTING);
    }
    if layout.spec.slurmrestd {
        programs.extend(REST);
    }
    programs
}

/// The package that a missing program comes from.
#[must_use]
pub fn package_of(program: &str) -> Option<&'static str> {
    let controller = [("slurmctld", "slurmctld")];
    let mut all = PROGRAMS.iter().chain(&controller).chain(&ACCOUNTING).chain(&REST);
    all.find(|(name, _)| *name == program).map(|(_, package)| *package)
}

/// Ends the script where the node cannot be one: before anything is written.
fn checks(layout: &Layout, node: &Node) -> String {
    let mut programs = PROGRAMS.to_vec();
    if node.is_controller() {
        programs.extend(programs_of_controller(layout));
    }
    let names: Vec<&str> = programs.iter().map(|(name, _)| *name).collect();
    format!(
        "ids=0\nwhile read -r inside outside count; do ids=$((ids+count)); done < /proc/self/uid_map\n\
         [ $ids -ge 65536 ] || exit {TOO_FEW_IDS}\n\
         [ -O /etc/passwd ] || exit {FILES_OF_NOBODY}\n\
         missing=\nset -f\nfor one in {names}; do\nset +f\n\
         case $one in\n\
         /*) for found in $one; do [ -e $found ] || missing=\"$missing $found\"; done;;\n\
         *) command -v $one >/dev/null || missing=\"$missing $one\";;\n\
         esac\ndone\n\
         [ -z \"$missing\" ] || {{ set -f; echo $missing >&2; exit {MISSING_PROGRAMS}; }}\n",
        names = names.join(" "),
    )
}

/// The script of one node.
#[must_use]
pub fn script(layout: &Layout, node: &Node, setup: &NodeSetup) -> String {
    let mut text = String::from(
        "set -eu\numask 022\nexport LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
    );
    text.push_str(&checks(layout, node));
    text.push_str(FOLDERS);
    if setup.forget {
        text.push_str("rm -rf /var/lib/slurm/slurmctld/* /var/lib/slurm/slurmd/* /var/log/slurm/*\n");
    }
    for (index, account) in setup.accounts.iter().enumerate() {
        text.push_str(&account_lines(account, FIRST_ID + u32::try_from(index).unwrap_or_default()));
    }
    let mut files = files::configuration(layout, setup.groups);
    files.extend(files::keys(layout, &setup.secrets, node.is_controller()));
    files.push(NodeFile {
        path: "/etc/ssh/ssh_host_ed25519_key",
        owner: "root",
        mode: 0o600,
        text: setup.host_key.private.clone(),
    });
    for file in &files {
        text.push_str(&file_lines(file));
    }
    for number in 0..layout.spec.gpus {
        // Slurm wants a device, and nothing in a node may make one: so it is one that is there, under another name.
        let _ = writeln!(
            text,
            "[ -c /dev/testyard-gpu{number} ] || {{ : > /dev/testyard-gpu{number}; \
             mount --bind /dev/null /dev/testyard-gpu{number}; }}"
        );
    }
    if layout.spec.accounting && node.is_controller() {
        text.push_str(DATABASE);
    }
    if node.is_controller() {
        for account in &setup.accounts {
            text.push_str(&home_lines(account, setup.forget));
        }
    }
    text.push_str("setpriv --reuid=munge --regid=munge --clear-groups munged\n/usr/sbin/sshd\n");
    text
}

/// Writes a running node's configuration anew: the cluster has other nodes now.
#[must_use]
pub fn rewrite(layout: &Layout, setup: &NodeSetup) -> String {
    files::configuration(layout, setup.groups).iter().map(file_lines).collect()
}

const FOLDERS: &str = "\
mkdir -p /etc/slurm /etc/munge /run/munge /run/sshd /var/lib/munge /var/log/munge /var/log/slurm /run/mysqld \
/var/lib/slurm/slurmctld /var/lib/slurm/slurmd /var/lib/slurm/database
chown munge:munge /etc/munge /run/munge /var/lib/munge /var/log/munge
chmod 700 /etc/munge /var/lib/munge /var/log/munge
chmod 755 /run/munge
chown slurm:slurm /var/lib/slurm /var/lib/slurm/slurmctld /var/lib/slurm/database /var/log/slurm /run/mysqld
chmod 700 /run/mysqld /var/lib/slurm/database
";

/// Of the tables that a database has for itself, the accounts need those of stored procedures alone. All of them would take
/// seconds to make.
const DATABASE: &str = "\
{ echo 'CREATE DATABASE IF NOT EXISTS mysql;'; echo 'USE mysql;'
grep -hE '^CREATE TABLE IF NOT EXISTS (proc|event) ' /usr/share/mysql/*_system_tables.sql; } > /var/lib/slurm/database.sql
";

/// Whoever is in the image keeps the ids there, and gets a home and a shell.
fn account_lines(account: &Account, id: u32) -> String {
    let Account { name, hash, .. } = account;
    format!(
        "if grep -q '^{name}:' /etc/passwd; then\n\
         sed -i 's|^\\({name}:[^:]*:[^:]*:[^:]*:[^:]*\\):.*|\\1:/home/{name}:/bin/bash|' /etc/passwd\n\
         else\n\
         ! grep -q ':x:{id}:' /etc/passwd || {{ echo 'user id {id} is taken in this image' >&2; exit 1; }}\n\
         echo '{name}:x:{id}:{id}::/home/{name}:/bin/bash' >> /etc/passwd\n\
         grep -q '^{name}:' /etc/group || echo '{name}:x:{id}:' >> /etc/group\n\
         fi\n\
         sed -i '/^{name}:/d' /etc/shadow\n\
         echo '{name}:{hash}:19000:0:99999:7:::' >> /etc/shadow\n",
    )
}

/// A home on the folder that all nodes share. What is in it is its user's: keys are written by that user, where they
/// are missing, or where `replace` says that they are those of the cluster from which this one was forked.
fn home_lines(account: &Account, replace: bool) -> String {
    let Account { name, key, .. } = account;
    let mut text = format!(
        "home=/home/{name} uid=$(id -u {name}) gid=$(id -g {name})\nif [ ! -e $home/.ssh ]; then\n\
         mkdir -p $home/.ssh\n[ ! -d /etc/skel ] || cp -a /etc/skel/. $home/\nchmod 700 $home/.ssh\n\
         chown -R $uid:$gid $home\nfi\n\
         setpriv --reuid=$uid --regid=$gid --clear-groups sh -eu <<'TESTYARD-USER'\n\
         umask 077\ncd /home/{name}/.ssh\n\
         if {replace} || [ ! -e id_ed25519 ]; then\nold=$(cat id_ed25519.pub 2>/dev/null) || old=\n",
    );
    text.push_str(&heredoc("id_ed25519", &key.private));
    text.push_str(&heredoc("id_ed25519.pub", &key.public));
    let _ = write!(
        text,
        "if [ -n \"$old\" ] && [ -e authorized_keys ]; then\n\
         grep -vxF \"$old\" authorized_keys > authorized_keys.new || :\nmv authorized_keys.new authorized_keys\nfi\nfi\n\
         grep -qxF '{public}' authorized_keys 2>/dev/null || echo '{public}' >> authorized_keys\n\
         TESTYARD-USER\n",
        public = key.public.trim_end(),
    );
    text
}

fn file_lines(file: &NodeFile) -> String {
    let NodeFile { path, owner, mode, text } = file;
    // What everybody reads needs no second look; what nobody else may read is never open for a moment.
    let content = heredoc(path, text);
    match mode {
        0o644 => content,
        _ => format!("rm -f {path}\n(umask 077\n{content})\nchown {owner}: {path}\nchmod {mode:o} {path}\n"),
    }
}

/// The shell's way to write a file out of itself, byte by byte as it is.
fn heredoc(path: &str, text: &str) -> String {
    const END: &str = "TESTYARD-END";
    let ended = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    debug_assert!(!text.lines().any(|line| line == END), "no file of ours holds the mark");
    format!("cat > {path} <<'{END}'\n{text}{ended}{END}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ClusterSpec;

    fn setup() -> NodeSetup {
        let pair = || KeyPair { private: "PRIVATE\n".to_owned(), public: "ssh-ed25519 PUBLIC\n".to_owned() };
        NodeSetup {
            accounts: vec![Account { name: UserName::usual(), hash: "$6$salt$hash".to_owned(), key: pair() }],
            host_key: pair(),
            secrets: Secrets { munge_key: "k".repeat(64), token_key: "t".repeat(64) },
            groups: ControlGroups::V1,
            forget: false,
        }
    }

    fn scripts(spec: &ClusterSpec) -> Vec<String> {
        let layout = Layout::new(&"lab".parse().expect("a name"), spec);
        layout.nodes.iter().map(|node| script(&layout, node, &setup())).collect()
    }

    #[test]
    fn homes_are_made_by_one_node_and_accounts_by_all() {
        let scripts = scripts(&ClusterSpec::new(2));
        assert!(scripts[0].contains("home=/home/slurm") && !scripts[1].contains("home=/home/slurm"));
        assert!(scripts.iter().all(|text| text.contains("slurm:$6$salt$hash:19000")));
        assert!(scripts[0].contains(" slurmctld; do") && !scripts[1].contains(" slurmctld; do"));
    }

    #[test]
    fn packages_are_told_for_every_program() {
        let layout = Layout::new(
            &"lab".parse().expect("a name"),
            &ClusterSpec { accounting: true, slurmrestd: true, ..ClusterSpec::new(1) },
        );
        for (program, package) in PROGRAMS.into_iter().chain(programs_of_controller(&layout)) {
            assert_eq!(package_of(program), Some(package));
        }
        assert_eq!(package_of("vi"), None);
    }

    #[test]
    fn secret_files_are_never_open() {
        let text = &scripts(&ClusterSpec::new(1))[0];
        let key = text.find("cat > /etc/munge/munge.key").expect("the key is written");
        assert!(text[..key].ends_with("(umask 077\n"));
    }
}
