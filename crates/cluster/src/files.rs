//! The files that a cluster's daemons read.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::layout::Layout;

/// A file of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFile {
    /// Where it is.
    pub path: &'static str,
    /// Whose it is.
    pub owner: &'static str,
    /// Who may read it, as the last three digits of its mode.
    pub mode: u16,
    /// What is in it; lines, the last one ended.
    pub text: String,
}

/// Which version of control groups a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlGroups {
    /// A tree for each controller.
    V1,
    /// One tree.
    V2,
}

/// Keys and passwords that are a cluster's own. Fresh for each, and for each fork.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// What the nodes prove themselves to each other with: 32 to 1,024 printable characters.
    pub munge_key: String,
    /// What tokens of `slurmrestd` are signed with.
    pub token_key: String,
}

/// Slurm's configuration.
pub const SLURM_CONF: &str = "/etc/slurm/slurm.conf";
/// The controller's port.
pub const CONTROLLER_PORT: u16 = 6817;
/// Each node's port.
pub const NODE_PORT: u16 = 6818;
/// The port of the accounts.
pub const ACCOUNTS_PORT: u16 = 6819;
/// The port at which `slurmrestd` answers.
pub const REST_PORT: u16 = 6820;
/// The database's socket: whoever may reach it has every right in it, and only `slurm` may.
pub const DATABASE_SOCKET: &str = "/run/mysqld/mysqld.sock";
/// The port of every node's SSH server.
pub const SSH_PORT: u16 = 22;

/// `slurm.conf`.
#[must_use]
pub fn slurm_conf(layout: &Layout) -> String {
    let spec = &layout.spec;
    let controller = layout.controller();
    let mut text = format!(
        "ClusterName={name}\n\
         SlurmctldHost={host}({address})\n\
         SlurmUser=slurm\n\
         SlurmdUser=root\n\
         AuthType=auth/munge\n\
         SlurmctldPort={CONTROLLER_PORT}\n\
         SlurmdPort={NODE_PORT}\n\
         SlurmctldPidFile=/run/slurmctld.pid\n\
         SlurmdPidFile=/run/slurmd.pid\n\
         SlurmdSpoolDir=/var/lib/slurm/slurmd\n\
         StateSaveLocation=/var/lib/slurm/slurmctld\n\
         SlurmctldLogFile=/var/log/slurm/slurmctld.log\n\
         SlurmdLogFile=/var/log/slurm/slurmd.log\n\
         MpiDefault=none\n\
         MailProg=/bin/true\n\
         SwitchType=switch/none\n\
         SlurmdParameters=config_overrides\n\
         ReturnToService=2\n\
         SchedulerType=sched/backfill\n\
         SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1\n\
         SelectType=select/cons_tres\n\
         SelectTypeParameters=CR_Core_Memory\n\
         SlurmctldTimeout=30\n\
         SlurmdTimeout=10\n\
         MessageTimeout=10\n\
         KillWait=5\n\
         MinJobAge=3600\n\
         InactiveLimit=0\n\
         Waittime=0\n",
        name = layout.name,
        host = controller.name,
        address = controller.address,
    );
    text.push_str(holding(spec.cgroups));
    text.push_str(&accounting(layout));
    text.push_str(&nodes_and_partitions(layout));
    text
}

/// How processes of jobs are told apart, and what holds them to their memory.
fn holding(cgroups: bool) -> &'static str {
    match cgroups {
        true => {
            "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup\nJobAcctGatherType=jobacct_gather/linux\n\
             JobAcctGatherFrequency=task=1\n"
        }
        false => {
            "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/linux\n\
             JobAcctGatherFrequency=task=1\n"
        }
    }
}

/// Where it is written down what jobs used; and who may ask over HTTP.
fn accounting(layout: &Layout) -> String {
    let spec = &layout.spec;
    let mut text = String::new();
    if spec.accounting {
        let _ = write!(
            text,
            "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost={}\n\
             AccountingStoragePort={ACCOUNTS_PORT}\nJobCompType=jobcomp/none\n",
            layout.controller().name,
        );
        if spec.gpus > 0 {
            text.push_str("AccountingStorageTRES=gres/gpu\n");
        }
    } else {
        text.push_str("AccountingStorageType=accounting_storage/none\n");
    }
    if spec.slurmrestd {
        text.push_str("AuthAltTypes=auth/jwt\nAuthAltParameters=jwt_key=/etc/slurm/jwt.key\n");
    }
    text
}

