//! `docs/orbctl.md`: every command of the page is run, in its order.

use std::time::Duration;

use testkit::Output;

use crate::orb::{has_many_ids, with_debian};

#[test]
fn the_pages_commands_work_as_written() {
    if !has_many_ids() {
        testkit::skip!("the_pages_commands_work_as_written", host: "the page's users become root, which takes more ids than one");
    }
    let orb = with_debian!();
    let page = testkit::Page::load("orbctl");
    let blocks: Vec<&str> = page.commands().collect();
    assert!(blocks.len() >= 5, "the page has commands");
    let programs = orb.home.program("testyard");
    let folder = programs.parent().expect("a folder");
    let mut shell = orb.home.command("/bin/sh");
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", folder.display());
    shell.args(["-e", "-c", &blocks.concat()]).env("PATH", path);
    let output = Output::of(&mut shell, Duration::from_secs(240)).expect_success();
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(&lines[..3], ["dev", "0", "/srv"]);
    assert!(output.stdout.contains("\"stands_in_for\":\"ubuntu:22.04\""), "{output}");
    assert!(output.stdout.contains("two.orb.local"), "{output}");
    assert_eq!(orb.states(), []);
    orb.home.finish();
}
