//! The Python package: its checks, its wheel, and its tests as root and as an ordinary user.
//!
//! ```text
//! target/python/fast/NAME     virtual environments with links to the sources and to the debug programs
//! target/python/wheel/NAME    the same with the wheel installed, as users have it
//! target/wheels               the wheel
//! ```
//!
//! `python/tools/environments.py` makes them; `python/requirements/NAME.txt` says what is in each.

mod wheel;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::cargo::{cargo, must_succeed, program, shown, succeeds, target_folder, workspace_root};
use crate::fault::{Fault, Outcome};
use crate::requirements;
use crate::suite::{Run, in_ci};
use crate::tally::Reader;
use crate::unprivileged::Stage;

pub(crate) use wheel::run as wheel;

/// The environments whose requirements contradict those of `main`, or are fewer on purpose.
const OTHERS: [&str; 6] = ["flow-0.0.3", "flow-3", "slurm-sdk", "cluster", "pytest", "pytest-python3.9"];

/// Tests mostly wait: three at once keep two processors busy. Arguments that follow may say otherwise.
const AT_ONCE: [&str; 4] = ["-n", "3", "--dist", "worksteal"];

/// `python [--fast] [ARGS…]`.
pub(crate) fn run(arguments: &[String]) -> Outcome<ExitCode> {
    requirements::provide()?;
    let mut run = Run::default();
    match arguments.split_first() {
        Some((flag, rest)) if flag == "--fast" => fast(&mut run, rest)?,
        _ => as_installed(&mut run, arguments)?,
    }
    Ok(run.close(in_ci()))
}

/// The sources as they stand, beside the debug programs; as whoever runs this.
fn fast(run: &mut Run, arguments: &[String]) -> Outcome<()> {
    must_succeed(cargo().args(["build", "--quiet", "--locked", "-p", "testyard-cli", "-p", "testyard-agent"]))?;
    let Some(environments) = made(run, Environments::of_sources()?, &["main"])? else { return Ok(()) };
    checks(run, &environments)?;
    let log = new_log()?;
    let mut command = program(environments.program("python"));
    environments.pytest(&mut command, &workspace_root().join("python"), arguments);
    run.tests(command.env("TESTYARD_SKIP_LOG", &log), Reader::Pytest, &log)
}

/// The wheel, installed; as root and as an ordinary user where root runs this.
pub(crate) fn as_installed(run: &mut Run, arguments: &[String]) -> Outcome<()> {
    let Some(sources) = made(run, Environments::of_sources()?, &["main"])? else { return Ok(()) };
    checks(run, &sources)?;
    let wheels = target_folder()?.join("wheels");
    let wheel = run.time("the wheel", || wheel::build(&sources.program("maturin"), &wheels))?;
    let environments = Environments::of_wheel(wheel)?;
    let Some(environments) = made(run, environments, &["main"])? else { return Ok(()) };
    run.time("other virtual environments", || {
        // What could not be made is skipped by each test that needs it, by name.
        OTHERS.into_iter().try_for_each(|name| environments.try_make(&[name]).map(drop))
    })?;
    let log = new_log()?;
    let mut command = program(environments.program("python"));
    environments.pytest(&mut command, &workspace_root().join("python"), arguments);
    run.tests(command.env("TESTYARD_SKIP_LOG", &log), Reader::Pytest, &log)?;
    if requirements::is_root() {
        as_ordinary_user(run, &environments, arguments)?;
    }
    Ok(())
}

