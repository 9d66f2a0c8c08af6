//! Rows over the installed programs, as users start them.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testyard_model::{Problem, ProblemKind};

use crate::environments::{PAYLOAD, make_folder, resident_mb, told_in_one_line};
use crate::report::{Goal, Row};
use crate::{Options, orbctl, suites};
use testyard_measure::{Contender, Times, alternate, ratio, shown};

/// The command line with a home of its own.
pub(crate) struct Testyard {
    program: PathBuf,
    home: PathBuf,
}

impl Testyard {
    /// Makes its home.
    ///
    /// # Errors
    /// When that folder cannot be made.
    pub(crate) fn at_home(options: &Options, home: PathBuf) -> Result<Self, Problem> {
        make_folder(&home)?;
        Ok(Self { program: options.programs.join("testyard"), home })
    }

    /// One command, its words given with spaces between them.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(line.split_ascii_whitespace());
        command.env("TESTYARD_HOME", &self.home).stdin(Stdio::null());
        command
    }

    /// Runs one; how long the whole process took.
    ///
    /// # Errors
    /// What it says on stderr when it fails.
    pub(crate) fn run(&self, line: &str) -> Result<Duration, Problem> {
        timed(&mut self.command(line))
    }

    /// Forgets every tree that was looked at or sent: the next look is the first.
    pub(crate) fn forget_trees(&self) {
        if let Ok(home) = std::fs::File::open(&self.home) {
            // It need not be there.
            let _ = testyard_linux::files::remove_tree(home.as_fd(), Path::new("sync"));
        }
    }

    /// Deletes every machine of the home, whichever row left it, also one that failed half way. What cannot be deleted is
    /// left to the reaper.
    pub(crate) fn delete_all(&self) {
        let Ok(output) = self.command("list --names").output() else { return };
        for name in String::from_utf8_lossy(&output.stdout).lines() {
            let _ = self.run(&format!("delete {name} --force"));
        }
        let _ = self.run("reap");
    }
}

/// Runs a command to its end; how long the whole process took.
///
/// # Errors
/// What it says on stderr when it fails.
pub(crate) fn timed(command: &mut Command) -> Result<Duration, Problem> {
    let name = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    let took = start.elapsed();
    let output = output.map_err(|error| {
        Problem::new(ProblemKind::NotFound, format!("{name} is not there, or cannot be started")).because(error)
    })?;
    match output.status.success() {
        true => Ok(took),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            let first: Vec<&str> = said.lines().take(3).collect();
            let message = format!("{name} ended with {}", output.status);
            Err(Problem::new(ProblemKind::Command, message).because(first.join(" ")))
        }
    }
}

/// A part that fails becomes a loud skip: the others are still measured.
pub(crate) fn or_skip(
    name: &str,
    goal: Goal,
    unit: &'static str,
    rows: &mut dyn FnMut(Row),
    measured: Result<(f64, String), Problem>,
) {
    rows(match measured {
        Ok((figure, detail)) => Row::measured(name, goal, unit, figure, detail),
        Err(problem) => Row::skipped(name, goal, unit, told_in_one_line(&problem)),
    });
}

/// How two times are compared.
#[derive(Clone, Copy)]
pub(crate) enum Compared {
    /// The peer's over ours.
    Faster,
    /// Ours over the peer's.
    Slower,
}

/// The medians of a peer and of us, who take turns; with both.
pub(crate) fn compared(
    rounds: usize,
    peer: &str,
    theirs: impl FnMut() -> Result<Duration, Problem>,
    ours: impl FnMut() -> Result<Duration, Problem>,
    how: Compared,
) -> Result<(f64, String), Problem> {
    let contenders = vec![Contender::new(peer, theirs), Contender::new("testyard", ours)];
    let times = alternate(rounds, contenders)?;
    let (theirs, ours) = (&times[0], &times[1]);
    let ratio = match how {
        Compared::Faster => theirs.ratio_to(ours),
        Compared::Slower => ours.ratio_to(theirs),
    };
    Ok((ratio, format!("{} / {peer} {}", shown(ours.median()), shown(theirs.median()))))
}

/// What the host refused to a row.
pub(crate) fn failed(error: std::io::Error) -> Problem {
    Problem::from_error(ProblemKind::System, &error)
}

