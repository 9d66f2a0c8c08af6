//! In which order a cluster's daemons start, and what says that each is ready. Nothing waits for a fixed time: a daemon
//! that is started before the one it talks to tries again a second later, and that second is the whole start.

use std::time::Duration;

use crate::files::{ACCOUNTS_PORT, CONTROLLER_PORT, DATABASE_SOCKET, NODE_PORT, REST_PORT};
use crate::layout::{Layout, Node};

/// A program that stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Daemon {
    /// MariaDB.
    Database,
    /// `slurmdbd`.
    Accounts,
    /// `slurmctld`.
    Controller,
    /// `slurmd`.
    Node,
    /// `slurmrestd`.
    Rest,
}

/// What says that a daemon serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It accepts connections.
    Port(u16),
    /// Its socket is there.
    Socket(&'static str),
    /// The controller says so later.
    Later,
}

/// Where the number of `slurmrestd` is.
const REST_PID: &str = "/run/slurmrestd.pid";

/// `slurmrestd` ends where it finds what answers for accounts, and no accounts. The file `openapi_v0_0_38.so` is called
/// `openapi/v0.0.38` there.
const WITHOUT_ACCOUNTS: &str = "\
only=
grep -q accounting_storage/slurmdbd /etc/slurm/slurm.conf || for one in /usr/lib/*/slurm-wlm/openapi_v*.so; do
name=${one##*/openapi_}
name=${name%.so}
while [ $name != ${name#*_} ]; do name=${name%%_*}.${name#*_}; done
only=\"-s openapi/$name\"
done
";

impl Daemon {
    /// Its program's name.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Database => "mariadbd",
            Self::Accounts => "slurmdbd",
            Self::Controller => "slurmctld",
            Self::Node => "slurmd",
            Self::Rest => "slurmrestd",
        }
    }

    /// The command, for a shell of root's.
    #[must_use]
    pub fn command(self) -> String {
        let command = match self {
            Self::Database => concat!(
                "setpriv --reuid=slurm --regid=slurm --clear-groups mariadbd --no-defaults",
                " --datadir=/var/lib/slurm/database --socket=/run/mysqld/mysqld.sock --pid-file=/run/mysqld/mysqld.pid",
                " --init-file=/var/lib/slurm/database.sql --skip-networking --skip-grant-tables --skip-name-resolve --innodb-buffer-pool-size=64M",
                " --innodb-log-file-size=16M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0",
                " --innodb-flush-method=nosync --aria-log-file-size=8M",
            ),
            Self::Accounts => "slurmdbd -D",
            Self::Controller => "slurmctld -D",
            Self::Node => "slurmd -D",
            Self::Rest => concat!(
                "env SLURM_JWT=daemon setpriv --reuid=nobody --regid=nogroup --clear-groups",
                " slurmrestd -a rest_auth/jwt $only 0.0.0.0:6820",
            ),
        };
        format!(
            "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C\n\
             {first}exec {command} >>{log} 2>&1 </dev/null\n",
            first =
                if self == Self::Rest { format!("{WITHOUT_ACCOUNTS}echo $$ > {REST_PID}\n") } else { String::new() },
            log = self.output(),
        )
    }

    /// Where what it prints goes.
    #[must_use]
    pub fn output(self) -> String {
        format!("/var/log/slurm/{}.out", self.program())
    }

    /// Where it writes down its number.
    #[must_use]
    pub fn pid_file(self) -> &'static str {
        match self {
            Self::Database => "/run/mysqld/mysqld.pid",
            Self::Accounts => "/run/slurmdbd.pid",
            Self::Controller => "/run/slurmctld.pid",
            Self::Node => "/run/slurmd.pid",
            // It writes none itself.
            Self::Rest => REST_PID,
        }
    }

    /// What says that it serves, where it is started with all others.
    #[must_use]
    pub fn readiness(self) -> Readiness {
        match self {
            Self::Node => Readiness::Later,
            daemon => daemon.address(),
        }
    }

    /// Where it serves.
    #[must_use]
    pub fn address(self) -> Readiness {
        match self {
            Self::Database => Readiness::Socket(DATABASE_SOCKET),
            Self::Accounts => Readiness::Port(ACCOUNTS_PORT),
            Self::Controller => Readiness::Port(CONTROLLER_PORT),
            Self::Node => Readiness::Port(NODE_PORT),
            Self::Rest => Readiness::Port(REST_PORT),
        }
    }

    /// How long it may take to serve.
    #[must_use]
    pub fn patience(self) -> Duration {
        Duration::from_secs(match self {
            // Its files are made at its first start.
            Self::Database => 60,
            // So are its tables.
            Self::Accounts => 60,
            Self::Controller | Self::Node | Self::Rest => 20,
        })
    }
}

