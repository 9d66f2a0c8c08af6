//! What a node's first command does: files, accounts, and the two daemons that wait for nobody.
//!
//! The script goes in through standard input, so that no key of it is ever an argument that others see.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::files::{self, ControlGroups, NodeFile, Secrets};
use crate::layout::{Layout, Node};
use crate::names::UserName;
use crate::revive::MUNGED;

/// A user's account, as it is written into a node's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The name.
    pub name: UserName,
    /// The password's hash as `/etc/shadow` has it; `*` where no password opens the account.
    pub hash: String,
    /// What each user's own `ssh` proves itself with, between nodes.
    pub key: KeyPair,
    /// The public key of the same user in the cluster from which this one is being forked: it opens this one no more.
    #[serde(skip)]
    pub former: Option<String>,
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

/// The script of one node. A program that it starts costs a millisecond and more, on every node: what a shell can do by
/// itself it does.
#[must_use]
pub fn script(layout: &Layout, node: &Node, setup: &NodeSetup) -> String {
    let mut text = String::from(
        "set -eu\numask 022\nexport LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
    );
    text.push_str(&checks(layout, node));
    text.push_str(&folders(layout, node));
    if setup.forget {
        text.push_str("rm -rf /var/lib/slurm/slurmctld/* /var/lib/slurm/slurmd/* /var/log/slurm/*\n");
    }
    let mut secrets = files::keys(layout, &setup.secrets, node.is_controller());
    secrets.push(NodeFile {
        path: "/etc/ssh/ssh_host_ed25519_key",
        owner: "root",
        mode: 0o600,
        text: setup.host_key.private.clone(),
    });
    text.push_str(&secret_lines(&secrets));
    // First: what begins looks its own account up, and the files are for a moment not whole.
    text.push_str(&accounts_lines(&setup.accounts));
    // Nobody asks it before it serves; what else there is to do is done meanwhile.
    let _ = writeln!(text, "{MUNGED} &\nmunged=$!");
    for file in files::configuration(layout, setup.groups) {
        text.push_str(&write_lines(&file));
    }
    text.push_str("/usr/sbin/sshd &\nsshd=$!\n");
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
    text.push_str("wait $munged || { echo 'munged did not start' >&2; exit 1; }\n");
    text.push_str("wait $sshd || { echo 'sshd did not start' >&2; exit 1; }\n");
    text
}

/// Writes a running node's configuration anew: the cluster has other nodes now.
#[must_use]
pub fn rewrite(layout: &Layout, setup: &NodeSetup) -> String {
    files::configuration(layout, setup.groups).iter().map(write_lines).collect()
}

/// The folders of the daemons.
fn folders(layout: &Layout, node: &Node) -> String {
    let mut all = "/etc/slurm /etc/munge /run/munge /run/sshd /var/lib/munge /var/log/munge /var/log/slurm \
                   /var/lib/slurm/slurmd"
        .to_owned();
    let mut slurms = "/var/lib/slurm /var/log/slurm".to_owned();
    let mut private = "/etc/munge /var/lib/munge /var/log/munge".to_owned();
    if node.is_controller() {
        all.push_str(" /var/lib/slurm/slurmctld");
        slurms.push_str(" /var/lib/slurm/slurmctld");
    }
    if layout.spec.accounting && node.is_controller() {
        for list in [&mut all, &mut slurms, &mut private] {
            list.push_str(" /run/mysqld /var/lib/slurm/database");
        }
    }
    format!("mkdir -p {all}\nchmod 700 {private}\nchown slurm:slurm {slurms}\n")
}

