//! Which daemons of a node that runs have ended, and what brings them back.

use crate::layout::{Layout, Node};
use crate::start::{self, Action, Daemon, Readiness};

/// The daemons of a node, in the order in which they start.
#[must_use]
pub fn daemons(layout: &Layout, node: &Node) -> Vec<Daemon> {
    let started = |(number, action): (u16, Action)| match action {
        Action::Start(daemon) if number == node.number => Some(daemon),
        Action::Start(_) | Action::Run { .. } => None,
    };
    start::stages(layout).into_iter().flat_map(|stage| stage.actions).filter_map(started).collect()
}

/// Prints the programs of those daemons that do not run, a line each. A number that a daemon wrote down is another's by
/// now if its name is; one that has just been killed, or told to end, is waited for.
#[must_use]
pub fn find_ended(daemons: &[Daemon]) -> String {
    let mut text = String::from(LIVES);
    for daemon in daemons {
        let (file, program) = (daemon.pid_file(), daemon.program());
        let (address, forget) = match daemon.address() {
            Readiness::Port(port) => (format!("{port:04X}"), String::new()),
            // A socket stays where its daemon was killed, and would be taken for that of the next one.
            Readiness::Socket(path) => (path.to_owned(), format!("rm -f {path}; ")),
            Readiness::Later => continue,
        };
        text.push_str(&format!("! has_ended {file} {program} {address} || {{ {forget}echo {program}; }}\n"));
    }
    text
}

/// As [`find_ended`], and starts munge and the SSH server where they have ended: those wait for nobody.
#[must_use]
pub fn begin(daemons: &[Daemon]) -> String {
    format!(
        "export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n{}\
         lives /run/munge/munged.pid munged || {{ rm -f /run/munge/*; {MUNGED}; }} || exit 1\n\
         lives /run/sshd.pid sshd || /usr/sbin/sshd || exit 1\n",
        find_ended(daemons),
    )
}

/// How munge is started.
pub(crate) const MUNGED: &str = "setpriv --reuid=munge --regid=munge --clear-groups munged";

/// `lives PID-FILE PROGRAM`, and `has_ended PID-FILE PROGRAM ADDRESS`: one that lives and does not serve is beginning, or
/// ending; after twenty seconds it is neither, and is ended. An address is a port as the kernel writes it, or a socket.
const LIVES: &str = r#"lives() {
{ [ -s $1 ] && read -r pid < $1 && read -r pid name state rest < /proc/$pid/stat && [ "$name" = "($2)" ]; } 2>/dev/null || return 1
case $state in Z|X) return 1;; esac
}
serves() {
case $1 in
/*) [ -S $1 ];;
*) grep -qs "^ *[0-9]*: [0-9A-F]*:$1 [0-9A-F:]* 0A " /proc/net/tcp /proc/net/tcp6;;
esac
}
has_ended() {
left=400
while lives $1 $2; do
! serves $3 || return 1
left=$((left-1)); [ $left -gt 0 ] || { kill -KILL $pid; return 0; }
sleep 0.05
done
}
"#;

/// Makes a node prove itself to another one of its cluster.
pub const PROVE: &str = "munge -n\n";

/// Has another node look at what [`PROVE`] printed; nothing where that is no proof, and no word for a shell.
#[must_use]
pub fn examine(printed: &str) -> Option<String> {
    let proof = printed.trim();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "+/=:".contains(c);
    (!proof.is_empty() && proof.chars().all(is_plain)).then(|| format!("echo {proof} | unmunge >/dev/null\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ClusterSpec;

    #[test]
    fn a_node_has_the_daemons_that_are_started_on_it() {
        let spec = ClusterSpec { accounting: true, slurmrestd: true, ..ClusterSpec::new(2) };
        let layout = Layout::new(&"lab".parse().expect("a name"), &spec);
        let first = daemons(&layout, &layout.nodes[0]);
        assert_eq!(first, [Daemon::Database, Daemon::Accounts, Daemon::Controller, Daemon::Node, Daemon::Rest]);
        assert_eq!(daemons(&layout, &layout.nodes[1]), [Daemon::Node]);
    }

    #[test]
    fn every_daemon_is_looked_for_where_it_serves() {
        let all = [Daemon::Database, Daemon::Accounts, Daemon::Controller, Daemon::Node, Daemon::Rest];
        let text = find_ended(&all);
        for line in [
            "! has_ended /run/mysqld/mysqld.pid mariadbd /run/mysqld/mysqld.sock || { rm -f /run/mysqld/mysqld.sock; echo mariadbd; }",
            "! has_ended /run/slurmctld.pid slurmctld 1AA1 || { echo slurmctld; }",
            "! has_ended /run/slurmd.pid slurmd 1AA2 || { echo slurmd; }",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is missing in\n{text}");
        }
        assert_eq!(text.matches("\n! has_ended").count(), all.len());
    }

    #[test]
    fn what_is_no_proof_reaches_no_shell() {
        assert_eq!(examine("MUNGE:AwQ+/a=:\n").as_deref(), Some("echo MUNGE:AwQ+/a=: | unmunge >/dev/null\n"));
        for printed in ["", "\n", "MUNGE:a b:", "$(id)", "a;b", "a'b"] {
            assert_eq!(examine(printed), None, "{printed:?}");
        }
    }
}