/// One thing to be done on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Starts a daemon, and waits until it serves.
    Start(Daemon),
    /// Runs a command of root's to its end.
    Run {
        /// What it is for, as an error calls it.
        what: &'static str,
        /// For a shell.
        script: String,
    },
}

/// Things that are done at the same time; the next stage begins when all of them are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Each with the number of its node.
    pub actions: Vec<(u16, Action)>,
}

/// Everything that follows the nodes' own setup, in order.
#[must_use]
pub fn stages(layout: &Layout) -> Vec<Stage> {
    let controller = layout.controller().number;
    let alone = |action| Stage { actions: vec![(controller, action)] };
    let mut stages = Vec::new();
    if layout.spec.accounting {
        stages.push(alone(Action::Start(Daemon::Database)));
        stages.push(alone(Action::Start(Daemon::Accounts)));
        stages.push(alone(Action::Run { what: "register the cluster with its accounts", script: register(layout) }));
    }
    stages.push(alone(Action::Start(Daemon::Controller)));
    let mut last: Vec<_> = layout.nodes.iter().map(|node| (node.number, Action::Start(Daemon::Node))).collect();
    if layout.spec.slurmrestd {
        last.push((controller, Action::Start(Daemon::Rest)));
    }
    stages.push(Stage { actions: last });
    stages
}

/// An account that everybody is in, so that jobs are accounted for from the first one on.
fn register(layout: &Layout) -> String {
    let cluster = &layout.name;
    let mut text = format!(
        "sacctmgr -i -Q add cluster {cluster} >/dev/null || sacctmgr -n show cluster {cluster} | grep -q .\n\
         sacctmgr -i -Q add account default Description=default Organization=default Cluster={cluster} >/dev/null || :\n"
    );
    for user in &layout.spec.users {
        text.push_str(&format!(
            "sacctmgr -i -Q add user {name} Account=default Cluster={cluster} >/dev/null || :\n",
            name = user.name,
        ));
    }
    text
}

/// Ends these daemons in order, by the numbers they wrote down; each gets some seconds to write down what it knows.
fn end(daemons: &[Daemon]) -> String {
    let mut text = String::from(
        "end() {\n[ -s $1 ] || return 0\nread -r pid < $1 || return 0\n\
         kill -TERM $pid 2>/dev/null || return 0\n\
         left=750\nwhile kill -0 $pid 2>/dev/null; do\n\
         left=$((left-1)); [ $left -gt 0 ] || { kill -KILL $pid; break; }\nsleep 0.02\ndone\n}\n",
    );
    for daemon in daemons {
        text.push_str(&format!("end {}\n", daemon.pid_file()));
    }
    text
}

/// Ends every daemon of a node in good order, and leaves nothing that only those that run have: a fork would copy it.
#[must_use]
pub fn end_daemons(is_controller: bool) -> String {
    let ended = match is_controller {
        true => end(&[Daemon::Node, Daemon::Controller, Daemon::Accounts, Daemon::Database]),
        false => end(&[Daemon::Node]),
    };
    format!("{ended}rm -rf /run/munge /run/sshd /run/mysqld /run/sshd.pid /run/slurm*.pid\n")
}

/// Ends the controller alone, or a node's daemon alone; steps that run go on.
#[must_use]
pub fn end_one(daemon: Daemon) -> String {
    end(&[daemon])
}

/// Tells the controller what to think of a node.
#[must_use]
pub fn set_state(node: &Node, state: &str) -> String {
    format!("scontrol update NodeName={} State={state} Reason=testyard\n", node.name)
}

/// Whether a job would be given to a node in this state. An asterisk says that it does not answer.
#[must_use]
pub fn is_usable(state: &str) -> bool {
    ["idle", "mixed", "allocated", "completing"].contains(&state)
}

/// Whether a node in this state answers its controller, whether it would be given a job or not.
#[must_use]
pub fn is_answering(state: &str) -> bool {
    is_usable(state) || ["drained", "draining", "reserved", "maint"].contains(&state)
}

/// What the controller is asked to say of the nodes: a line each of name and state.
pub const NODE_STATES: [&str; 5] = ["sinfo", "-h", "-N", "-o", "%N|%T"];

