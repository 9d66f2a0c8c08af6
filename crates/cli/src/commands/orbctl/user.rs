//! The user whom a machine's commands run as: made in it, with a home and `sudo` without a password.

use std::time::Duration;

use testyard::Machine;
use testyard_model::{Problem, ProblemKind, UserSpec, milliseconds};
use testyard_protocol::{Exec, RawText};

/// The longest that preparing a machine may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// As `useradd` has it.
const LONGEST: usize = 32;

/// What is run in the machine, as its root: nothing of it hurts where it was done before.
const PREPARE: &str = include_str!("prepare.sh");

/// Whether a machine gives its root other ids than its owner's: only then can a user there be somebody else.
fn has_many_ids() -> bool {
    rustix::process::geteuid().is_root() && testyard_linux::namespace::knows_every_id()
}

/// Whom commands run as unless somebody is named: the caller. An ordinary user's machine has one id, which is its root:
/// there the caller is root, because nobody else could become it.
pub(super) fn default_user() -> String {
    let caller = rustix::process::geteuid();
    if !has_many_ids() {
        return "root".to_owned();
    }
    testyard_linux::user::account_of(caller.as_raw()).map_or_else(|| "root".to_owned(), |account| account.name)
}

/// Refuses what no user can be called.
pub(super) fn check_user(name: &str) -> Result<(), Problem> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let rest = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte));
    if first && rest && name.len() <= LONGEST {
        return Ok(());
    }
    Err(Problem::new(ProblemKind::Usage, format!("not a user's name: {name:?}"))
        .hint("write lower-case letters, digits, `_` and `-`, beginning with a letter"))
}

/// Makes a user in a running machine, with a home and a right to `sudo`. One that is there is left as it is.
pub(super) fn prepare(machine: &mut Machine, user: &str, hosts: &str) -> Result<(), Problem> {
    let said = as_root(machine, &["/bin/sh", "-c", PREPARE, "prepare", user, hosts], Some(PATIENCE))?;
    if said.is_empty() {
        return Ok(());
    }
    Err(Problem::new(ProblemKind::Unsupported, format!("user {user} cannot be made in this image")).because(said))
}

/// Runs a program as the machine's root; what it said on standard error where it failed, else nothing.
pub(super) fn as_root(machine: &mut Machine, argv: &[&str], patience: Option<Duration>) -> Result<String, Problem> {
    let exec = Exec {
        argv: argv.iter().map(|word| RawText::from(*word)).collect(),
        user: Some(UserSpec::Root),
        cwd: Some("/".into()),
        timeout_ms: patience.map(milliseconds),
        ..Exec::default()
    };
    let captured = machine.capture(exec)?;
    if captured.finished.status.success() {
        return Ok(String::new());
    }
    let said = String::from_utf8_lossy(&captured.stderr);
    let last = said.lines().last().unwrap_or("it said nothing");
    Ok(format!("{} ended with {}: {last}", argv[0], captured.finished.status.shell_code()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_called_as_useradd_allows() {
        for good in ["dev", "_apt", "test-user", "u1"] {
            assert!(check_user(good).is_ok(), "{good}");
        }
        for bad in ["", "1u", "-x", "Dev", "a b", "a/b", "a:b", "root;rm", &"x".repeat(33)] {
            assert!(check_user(bad).is_err(), "{bad}");
        }
    }
}
