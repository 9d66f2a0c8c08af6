//! Promise 1: `kill -9` of client, runner, supervisor or agent at any step leaves nothing once the reaper has passed.
//!
//! Which steps an operation goes through is found by doing it once; then each is done again for each of its steps,
//! with the failpoint armed. A step that no operation reaches is a failure: nothing would be known of it.

use std::collections::BTreeSet;

use crate::apart;
use crate::yard::{self, Yard};
use testkit::{Ability, User};
use testyard_model::step::Step;

/// What is done, each with what must be there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Create,
    Exec,
    Environment,
    Run,
    Services,
    Keep,
    Restart,
    Delete,
    Cluster,
    ClusterDelete,
}

impl Operation {
    const ALL: [Self; 10] = [
        Self::Create,
        Self::Exec,
        Self::Environment,
        Self::Run,
        Self::Services,
        Self::Keep,
        Self::Restart,
        Self::Delete,
        Self::Cluster,
        Self::ClusterDelete,
    ];

    /// The command line of it.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Create => &["create", "m"],
            Self::Exec => &["exec", "m", "--", "true"],
            Self::Environment => &["env", "run", "m", "--", "true"],
            Self::Run => &["run", "suite"],
            Self::Services => &["run", "served"],
            Self::Keep => &["run", "kept", "--keep-failed", "--source", "frozen"],
            Self::Restart => &["restart", "m"],
            Self::Delete => &["delete", "m", "--force"],
            Self::Cluster => &["cluster", "create", "slurm", "lab", "--nodes", "1"],
            Self::ClusterDelete => &["cluster", "delete", "lab"],
        }
    }

    /// The step that it ends with, which the client may not wait for.
    fn last(self, user: User) -> &'static str {
        let step = match self {
            Self::Create | Self::Restart => Step::AgentServing,
            Self::Exec => Step::AgentCommandStarted,
            // Cgroups are removed last, and ordinary users may have none.
            Self::Environment | Self::Run | Self::Services | Self::Keep if user.uid == 0 => {
                Step::AgentEnvironmentRemoved
            }
            Self::Environment | Self::Run | Self::Services | Self::Keep => Step::AgentEnvironmentKilled,
            Self::Delete => Step::DeleteRow,
            Self::Cluster => Step::ClusterReady,
            Self::ClusterDelete => Step::ClusterNodesGone,
        };
        step.as_str()
    }

    /// What is done before it.
    fn before(self) -> Option<Self> {
        match self {
            Self::Create | Self::Run | Self::Services | Self::Keep | Self::Cluster => None,
            Self::Exec | Self::Environment | Self::Restart | Self::Delete => Some(Self::Create),
            Self::ClusterDelete => Some(Self::Cluster),
        }
    }

    /// Clusters need several ids, and Slurm.
    fn is_possible(self, user: User) -> bool {
        !matches!(self, Self::Cluster | Self::ClusterDelete)
            || (user.uid == 0 && Ability::Program("slurmctld").check().is_ok())
    }

    /// What it exits with.
    fn code(self) -> i32 {
        i32::from(self == Self::Keep)
    }
}

fn step_of(word: &str) -> Step {
    let found = Step::ALL.iter().find(|step| step.as_str() == word);
    *found.unwrap_or_else(|| panic!("`{word}` was logged, and is no step"))
}

/// The steps of an operation, without those that its machine's creation goes through as well: armed, that would
/// never be there.
fn steps_of(yard: &Yard, operation: Operation, user: User) -> BTreeSet<&'static str> {
    yard.forget_steps();
    let mut known = BTreeSet::new();
    if let Some(before) = operation.before() {
        yard.logged(before.arguments());
        assert!(yard.was_reached(before.last(user)));
        known = yard.steps();
    }
    yard.logged_with(operation.arguments(), operation.code());
    let last = operation.last(user);
    assert!(yard.was_reached(last), "{operation:?} ends with {last}");
    let steps = yard.steps().into_iter().filter(|word| !known.contains(word));
    let steps = steps.map(|word| step_of(&word).as_str()).collect();
    assert_eq!(yard.left(), [""; 0], "{operation:?}, whole");
    steps
}

/// Kills at one step of one operation; what is left after one reaper and the deletion of what lives on.
fn kill_at(yard: &Yard, operation: Operation, step: &str) -> Vec<String> {
    yard.forget_steps();
    let mut left = Vec::new();
    let made = operation.before().is_none_or(|before| yard.armed(step, before.arguments()).code == 0);
    if made {
        if operation == Operation::Keep {
            // A tree that was frozen before is not copied again.
            yard.change_tree(step);
        }
        let output = yard.armed(step, operation.arguments());
        if !yard.was_reached(step) {
            left.push(format!("the step was not reached: {output}"));
        }
    } else {
        left.push("the machine could not be made".to_owned());
    }
    left.extend(yard.left());
    left
}

fn matrix(user: User) -> BTreeSet<&'static str> {
    let mut reached = BTreeSet::new();
    let mut failures = Vec::new();
    let mut yard = Yard::new(user);
    for operation in Operation::ALL.into_iter().filter(|operation| operation.is_possible(user)) {
        let mut steps = steps_of(&yard, operation, user);
        if matches!(operation, Operation::Services | Operation::Keep | Operation::Cluster | Operation::ClusterDelete) {
            // The others are those of every run, or of every machine.
            steps.retain(|step| !reached.contains(step));
        }
        for step in &steps {
            let left = kill_at(&yard, operation, step);
            let verdict = if left.is_empty() { "nothing left" } else { "LEFT" };
            yard::say(&format!("{operation:?} killed at {step}: {verdict} {}", left.join("; ")));
            if !left.is_empty() {
                failures.push(format!("{operation:?} killed at {step}:\n    {}", left.join("\n    ")));
                // What comes next is not to blame for it.
                yard = Yard::new(user);
            }
        }
        reached.extend(steps);
    }
    assert!(failures.is_empty(), "{} of the matrix:\n{}", failures.len(), failures.join("\n"));
    reached
}

#[test]
fn killed_at_every_step_nothing_is_left() {
    testkit::require!(Ability::Root);
    testkit::require!(Ability::Program("slurmctld"));
    if apart::is_apart("kill_matrix::killed_at_every_step_nothing_is_left") {
        let reached = matrix(User::current());
        let all: BTreeSet<&str> = Step::ALL.iter().map(|step| step.as_str()).collect();
        let never: Vec<&&str> = all.difference(&reached).collect();
        assert!(never.is_empty(), "no operation reaches {never:?}");
    }
}

#[test]
fn killed_at_every_step_nothing_is_left_for_an_ordinary_user() {
    testkit::require!(Ability::Root);
    testkit::require!(Ability::OrdinaryUser);
    if apart::is_apart("kill_matrix::killed_at_every_step_nothing_is_left_for_an_ordinary_user") {
        matrix(User::ordinary().expect("just required"));
    }
}
