//! Mistakes: told at once, in words that make no client try again, and with nothing left.

use crate::orb::{RETRIED, with_debian};

#[test]
fn mistakes_are_told_at_once_and_leave_nothing() {
    let orb = with_debian!();
    orb.must(&["create", "debian:12", "web"]);
    let long = "a".repeat(100);
    for (words, told) in [
        (&["create", "debian:12", ""][..], "the name is empty"),
        (&["create", "debian:12", "a/b"], "not a name: a/b"),
        (&["create", "debian:12", &long], "not a name: aaa"),
        (&["create", "invalid:image:tag", "x"], "not an image: \"invalid:image:tag\""),
        (&["create", "host", "x"], "not an image"),
        (&["create", "", "x"], "not an image"),
        (&["create", "nosuch:1", "x"], "no such image: nosuch:1"),
        (&["create", "debian:99", "x"], "no such image: debian:99"),
        (&["create", "debian:12", "x", "--arch", "invalid-arch"], "no such architecture: invalid-arch"),
        (&["create", "debian:12", "x", "--user", "Bad User"], "not a user's name"),
        (&["create", "debian:12", "x", "--cpus", "none"], "not a number of processors"),
        (&["create", "debian:12", "x", "--memory", "much"], "not a size"),
        (&["create", "debian:12", "x", "-c", "no-such-file"], "cannot read no-such-file"),
        (&["create", "debian:12", "x", "--flavour", "sweet"], "no such flag: --flavour"),
        (&["create", "debian:12", "x", "y"], "one word too many: y"),
        (&["create", "debian:12"], "NAME is missing"),
        (&["create", "debian:12", "web"], "web already exists"),
        (&["clone", "web", "web"], "web already exists"),
        (&["clone", "ghost", "x"], "no such name: ghost"),
        (&["rename", "ghost", "x"], "no such name: ghost"),
        (&["rename", "web", ""], "the name is empty"),
        (&["info", "ghost", "-f", "json"], "no such name: ghost"),
        (&["info", "a/b", "-f", "json"], "no such name: a/b"),
        (&["info", "web", "-f", "yaml"], "no such format: yaml"),
        (&["info"], "NAME is missing"),
        (&["start", "ghost"], "no such name: ghost"),
        (&["stop", "ghost", "-f"], "no such name: ghost"),
        (&["restart", "ghost"], "no such name: ghost"),
        (&["delete", "-f", "ghost"], "no such name: ghost"),
        (&["delete"], "NAME is missing"),
        (&["logs", "ghost"], "no such name: ghost"),
        (&["export", "ghost", "x.tar"], "no such name: ghost"),
        (&["run", "-m", "ghost", "true"], "no such name: ghost"),
        (&["run", "-m"], "-m needs a value"),
        (&["push", "-m", "ghost", "/etc/hostname", "x"], "no such name: ghost"),
        (&["pull", "-m", "ghost", "/etc/hostname", "x"], "no such name: ghost"),
        (&["config", "get", "colour"], "no such key: colour"),
        (&["config", "set", "colour", "red"], "no such key: colour"),
        (&["config", "set", "cpu", "many"], "cpu takes a whole number above 0"),
        (&["config", "set", "rosetta", "maybe"], "rosetta takes true or false"),
        (&["config", "get", "machine.ghost.username"], "no such name: ghost"),
        (&["config", "set", "testyard.image_stand_in", "ubuntu"], "not a stand-in"),
        (&["config"], "write `config get KEY`"),
        (&["dance"], "no such command: dance"),
    ] {
        // The one word of a key that clients also take for an error.
        if words.iter().any(|word| RETRIED.iter().any(|retried| word.contains(retried))) {
            let output = orb.run(words);
            assert!(output.code != 0 && output.stderr.contains(told), "{words:?}: {output}");
            continue;
        }
        orb.refused(words, told);
    }
    assert_eq!(orb.states(), [("web".into(), "running".into())]);
    let images = orb.home.run_cli(&["image", "list", "--json"]).json();
    assert_eq!(images["images"].as_array().expect("a list").len(), 1, "{images}");
    orb.must(&["delete", "-f", "web"]);
    orb.home.finish();
}

#[test]
fn an_image_that_cannot_be_had_is_stood_in_for_only_where_somebody_said_so() {
    let orb = with_debian!();
    orb.refused(&["create", "fedora:40", "m"], "no such image: fedora:40");
    orb.must(&["config", "set", "testyard.image_stand_in", "ubuntu:22.04=debian:12"]);
    let made = orb.run(&["create", "ubuntu:22.04", "m"]).expect_success();
    assert_eq!(made.stderr, "warning: debian:12 stands in for ubuntu:22.04, which is not stored here\n");
    let image = &orb.json(&["info", "m", "-f", "json"])["record"]["image"];
    assert_eq!((&image["distro"], &image["stands_in_for"]), (&"debian".into(), &"ubuntu:22.04".into()));
    let mut command = orb.command(&["create", "fedora:40", "n"]);
    command.env("TESTYARD_IMAGE_STANDIN", "fedora:*=debian:12");
    let made = testkit::Output::of(&mut command, std::time::Duration::from_secs(120)).expect_success();
    assert!(made.stderr.starts_with("warning: debian:12 stands in for fedora:40"), "{made}");
    orb.must(&["delete", "-f", "m", "n"]);
    orb.home.finish();
}
