//! Refusals of the operating system as people and programs see them.

use testyard_model::{Problem, ProblemKind};

use testyard_linux::Error as SystemError;

/// What the kernel said no to, with the next thing to do where the reason is a common one.
pub(crate) fn of_system(error: &SystemError) -> Problem {
    let problem = error.problem();
    if problem.kind == ProblemKind::Exhausted {
        return problem.hint("remove images that nothing uses: testyard image prune");
    }
    problem
}
