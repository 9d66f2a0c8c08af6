//! Where a home is, and which programs belong to it.

use std::path::{Path, PathBuf};

use testyard_link::asking::Answer;
use testyard_machine::backend::BackendTable;
use testyard_model::{Problem, ProblemKind};
use testyard_registry::{Home, HomeEnvironment};

/// What a [`Testyard`](crate::Testyard) is opened with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The home's folders.
    pub home: Home,
    /// Where `TESTYARD_HOME` shall point for the programs that are started; none leaves it as it is.
    pub testyard_home: Option<PathBuf>,
    /// The `testyard` program, which is started again as each machine's supervisor and for probes.
    pub program: PathBuf,
    /// The `testyard-agent` program.
    pub agent: PathBuf,
    /// The backends there are. A supervisor looks its backend up in its own program's table, so a program that adds
    /// a backend must also be the `program` above.
    pub backends: BackendTable,
    /// Asks whoever starts a machine what its login wants to know, such as a password; none where nobody is there.
    pub ask: Option<Answer>,
}

impl Options {
    /// From this process's environment: `TESTYARD_HOME` or the XDG folders, and the programs beside this one.
    pub fn from_process() -> Result<Self, Problem> {
        Self::of(&HomeEnvironment::from_process(), None)
    }

    /// With this folder as the home, whatever the process's environment says.
    pub fn at(folder: &Path) -> Result<Self, Problem> {
        let environment =
            HomeEnvironment { testyard_home: Some(folder.as_os_str().to_owned()), ..HomeEnvironment::from_process() };
        Self::of(&environment, Some(folder.to_path_buf()))
    }

    fn of(environment: &HomeEnvironment, testyard_home: Option<PathBuf>) -> Result<Self, Problem> {
        let home = Home::load(environment).map_err(|error| error.problem())?;
        let own = std::env::current_exe().map_err(|error| {
            Problem::new(ProblemKind::System, "cannot find the running program's own path").because(error)
        })?;
        // Copied under one of the other two names it is the same program.
        let is_testyard =
            own.file_name().is_some_and(|name| ["testyard", "orbctl", "orb"].iter().any(|known| name == *known));
        let program = if is_testyard { own.clone() } else { beside(&own, "testyard") };
        Ok(Self {
            home,
            testyard_home,
            program,
            agent: beside(&own, "testyard-agent"),
            backends: testyard_backends::built_in(),
            ask: None,
        })
    }
}

/// A program that was installed with this one. Test binaries and examples live one folder below.
fn beside(own: &Path, name: &str) -> PathBuf {
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| own.with_file_name(name))
}
