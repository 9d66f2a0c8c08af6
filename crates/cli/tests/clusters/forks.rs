//! Clusters beside each other, and one that was forked from another: what they share, and what is each one's own.

use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use testkit::{Ability, TestHome, wait_until};

use super::rest::Rest;
use super::{DEADLINE, as_root, cluster, create, on, ssh};

#[test]
fn a_fork_begins_with_the_files_and_has_keys_of_its_own() {
    possible!();
    for program in ["slurmdbd", "mariadbd", "slurmrestd", "curl"] {
        testkit::require!(Ability::Program(program));
    }
    let home = TestHome::new();
    let options = ["--nodes", "1", "--accounting", "--slurmrestd", "--gpus", "1", "--password", "one"];
    let base = create(&home, "base", &options);
    Rest::of(&home, "base", &base).answers();
    jobs_are_accounted_for(&home);
    drop(on(&home, "base", "1", "echo kept > file").expect_success());
    drop(as_root(&home, "base", "1", "touch /opt/installed").expect_success());
    let busy = cluster(&home, &["fork", "base", "other"]);
    assert!(busy.code == 2 && busy.stderr.contains("files at rest"), "{busy}");
    drop(cluster(&home, &["stop", "base"]).expect_success());
    let forked = cluster(&home, &["fork", "base", "other", "--json"]).expect_success().json()["cluster"].clone();
    let seen = on(&home, "other", "1", "cat file; ls /opt/installed; hostname; srun hostname").expect_success().stdout;
    assert_eq!(seen, "kept\n/opt/installed\nother-1\nother-1\n");
    let done = || on(&home, "other", "1", "sacct -X -n -P --format=JobID,State").stdout;
    assert!(wait_until(DEADLINE, || done().lines().any(|line| line.ends_with("|COMPLETED"))), "{}", done());
    assert!(on(&home, "other", "1", "sacctmgr -n -P show qos format=name").stdout.contains("fast"));
    drop(cluster(&home, &["start", "base"]).expect_success());
    assert_eq!(ssh(&home, &forked["ssh"], Some("one"), "hostname").expect_success().stdout, "other-1\n");
    others_are_kept_out(&home);
    accounts_come_back(&home);
    drop(cluster(&home, &["delete", "base", "other", "second"]).expect_success());
    home.finish();
}

/// Accounts, qualities of service and pretended processors, as clients of Slurm ask for them.
fn jobs_are_accounted_for(home: &TestHome) {
    let known = on(home, "base", "1", "sacctmgr -n -P show assoc user=slurm format=account").expect_success().stdout;
    assert_eq!(known, "default\n");
    let team = "sacctmgr -i -Q add account team && sacctmgr -i -Q add qos fast && \
                sacctmgr -i -Q add user slurm account=team && sacctmgr -i -Q modify user slurm set qos+=fast";
    drop(as_root(home, "base", "1", team).expect_success());
    // The database tells the controller in its own time, and until then a job of it is a job of no quality of service.
    let told = || as_root(home, "base", "1", "scontrol show assoc_mgr qos=fast flags=qos").stdout.contains("QOS=fast(");
    assert!(wait_until(DEADLINE, told), "the controller was not told");
    let submit = "sbatch --parsable --wait --account=team --qos=fast --gres=gpu:1 --wrap 'echo $CUDA_VISIBLE_DEVICES; exit 3' -o out";
    let submitted = on(home, "base", "1", submit);
    assert_eq!((submitted.code, on(home, "base", "1", "cat out").stdout.as_str()), (3, "0\n"), "{submitted}");
    let job = submitted.stdout.trim();
    let ask = |format: &str| {
        let asked = on(home, "base", "1", &format!("sacct -X -j {job} --format={format} --parsable2 --noheader"));
        asked.expect_success().stdout.trim().to_owned()
    };
    let ended = || ask("JobID,State,ExitCode,Start,End,Elapsed");
    let failed = format!("{job}|FAILED|3:0|20");
    assert!(wait_until(DEADLINE, || ended().starts_with(&failed)), "{}", ended());
    assert!(!ended().contains("Unknown") && ended().split('|').count() == 6, "{}", ended());
    let used = ask("Account,QOS,AllocTRES");
    assert!(used.starts_with("team|fast|") && used.contains("gres/gpu=1"), "{used}");
}

/// Nobody gets from one cluster into another: neither from one that was made beside it, nor from the one it is a fork of.
fn others_are_kept_out(home: &TestHome) {
    let second = create(home, "second", &outbound(&["--password", "two"]));
    assert_eq!(ssh(home, &second["ssh"], Some("two"), "hostname").expect_success().stdout, "second-1\n");
    let wrong = ssh(home, &second["ssh"], Some("one"), "hostname");
    assert!(wrong.code == 255 && wrong.stderr.contains("Permission denied"), "{wrong}");
    let all = ["base", "other", "second"];
    for file in ["/etc/munge/munge.key", "/etc/ssh/ssh_host_ed25519_key", "/home/slurm/.ssh/id_ed25519"] {
        let keys = all.map(|name| as_root(home, name, "1", &format!("cat {file}")).expect_success().stdout);
        assert!(keys.iter().all(|key| key.len() > 60), "{file}");
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[2] != keys[0], "{file}");
    }
    let proof = on(home, "base", "1", "munge -n").expect_success().stdout;
    for (name, is_taken) in [("base", true), ("other", false), ("second", false)] {
        let examined = on(home, name, "1", &format!("echo {} | unmunge", proof.trim()));
        assert_eq!(examined.code == 0, is_taken, "{name}: {examined}");
        assert!(is_taken || examined.stderr.contains("Invalid credential"), "{name}: {examined}");
    }
    if Ability::Outbound.check().is_ok() {
        reaches_out(home, &second);
    }
}

/// With a way out, where this host has one.
fn outbound<'a>(options: &[&'a str]) -> Vec<&'a str> {
    match Ability::Outbound.check() {
        Ok(()) => [options, &["--outbound"]].concat(),
        Err(lack) => {
            let (name, reason) = ("a cluster's way out", lack.reason.as_str());
            testkit::skip::Skip { name, reason, forced_by_host: lack.forced_by_host, whole_test: false }.record();
            options.to_vec()
        }
    }
}

/// The host's own loopback is behind the gateway.
fn reaches_out(home: &TestHome, made: &Value) {
    assert_eq!(made["spec"]["outbound"], true, "{made}");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let host = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a node");
        let mut asked = [0; 3];
        client.read_exact(&mut asked).expect("three letters");
        client.write_all(b"the host answers\n").expect("it listens");
    });
    let ask = format!(
        "while read -r _ to via _; do [ $to != 00000000 ] || \
         gateway=$(printf '%d.%d.%d.%d' 0x${{via:6:2}} 0x${{via:4:2}} 0x${{via:2:2}} 0x${{via:0:2}}); done < /proc/net/route; \
         exec 3<>/dev/tcp/$gateway/{port}; printf ask >&3; cat <&3"
    );
    let asked = on(home, "second", "1", &ask).expect_success();
    assert_eq!(asked.stdout, "the host answers\n");
    host.join().expect("it answered");
}

/// A database and what stands before it, both killed: what was accounted for is there again.
fn accounts_come_back(home: &TestHome) {
    drop(as_root(home, "base", "1", "pkill -9 slurmdbd; pkill -9 mariadbd").expect_success());
    drop(cluster(home, &["node", "restore", "base", "1"]).expect_success());
    let shown = on(home, "base", "1", "sacct -X -n -P --format=Account,State").expect_success().stdout;
    assert!(shown.contains("team|FAILED\n"), "{shown}");
}
