//! Nodes and daemons that fail, and how they are brought back.

use testkit::{TestHome, wait_until};

use super::{DEADLINE, as_root, await_drained, cluster, info, on, state};

pub(super) fn of_nodes(home: &TestHome) {
    drop(cluster(home, &["node", "drain", "lab", "2"]).expect_success());
    await_drained(home, 2);
    drop(cluster(home, &["node", "fail", "lab", "3"]).expect_success());
    assert_eq!(info(home, "lab")["nodes"][2]["state"], "down");
    assert_eq!(on(home, "lab", "1", "srun -N1 hostname").expect_success().stdout, "lab-1\n");
    for node in ["2", "3"] {
        drop(cluster(home, &["node", "restore", "lab", node]).expect_success());
    }
    drop(cluster(home, &["node", "cut", "lab", "2"]).expect_success());
    assert!(on(home, "lab", "1", "timeout 2 bash -c 'echo > /dev/tcp/lab-2/6818'").code != 0);
    assert!(wait_until(DEADLINE, || state(home, "lab", 2).ends_with('*')), "the controller notices");
    drop(cluster(home, &["node", "restore", "lab", "lab-2"]).expect_success());
    assert!(on(home, "lab", "1", "srun -N3 hostname").expect_success().stdout.contains("lab-2"));
    let controller = cluster(home, &["node", "fail", "lab", "1"]);
    assert!(controller.code == 2 && controller.stderr.contains("runs the controller"), "{controller}");
    let absent = cluster(home, &["node", "fail", "lab", "9"]);
    assert!(absent.code == 2 && absent.stderr.contains("no node \"9\""), "{absent}");
}

/// What has ended comes back with the node that it is of, and jobs go on.
pub(super) fn of_daemons(home: &TestHome) {
    // A controller that was killed goes on with the jobs that it had written down.
    let job = "sbatch --parsable --job-name=outlives --wrap 'until test -e go; do sleep 0.1; done' -o kept";
    let job = on(home, "lab", "1", job).expect_success().stdout;
    let killed = "until grep -qa outlives /var/lib/slurm/slurmctld/job_state; do sleep 0.1; done; \
                  kill -9 $(cat /run/slurmctld.pid)";
    drop(as_root(home, "lab", "1", killed).expect_success());
    let alone = cluster(home, &["node", "restore", "lab", "2"]);
    assert!(alone.code == 2 && alone.stderr.contains("slurmctld does not run on node lab-1"), "{alone}");
    assert!(alone.stderr.contains("testyard cluster node restore lab 1"), "{alone}");
    drop(cluster(home, &["node", "restore", "lab", "1"]).expect_success());
    drop(on(home, "lab", "1", "touch go").expect_success());
    let ended = || on(home, "lab", "1", &format!("scontrol show job {}", job.trim())).stdout.contains("COMPLETED");
    assert!(wait_until(DEADLINE, ended), "the job of before ends well");
    // A node whose daemon is killed in the middle of a job comes back with a new one.
    let job =
        on(home, "lab", "1", "sbatch --parsable -w lab-3 --no-requeue --wrap 'sleep 600'").expect_success().stdout;
    assert!(wait_until(DEADLINE, || state(home, "lab", 3) == "mixed"), "the job runs");
    drop(as_root(home, "lab", "3", "pkill -9 slurmstepd; pkill -9 slurmd").expect_success());
    drop(cluster(home, &["node", "restore", "lab", "3"]).expect_success());
    let gone = || !on(home, "lab", "1", &format!("squeue -h -j {}", job.trim())).stdout.contains("RUNNING");
    assert!(wait_until(DEADLINE, gone), "the job is not taken for one that runs");
    assert_eq!(on(home, "lab", "1", "srun -w lab-3 hostname").expect_success().stdout, "lab-3\n");
    // All at once, by those that were told to end and take their time; a node that was drained stays so.
    drop(cluster(home, &["node", "drain", "lab", "3"]).expect_success());
    drop(
        as_root(home, "lab", "1", "pkill slurmctld; pkill munged; pkill -9 sshd; pkill -9 -x slurmd").expect_success(),
    );
    drop(as_root(home, "lab", "2", "pkill -9 munged; pkill -9 slurmd").expect_success());
    drop(cluster(home, &["start", "lab"]).expect_success());
    await_drained(home, 3);
    assert_eq!(on(home, "lab", "2", "srun -N2 hostname | sort; ssh lab-1 hostname").stdout, "lab-1\nlab-2\nlab-1\n");
    drop(cluster(home, &["node", "restore", "lab", "3"]).expect_success());
}

/// A node with a key of its own gets nothing from the controller, at once. Whoever would bring it back is told why, and it
/// is well again after what the hint says.
pub(super) fn of_keys(home: &TestHome) {
    let other = "pkill munged; while pgrep munged; do sleep 0.1; done; head -c 64 /dev/urandom > /etc/munge/munge.key; \
                 rm -f /run/munge/*; setpriv --reuid=munge --regid=munge --clear-groups munged";
    drop(as_root(home, "lab", "2", other).expect_success());
    let refused = on(home, "lab", "2", "timeout 20 srun -N1 hostname");
    assert!(refused.code != 0 && refused.code != 124, "{refused}");
    assert!(refused.stderr.contains("Unable to allocate resources"), "{refused}");
    // The controller alone says why, in its log.
    let log = as_root(home, "lab", "1", "grep -c 'Invalid credential' /var/log/slurm/slurmctld.log");
    assert_ne!(log.expect_success().stdout, "0\n");
    let distrusted = cluster(home, &["node", "restore", "lab", "2"]);
    assert!(distrusted.code == 69 && distrusted.stderr.contains("Invalid credential"), "{distrusted}");
    assert!(distrusted.stderr.contains("testyard cluster node fail lab 2"), "{distrusted}");
    for action in ["fail", "restore"] {
        drop(cluster(home, &["node", action, "lab", "2"]).expect_success());
    }
    assert_eq!(on(home, "lab", "2", "srun -N3 hostname | wc -l").expect_success().stdout, "3\n");
}

/// A node whose disk is full is taken out of service by Slurm, and its job is kept for later.
pub(super) fn of_disks(home: &TestHome) {
    let fill = "mount -t tmpfs -o size=8k none /var/lib/slurm/slurmd; head -c 100000 /dev/zero > /var/lib/slurm/slurmd/full; true";
    drop(as_root(home, "lab", "2", fill).expect_success());
    let job = on(home, "lab", "1", "sbatch --parsable -w lab-2 --wrap hostname").expect_success().stdout;
    assert!(wait_until(DEADLINE, || state(home, "lab", 2).starts_with("drain")), "the controller takes it out");
    let why = on(home, "lab", "1", "sinfo -N -h -n lab-2 -o %E").expect_success().stdout;
    assert!(why.contains("is full"), "{why}");
    let held = on(home, "lab", "1", &format!("scontrol release {0}; scancel {0}", job.trim()));
    drop(held.expect_success());
    drop(as_root(home, "lab", "2", "umount /var/lib/slurm/slurmd").expect_success());
    drop(cluster(home, &["node", "restore", "lab", "2"]).expect_success());
    assert_eq!(on(home, "lab", "1", "srun -w lab-2 hostname").expect_success().stdout, "lab-2\n");
}