/// `bench python ARGS…`: the benchmarks of the installed wheel.
pub(crate) fn bench(arguments: &[String]) -> Outcome<ExitCode> {
    let maturin = Environments::of_sources()?.make(&["main"])?.program("maturin");
    let wheel = wheel::build(&maturin, &target_folder()?.join("wheels"))?;
    let environments = Environments::of_wheel(wheel)?.make(&["main"])?;
    let mut command = program(environments.program("python"));
    command
        .args(["-B", "benches/python/run.py"])
        .args(arguments)
        .env_remove("TESTYARD_BINARY")
        .env_remove("PYTHONPATH");
    // What cannot be had is a row that says so.
    if environments.try_make(&["slurm-sdk"])? {
        let fetched = program("examples/real/fetch.sh").stderr(Stdio::inherit()).output();
        let project =
            fetched.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
        command.args(["--project", &project]);
    }
    command.arg("--environments").arg(&environments.folder);
    Ok(if succeeds(&mut command)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The same tests once more, from copies of the sources; of the environments too where that user cannot see them.
fn as_ordinary_user(run: &mut Run, environments: &Environments, arguments: &[String]) -> Outcome<()> {
    let stage = match Stage::empty()? {
        Ok(stage) => stage,
        Err(reason) => {
            run.skip("the Python tests as an ordinary user", reason);
            return Ok(());
        }
    };
    let outcome = on_stage(run, &stage, environments, arguments);
    stage.remove().and(outcome)
}

fn on_stage(run: &mut Run, stage: &Stage, environments: &Environments, arguments: &[String]) -> Outcome<()> {
    for name in ["python", "docs", "README.md", "Cargo.toml"] {
        stage.take(&workspace_root().join(name), &format!("source/{name}"))?;
    }
    let mut seen = stage.command(&environments.program("python"));
    // An interpreter that starts, but cannot read what makes it a virtual one, is the distribution's.
    let seen =
        succeeds(seen.args(["-c", "import sys; sys.exit(sys.prefix == sys.base_prefix)"]).stderr(Stdio::null()))?;
    let copied = if seen { None } else { Some(environments.on(stage)?) };
    let environments = copied.as_ref().unwrap_or(environments);
    let mut command = stage.command(&environments.program("python"));
    let sources = stage.source().join("python");
    // What takes minutes and is the same for both was root's.
    command.env("TESTYARD_TEST_AFTER_ROOT", "1");
    run.tests(environments.pytest(&mut command, &sources, arguments), Reader::Pytest, stage.skip_log())
}

/// What is looked for without running anything.
fn checks(run: &mut Run, environments: &Environments) -> Outcome<()> {
    let folder = workspace_root().join("python");
    let newer = ["--quiet", "--no-tips", "--target=3.9-", "--violations", "--eval-annotations", "src"];
    let tools: [(&str, &[&str]); 4] = [
        ("ruff", &["check", "--quiet", "--config=pyproject.toml", "src", "tests", "tools", "../benches/python"]),
        (
            "ruff",
            &["format", "--check", "--quiet", "--config=pyproject.toml", "src", "tests", "tools", "../benches/python"],
        ),
        ("mypy", &["--no-error-summary"]),
        // What a newer Python has besides its words: modules, functions and their parameters.
        ("vermin", &newer),
    ];
    for (name, words) in tools {
        let mut command = program(environments.program(name));
        command.args(words).current_dir(&folder);
        run.command(&format!("{name} {}", words[0]), &mut command)?;
    }
    Ok(())
}

fn new_log() -> Outcome<PathBuf> {
    let log = target_folder()?.join("python-skips.jsonl");
    std::fs::write(&log, "").map_err(|error| Fault::file(&log, &error))?;
    Ok(log)
}

/// The environments, or a counted skip where a registry cannot be reached.
fn made(run: &mut Run, environments: Environments, names: &[&str]) -> Outcome<Option<Environments>> {
    if run.time("a virtual environment", || environments.try_make(names))? {
        return Ok(Some(environments));
    }
    run.skip(
        "the Python package",
        "its development requirements could not be installed; what pip said is above".to_owned(),
    );
    Ok(None)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Virtual environments of one kind.
pub(super) struct Environments {
    folder: PathBuf,
    kind: Kind,
}

/// What of ours is in them.
enum Kind {
    /// Links to the sources, and to the programs in this folder.
    Sources(PathBuf),
    Wheel(PathBuf),
}

impl Environments {
    fn of_sources() -> Outcome<Self> {
        let target = target_folder()?;
        Ok(Self { folder: target.join("python/fast"), kind: Kind::Sources(target.join("debug")) })
    }

    fn of_wheel(wheel: PathBuf) -> Outcome<Self> {
        Ok(Self { folder: target_folder()?.join("python/wheel"), kind: Kind::Wheel(wheel) })
    }

    /// Copies on the stage. Scripts begin with the path of their interpreter, so that is written anew.
    fn on(&self, stage: &Stage) -> Outcome<Self> {
        let folder = stage.take(&self.folder, "environments")?;
        let kind = match &self.kind {
            Kind::Sources(programs) => Kind::Sources(programs.clone()),
            Kind::Wheel(wheel) => Kind::Wheel(stage.take(wheel, &file_name(wheel))?),
        };
        let change = format!("1s|^#!{}/|#!{}/|", self.folder.display(), folder.display());
        let script = "find */bin -type f -exec grep -lIZ '^#!' {} + | xargs -0r sed -i \"$0\"";
        must_succeed(program("sh").args(["-c", script, &change]).current_dir(&folder))?;
        Ok(Self { folder, kind })
    }

    /// Makes those that are not there; whether all are now.
    fn try_make(&self, names: &[&str]) -> Outcome<bool> {
        let mut command = program("/usr/bin/python3");
        command.arg("python/tools/environments.py").arg("--folder").arg(&self.folder);
        match &self.kind {
            Kind::Sources(programs) => command.arg("--programs").arg(programs),
            Kind::Wheel(wheel) => command.arg("--wheel").arg(wheel),
        };
        println!("$ {}", shown(command.args(names)));
        succeeds(&mut command)
    }

    fn make(self, names: &[&str]) -> Outcome<Self> {
        if self.try_make(names)? {
            return Ok(self);
        }
        Err(Fault::Missing {
            what: format!("{} could not be made; what was printed is above", self.folder.display()),
            hint: "pip must reach its registry".to_owned(),
        })
    }

    /// A program of the main environment.
    fn program(&self, name: &str) -> PathBuf {
        self.folder.join("main/bin").join(name)
    }

    /// Makes the command that starts Python run the tests of a copy of `python/`.
    fn pytest<'a>(&self, python: &'a mut Command, sources: &Path, arguments: &[String]) -> &'a mut Command {
        python.args(["-m", "pytest"]).args(AT_ONCE).args(arguments).current_dir(sources);
        python.env_remove("TESTYARD_BINARY").env_remove("PYTHONPATH");
        match &self.kind {
            Kind::Sources(programs) => python.env("TESTYARD_TEST_PROGRAMS", programs),
            Kind::Wheel(wheel) => python.env("TESTYARD_TEST_WHEEL", wheel),
        };
        python.env("TESTYARD_TEST_ENVIRONMENTS", &self.folder)
    }
}
