//! Machines' rows: names, states, many at once.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::thread;

use proptest::prelude::*;
use testyard_model::{MachineState, Problem, ProblemKind};
use testyard_registry::{ProcessIdentity, RenameError, ReserveError, TransitionError};

use crate::support::{Yard, in_child, lines, machine, name, reserved};

#[test]
fn a_machine_is_what_was_written() {
    let yard = Yard::new();
    let registry = yard.registry();
    let mut asked = machine("web");
    asked.spec.memory = Some("512M".parse().expect("a size"));
    asked.expires_ms = Some(5_000);
    let id = registry.reserve_name(&asked).expect("a free name");
    let row = registry.find(&asked.name).expect("a registry").expect("the machine");
    assert_eq!((row.id.clone(), row.state), (id.clone(), MachineState::Creating));
    assert_eq!((row.spec.clone(), row.created_ms, row.expires_ms), (asked.spec, 1_000, Some(5_000)));
    assert_eq!(&row.host, registry.host().expect("/proc"));

    let supervisor = ProcessIdentity { pid: 42, start_ticks: u64::MAX };
    registry.record_supervisor(&id, Some(supervisor)).expect("the machine");
    registry.record_agent(&id, &serde_json::json!({"version": 1})).expect("the machine");
    registry.record_generation(&id, 3).expect("the machine");
    registry.record_expiry(&id, None).expect("the machine");
    // Another process sees it.
    let row = yard.registry().load(&id).expect("a registry").expect("the machine");
    assert_eq!((row.supervisor, row.generation, row.expires_ms), (Some(supervisor), 3, None));
    assert_eq!(row.agent, Some(serde_json::json!({"version": 1})));
    let info = row.into_info(vec!["a limit".to_owned()]);
    assert_eq!((info.name.as_str(), info.supervisor_pid), ("web", Some(42)));
    assert_eq!(registry.find(&name("other")).expect("a registry"), None);
    registry.verify().expect("a sound file");
}

#[test]
fn a_taken_name_is_told_with_the_others_state() {
    let yard = Yard::new();
    let registry = yard.registry();
    let id = reserved(&registry, "web");
    registry.transition(&id, MachineState::Creating, MachineState::Running).expect("a way");
    let error = registry.reserve_name(&machine("web")).expect_err("it is taken");
    assert_eq!(error.to_string(), "machine `web` already exists and is running");
    assert_eq!(error.problem().kind, ProblemKind::AlreadyExists);
    assert!(error.problem().hints.iter().any(|hint| hint.contains("testyard delete web")));

    reserved(&registry, "db");
    assert!(matches!(registry.rename(&name("db"), &name("web")), Err(RenameError::AlreadyExists { .. })));
    assert!(matches!(registry.rename(&name("none"), &name("x")), Err(RenameError::NotFound { .. })));
    registry.rename(&name("web"), &name("web")).expect("its own name");
    registry.rename(&name("web"), &name("front")).expect("a free name");
    assert_eq!(registry.find(&name("front")).expect("a registry").map(|row| row.id), Some(id));
    reserved(&registry, "web");
}

#[test]
fn states_change_only_from_the_state_they_are_in() {
    let yard = Yard::new();
    let registry = yard.registry();
    let id = reserved(&registry, "web");
    let error = registry.transition(&id, MachineState::Running, MachineState::Stopping).expect_err("it is creating");
    assert_eq!(error.to_string(), "machine `web` is creating, not running");
    let forbidden = registry.transition(&id, MachineState::Creating, MachineState::Stopped);
    assert!(matches!(forbidden, Err(TransitionError::Forbidden { .. })));
    let cause = Problem::new(ProblemKind::System, "it broke").hint("mend it");
    registry.record_failure(&id, MachineState::Creating, &cause).expect("a way");
    let row = registry.load(&id).expect("a registry").expect("the machine");
    assert_eq!((row.state, row.cause), (MachineState::Failed, Some(cause)));
    registry.transition(&id, MachineState::Failed, MachineState::Starting).expect("a way");
    assert_eq!(registry.load(&id).expect("a registry").expect("the machine").cause, None);

    assert!(registry.destroy(&id).is_err(), "it is not being deleted");
    assert_eq!(registry.begin_deletion(&id).expect("the machine"), MachineState::Starting);
    assert_eq!(registry.begin_deletion(&id).expect("the machine"), MachineState::Deleting);
    registry.destroy(&id).expect("nothing is left");
    registry.destroy(&id).expect("twice is no error");
    for outcome in [registry.begin_deletion(&id).map(drop), registry.record_generation(&id, 1)] {
        assert!(matches!(outcome, Err(TransitionError::NotFound { .. })));
    }
    assert!(registry.list().expect("a registry").is_empty());
}