/// What there is for jobs.
fn nodes_and_partitions(layout: &Layout) -> String {
    let spec = &layout.spec;
    let megabytes = spec.memory.0 >> 20;
    let mut text = String::new();
    let mut gres = String::new();
    if spec.gpus > 0 {
        text.push_str("GresTypes=gpu\n");
        gres = format!(" Gres=gpu:{}", spec.gpus);
    }
    let _ = writeln!(text, "DefMemPerCPU={}", (megabytes / u64::from(spec.cpus)).max(1));
    for node in &layout.nodes {
        let _ = writeln!(
            text,
            "NodeName={} NodeAddr={} CPUs={} RealMemory={megabytes}{gres} State=UNKNOWN",
            node.name, node.address, spec.cpus,
        );
    }
    for (index, partition) in spec.partitions.iter().enumerate() {
        let default = if index == 0 { "YES" } else { "NO" };
        let nodes = layout.of_partition(partition);
        let _ = writeln!(
            text,
            "PartitionName={} Nodes={nodes} Default={default} MaxTime=INFINITE State=UP",
            partition.name
        );
    }
    text
}

/// `cgroup.conf`.
#[must_use]
pub fn cgroup_conf(layout: &Layout, groups: ControlGroups) -> String {
    let plugin = match groups {
        ControlGroups::V1 => "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nCgroupMountpoint=/sys/fs/cgroup\n",
        // There is no systemd in a node that could be asked for a scope.
        ControlGroups::V2 => "CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\nCgroupMountpoint=/sys/fs/cgroup\n",
    };
    let constrain = if layout.spec.cgroups { "yes" } else { "no" };
    format!(
        "{plugin}ConstrainCores=no\nConstrainDevices=no\nConstrainRAMSpace={constrain}\nConstrainSwapSpace={constrain}\n"
    )
}

/// `gres.conf`. The devices are plain files: whoever opens them finds nothing.
#[must_use]
pub fn gres_conf(layout: &Layout) -> String {
    match layout.spec.gpus {
        0 => String::new(),
        1 => "AutoDetect=off\nName=gpu File=/dev/testyard-gpu0\n".to_owned(),
        count => format!("AutoDetect=off\nName=gpu File=/dev/testyard-gpu[0-{}]\n", count - 1),
    }
}

/// `slurmdbd.conf`. The database is reached through its usual socket, which needs no password.
#[must_use]
pub fn slurmdbd_conf(layout: &Layout) -> String {
    format!(
        "AuthType=auth/munge\nDbdHost={host}\nDbdPort={ACCOUNTS_PORT}\nSlurmUser=slurm\n\
         LogFile=/var/log/slurm/slurmdbd.log\nPidFile=/run/slurmdbd.pid\n\
         StorageType=accounting_storage/mysql\nStorageHost=localhost\nStorageUser=slurm\nStorageLoc=slurm_acct_db\n",
        host = layout.controller().name,
    )
}

/// `sshd_config`. A suite in parallel opens many connections at once: none of them is turned away.
#[must_use]
pub fn sshd_config(layout: &Layout) -> String {
    let passwords = if layout.spec.users.iter().any(|user| user.password.is_some()) { "yes" } else { "no" };
    format!(
        "Port {SSH_PORT}\nHostKey /etc/ssh/ssh_host_ed25519_key\nPidFile /run/sshd.pid\n\
         UsePAM no\nUseDNS no\nPermitRootLogin no\nPubkeyAuthentication yes\nPasswordAuthentication {passwords}\n\
         KbdInteractiveAuthentication no\nPrintMotd no\nX11Forwarding no\nAcceptEnv LANG LC_*\n\
         PermitUserEnvironment yes\n\
         MaxStartups 4096\nMaxSessions 4096\nLoginGraceTime 60\n\
         Subsystem sftp internal-sftp\n"
    )
}

/// What `ssh` in a node does with the other nodes: their keys are the cluster's own.
#[must_use]
pub fn ssh_config() -> String {
    "Host *\n    StrictHostKeyChecking accept-new\n    UserKnownHostsFile /dev/null\n    LogLevel ERROR\n".to_owned()
}

/// Every file that a node of this cluster reads, before its keys.
#[must_use]
pub fn configuration(layout: &Layout, groups: ControlGroups) -> Vec<NodeFile> {
    let public = |path, text| NodeFile { path, owner: "root", mode: 0o644, text };
    let mut files = vec![
        public(SLURM_CONF, slurm_conf(layout)),
        public("/etc/slurm/cgroup.conf", cgroup_conf(layout, groups)),
        public("/etc/ssh/sshd_config", sshd_config(layout)),
        public("/etc/ssh/ssh_config", ssh_config()),
    ];
    if layout.spec.gpus > 0 {
        files.push(public("/etc/slurm/gres.conf", gres_conf(layout)));
    }
    files
}

