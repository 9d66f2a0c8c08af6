//! Limits hold against the root of the environment.

use testkit::{Ability, User};

use crate::attempt::Prison;

#[test]
fn root_inside_cannot_lift_its_limits() {
    testkit::require!(Ability::Root);
    testkit::require!(Ability::MemoryCgroup);
    let prison = Prison::of(User::current());
    let lift = "mkdir -p /tmp/m /tmp/p\n\
        mount -t cgroup -o memory x /tmp/m && echo -1 > /tmp/m/memory.memsw.limit_in_bytes\n\
        echo -1 > /tmp/m/memory.limit_in_bytes\n\
        mount -t cgroup -o pids x /tmp/p && echo max > /tmp/p/pids.max\n\
        mount -t cgroup2 x /tmp/m && echo max > /tmp/m/memory.max && echo max > /tmp/m/pids.max\n";
    let memory = format!("({lift}) 2>/dev/null; head -c 200M /dev/zero | tail -c 190M | wc -c");
    let output = prison.run("root", &["--memory", "48M", "--strict-limits"], &memory);
    assert_ne!(output.stdout.trim(), (190 << 20).to_string(), "{output}");
    let processes = format!("({lift}) 2>/dev/null; for i in $(seq 60); do sleep 20 & done; echo all");
    let output = prison.run("root", &["--pids", "20", "--strict-limits"], &processes);
    assert!(!output.stdout.contains("all"), "{output}");
}

/// Where its own groups are mounted for it, what it sets in them is within its limits.
#[test]
fn groups_that_are_mounted_for_root_inside_lift_nothing() {
    testkit::require!(Ability::Root);
    testkit::require!(Ability::MemoryCgroup);
    let prison = Prison::of(User::current());
    let lift = "cd /sys/fs/cgroup; test -n \"$(ls)\" && echo mounted\n\
        for file in $(find . -name memory.memsw.limit_in_bytes -o -name memory.limit_in_bytes); do echo -1 > $file; done\n\
        for file in $(find . -name memory.max -o -name pids.max); do echo max > $file; done\n\
        for file in $(find . -name release_agent); do echo /evil > $file && echo ESCAPED; done\n";
    let memory = format!("({lift}) 2>/dev/null; head -c 200M /dev/zero | tail -c 190M | wc -c");
    let output = prison.run("root", &["--cgroups", "--memory", "48M", "--strict-limits"], &memory);
    assert!(output.stdout.starts_with("mounted") && !output.stdout.contains("ESCAPED"), "{output}");
    assert!(!output.stdout.contains(&(190 << 20).to_string()), "{output}");
    let processes = format!("({lift}) 2>/dev/null; for i in $(seq 60); do sleep 20 & done; echo all");
    let output = prison.run("root", &["--cgroups", "--pids", "20", "--strict-limits"], &processes);
    assert!(output.stdout.starts_with("mounted") && !output.stdout.contains("all"), "{output}");
}

#[test]
fn a_fork_bomb_ends_with_its_environment() {
    testkit::require!(Ability::Root);
    testkit::require!(Ability::MemoryCgroup);
    let prison = Prison::of(User::current());
    // The shell itself starts nothing more: it could not, and would end.
    let bomb = "b() { b | b & }; b; while :; do :; done";
    let output = prison.run("1000", &["--pids", "64", "--timeout", "3s", "--strict-limits"], bomb);
    assert_eq!(output.code, 124, "{output}");
    let output = prison.run("1000", &[], "echo fine");
    assert_eq!(output.stdout.trim(), "fine", "{output}");
    prison.home.finish();
}
