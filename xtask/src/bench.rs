//! The benchmarks are a program of their own, in `benches/`; this verb only starts it, optimised.

use std::process::ExitCode;

use crate::cargo::{cargo, has_package, succeeds};
use crate::fault::{Fault, Outcome};
use crate::{install, python};

const PACKAGE: &str = "testyard-benches";

/// `bench ARGS…`, or `bench python ARGS…`.
pub(crate) fn run(arguments: &[String]) -> Outcome<ExitCode> {
    if let Some((part, rest)) = arguments.split_first()
        && part == "python"
    {
        return python::bench(rest);
    }
    if !has_package(PACKAGE)? {
        return Err(Fault::Missing {
            what: format!("there is no package `{PACKAGE}` in this workspace"),
            hint: "testyard bench measures an installed Testyard".to_owned(),
        });
    }
    // The programs that are measured: static and optimised, as users have them.
    let programs = install::install_into(&crate::cargo::target_folder()?.join("testyard"))?;
    let folder = programs[0].parent().map(ToOwned::to_owned).unwrap_or_default();
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--locked", "--package", PACKAGE, "--"]).args(arguments);
    command.env("TESTYARD_TEST_BIN", folder);
    Ok(if succeeds(&mut command)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
