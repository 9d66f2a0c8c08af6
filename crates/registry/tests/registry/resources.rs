//! Intent before creation, proof after it, and a row that cannot go before what it owns.

use proptest::prelude::*;
use testyard_registry::{DestroyError, KernelIdentity, ProcessIdentity, ResourceKind, ResourceState, TransitionError};

use crate::support::{Yard, reserved};

#[test]
fn a_row_stays_while_it_owns_something() {
    let yard = Yard::new();
    let registry = yard.registry();
    let id = reserved(&registry, "web");
    let intents = [
        (ResourceKind::Folder, yard.path()),
        (ResourceKind::Process, "supervisor".into()),
        (ResourceKind::Interface, "veth0".into()),
    ];
    let ids = registry.record_intents(&id, &intents).expect("the machine");
    let folder = KernelIdentity::Inode { device: 3, inode: u64::MAX };
    let process = KernelIdentity::Process(ProcessIdentity { pid: 7, start_ticks: 99 });
    registry.record_made(&[(ids[0], folder), (ids[1], process)]).expect("a registry");
    let owned = registry.load_resources(&id).expect("a registry");
    let states: Vec<_> = owned.iter().map(|resource| resource.state).collect();
    assert_eq!(states, [ResourceState::Made(folder), ResourceState::Made(process), ResourceState::Intended]);
    assert_eq!(owned.iter().map(|r| (r.kind, r.place.clone())).collect::<Vec<_>>(), intents);

    registry.begin_deletion(&id).expect("the machine");
    let error = registry.destroy(&id).expect_err("it owns three things");
    assert!(matches!(error, DestroyError::StillOwns { count: 3, .. }), "{error}");
    assert_eq!(error.problem().hints, ["testyard reap"]);
    registry.forget_resources(&ids).expect("a registry");
    registry.forget_resources(&ids).expect("twice is no error");
    registry.destroy(&id).expect("nothing is left");
    assert!(matches!(registry.record_intent(&id, ResourceKind::File, "/x"), Err(TransitionError::NotFound { .. })));
}

#[test]
fn slots_are_never_given_twice() {
    let yard = Yard::new();
    let registry = yard.registry();
    let id = reserved(&registry, "web");
    for (count, first) in [(64, 1), (8, 65), (1, 73)] {
        assert_eq!(registry.reserve_slots(&id, count).expect("slots"), first);
    }
    registry.begin_deletion(&id).expect("the machine");
    registry.destroy(&id).expect("slots are only numbers");
    assert!(matches!(registry.reserve_slots(&id, 1), Err(TransitionError::NotFound { .. })));
}

fn identity() -> impl Strategy<Value = KernelIdentity> {
    prop_oneof![
        (any::<u64>(), any::<u64>()).prop_map(|(device, inode)| KernelIdentity::Inode { device, inode }),
        (any::<i32>(), any::<u64>())
            .prop_map(|(pid, start_ticks)| KernelIdentity::Process(ProcessIdentity { pid, start_ticks })),
        any::<u64>().prop_map(|id| KernelIdentity::Mount { id }),
        (any::<u32>(), any::<[u8; 6]>()).prop_map(|(index, address)| KernelIdentity::Interface { index, address }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn proofs_survive_the_table(made in prop::collection::vec((0..ResourceKind::ALL.len(), "[a-z/ é]{1,12}", prop::option::of(identity())), 1..12)) {
        let yard = Yard::new();
        let registry = yard.registry();
        let id = reserved(&registry, "m");
        let intents: Vec<_> = made.iter().map(|(kind, place, _)| (ResourceKind::ALL[*kind], place.into())).collect();
        let ids = registry.record_intents(&id, &intents).expect("the machine");
        let proofs: Vec<_> = ids.iter().zip(&made).filter_map(|(id, (_, _, proof))| Some((*id, (*proof)?))).collect();
        registry.record_made(&proofs).expect("a registry");
        for ((resource, intent), (_, _, proof)) in registry.load_resources(&id).expect("a registry").iter().zip(&intents).zip(&made) {
            prop_assert_eq!((resource.kind, &resource.place), (intent.0, &intent.1));
            prop_assert_eq!(resource.state, proof.map_or(ResourceState::Intended, ResourceState::Made));
        }
    }
}
