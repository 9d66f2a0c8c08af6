//! A machine that is held ends with its last holder: once, and never while somebody holds it.

use std::io::{BufRead as _, BufReader};

use testyard_model::MachineId;
use testyard_registry::{Lease, LeaseError, LeaseKind, LeaseRequest, Registry, Released};

use crate::support::{Yard, in_child, lines, name, reserved};

fn hold(registry: &Registry, machine: &MachineId) -> Result<Lease, LeaseError> {
    let request = LeaseRequest {
        kind: LeaseKind::Holder,
        machine: Some(machine.clone()),
        purpose: "a test".to_owned(),
        expires_ms: None,
    };
    Lease::acquire(registry, &request)
}

fn files(yard: &Yard) -> usize {
    std::fs::read_dir(yard.home().leases_folder()).expect("the folder").count()
}

#[test]
fn the_last_to_let_go_is_told_and_nobody_holds_it_after() {
    let yard = Yard::new();
    let registry = yard.registry();
    let id = reserved(&registry, "m");
    assert!(!registry.lost_its_holders(&id).expect("a registry"), "it was never held");
    assert!(!registry.end_unheld(&id).expect("a registry"), "it was never held");
    let (first, second) = (hold(&registry, &id).expect("free"), hold(&registry, &id).expect("shared"));
    assert!(!registry.lost_its_holders(&id).expect("a registry"));
    assert!(matches!(registry.let_go(&id, first).expect("a registry"), Released::Shared));
    let third = hold(&registry, &id).expect("still held");
    assert!(matches!(registry.let_go(&id, second).expect("a registry"), Released::Shared));
    let Released::Last(last) = registry.let_go(&id, third).expect("a registry") else { panic!("nobody else holds it") };
    assert!(matches!(hold(&registry, &id), Err(LeaseError::Ending { .. })));
    assert!(!registry.lost_its_holders(&id).expect("a registry"), "whoever was last is at it");
    registry.begin_deletion(&id).expect("the machine");
    assert!(matches!(hold(&registry, &id), Err(LeaseError::Ending { .. })));
    registry.destroy(&id).expect("nothing is left");
    last.release(&registry).expect("its file");
    assert!(matches!(hold(&registry, &id), Err(LeaseError::NotFound { .. })));
    assert_eq!((registry.list_leases(None).expect("a registry").len(), files(&yard)), (0, 0));
}

#[test]
fn a_killed_holder_leaves_word_that_its_machine_is_to_end() {
    if let Some(registry) = in_child() {
        let id = registry.find(&name("m")).expect("a registry").expect("the machine").id;
        let _lease = hold(&registry, &id).expect("a lease");
        println!("child: holds");
        // Until it is killed.
        std::io::read_to_string(std::io::stdin()).expect("an end");
        return;
    }
    let yard = Yard::new();
    let registry = yard.registry();
    let id = reserved(&registry, "m");
    let mut child = yard.child("holders::a_killed_holder_leaves_word_that_its_machine_is_to_end");
    let mut said = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert!(said.any(|line| line.expect("text").contains("child: holds")));
    let own = hold(&registry, &id).expect("shared");
    child.kill().expect("the child");
    child.wait().expect("the child");
    assert!(!registry.lost_its_holders(&id).expect("a registry"), "another holds it");
    drop(own);
    assert!(registry.forget_abandoned_leases().expect("a registry").is_empty());
    assert!(registry.lost_its_holders(&id).expect("a registry"));
    assert!(registry.end_unheld(&id).expect("a registry"));
    assert!(matches!(hold(&registry, &id), Err(LeaseError::Ending { .. })));
    assert!(registry.end_unheld(&id).expect("a registry"), "whoever was to delete it may have died");
    registry.begin_deletion(&id).expect("the machine");
    registry.destroy(&id).expect("nothing is left");
    registry.forget_abandoned_leases().expect("a registry");
    assert_eq!(files(&yard), 0);
}

/// Many hold and let go at once. Whoever has a lease finds the machine there as long as it has it, and whoever was the
/// last is so alone.
#[test]
fn of_the_last_to_let_go_and_the_next_to_hold_one_is_refused() {
    if let Some(registry) = in_child() {
        let mut held = 0;
        for round in 0..40 {
            let Some(row) = registry.find(&name("m")).expect("a registry") else {
                // Lost to another who makes it too.
                let _ = registry.reserve_name(&crate::support::machine("m"));
                continue;
            };
            match hold(&registry, &row.id) {
                Err(LeaseError::Ending { .. } | LeaseError::NotFound { .. }) => continue,
                Err(error) => panic!("round {round}: {error}"),
                Ok(lease) => {
                    held += 1;
                    assert!(registry.load(&row.id).expect("a registry").is_some(), "held and gone");
                    if let Released::Last(lease) = registry.let_go(&row.id, lease).expect("a registry") {
                        registry.begin_deletion(&row.id).expect("only one deletes");
                        registry.destroy(&row.id).expect("only one deletes");
                        lease.release(&registry).expect("its file");
                    }
                }
            }
        }
        println!("child: {held}");
        return;
    }
    let yard = Yard::new();
    let registry = yard.registry();
    let children: Vec<_> =
        (0..3).map(|_| yard.child("holders::of_the_last_to_let_go_and_the_next_to_hold_one_is_refused")).collect();
    let held: Vec<u32> = children.into_iter().flat_map(lines).map(|count| count.parse().expect("a count")).collect();
    assert!(held.len() == 3 && held.iter().sum::<u32>() > 0, "{held:?}");
    let rows = registry.list_leases(None).expect("a registry");
    assert!(rows.is_empty(), "{rows:?}");
    registry.forget_abandoned_leases().expect("a registry");
    assert_eq!(files(&yard), 0);
}