#[test]
fn the_same_name_at_once_in_threads_gives_one() {
    let yard = Yard::new();
    let (first, second) = (yard.registry(), yard.registry());
    for round in 0..50 {
        let barrier = Barrier::new(4);
        let asked = machine(&format!("m{round}"));
        let outcomes = thread::scope(|scope| {
            let tries: Vec<_> = [&first, &first, &second, &second]
                .map(|registry| {
                    let (barrier, asked) = (&barrier, &asked);
                    scope.spawn(move || {
                        barrier.wait();
                        registry.reserve_name(asked)
                    })
                })
                .into();
            tries.into_iter().map(|one| one.join().expect("no panic")).collect::<Vec<_>>()
        });
        let made: Vec<_> = outcomes.iter().flatten().collect();
        assert_eq!(made.len(), 1);
        for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            let ReserveError::AlreadyExists { id, state, .. } = error else { panic!("{error}") };
            assert_eq!((id, *state), (made[0], MachineState::Creating));
        }
    }
}

const RIVALS: usize = 6;
const NAMES: usize = 40;

#[test]
fn the_same_names_at_once_in_processes_give_one_each() {
    if let Some(registry) = in_child() {
        // All begin when the test closes their input.
        std::io::read_to_string(std::io::stdin()).expect("an end");
        for n in 0..NAMES {
            match registry.reserve_name(&machine(&format!("m{n}"))) {
                Ok(id) => {
                    registry.transition(&id, MachineState::Creating, MachineState::Running).expect("a way");
                    registry.reserve_slots(&id, 10).expect("slots");
                    println!("child: m{n} {id}");
                }
                Err(ReserveError::AlreadyExists { .. }) => {}
                Err(error) => panic!("{error}: {:?}", error.problem()),
            }
        }
        return;
    }
    let yard = Yard::new();
    // The first openers also race to make the file.
    let children: Vec<_> =
        (0..RIVALS).map(|_| yard.child("machines::the_same_names_at_once_in_processes_give_one_each")).collect();
    let said: Vec<String> = children.into_iter().flat_map(lines).collect();
    assert_eq!(said.len(), NAMES, "{said:?}");
    let rows = yard.registry().list().expect("a registry");
    let listed: BTreeSet<String> = rows.iter().map(|row| format!("{} {}", row.name, row.id)).collect();
    assert_eq!(listed, said.into_iter().collect());
    assert!(rows.iter().all(|row| row.state == MachineState::Running));
}

fn state() -> impl Strategy<Value = MachineState> {
    prop::sample::select(MachineState::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The table agrees with a plain variable, whatever is tried.
    #[test]
    fn transitions_follow_the_model(steps in prop::collection::vec((state(), state()), 1..40)) {
        let yard = Yard::new();
        let registry = yard.registry();
        let id = reserved(&registry, "m");
        let mut current = MachineState::Creating;
        for (from, to) in steps {
            let outcome = registry.transition(&id, from, to);
            let allowed = from == current && from.may_become(to);
            prop_assert_eq!(outcome.is_ok(), allowed, "{} {} {}", current, from, to);
            if allowed {
                current = to;
            }
            let row = registry.load(&id).expect("a registry").expect("the machine");
            prop_assert_eq!(row.state, current);
        }
    }
}