/// Measures them all.
pub(crate) fn rows(options: &Options, testyard: &Testyard, row: &mut dyn FnMut(Row)) {
    lives(options, testyard, row);
    match testyard.run("create bench --backend namespace") {
        Ok(_) => {
            over_machine(options, testyard, row);
            orbctl::asking(options, testyard, row);
            // A machine that cannot be deleted is the next row's problem too, which says so.
            let _ = testyard.run("delete bench --force");
        }
        Err(problem) => {
            let reason = told_in_one_line(&problem);
            row(Row::skipped("rows over one machine: exec, push, pull, memory", Goal::AtMost(4.0), "×", reason));
        }
    }
    if !options.quick {
        orbctl::creating(options, testyard, row);
        or_skip("list of 1,000 machines", Goal::AtMost(20.0), "ms", row, list(testyard));
    }
    suites::rows(options, testyard, row);
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn lives(options: &Options, testyard: &Testyard, row: &mut dyn FnMut(Row)) {
    let rounds = options.rounds(20);
    let mut creations = Vec::new();
    let mut deletions = Vec::new();
    let outcome = (0..rounds).try_for_each(|number| {
        creations.push(testyard.run(&format!("create life-{number} --backend namespace"))?);
        deletions.push(testyard.run(&format!("delete life-{number} --force"))?);
        Ok(())
    });
    let median = |times: Vec<Duration>| {
        let times = Times::new("lives", times);
        (milliseconds(times.median()), format!("median of {}, whole processes", times.count()))
    };
    let created = outcome.clone().map(|()| median(creations));
    or_skip("namespace machine, create until its agent answered", Goal::AtMost(20.0), "ms", row, created);
    or_skip("namespace machine, delete", Goal::AtMost(20.0), "ms", row, outcome.map(|()| median(deletions)));
    let many = many(testyard, 50).map(|time| (time.as_secs_f64(), "50 processes at once".to_owned()));
    or_skip("50 machines created at once", Goal::AtMost(0.6), "s", row, many);
}

/// So many machines at once; how long until all are there. They are deleted again.
fn many(testyard: &Testyard, count: usize) -> Result<Duration, Problem> {
    let start = Instant::now();
    let children: Vec<_> = (0..count)
        .map(|number| {
            let mut command = testyard.command(&format!("create many-{number} --backend namespace"));
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        })
        .collect();
    let done = children.into_iter().filter_map(Result::ok).filter(|_| true).map(wait).filter(|ended| *ended).count();
    let took = start.elapsed();
    let names: Vec<String> = (0..count).map(|number| format!("many-{number}")).collect();
    let deleted = testyard.run(&format!("delete --force {}", names.join(" ")));
    match done {
        done if done == count => deleted.map(|_| took),
        done => Err(Problem::new(ProblemKind::System, format!("only {done} of {count} machines were made"))),
    }
}

fn wait(mut child: Child) -> bool {
    child.wait().is_ok_and(|status| status.success())
}

fn over_machine(options: &Options, testyard: &Testyard, row: &mut dyn FnMut(Row)) {
    let exec = against_true(options, testyard, &format!("exec bench -- {PAYLOAD}"));
    or_skip("testyard exec m true, whole process, against /bin/true", Goal::AtMost(4.0), "×", row, exec);
    let memory = supervisor(testyard).and_then(|pid| {
        let none = || Problem::new(ProblemKind::NotFound, format!("process {pid} is not there"));
        resident_mb(pid).map(|figure| (figure, format!("process {pid}"))).ok_or_else(none)
    });
    or_skip("supervisor, resident", Goal::AtMost(10.0), "MB", row, memory);
    transfers(options, testyard, row);
}

/// A command line of ours, against the least that a process can do.
pub(crate) fn against_true(options: &Options, testyard: &Testyard, line: &str) -> Result<(f64, String), Problem> {
    let theirs = || timed(&mut Command::new(PAYLOAD));
    compared(options.rounds(100), "true", theirs, || testyard.run(line), Compared::Slower)
}

/// The supervisor's process id, as `info` has it.
fn supervisor(testyard: &Testyard) -> Result<i32, Problem> {
    let output = testyard.command("info bench --json").output().map_err(failed)?;
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|error| failed(error.into()))?;
    find_number(&value, "supervisor")
        .ok_or_else(|| Problem::new(ProblemKind::NotFound, "`info --json` names no supervisor's process"))
}

/// The first number below a key whose name starts with `key`.
fn find_number(value: &serde_json::Value, key: &str) -> Option<i32> {
    let fields = value.as_object()?;
    for (name, field) in fields {
        if name.starts_with(key) {
            let number = field.as_i64().or_else(|| field.get("pid")?.as_i64());
            if let Some(number) = number.and_then(|number| i32::try_from(number).ok()) {
                return Some(number);
            }
        }
        if let Some(found) = find_number(field, key) {
            return Some(found);
        }
    }
    None
}

