//! `cargo xtask bench`: the table of `docs/performance.md`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people at a terminal")]

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use testyard_benches::{Options, PARTS_OF_THE_AGENT, Row, parts_of_the_programs, run};
use testyard_model::{Problem, ProblemKind};

/// Says what may be said, and that it was not.
fn refused() -> ExitCode {
    eprint!(
        "\
cargo xtask bench [--json] [--quick] [--only PART]

  --json        print JSON instead of a table
  --quick       fewer rounds, and none of the rows that take long
  --only PART   one of {} (all of them the agent),
                {} (the command line)
",
        PARTS_OF_THE_AGENT.join(", "),
        parts_of_the_programs().collect::<Vec<_>>().join(", ")
    );
    ExitCode::from(2)
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let (mut json, mut quick, mut only) = (false, false, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--json" => json = true,
            "--quick" => quick = true,
            "--only" => only = words.next(),
            _ => return refused(),
        }
    }
    let is_part = |only: &str| PARTS_OF_THE_AGENT.into_iter().chain(parts_of_the_programs()).any(|part| part == only);
    if only.as_deref().is_some_and(|only| !is_part(only)) {
        return refused();
    }
    match measure(quick, only, json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            for cause in &problem.causes {
                eprintln!("  because: {cause}");
            }
            for hint in &problem.hints {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn measure(quick: bool, only: Option<String>, json: bool) -> Result<(), Problem> {
    let failed = |error: std::io::Error| Problem::from_error(ProblemKind::System, &error);
    let programs = programs().ok_or_else(|| {
        Problem::new(ProblemKind::NotFound, "there is no testyard-agent to measure").hint("cargo xtask bench")
    })?;
    let folder = std::env::temp_dir().join(format!("testyard-bench-{}", std::process::id()));
    std::fs::DirBuilder::new().create(&folder).map_err(failed)?;
    // Another user's machine needs the agent too, wherever this was built.
    let agent = folder.join("testyard-agent");
    std::fs::copy(programs.join("testyard-agent"), &agent).map_err(failed)?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from);
    let options = Options {
        folder: folder.clone(),
        agent,
        programs,
        source,
        quick,
        only,
        progress: Box::new(|row: &Row| eprintln!("{}: {:?} ({})", row.name, row.outcome, row.detail)),
    };
    let report = run(&options);
    remove(&folder);
    let report = report?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report).map_err(|error| failed(error.into()))?);
    } else {
        print!("{}", report.table());
    }
    Ok(())
}

/// Where the programs under measurement are.
fn programs() -> Option<PathBuf> {
    let given = std::env::var_os("TESTYARD_TEST_BIN").map(PathBuf::from);
    let beside = std::env::current_exe().ok().and_then(|own| own.parent().map(PathBuf::from));
    given.into_iter().chain(beside).find(|folder| folder.join("testyard-agent").is_file())
}

fn remove(folder: &Path) {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else { return };
    if let Ok(parent) = std::fs::File::open(parent) {
        // What is left is in the host's temporary folder, under a name of ours.
        let _ = testyard_linux::files::remove_tree(parent.as_fd(), name);
    }
}
