//! Clusters whose nodes start from an image that was built for them, and not from the host's own root.

use std::time::Duration;

use testkit::{Ability, Output, TestHome, wait_until};

use super::{DEADLINE, cluster, create, on, ssh};

/// An image of a whole distribution, with a database, is built and read.
const PATIENCE: Duration = Duration::from_secs(900);

/// `docs/clusters.md`: what it says of an image, as it is written, and what else such a cluster has.
#[test]
fn nodes_start_from_an_image_that_is_built() {
    possible!();
    testkit::require!(Ability::Program("mmdebstrap"));
    testkit::require!(Ability::DebianArchive);
    let home = TestHome::new();
    let page = testkit::Page::load("clusters");
    let block = page.commands_with("testyard image build");
    let folder = home.program("testyard").parent().expect("a folder").display().to_string();
    let mut shell = home.command("/bin/bash");
    let path = format!("{folder}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
    shell.args(["-e", "-o", "pipefail", "-c", block]).env("PATH", path);
    let output = Output::of(&mut shell, PATIENCE).expect_success();
    assert!(output.stdout.contains("built-3\n"), "{output}");
    is_whole(&home);
    home.finish();
}

/// A cluster of the image: its nodes are not this host, every one of them runs jobs and lets in, and so does a fork.
fn is_whole(home: &TestHome) {
    let options = ["--nodes", "3", "--image", "slurm", "--password", "secret", "--accounting", "--slurmrestd"];
    let made = create(home, "whole", &options);
    assert!(made["nodes"].as_array().into_iter().flatten().all(|node| node["slurm"] == "idle"), "{made}");
    assert_eq!(on(home, "whole", "1", "sinfo -h -o '%D %T'").expect_success().stdout, "3 idle\n");
    for node in ["whole-1", "whole-2", "whole-3"] {
        let job = format!("srun -w {node} sh -c 'hostname; id -un; cat /etc/debian_version'");
        let said = on(home, "whole", "2", &job).expect_success().stdout;
        assert!(said.starts_with(&format!("{node}\nslurm\n12.")), "{said}");
    }
    // What is on the host is not on the nodes, but what the packages brought is.
    let own = home.path().display().to_string();
    let roots = format!("test ! -e {own} && test -e /usr/share/doc/slurmctld");
    drop(on(home, "whole", "3", &roots).expect_success());
    let accounted = || on(home, "whole", "3", "sacct -n -X -o state | sort -u").stdout.trim() == "COMPLETED";
    assert!(wait_until(DEADLINE, accounted), "{}", on(home, "whole", "3", "sacct"));
    let access = &made["ssh"];
    for password in [Some("secret"), None] {
        let said = ssh(home, access, password, "hostname; ssh whole-3 hostname");
        assert_eq!(said.expect_success().stdout, "whole-1\nwhole-3\n");
    }
    drop(cluster(home, &["stop", "whole"]).expect_success());
    drop(cluster(home, &["fork", "whole", "forked"]).expect_success());
    assert_eq!(on(home, "forked", "1", "srun -N3 hostname | sort | tail -n 1").expect_success().stdout, "forked-3\n");
    drop(cluster(home, &["delete", "whole", "forked"]).expect_success());
    assert_eq!(home.must_run(&["list", "--names"]), "");
}
