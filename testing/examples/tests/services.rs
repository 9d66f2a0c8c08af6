//! `examples/services`: forty tests at once, each with a PostgreSQL and a Redis of its own on their default ports.

mod copied;

use std::time::Duration;

use testkit::{Ability, Output, TestHome, User};

const DEADLINE: Duration = Duration::from_secs(300);
const TESTS: usize = 40;

fn forty_pairs_at_once(user: User) {
    let home = TestHome::of(user);
    let example = copied::example(&home, "services");
    let _ = Output::of(&mut home.command(example.join("template.sh")), DEADLINE).expect_success();
    for round in ["cold", "warm"] {
        let mut command = home.cli(&["run", "--jobs", "40"]);
        command.arg(&example);
        let output = Output::of(&mut command, DEADLINE);
        assert_eq!(output.code, 0, "{round}: {output}");
        assert!(output.stdout.contains(&format!("{TESTS} passed, 0 failed, 0 skipped")), "{round}: {output}");
    }
    home.finish();
}

#[test]
fn forty_at_once() {
    testkit::require!(Ability::UserNamespaces);
    testkit::require!(Ability::Program("redis-server"));
    testkit::require!(Ability::Program("pg_lsclusters"));
    forty_pairs_at_once(User::current());
}

#[test]
fn forty_at_once_for_an_ordinary_user() {
    testkit::require!(Ability::UserNamespaces);
    testkit::require!(Ability::OrdinaryUser);
    testkit::require!(Ability::Program("redis-server"));
    testkit::require!(Ability::Program("pg_lsclusters"));
    let user = User::ordinary().expect("just required");
    // The round of the ordinary user does this in the test above.
    if user != User::current() {
        forty_pairs_at_once(user);
    }
}
