//! A machine's life: names, ends and beginnings, and that nothing stays.

use testyard_model::{Isolation, MachineName, ProblemKind};

use super::ground::{Broken, Ground, environment, fresh, holds, said, same, shell};
use super::{Ability, Case};
use crate::client::caller;

pub(super) const CASES: &[Case] = &[
    Case { name: "a name is taken once", needs: &[], run: taken_name },
    Case { name: "an architecture that is not there is refused", needs: &[], run: wrong_architecture },
    Case { name: "a restart ends processes and keeps files", needs: &[], run: restart },
    Case {
        name: "environment numbers go on after a restart",
        needs: &[Ability::Workspaces, Ability::Lasting],
        run: numbers_go_on,
    },
    Case { name: "a stopped machine says so", needs: &[], run: stopped },
    Case { name: "a deleted machine leaves nothing", needs: &[], run: deleted },
    Case { name: "two machines share no files", needs: &[Ability::OwnRoot], run: two_machines },
];

/// A machine of a case's own, removed at its end whatever came of it.
fn with_machine(
    ground: &Ground<'_>,
    name: &str,
    act: impl FnOnce(&Ground<'_>) -> Result<(), Broken>,
) -> Result<(), Broken> {
    let name: MachineName = name.parse().expect("a name");
    ground.fixture.create(&name, &ground.fixture.spec())?;
    let outcome = act(&Ground::new(ground.fixture, name.clone()));
    let deleted = ground.fixture.delete(&name);
    outcome?;
    Ok(deleted?)
}

fn taken_name(ground: &Ground<'_>) -> Result<(), Broken> {
    match ground.fixture.create(&ground.machine, &ground.fixture.spec()) {
        Ok(()) => Err(Broken::new("a second machine of the same name was made")),
        Err(problem) => {
            same("the kind of problem", problem.kind, ProblemKind::AlreadyExists)?;
            holds("the problem names the machine", problem.to_string().contains(ground.machine.as_str()))?;
            said(&ground.sh("true")?).map(|_| ())
        }
    }
}

fn wrong_architecture(ground: &Ground<'_>) -> Result<(), Broken> {
    let mut spec = ground.fixture.spec();
    spec.arch = Some("pdp11".to_owned());
    let name: MachineName = "contract-pdp11".parse().expect("a name");
    match ground.fixture.create(&name, &spec) {
        Ok(()) => {
            ground.fixture.delete(&name)?;
            Err(Broken::new("it was made all the same"))
        }
        Err(problem) => {
            same("the kind of problem", problem.kind, ProblemKind::Unsupported)?;
            holds("the problem names what is missing", problem.to_string().contains("pdp11"))
        }
    }
}

fn restart(ground: &Ground<'_>) -> Result<(), Broken> {
    with_machine(ground, "contract-restart", |own| {
        let mark = own.mark();
        let mut connection = own.connect()?;
        let exec = testyard_protocol::Exec { detach: true, ..shell(&format!("exec sleep {mark}")) };
        connection.exec(exec, &[])?.wait_started()?;
        own.await_marked(&mark, 1)?;
        let keeps = own.has(Ability::OwnRoot) && own.has(Ability::Lasting);
        if keeps {
            said(&own.sh("echo kept > /var/tmp/contract-kept")?)?;
        }
        own.fixture.stop(&own.machine)?;
        own.fixture.start(&own.machine)?;
        same("processes of before", own.marked(&mark)?, 0)?;
        if keeps {
            same("the file", own.told(shell("cat /var/tmp/contract-kept"))?, "kept".to_owned())?;
        }
        Ok(())
    })
}

/// What bears an environment's number (a cgroup, a folder, a host name in a log) never means another one later.
fn numbers_go_on(ground: &Ground<'_>) -> Result<(), Broken> {
    with_machine(ground, "contract-numbers", |own| {
        let spec = environment(Isolation::Workspace, caller());
        let number = || own.told(fresh("echo $TESTYARD_ENVIRONMENT", &spec));
        let before = [number()?, number()?];
        own.fixture.stop(&own.machine)?;
        own.fixture.start(&own.machine)?;
        let after = [number()?, number()?];
        holds(
            format!("{after:?} after the restart are others than {before:?} before it"),
            after.iter().all(|number| !number.is_empty() && !before.contains(number)),
        )
    })
}

fn stopped(ground: &Ground<'_>) -> Result<(), Broken> {
    with_machine(ground, "contract-stopped", |own| {
        own.fixture.stop(&own.machine)?;
        match own.fixture.connect(&own.machine) {
            Ok(_) => Err(Broken::new("a stopped machine answers")),
            Err(error) => {
                let problem = error.problem();
                holds("the problem names the machine", problem.to_string().contains(own.machine.as_str()))?;
                holds("it says what to do", !problem.hints.is_empty())
            }
        }
    })
}

fn deleted(ground: &Ground<'_>) -> Result<(), Broken> {
    let before = ground.fixture.leftovers();
    let mark = ground.mark();
    with_machine(ground, "contract-deleted", |own| {
        said(&own.sh("mkdir -p /tmp/a/b/c && chmod 0 /tmp/a/b && echo x > /tmp/y; rm -rf /tmp/a /tmp/y; :")?)?;
        let mut connection = own.connect()?;
        let exec = testyard_protocol::Exec { detach: true, ..shell(&format!("exec sleep {mark}")) };
        connection.exec(exec, &[])?.wait_started()?;
        own.await_marked(&mark, 1)
    })?;
    same("processes of it", ground.marked(&mark)?, 0)?;
    same("what is left", ground.fixture.leftovers(), before)
}

fn two_machines(ground: &Ground<'_>) -> Result<(), Broken> {
    with_machine(ground, "contract-second", |own| {
        said(&own.sh("echo second > /var/tmp/contract-second")?)?;
        let seen = said(&ground.sh("cat /var/tmp/contract-second 2>/dev/null; :")?)?;
        same("what the first machine sees", seen.as_str(), "")
    })
}