/// Of the tables that a database has for itself, the accounts need those of stored procedures alone. All of them would take
/// seconds to make.
const DATABASE: &str = "\
{ echo 'CREATE DATABASE IF NOT EXISTS mysql;'; echo 'USE mysql;'
grep -hE '^CREATE TABLE IF NOT EXISTS (proc|event) ' /usr/share/mysql/*_system_tables.sql; } > /var/lib/slurm/database.sql
";

/// The accounts in `/etc/passwd`, `/etc/group` and `/etc/shadow`. Whoever is in the image keeps the ids there, and gets a
/// home and a shell. A file that is right already is left alone.
fn accounts_lines(accounts: &[Account]) -> String {
    let mut text = String::from(LINES);
    text.push_str("new=\nload /etc/passwd\n");
    for (account, id) in accounts.iter().zip(FIRST_ID..) {
        let _ = writeln!(text, "account {} {id}", account.name);
    }
    text.push_str(
        "store /etc/passwd\nknown=$text\nload /etc/group\nfor one in $new; do\n\
         case $text in *\"$nl${one%:*}:\"*) ;; *) put ${one%:*} ${one%:*}:x:${one#*:}:;; esac\ndone\n\
         store /etc/group\nload /etc/shadow\n",
    );
    for Account { name, hash, .. } in accounts {
        let _ = writeln!(text, "put {name} '{name}:{hash}:19000:0:99999:7:::'");
    }
    text.push_str("umask 077\nstore /etc/shadow\numask 022\n");
    text
}

/// Files of lines, each with a name in front: `load` reads one, `put` sets the line of a name, `store` writes it again.
const LINES: &str = r#"nl='
'
load() {
text=$nl
[ ! -e $1 ] || while IFS= read -r line || [ -n "$line" ]; do text=$text$line$nl; done < $1
old=$text
}
store() { [ "$text" = "$old" ] || printf %s "${text#"$nl"}" > $1; }
put() {
case $text in
*"$nl$1:"*) rest=${text#*"$nl$1:"}; text="${text%%"$nl$1:"*}$nl$2$nl${rest#*"$nl"}";;
*) text=$text$2$nl;;
esac
}
account() {
case $text in
*"$nl$1:"*) rest=${text#*"$nl$1:"}; rest=${rest%%"$nl"*}; put $1 "$1:${rest%:*:*}:/home/$1:/bin/bash";;
*":x:$2:"*) echo "user id $2 is taken in this image" >&2; exit 1;;
*) put $1 "$1:x:$2:$2::/home/$1:/bin/bash"; new="$new $1:$2";;
esac
}
ids() { rest=${known#*"$nl$1:"}; rest=${rest#*:}; uid=${rest%%:*}; rest=${rest#*:}; gid=${rest%%:*}; }
"#;

/// A home on the folder that all nodes share. What is in it is its user's: keys are written by that user, where they
/// are missing, or where `replace` says that they are those of the cluster from which this one was forked.
fn home_lines(account: &Account, replace: bool) -> String {
    let Account { name, key, former, .. } = account;
    let public = key.public.trim_end();
    let former = former.as_ref().map_or_else(String::new, |key| format!("[ \"$line\" = '{}' ] || ", key.trim_end()));
    let mut text = format!(
        "ids {name}\nhome=/home/{name}\nif [ ! -e $home/.ssh ]; then\n\
         mkdir -p $home/.ssh\n[ ! -d /etc/skel ] || cp -a /etc/skel/. $home/\nchmod 700 $home/.ssh\n\
         chown -R $uid:$gid $home\nfi\n\
         setpriv --reuid=$uid --regid=$gid --clear-groups sh -eu <<'TESTYARD-USER'\n\
         umask 077\ncd /home/{name}/.ssh\n\
         old=\nif {replace} || [ ! -e id_ed25519 ]; then\n\
         [ ! -e id_ed25519.pub ] || read -r old < id_ed25519.pub || :\n",
    );
    text.push_str(&write_text("id_ed25519", &key.private));
    text.push_str(&write_text("id_ed25519.pub", &key.public));
    // Whoever else is let in stays.
    let _ = write!(
        text,
        "fi\nkeys= known=\n\
         [ ! -e authorized_keys ] || while IFS= read -r line || [ -n \"$line\" ]; do\n\
         [ \"$line\" != '{public}' ] || known=yes\n\
         [ -n \"$old\" ] && [ \"$line\" = \"$old\" ] || {former}keys=\"$keys$line\n\"\ndone < authorized_keys\n\
         [ -n \"$known\" ] || printf '%s%s\\n' \"$keys\" '{public}' > authorized_keys\n\
         TESTYARD-USER\n",
    );
    text
}

/// Files that nobody else may read are never open for a moment, and their owners' at once.
fn secret_lines(secrets: &[NodeFile]) -> String {
    let mut text = String::from("umask 077\n");
    let paths: Vec<&str> = secrets.iter().map(|file| file.path).collect();
    let _ = writeln!(
        text,
        "old=\nfor one in {}; do [ ! -e $one ] || old=\"$old $one\"; done\n[ -z \"$old\" ] || rm -f $old",
        paths.join(" "),
    );
    for NodeFile { path, text: content, .. } in secrets {
        text.push_str(&write_text(path, content));
    }
    text.push_str("umask 022\n");
    for owner in ["munge", "slurm"] {
        let mut its: Vec<&str> = secrets.iter().filter(|file| file.owner == owner).map(|file| file.path).collect();
        if owner == "munge" {
            its.extend(["/etc/munge", "/run/munge", "/var/lib/munge", "/var/log/munge"]);
        }
        if !its.is_empty() {
            let _ = writeln!(text, "chown {owner}:{owner} {}", its.join(" "));
        }
    }
    text
}

/// A file that everybody may read.
fn write_lines(file: &NodeFile) -> String {
    debug_assert!(file.mode == 0o644 && file.owner == "root", "what is secret is written elsewhere");
    write_text(file.path, &file.text)
}

/// The shell's way to write a file out of itself, byte by byte as it is.
fn write_text(path: &str, text: &str) -> String {
    let text = text.strip_suffix('\n').unwrap_or(text).replace('\'', "'\\''");
    format!("printf '%s\\n' '{text}' > {path}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ClusterSpec;

    fn setup() -> NodeSetup {
        let pair = || KeyPair { private: "PRIVATE\n".to_owned(), public: "ssh-ed25519 PUBLIC\n".to_owned() };
        NodeSetup {
            accounts: vec![Account {
                name: UserName::usual(),
                hash: "$6$salt$hash".to_owned(),
                key: pair(),
                former: None,
            }],
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
        assert!(scripts.iter().all(|text| text.contains("put slurm 'slurm:$6$salt$hash:19000")));
        assert!(scripts[0].contains(" slurmctld; do") && !scripts[1].contains(" slurmctld; do"));
    }

    #[test]
    fn nothing_begins_while_the_accounts_are_written() {
        for text in scripts(&ClusterSpec::new(2)) {
            let (written, begun) = (text.find("store /etc/shadow"), text.find(MUNGED));
            assert!(written.is_some() && written < begun && text.find("/usr/sbin/sshd &") > begun, "{text}");
        }
    }

    #[test]
    fn a_forks_homes_are_shut_to_the_key_of_the_other_cluster() {
        let former = Account { former: Some("ssh-ed25519 OTHER\n".to_owned()), ..setup().accounts[0].clone() };
        assert!(home_lines(&former, true).contains("|| [ \"$line\" = 'ssh-ed25519 OTHER' ] || keys="));
        let json = serde_json::to_string(&former).expect("plain data");
        assert!(!json.contains("OTHER"), "what is written down is for later starts: {json}");
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
        let of = |words: &str| text.find(words).unwrap_or_else(|| panic!("{words} is missing"));
        let (closed, open) = (of("umask 077\n"), of("umask 022\nchown munge:munge"));
        for path in ["/etc/munge/munge.key", "/etc/ssh/ssh_host_ed25519_key"] {
            let written = of(&format!("> {path}\n"));
            assert!(closed < written && written < open, "{path}");
        }
    }
}
