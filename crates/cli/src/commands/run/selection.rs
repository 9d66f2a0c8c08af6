//! `testyard run`: which tests.

use std::path::{Path, PathBuf};

use testyard_model::Problem;
use testyard_runner::filter::Filter;
use testyard_runner::plan::{Plan, PlanError};

/// Which tests are meant.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Selection")]
pub(super) struct Selection {
    /// Only these tests: part of a name, or an expression of name(), suite(), tag(), needs(), owner(), and, or, not
    #[arg(long, short, value_name = "EXPRESSION")]
    filter: Option<String>,
    /// Only list the tests
    #[arg(long)]
    pub(super) list: bool,
}

impl Selection {
    /// The filter that was written.
    pub(super) fn filter(&self) -> Result<Filter, Problem> {
        match &self.filter {
            Some(text) => Filter::parse(text).map_err(|error| error.problem()),
            None => Ok(Filter::All),
        }
    }

    /// The tests at these paths that are meant.
    pub(super) fn plan(&self, paths: &[PathBuf], current: &Path, filter: &Filter) -> Result<Plan, PlanError> {
        Plan::load(paths, current, filter)
    }
}
