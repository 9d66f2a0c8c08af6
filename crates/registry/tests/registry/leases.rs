//! A lease lasts exactly as long as its holder.

use std::fs;
use std::io::{BufRead, BufReader};

use testyard_registry::{Lease, LeaseError, LeaseId, LeaseKind, LeaseRequest, LeaseStanding, Registry};

use crate::support::{CHILD, Yard, home_at, in_child, lines, name, reserved};

fn request(registry: &Registry, kind: LeaseKind) -> LeaseRequest {
    let machine = registry.find(&name("m")).expect("a registry").map(|row| row.id);
    LeaseRequest { kind, machine, purpose: "a test".to_owned(), expires_ms: Some(9) }
}

fn files(yard: &Yard) -> usize {
    fs::read_dir(yard.home().leases_folder()).expect("the folder").count()
}

#[test]
fn a_released_lease_leaves_nothing() {
    let yard = Yard::new();
    let registry = yard.registry();
    let id = reserved(&registry, "m");
    let leases: Vec<Lease> = [LeaseKind::Machine, LeaseKind::Machine, LeaseKind::Run]
        .map(|kind| Lease::acquire(&registry, &request(&registry, kind)).expect("a lease"))
        .into();
    let rows = registry.list_leases(Some(&id)).expect("a registry");
    assert_eq!((rows.len(), files(&yard)), (3, 3));
    assert!(rows.iter().all(|row| registry.judge(row).expect("a lease") == LeaseStanding::Held));
    assert!(registry.forget_abandoned_leases().expect("a registry").is_empty());
    for lease in leases {
        assert!(Lease::is_held(&registry, lease.id()).expect("a lease"));
        let id: LeaseId = lease.id().as_str().parse().expect("its own id");
        lease.release(&registry).expect("a lease");
        assert!(!Lease::is_held(&registry, &id).expect("a lease"));
    }
    assert_eq!((registry.list_leases(None).expect("a registry").len(), files(&yard)), (0, 0));
    assert!("../x".parse::<LeaseId>().is_err() && "abcdefghij.run".parse::<LeaseId>().is_err());
}

#[test]
fn a_machine_has_one_supervisor() {
    let yard = Yard::new();
    let registry = yard.registry();
    reserved(&registry, "m");
    let wanted = request(&registry, LeaseKind::Supervisor);
    let first = Lease::acquire(&registry, &wanted).expect("a lease");
    assert!(matches!(Lease::acquire(&registry, &wanted), Err(LeaseError::Held { .. })));
    drop(first);
    // Its row and file are still there; the next one takes them over.
    let second = Lease::acquire(&registry, &wanted).expect("a lease");
    assert_eq!(registry.list_leases(None).expect("a registry").len(), 1);
    second.release(&registry).expect("a lease");
    let without = LeaseRequest { machine: None, ..wanted.clone() };
    assert!(matches!(Lease::acquire(&registry, &without), Err(LeaseError::NoMachine { .. })));
    let id = wanted.machine.clone().expect("a machine");
    registry.begin_deletion(&id).expect("the machine");
    registry.destroy(&id).expect("nothing is left");
    assert!(matches!(Lease::acquire(&registry, &wanted), Err(LeaseError::NotFound { .. })));
    assert_eq!(files(&yard), 0);
}

#[test]
fn a_killed_holder_holds_nothing() {
    if let Some(registry) = in_child() {
        let lease = Lease::acquire(&registry, &request(&registry, LeaseKind::Machine)).expect("a lease");
        println!("child: {}", lease.id());
        // Until it is killed.
        std::io::read_to_string(std::io::stdin()).expect("an end");
        return;
    }
    let yard = Yard::new();
    let registry = yard.registry();
    reserved(&registry, "m");
    let mut child = yard.child("leases::a_killed_holder_holds_nothing");
    let said = BufReader::new(child.stdout.take().expect("piped"))
        .lines()
        .find_map(|line| line.expect("text").split_once("child: ").map(|(_, id)| id.to_owned()))
        .expect("the child's lease");
    let id: LeaseId = said.parse().expect("an id");
    let row = registry.list_leases(None).expect("a registry").pop().expect("its row");
    assert_eq!((&row.id, registry.judge(&row).expect("a lease")), (&id, LeaseStanding::Held));
    let elsewhere = {
        let mut row = row.clone();
        row.host.pid_namespace += 1;
        row
    };
    assert_eq!(registry.judge(&elsewhere).expect("a lease"), LeaseStanding::Foreign);
    child.kill().expect("the child");
    child.wait().expect("the child");
    assert_eq!(registry.judge(&row).expect("a lease"), LeaseStanding::Abandoned);
    assert_eq!(registry.judge(&elsewhere).expect("a lease"), LeaseStanding::Foreign);
    assert_eq!(registry.forget_abandoned_leases().expect("a registry"), [row]);
    assert_eq!((registry.list_leases(None).expect("a registry").len(), files(&yard)), (0, 0));
}