/// Each node's state, out of what [`NODE_STATES`] prints. A node of several partitions is there once.
#[must_use]
pub fn node_states(printed: &str) -> Vec<(String, String)> {
    let mut states: Vec<(String, String)> = Vec::new();
    for line in printed.lines() {
        let Some((name, state)) = line.trim().split_once('|') else { continue };
        if states.iter().all(|(known, _)| known != name) {
            states.push((name.to_owned(), state.to_owned()));
        }
    }
    states
}

/// Those of these nodes whose state does not suit, with what it is.
#[must_use]
pub fn not_in(nodes: &[Node], states: &[(String, String)], suits: impl Fn(&str) -> bool) -> Vec<String> {
    let state = |name: &str| states.iter().find(|(known, _)| known == name).map_or("unknown", |(_, state)| state);
    let wanting = nodes.iter().map(|node| (node.name.as_str(), state(node.name.as_str())));
    wanting.filter(|(_, state)| !suits(state)).map(|(name, state)| format!("{name} is {state}")).collect()
}

/// A job that every node answers with its name.
#[must_use]
pub fn roll_call(layout: &Layout) -> Vec<String> {
    let count = layout.spec.nodes.to_string();
    ["srun", "--immediate=15", "--mem=1", "-N", &count, "-n", &count, "hostname"].map(str::to_owned).to_vec()
}

/// The nodes that did not answer.
#[must_use]
pub fn absent<'l>(layout: &'l Layout, printed: &str) -> Vec<&'l str> {
    let names = layout.nodes.iter().map(|node| node.name.as_str());
    names.filter(|name| printed.lines().all(|line| line.trim() != *name)).collect()
}

/// A command for a shell that reads the banner of every node's SSH server, and prints the names of those that sent one.
#[must_use]
pub fn banners(layout: &Layout) -> String {
    let mut text = String::new();
    for node in &layout.nodes {
        text.push_str(&format!(
            "exec 3<>/dev/tcp/{}/22 && IFS= read -r -t 10 line <&3 && case $line in SSH-*) echo {};; esac; exec 3<&-\n",
            node.address, node.name,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ClusterSpec;

    fn layout(change: impl FnOnce(&mut ClusterSpec)) -> Layout {
        let mut spec = ClusterSpec::new(3);
        change(&mut spec);
        Layout::new(&"lab".parse().expect("a name"), &spec)
    }

    fn daemons(layout: &Layout) -> Vec<Vec<(u16, Daemon)>> {
        let started = |(node, action): &(u16, Action)| match action {
            Action::Start(daemon) => Some((*node, *daemon)),
            Action::Run { .. } => None,
        };
        stages(layout).iter().map(|stage| stage.actions.iter().filter_map(started).collect()).collect()
    }

    #[test]
    fn nodes_start_after_the_controller_and_that_after_the_accounts() {
        let plain = daemons(&layout(|_| {}));
        assert_eq!(plain[0], [(1, Daemon::Controller)]);
        assert_eq!(plain[1], [(1, Daemon::Node), (2, Daemon::Node), (3, Daemon::Node)]);
        let all = daemons(&layout(|spec| {
            spec.accounting = true;
            spec.slurmrestd = true;
        }));
        let order: Vec<Daemon> = all.into_iter().flatten().map(|(_, daemon)| daemon).collect();
        let node = Daemon::Node;
        assert_eq!(order, [Daemon::Database, Daemon::Accounts, Daemon::Controller, node, node, node, Daemon::Rest]);
    }

    #[test]
    fn a_node_that_is_not_idle_is_named_with_its_state() {
        let layout = layout(|_| {});
        let states = node_states("lab-1|idle\nlab-1|idle\nlab-2|down*\n");
        let is_idle = |state: &str| state == "idle";
        assert_eq!(not_in(&layout.nodes, &states, is_idle), ["lab-2 is down*", "lab-3 is unknown"]);
        let idle = node_states("lab-1|idle\nlab-2|idle\nlab-3|idle\n");
        assert!(not_in(&layout.nodes, &idle, is_idle).is_empty());
        let busy = node_states("lab-1|drained\nlab-2|allocated\nlab-3|idle*\n");
        assert_eq!(not_in(&layout.nodes, &busy, is_answering), ["lab-3 is idle*"]);
    }

    #[test]
    fn who_does_not_answer_is_absent() {
        let layout = layout(|_| {});
        assert_eq!(absent(&layout, "lab-3\nlab-1\n"), ["lab-2"]);
        assert!(absent(&layout, "lab-3\nlab-2\nlab-1\n").is_empty());
        assert_eq!(absent(&layout, "").len(), 3);
    }
}