/// The files that only a cluster's own nodes know.
#[must_use]
pub fn keys(layout: &Layout, secrets: &Secrets, is_controller: bool) -> Vec<NodeFile> {
    let secret = |path, owner, text| NodeFile { path, owner, mode: 0o600, text };
    let mut files = vec![secret("/etc/munge/munge.key", "munge", secrets.munge_key.clone())];
    if layout.spec.accounting && is_controller {
        files.push(secret("/etc/slurm/slurmdbd.conf", "slurm", slurmdbd_conf(layout)));
    }
    if layout.spec.slurmrestd {
        files.push(secret("/etc/slurm/jwt.key", "slurm", secrets.token_key.clone()));
    }
    files
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::ClusterSpec;

    fn layout(change: impl FnOnce(&mut ClusterSpec)) -> Layout {
        let mut spec = ClusterSpec::new(3);
        change(&mut spec);
        Layout::new(&"lab".parse().expect("a name"), &spec)
    }

    fn secrets() -> Secrets {
        Secrets { munge_key: "k".repeat(64), token_key: "t".repeat(64) }
    }

    #[test]
    fn every_node_and_partition_is_in_slurm_conf() {
        let text = slurm_conf(&layout(|spec| {
            spec.partitions = vec!["debug".parse().expect("one"), "gpu:3".parse().expect("one")];
            spec.gpus = 2;
            spec.cpus = 16;
        }));
        for line in [
            "ClusterName=lab",
            "SlurmctldHost=lab-1(10.77.0.1)",
            "NodeName=lab-3 NodeAddr=10.77.0.3 CPUs=16 RealMemory=4096 Gres=gpu:2 State=UNKNOWN",
            "PartitionName=debug Nodes=lab-[1-3] Default=YES MaxTime=INFINITE State=UP",
            "PartitionName=gpu Nodes=lab-[3] Default=NO MaxTime=INFINITE State=UP",
            "DefMemPerCPU=256",
            "GresTypes=gpu",
            "AccountingStorageType=accounting_storage/none",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn parts_are_configured_only_where_asked_for() {
        let plain = layout(|_| {});
        assert!(!slurm_conf(&plain).contains("slurmdbd") && !slurm_conf(&plain).contains("jwt"));
        assert_eq!(keys(&plain, &secrets(), true).len(), 1);
        assert!(cgroup_conf(&plain, ControlGroups::V1).contains("ConstrainRAMSpace=no"));
        let all = layout(|spec| {
            spec.accounting = true;
            spec.slurmrestd = true;
            spec.cgroups = true;
        });
        assert!(slurm_conf(&all).contains("AccountingStorageHost=lab-1\n"));
        assert!(slurm_conf(&all).contains("TaskPlugin=task/cgroup\n"));
        assert!(cgroup_conf(&all, ControlGroups::V2).contains("ConstrainRAMSpace=yes"));
        assert_eq!(keys(&all, &secrets(), true).len(), 3);
        assert_eq!(keys(&all, &secrets(), false).len(), 2);
    }

    #[test]
    fn passwords_open_only_where_there_is_one() {
        assert!(sshd_config(&layout(|_| {})).contains("PasswordAuthentication no"));
        let open = layout(|spec| spec.users[0].password = Some("secret".to_owned()));
        assert!(sshd_config(&open).contains("PasswordAuthentication yes"));
    }

    #[test]
    fn secrets_are_in_no_file_that_everybody_reads() {
        let all = layout(|spec| {
            spec.accounting = true;
            spec.slurmrestd = true;
        });
        for file in configuration(&all, ControlGroups::V1) {
            assert!(!file.text.contains(&secrets().munge_key) && !file.text.contains(&secrets().token_key));
        }
        assert!(keys(&all, &secrets(), true).iter().all(|file| file.mode.trailing_zeros() >= 6));
    }

    proptest! {
        #[test]
        fn slurm_conf_is_lines_of_keys(nodes in 1..200_u16, cpus in 1..999_u16, memory in 16..99_999_u64) {
            let text = slurm_conf(&layout(|spec| {
                spec.nodes = nodes;
                spec.cpus = cpus;
                spec.memory = testyard_model::ByteSize::mebibytes(memory);
            }));
            prop_assert!(text.ends_with('\n'));
            prop_assert_eq!(text.lines().filter(|line| line.starts_with("NodeName=")).count(), usize::from(nodes));
            for line in text.lines() {
                prop_assert!(line.split(' ').all(|word| word.contains('=')), "{}", line);
            }
        }
    }
}
