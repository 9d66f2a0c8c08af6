//! An allocation of a cluster whose jobs are held to their memory: what takes too much there, and who is told.

use serde_json::Value;
use testkit::{TestHome, wait_until};

use super::{DEADLINE, as_root, on};

/// The options that lead to the controller of a cluster.
fn login(home: &TestHome, ssh: &Value) -> Vec<String> {
    let text = |key: &str| ssh[key].as_str().unwrap_or_else(|| panic!("{key} in {ssh}")).to_owned();
    let known = home.work().join("known");
    std::fs::write(&known, format!("[127.0.0.1]:{} {}\n", ssh["port"], text("host_key"))).expect("a file");
    let host = format!("{}@127.0.0.1:{}", text("user"), ssh["port"]);
    let known = known.display().to_string();
    ["--host", &host, "--identity", &text("identity"), "--known-hosts", &known].map(str::to_owned).to_vec()
}

/// What a machine that is an allocation is created with.
fn create(home: &TestHome, name: &str, login: &[String]) {
    let words =
        ["create", name, "--backend", "slurm-allocation", "--cpus", "1", "--memory", "300M", "--inside", "host"];
    home.must_run(&words.into_iter().chain(login.iter().map(String::as_str)).collect::<Vec<_>>());
}

pub(super) fn allocations(home: &TestHome, made: &Value) {
    let login = login(home, &made["ssh"]);
    a_command_that_takes_too_much_goes_alone(home, &login);
    a_machine_that_goes_with_it_says_so(home, &login);
}

/// The machine goes on: the kernel takes the largest process, which is the command.
fn a_command_that_takes_too_much_goes_alone(home: &TestHome, login: &[String]) {
    create(home, "g1", login);
    let killed = home.run_cli(&["exec", "g1", "--", "python3", "-c", "x = bytearray(600 << 20)"]);
    assert!(killed.code == 137 && killed.stderr.contains("killed: its memory was not enough"), "{killed}");
    assert_eq!(home.must_run(&["exec", "g1", "--", "echo", "there"]), "there\n");
    home.must_run(&["delete", "g1"]);
}

/// Where the kernel takes more than the command, or Slurm ends the whole step, that is why the machine has ended.
fn a_machine_that_goes_with_it_says_so(home: &TestHome, login: &[String]) {
    create(home, "g1", login);
    let taken = "for pid in $(pgrep -u slurm testyard); do echo 1000 > /proc/$pid/oom_score_adj; done";
    drop(as_root(home, "held", "1", taken).expect_success());
    let files = "head -c 600M /dev/zero > /dev/shm/much; sleep 1000";
    let lost = home.run_cli(&["exec", "g1", "--", "sh", "-c", files]);
    assert_ne!(lost.code, 0, "{lost}");
    let mut info = String::new();
    let told = wait_until(DEADLINE, || {
        info = home.must_run(&["info", "g1"]);
        info.contains("has ended: it used more memory than it was given") && info.contains("is OUT_OF_MEMORY")
    });
    assert!(told, "{info}{lost}{}", on(home, "held", "1", "squeue; scontrol show job").stdout);
    home.must_run(&["delete", "g1"]);
}
