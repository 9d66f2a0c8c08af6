//! Whose ids machines have on the host: root's machines each a range of their own.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use testyard_model::{BackendName, MachineSpec, UserSpec};
use testyard_protocol::{Exec, Place};

use crate::fixture::{Machine, capture, script};

/// The ids of a machine on the host: of its files, and of its agent.
fn ids(machine: &Machine) -> (u32, u32) {
    let store = std::fs::metadata(machine.place.folder.join("store")).expect("a namespace machine has files");
    let process = std::fs::metadata(format!("/proc/{}", machine.agent_pid())).expect("it runs");
    (store.uid(), process.uid())
}

fn lease(first: u32) -> std::path::PathBuf {
    Path::new("/var/lib/testyard/ids").join(first.to_string())
}

#[test]
fn two_machines_of_root_have_no_id_together() {
    if !testkit::user::is_host_root() {
        testkit::skip!("machines have ids of their own", host: "only root of the host has ids to give");
    }
    let (one, other) = (Machine::namespace(), Machine::namespace());
    let (first, second) = (ids(&one), ids(&other));
    assert_eq!((first.0, second.0), (first.1, second.1), "files and processes of a machine have the same ids");
    assert!(first.0.abs_diff(second.0) >= 65_536, "{first:?} and {second:?}");
    for (ids, machine) in [(first, &one), (second, &other)] {
        assert_eq!(std::fs::read_link(lease(ids.0)).expect("it is leased"), machine.place.folder);
    }
    drop(one);
    assert!(lease(first.0).symlink_metadata().is_err(), "the lease went with its machine");
}

#[test]
fn a_restarted_machine_keeps_its_ids_and_a_clone_has_others() {
    if !testkit::user::is_host_root() {
        testkit::skip!("machines have ids of their own", host: "only root of the host has ids to give");
    }
    let make = "mkdir /var/tmp/k && touch /var/tmp/k/mine && chown 1234:4321 /var/tmp/k/mine &&
        python3 -c 'import os, struct
# cap_net_raw, effective: the kernel keeps with it which root gave it.
os.setxattr(\"/var/tmp/k/mine\", \"security.capability\", struct.pack(\"<5I\", 0x02000001, 1 << 13, 0, 0, 0))'";
    let look = "stat -c %u:%g /var/tmp/k/mine /var/tmp/k &&
        python3 -c 'import os; print(len(os.getxattr(\"/var/tmp/k/mine\", \"security.capability\")))'";
    let seen = "1234:4321\n0:0\n20";
    let mut machine = Machine::namespace();
    let as_root = |machine: &Machine, text: &str| {
        let exec = Exec { user: Some(UserSpec::Root), ..script(Place::Machine, text) };
        capture(&mut machine.connect(), exec).ok()
    };
    as_root(&machine, make);
    let before = ids(&machine);
    machine.down();
    let mut clone = Machine::created(MachineSpec::new(BackendName::namespace()));
    machine.copy_to(&mut clone);
    clone.up();
    machine.up();
    assert_eq!(ids(&machine), before);
    assert!(ids(&clone).0.abs_diff(before.0) >= 65_536);
    for machine in [&machine, &clone] {
        assert_eq!(as_root(machine, look), seen);
    }
}
