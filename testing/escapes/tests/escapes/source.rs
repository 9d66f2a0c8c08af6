//! The working tree: copy-on-write for whoever is root inside, and without the secrets that lie in it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::attempt::{Prison, jailers};

fn tree(prison: &Prison) -> std::path::PathBuf {
    let tree = prison.home.path().join("home");
    for folder in [tree.join("project"), tree.join(".ssh"), tree.join(".config"), tree.join(".config/gh")] {
        std::fs::create_dir(&folder).expect("a folder of the test's home");
        prison.home.give(&folder);
    }
    for file in ["file", ".ssh/id_rsa", ".config/gh/hosts.yml"] {
        std::fs::write(tree.join(file), "original").expect("a file of the test's home");
        prison.home.give(&tree.join(file));
    }
    tree
}

#[test]
fn root_inside_cannot_reach_the_real_tree() {
    for user in jailers() {
        let prison = Prison::of(user);
        let tree = tree(&prison);
        let script = "cd /; for i in 1 2 3; do umount -l $TREE; done\n\
            find $TREE /proc/*/root$TREE | while read f; do echo evil > $f; done\n\
            for at in $TREE $TREE/lower; do mount -o remount,bind,rw $at; cp /bin/sh $at/evil; chmod 4755 $at/evil; done\n\
            rm -rf $TREE/* $TREE/lower/*; mkdir -p $TREE/sub; true";
        let script = format!("TREE={}; cat $TREE/file; ( {script} ) >/dev/null 2>&1", tree.display());
        let source = tree.display().to_string();
        let output = prison.run("root", &["--source", &source], &script);
        assert_eq!(output.stdout, "original", "{output}");
        assert_eq!(std::fs::read_to_string(tree.join("file")).ok().as_deref(), Some("original"));
        assert!(!tree.join("evil").exists() && !tree.join("sub").exists());
    }
}

#[test]
fn secrets_in_the_tree_are_not_shown() {
    for user in jailers() {
        let prison = Prison::of(user);
        let state = prison.home.state();
        let top = prison.home.path().display().to_string();
        std::fs::write(prison.home.work().join("seen"), "yes").expect("a file of the test's home");
        prison.home.give(&prison.home.work().join("seen"));
        for inside in ["root", "1000"] {
            let script = format!("cat work/seen; ls {0} >/dev/null 2>&1 && echo SHOWN; ls -A", state.display());
            let output = prison.run(inside, &["--source", &top], &script);
            // An ordinary user inside may be another one than the tree's owner.
            assert!(!output.stdout.contains("SHOWN") && !output.stdout.contains("state"), "{output}");
            if inside == "root" {
                assert!(output.stdout.starts_with("yes"), "{output}");
            }
        }
    }
}

/// A setuid file that a test leaves, in a machine or a tree, must not be one for anybody on the host.
#[test]
fn a_setuid_file_is_out_of_reach_on_the_host() {
    for user in jailers() {
        let prison = Prison::of(user);
        let words = ["exec", "m", "--user", "root", "--", "sh", "-c", "cp /bin/sh /opt/evil; chmod 4755 /opt/evil"];
        prison.home.must_run(&words);
        let output = prison.home.run_cli(&["pull", "m", "/opt/evil", "evil"]);
        assert_eq!(output.code, 0, "{output}");
        let facts = std::fs::metadata(prison.home.work().join("evil")).expect("it was pulled");
        assert_eq!(facts.permissions().mode() & 0o6000, 0, "{:o}", facts.permissions().mode());
        for folder in [prison.home.state(), prison.home.state().join("machines")] {
            let facts = std::fs::metadata(&folder).expect("the state folder");
            assert_eq!(facts.permissions().mode() & 0o077, 0, "{}", folder.display());
        }
        machines(&prison.home.state().join("machines"));
    }
}

fn machines(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("the machines' folder") {
        let entry = entry.expect("an entry");
        let mode = entry.metadata().expect("a machine's folder").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", entry.path().display());
    }
}
