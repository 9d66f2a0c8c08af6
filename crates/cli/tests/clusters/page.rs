//! `docs/clusters.md`: every command of the page is run, in its order.

use std::time::Duration;

use testkit::{Ability, Output, TestHome};

#[test]
fn the_pages_commands_work_as_written() {
    possible!();
    testkit::require!(Ability::Program("slurmrestd"));
    testkit::require!(Ability::Program("curl"));
    let home = TestHome::new();
    // A working tree that others may read.
    std::fs::write(home.work().join("seen"), "").expect("ours");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(home.work(), mode).expect("ours");
    let page = testkit::Page::load("clusters");
    // What is installed, and what a host's root grants, is there: this test would not have come so far. An image takes
    // minutes: `image.rs` has the block about it.
    let is_here = |block: &&str| !block.contains("image build") && block.starts_with("testyard ");
    let blocks: Vec<&str> = page.commands().filter(|block| is_here(block) || block.starts_with("rest=")).collect();
    assert!(blocks.len() >= 4, "the page has commands");
    let folder = home.program("testyard").parent().expect("a folder").display().to_string();
    let mut shell = home.command("/bin/bash");
    let path = format!("{folder}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
    shell.args(["-e", "-o", "pipefail", "-c", &blocks.concat()]).env("PATH", path);
    let output = Output::of(&mut shell, Duration::from_secs(240)).expect_success();
    for printed in ["lab-3\n", "seen\nseen\n", "\"ping\": \"UP\"", "lab2-1\n"] {
        assert!(output.stdout.contains(printed), "{printed}: {output}");
    }
    assert_eq!(home.must_run(&["list", "--names"]), "");
    home.finish();
}
