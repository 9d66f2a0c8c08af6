//! Static release programs, and the shortest way to run them.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::cargo::{cargo, host_triple, must_succeed, shown, target_folder};
use crate::fault::{Fault, Outcome};

/// Each program with its package.
const PROGRAMS: [(&str, &str); 2] = [("testyard", "testyard-cli"), ("testyard-agent", "testyard-agent")];

/// Without an explicit target the flag would reach procedural macros, which cannot be static.
pub(crate) const STATIC: &str = "-C target-feature=+crt-static";

/// Each shell with the file that it completes `testyard` from, below `share`.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/testyard"),
    ("zsh", "zsh/site-functions/_testyard"),
    ("fish", "fish/vendor_completions.d/testyard.fish"),
];

/// `install [--root DIR]`.
pub(crate) fn install(arguments: &[String]) -> Outcome<ExitCode> {
    let root = match arguments {
        [] => default_root()?,
        [flag, folder] if flag == "--root" => PathBuf::from(folder),
        _ => return Err(Fault::Usage("`install` takes `--root DIR` and nothing else".to_owned())),
    };
    let programs = install_into(&root)?;
    for program in &programs {
        let size = std::fs::metadata(program).map_err(|error| Fault::file(program, &error))?.len();
        println!("{} {:.1} MB", program.display(), size as f64 / 1e6);
    }
    install_beside(&programs[0], &root)?;
    Ok(ExitCode::SUCCESS)
}

/// The manual's pages, and completions where each shell looks for them.
fn install_beside(testyard: &Path, root: &Path) -> Outcome<()> {
    let share = root.join("share");
    let pages = share.join("man/man1");
    must_succeed(Command::new(testyard).arg("man").arg(&pages))?;
    for (shell, place) in COMPLETIONS {
        let path = share.join(place);
        let folder = path.parent().unwrap_or(&share);
        std::fs::create_dir_all(folder).map_err(|error| Fault::file(folder, &error))?;
        let file = std::fs::File::create(&path).map_err(|error| Fault::file(&path, &error))?;
        must_succeed(Command::new(testyard).args(["completions", shell]).stdout(file))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// `run ARGS…`: builds, then becomes `testyard run ARGS…`.
pub(crate) fn run(arguments: &[String]) -> Outcome<ExitCode> {
    let root = target_folder()?.join("testyard");
    let programs = install_into(&root)?;
    let mut command = Command::new(&programs[0]);
    command.arg("run").args(arguments);
    println!("$ {}", shown(&command));
    let error = command.exec();
    Err(Fault::Program { line: shown(&command), why: error.to_string() })
}

/// Builds both programs and copies them to `root`/bin.
pub(crate) fn install_into(root: &Path) -> Outcome<Vec<PathBuf>> {
    let triple = host_triple()?;
    let mut command = cargo();
    command.args(["build", "--quiet", "--release", "--locked", "--target", &triple]);
    for (_, package) in PROGRAMS {
        command.args(["--package", package]);
    }
    command.env("RUSTFLAGS", STATIC);
    println!("$ RUSTFLAGS=\"{STATIC}\" {}", shown(&command));
    must_succeed(&mut command)?;
    let built = target_folder()?.join(&triple).join("release");
    let folder = root.join("bin");
    std::fs::create_dir_all(&folder).map_err(|error| Fault::file(&folder, &error))?;
    PROGRAMS.iter().map(|(program, _)| copy_over(&built.join(program), &folder.join(program))).collect()
}

/// By rename, so that a program that runs at the moment can be replaced.
fn copy_over(from: &Path, to: &Path) -> Outcome<PathBuf> {
    let beside = to.with_extension("new");
    std::fs::copy(from, &beside).map_err(|error| Fault::file(from, &error))?;
    std::fs::rename(&beside, to).map_err(|error| Fault::file(to, &error))?;
    Ok(to.to_owned())
}

fn default_root() -> Outcome<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    home.map(|home| Path::new(&home).join(".local")).ok_or_else(|| Fault::Missing {
        what: "HOME is not set, so there is no default place to install to".to_owned(),
        hint: "cargo xtask install --root DIR".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_arguments_are_refused() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for text in ["--root", "DIR", "--root a b"] {
            let fault = install(&words(text)).expect_err(text);
            assert_eq!(fault.exit_code(), 2, "{text}");
        }
    }
}
