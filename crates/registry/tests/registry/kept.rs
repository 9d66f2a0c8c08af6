//! Kept environments are written down, get new times, and go with their machine.

use testyard_model::EnvironmentId;
use testyard_registry::KeptRow;

use crate::support::{Yard, reserved};

#[test]
fn kept_environments_are_listed_oldest_first_until_they_are_forgotten() {
    let yard = Yard::new();
    let registry = yard.registry();
    let machine = reserved(&registry, "m");
    let row = |number: u64, created_ms: i64| KeptRow {
        machine: machine.clone(),
        environment: EnvironmentId(number),
        run: "r".to_owned(),
        suite: "s".to_owned(),
        test: format!("t{number}"),
        created_ms,
        expires_ms: created_ms + 10,
    };
    for row in [row(7, 20), row(3, 30), row(u64::MAX, 10)] {
        registry.record_kept(&row).expect("a registry");
    }
    let longer = KeptRow { expires_ms: 99, ..row(3, 30) };
    registry.record_kept(&longer).expect("a registry");
    assert_eq!(registry.list_kept().expect("a registry"), [row(u64::MAX, 10), row(7, 20), longer.clone()]);
    registry.forget_kept(&machine, EnvironmentId(7)).expect("a registry");
    registry.forget_kept(&machine, EnvironmentId(7)).expect("twice is no error");
    assert_eq!(registry.list_kept().expect("a registry"), [row(u64::MAX, 10), longer]);
}
