//! `create -c FILE`.

use std::fs;
use std::time::Duration;

use testkit::wait_until;

use crate::orb::{Orb, has_many_ids, with_debian};

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
    if has_many_ids() {
        packages_are_installed_and_upgraded(&orb);
        assert_eq!(orb.states(), []);
    } else {
        testkit::skip_case!("packages of cloud-config", host: "apt-get becomes another user, which takes more ids than one");
    }
    orb.home.finish();
}

/// A package without files and its index, below `/srv/archive` of a machine, which asks no other archive.
const ARCHIVE: &str = r#"set -e
rm -f /etc/apt/sources.list.d/* && echo 'deb [trusted=yes] file:/srv/archive ./' > /etc/apt/sources.list
rm -rf /var/lib/apt/lists/* && mkdir -p /srv/archive
pack() {
    mkdir -p "/tmp/$1-$2/DEBIAN" && cd "/tmp/$1-$2"
    printf 'Package: %s
Version: %s
Architecture: all
Maintainer: nobody
Description: nothing
' "$1" "$2" > DEBIAN/control
    dpkg-deb -b . "/srv/archive/$1-$2.deb" > /dev/null
}
pack ty-old 1 && dpkg -i /srv/archive/ty-old-1.deb > /dev/null && rm /srv/archive/ty-old-1.deb
pack ty-old 2 && pack ty-new 1 && cd /srv/archive
for file in *.deb; do
    dpkg-deb -f "$file"
    printf 'Filename: ./%s
Size: %s
SHA256: %s

' "$file" "$(stat -c %s "$file")" "$(sha256sum "$file" | cut -d' ' -f1)"
done > Packages
"#;

/// With an archive of the host's own making: what is installed, what is upgraded, and what runs afterwards.
fn packages_are_installed_and_upgraded(orb: &Orb) {
    let write = |text: &str| fs::write(orb.home.work().join("config"), text).expect("the home is ours");
    orb.must(&["create", "debian:12", "maker"]);
    orb.must(&["run", "-m", "maker", "-u", "root", "sh", "-c", ARCHIVE]);
    orb.must(&["export", "maker", "root.tar"]);
    orb.home.must_run(&["image", "import", "local:1", "root.tar"]);
    orb.must(&["delete", "-f", "maker"]);
    let asked = r#"  - "dpkg-query -W -f '${Package} ${Version}\n' 'ty-*' > /srv/found""#;
    for (config, packages) in
        [("packages: [ty-new]", "ty-new 1\nty-old 1\n"), ("package_update: true\npackage_upgrade: true", "ty-old 2\n")]
    {
        write(&format!("#cloud-config\n{config}\nruncmd:\n{asked}\n"));
        orb.must(&["create", "local:1", "packed", "-c", "config"]);
        assert_eq!(orb.must(&["run", "-m", "packed", "cat", "/srv/found"]), packages);
        orb.must(&["delete", "-f", "packed"]);
    }
    write("#cloud-config\npackages: [ty-none]\n");
    orb.refused(&["create", "local:1", "packed", "-c", "config"], "apt-get install");
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
