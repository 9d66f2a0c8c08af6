//! The wheel: the package with its programs, static, so that older distributions run them too.
//!
//! maturin takes the programs of one package, and `testyard` and `testyard-agent` are two. So the others are built here and
//! wait in `python/wheel-data/scripts`; see docs/adr/0018.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cargo::{host_triple, must_succeed, program, shown, target_folder, workspace_root};
use crate::fault::{Fault, Outcome};
use crate::install::{STATIC, install_into};

/// The program that maturin builds itself, from the manifest that pyproject.toml names.
const BUILT_BY_MATURIN: &str = "testyard";

/// `wheel [--out DIR]`.
pub(crate) fn run(arguments: &[String]) -> Outcome<ExitCode> {
    let out = match arguments {
        [] => target_folder()?.join("wheels"),
        [flag, folder] if flag == "--out" => PathBuf::from(folder),
        _ => return Err(Fault::Usage("`wheel` takes `--out DIR` and nothing else".to_owned())),
    };
    let maturin = super::Environments::of_sources()?.make(&["main"])?.program("maturin");
    println!("{}", build(&maturin, &out)?.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds it into an empty folder, and says where it is.
pub(super) fn build(maturin: &Path, out: &Path) -> Outcome<PathBuf> {
    let programs = install_into(&target_folder()?.join("testyard"))?;
    let scripts = workspace_root().join("python/wheel-data/scripts");
    for folder in [&scripts, &out.to_owned()] {
        if folder.exists() {
            must_succeed(program("rm").args(["-r", "--one-file-system", "--"]).arg(folder))?;
        }
        std::fs::create_dir_all(folder).map_err(|error| Fault::file(folder, &error))?;
    }
    for built in programs.iter().filter(|built| !built.ends_with(BUILT_BY_MATURIN)) {
        let name = built.file_name().unwrap_or_default();
        std::fs::copy(built, scripts.join(name)).map_err(|error| Fault::file(built, &error))?;
    }
    let mut command = program(maturin);
    // The audit is maturin's own: it refuses a program that needs more of a host than the tag promises.
    command.args(["build", "--quiet", "--release", "--auditwheel", "check", "--target", &host_triple()?]);
    command.arg("--out").arg(out);
    command.env("RUSTFLAGS", STATIC).current_dir(workspace_root().join("python"));
    println!("$ RUSTFLAGS=\"{STATIC}\" {}", shown(&command));
    must_succeed(&mut command)?;
    only_wheel(out)
}

fn only_wheel(folder: &Path) -> Outcome<PathBuf> {
    let entries = std::fs::read_dir(folder).map_err(|error| Fault::file(folder, &error))?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let wheel = paths.find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    wheel.ok_or_else(|| Fault::Missing {
        what: format!("maturin left no wheel in {}", folder.display()),
        hint: "what it printed is above".to_owned(),
    })
}
