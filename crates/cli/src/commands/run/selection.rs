//! `testyard run`: which tests.

use testyard_model::Problem;
use testyard_runner::filter::Filter;
use testyard_runner::plan::{self, Shard, ShardBy};

/// Which tests are meant.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Selection")]
pub(super) struct Selection {
    /// Only these tests: part of a name, or an expression of name(), suite(), tag(), needs(), owner(), variant(),
    /// result(), and, or, not; may be repeated
    #[arg(long, short, value_name = "EXPRESSION")]
    filter: Vec<String>,
    /// Only tests whose `inputs` have changed since this commit, and those that declare none
    #[arg(long, value_name = "REF")]
    changed_since: Option<String>,
    /// Only tests that failed when they last ran
    #[arg(long)]
    last_failed: bool,
    /// Only the I-th of N parts, balanced by how long the tests usually take
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// By what parts are balanced; `names` gives the same parts whatever each host remembers
    #[arg(long, value_name = "WHAT", default_value = "durations", value_parser = ["durations", "names"])]
    shard_by: String,
    /// Only list the tests
    #[arg(long)]
    pub(super) list: bool,
}

impl Selection {
    /// What was written.
    pub(super) fn read(&self, repeat: Option<u32>) -> Result<plan::Selection, Problem> {
        let filters = self.filter.iter().map(|text| Filter::parse(text).map_err(|error| error.problem()));
        Ok(plan::Selection {
            filter: Filter::any_of(filters.collect::<Result<_, _>>()?),
            changed_since: self.changed_since.clone(),
            last_failed: self.last_failed,
            shard: self.shard,
            shard_by: if self.shard_by == "names" { ShardBy::Names } else { ShardBy::Durations },
            repeat,
        })
    }
}