/// A reaper judges machines first: a run that dies just then must still be seen by the next one.
#[test]
fn an_abandoned_runs_row_stays_until_its_machine_is_gone() {
    let yard = Yard::new();
    let registry = yard.registry();
    let id = reserved(&registry, "m");
    drop(Lease::acquire(&registry, &request(&registry, LeaseKind::Run)).expect("a lease"));
    let elsewhere = LeaseRequest { machine: None, ..request(&registry, LeaseKind::Run) };
    drop(Lease::acquire(&registry, &elsewhere).expect("a lease"));
    let forgotten = registry.forget_abandoned_leases().expect("a registry");
    assert!(forgotten.len() == 1 && forgotten[0].machine.is_none(), "{forgotten:?}");
    let rows = registry.list_leases(Some(&id)).expect("a registry");
    assert_eq!(registry.judge(&rows[0]).expect("a lease"), LeaseStanding::Abandoned);
    registry.begin_deletion(&id).expect("the machine");
    registry.destroy(&id).expect("its row");
    registry.forget_abandoned_leases().expect("a registry");
    assert_eq!((registry.list_leases(None).expect("a registry").len(), files(&yard)), (0, 0));
}

#[test]
fn files_without_rows_are_swept() {
    let yard = Yard::new();
    let registry = yard.registry();
    let id = reserved(&registry, "m");
    let lease = Lease::acquire(&registry, &request(&registry, LeaseKind::Machine)).expect("a lease");
    registry.begin_deletion(&id).expect("the machine");
    registry.destroy(&id).expect("its row");
    fs::write(yard.home().leases_folder().join("not a lease"), "").expect("a file");
    registry.forget_abandoned_leases().expect("a registry");
    assert_eq!(files(&yard), 2, "a held lock file stays");
    drop(lease);
    registry.forget_abandoned_leases().expect("a registry");
    assert_eq!(files(&yard), 1);
}

/// Rivals take and release the same exclusive lease while others sweep: never two at once, never an error.
#[test]
fn sweepers_and_holders_do_not_disturb_each_other() {
    if let Some(registry) = in_child() {
        let wanted = request(&registry, LeaseKind::Supervisor);
        let mark = home_at(std::env::var_os(CHILD).expect("the home").as_ref()).runtime().join("mark");
        let mut held = 0;
        for _ in 0..60 {
            match Lease::acquire(&registry, &wanted) {
                Ok(lease) => {
                    fs::File::create_new(&mark).expect("nobody else holds it");
                    fs::remove_file(&mark).expect("the mark");
                    held += 1;
                    lease.release(&registry).expect("a lease");
                }
                Err(LeaseError::Held { .. }) => {}
                Err(error) => panic!("{error}: {:?}", error.problem()),
            }
            registry.forget_abandoned_leases().expect("a registry");
            Lease::acquire(&registry, &request(&registry, LeaseKind::Machine)).expect("any number of these");
        }
        println!("child: {held}");
        return;
    }
    let yard = Yard::new();
    let registry = yard.registry();
    reserved(&registry, "m");
    let children: Vec<_> =
        (0..3).map(|_| yard.child("leases::sweepers_and_holders_do_not_disturb_each_other")).collect();
    let held: u32 = children.into_iter().flat_map(lines).map(|said| said.parse::<u32>().expect("a number")).sum();
    assert!(held > 0);
    registry.forget_abandoned_leases().expect("a registry");
    assert_eq!((registry.list_leases(None).expect("a registry").len(), files(&yard)), (0, 0));
}
