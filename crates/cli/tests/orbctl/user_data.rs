//! `create -c FILE`.

use std::fs;
use std::time::Duration;

use testkit::wait_until;

use crate::orb::{has_many_ids, with_debian};

#[test]
fn user_data_is_followed_or_refused_whole() {
    let orb = with_debian!();
    let write = |name: &str, text: &str| fs::write(orb.home.work().join(name), text).expect("the home is ours");
    write("script", "#!/bin/sh -e\nwhoami > /srv/who\nls \"$0\" > /dev/null\n");
    orb.must(&["create", "debian:12", "a", "-c", "script"]);
    assert_eq!(orb.must(&["run", "-m", "a", "cat", "/srv/who"]), "root\n");

    let users = if has_many_ids() { "users:\n  - default\n  - name: ann\n    groups: [adm]\n" } else { "" };
    let config = format!(
        "#cloud-config\n{users}write_files:\n  - path: /srv/app/settings\n    content: |\n      colour = blue\n    \
         permissions: '0600'\nruncmd:\n  - echo line >> /srv/log\n  - [sh, -c, 'echo words >> /srv/log']\n"
    );
    write("config", &config);
    orb.must(&["create", "debian:12", "b", "--user-data", "config"]);
    assert_eq!(orb.must(&["run", "-m", "b", "cat", "/srv/log", "/srv/app/settings"]), "line\nwords\ncolour = blue\n");
    assert_eq!(orb.must(&["run", "-m", "b", "stat", "-c", "%a", "/srv/app/settings"]), "600\n");
    if has_many_ids() {
        assert_eq!(orb.must(&["run", "-m", "b", "-u", "ann", "sh", "-c", "id -Gn; pwd"]), "ann adm\n/home/ann\n");
    } else {
        testkit::skip_case!("users of cloud-config", host: "a machine of an ordinary user has one id");
    }

    write("unknown", "#cloud-config\nswap: {size: 1}\n");
    orb.refused(&["create", "debian:12", "c", "-c", "unknown"], "swap");
    write("neither", "hello\n");
    orb.refused(&["create", "debian:12", "c", "-c", "neither"], "#cloud-config");
    write("failing", "#!/bin/sh\necho no luck >&2\nexit 3\n");
    orb.refused(&["create", "debian:12", "c", "-c", "failing"], "no luck");
    assert_eq!(orb.states().len(), 2);
    orb.must(&["delete", "-f", "a", "b"]);
    orb.home.finish();
}

#[test]
fn a_killed_creation_leaves_no_machine() {
    let orb = with_debian!();
    let script = "#!/bin/sh\ntouch /srv/begun\nexec sleep 1000\n";
    fs::write(orb.home.work().join("slow"), script).expect("the home is ours");
    let mut client = orb.command(&["create", "debian:12", "m", "-c", "slow"]).spawn().expect("it starts");
    // Its user is there, its script runs.
    let begun = || orb.run(&["run", "-m", "m", "test", "-e", "/srv/begun"]).code == 0;
    assert!(wait_until(Duration::from_secs(60), begun), "the script does not begin");
    client.kill().expect("ours");
    client.wait().expect("ours");
    assert!(wait_until(Duration::from_secs(20), || orb.states().is_empty()), "a half-made machine stays");
    orb.home.finish();
}