fn transfers(options: &Options, testyard: &Testyard, row: &mut dyn FnMut(Row)) {
    let (size, gigabyte) = if options.quick { (64 << 20, "64 MiB") } else { (1 << 30, "1 GiB") };
    let folder = options.folder.join("t");
    let made = make_folder(&folder).and_then(|()| make_files(&folder, size));
    let rounds = if options.quick { 1 } else { 3 };
    let at = |name: &str| folder.join(name).display().to_string();
    let shell = |line: String| timed(Command::new("sh").args(["-c", &line]));
    let copy = testyard.home.join("copy").display().to_string(); // where a machine's files are
    let mut measure = |name: &str, goal: f64, ours: Timed<'_>, peer: Timed<'_>| {
        let figure = made.clone().and_then(|()| compare(rounds, ours, peer));
        or_skip(name, Goal::AtLeast(goal), "×", row, figure);
    };
    let cp = |from: String| {
        let took = shell(format!("cp {from} {copy}"));
        timed(Command::new("rm").args(["-f", &copy]))?;
        took
    };
    measure(
        &format!("push of a {gigabyte} file, speed of cp"),
        0.7,
        &|| {
            testyard.run("exec bench -- rm -f /var/large")?;
            testyard.run(&format!("push bench {} /var/large", at("large")))
        },
        &|| cp(at("large")),
    );
    measure(
        &format!("pull of a {gigabyte} file, speed of cp"),
        0.7,
        &|| {
            timed(Command::new("rm").args(["-f", &at("back")]))?;
            testyard.run(&format!("pull bench /var/large {}", at("back")))
        },
        &|| cp(at("large")),
    );
    let tar = |from: String| {
        let took = shell(format!("rm -rf {copy}; mkdir {copy}; tar c -C {from} . | tar x -C {copy}"));
        timed(Command::new("rm").args(["-rf", &copy]))?;
        took
    };
    rustix::fs::sync(); // else the kernel would still be writing the large file
    measure(
        "push of 10,000 files, speed of tar into tar",
        1.0,
        &|| {
            testyard.run("exec bench -- rm -rf /var/many")?;
            testyard.run(&format!("push bench {} /var/many", at("many")))
        },
        &|| tar(at("many")),
    );
    measure(
        "pull of 10,000 files, speed of tar into tar",
        1.0,
        &|| {
            timed(Command::new("rm").args(["-rf", &at("again")]))?;
            testyard.run(&format!("pull bench /var/many {}", at("again")))
        },
        &|| tar(at("many")),
    );
}

type Timed<'t> = &'t dyn Fn() -> Result<Duration, Problem>;

/// The median ratio of a peer's time to ours, and both times of that round.
fn compare(rounds: usize, ours: Timed<'_>, peer: Timed<'_>) -> Result<(f64, String), Problem> {
    let mut figures = Vec::new();
    for _ in 0..rounds {
        let (one, other) = (peer()?, ours()?);
        figures.push((ratio(one, other), format!("{} / {}", shown(other), shown(one))));
    }
    figures.sort_by(|one, other| one.0.total_cmp(&other.0));
    Ok(figures.swap_remove(figures.len() / 2))
}

fn make_files(folder: &Path, size: usize) -> Result<(), Problem> {
    // Not all zeros, and nothing that a file system could share.
    let piece: Vec<u8> = (0..1_u32 << 18).flat_map(|number| number.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let mut large = std::fs::File::create(folder.join("large")).map_err(failed)?;
    for _ in 0..size / piece.len() {
        std::io::Write::write_all(&mut large, &piece).map_err(failed)?;
    }
    let many = folder.join("many");
    make_folder(&many)?;
    for number in 0..10_000 {
        let below = many.join(format!("{}", number / 100));
        if number % 100 == 0 {
            make_folder(&below)?;
        }
        std::fs::write(below.join(format!("{number}")), &piece[..500 + number % 3_000]).map_err(failed)?;
    }
    Ok(())
}

fn list(testyard: &Testyard) -> Result<(f64, String), Problem> {
    const COUNT: usize = 1_000;
    let names: Vec<String> = (0..COUNT).map(|number| format!("list-{number}")).collect();
    let delete = || {
        names.chunks(100).for_each(|names| {
            // What cannot be deleted is reaped at the end of the run.
            let _ = testyard.run(&format!("delete --force {}", names.join(" ")));
        })
    };
    for names in names.chunks(10) {
        let children: Vec<_> = names
            .iter()
            .map(|name| {
                let mut command = testyard.command(&format!("create {name} --backend host"));
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
            })
            .collect();
        if !children.into_iter().filter_map(Result::ok).all(wait) {
            delete();
            return Err(Problem::new(ProblemKind::System, "1,000 machines could not be made"));
        }
    }
    let times = alternate(20, vec![Contender::new("list", || testyard.run("list"))]);
    delete();
    let time = times?[0].median();
    Ok((milliseconds(time), "median of 20, whole processes; machines of backend host".to_owned()))
}
