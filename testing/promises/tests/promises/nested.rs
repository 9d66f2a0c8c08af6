//! Testyard inside a machine of Testyard's: a container whose root has few ids, whose files are on an overlay, and
//! whose control groups are handed on.

use testkit::{Ability, TestHome, User};

/// What somebody types inside: a machine that keeps its files when it is stopped, an environment in it, a working tree
/// of the machine around it, and nothing left. What is not the system's own, such as other people's builds, would only
/// make it slow, and is hidden first.
const INSIDE: &str = "
    export PATH=/usr/local/testyard:$PATH TESTYARD_HOME=/var/tmp/inner
    for folder in /*; do
        case $folder in
            /usr | /etc | /var | /root | /tmp | /run | /home | /opt | /dev | /proc | /sys | /bin | /sbin | /lib*) ;;
            *) test -L $folder || test ! -d $folder || mount -t tmpfs none $folder ;;
        esac
    done
    testyard create inner --quiet
    testyard exec inner --user root -- sh -c 'echo kept > /etc/kept && rm /etc/hostname'
    testyard restart inner --quiet
    testyard exec inner -- cat /etc/kept
    testyard env run inner --user root -- sh -c 'test -e /etc/kept && hostname other && rm -r /usr/bin && echo gone'
    testyard info inner
    mkdir /var/tmp/suite && cd /var/tmp/suite && echo one > file
    printf 'format = 1\\n[[test]]\\nname = \"tree\"\\ncommand = \"rm file; touch /usr/of-the-test\"\\nuser = \"root\"\\n' > testyard.toml
    testyard run --quiet && cat file && test ! -e /usr/of-the-test
    testyard list --json | tr , '\\n' | sed -n 's/.*\"name\": *\"\\(.*\\)\"/\\1/p' | xargs testyard delete --force --quiet
    testyard reap --quiet
    ls -d /dev/shm/testyard-*/store-* 2> /dev/null || echo nothing left
";

fn works_inside(home: TestHome) {
    home.must_run(&["create", "outer"]);
    home.must_run(&["exec", "outer", "--user", "root", "--", "mkdir", "/usr/local/testyard"]);
    for name in ["testyard", "testyard-agent"] {
        let program = home.program(name).display().to_string();
        home.must_run(&["push", "outer", &program, "/usr/local/testyard", "--user", "root"]);
    }
    let said = home.must_run(&["exec", "outer", "--user", "root", "--", "sh", "-ec", INSIDE]);
    for words in ["kept\n", "gone\n", "one user:", "files are in memory", "1 passed", "one\n", "nothing left\n"] {
        assert!(said.contains(words), "no `{words}` in:\n{said}");
    }
    home.finish();
}

#[test]
fn machines_work_inside_a_machine_of_roots() {
    testkit::require!(Ability::Root);
    works_inside(TestHome::new());
}

#[test]
fn machines_work_inside_a_machine_of_an_ordinary_users() {
    testkit::require!(Ability::OrdinaryUser);
    testkit::require!(Ability::PlainRoot);
    works_inside(TestHome::of(User::ordinary().expect("just required")));
}
