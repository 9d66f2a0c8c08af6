//! `[cluster]` as written, and tests that use it where they cannot.

use testyard_model::{ByteSize, ImageReference, Isolation, Network};

use super::error::{ConfigError, ConfigFault};
use super::read::TableReader;
use super::{Settings, SuiteFile};
use crate::cluster::SuiteCluster;

pub(super) fn read_cluster(table: &TableReader<'_>) -> Result<SuiteCluster, ConfigError> {
    if let Some(kind) = table.string("kind")?.filter(|kind| kind.value != "slurm") {
        return Err(table.bad("kind", format!("{:?} is no kind of cluster", kind.value), "write kind = \"slurm\""));
    }
    let small = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    let words = table.strings("partitions")?.unwrap_or_default();
    Ok(SuiteCluster {
        nodes: table.count("nodes", 1..=SuiteCluster::MOST_NODES.into())?.map_or(1, small),
        cpus: table.count("cpus", 1..=SuiteCluster::MOST_CPUS.into())?.map(small),
        memory: table.parsed::<ByteSize>("memory", "write memory = \"4G\"")?.map(|size| size.value),
        partitions: words.into_iter().map(|word| word.value).collect(),
        accounting: table.boolean("accounting")?.unwrap_or(false),
        outbound: table.boolean("outbound")?.unwrap_or(false),
        user: table.string("user")?.map(|user| user.value),
        password: table.string("password")?.map(|password| password.value),
        image: table
            .parsed::<ImageReference>("image", "list images with `testyard image list`")?
            .map(|image| image.value),
        source: table.boolean("source")?.unwrap_or(true),
    })
}

/// Refuses tests that use a cluster which the suite has not, or which they could not reach.
pub(super) fn check(file: &SuiteFile) -> Result<(), ConfigError> {
    check_use(file, &file.defaults, &Settings::default())?;
    let tests = file.tests.iter().map(|test| &test.settings).chain(file.globs.iter().map(|glob| &glob.settings));
    tests.into_iter().try_for_each(|own| check_use(file, own, &file.defaults))
}

fn check_use(file: &SuiteFile, own: &Settings, over: &Settings) -> Result<(), ConfigError> {
    let Some(used) = own.cluster.as_ref().or(over.cluster.as_ref()).filter(|used| used.value) else { return Ok(()) };
    let refuse = |what, hint| Err(file.source.fault(used.span.clone(), ConfigFault::Combination(what, hint)));
    if file.cluster.is_none() {
        return refuse("this suite has no cluster", "write a table [cluster] with nodes = 2, or remove `cluster`");
    }
    let isolation = own.isolation.as_ref().or(over.isolation.as_ref()).map_or_else(Isolation::default, |one| one.value);
    let network = own.network.as_ref().or(over.network.as_ref());
    if isolation >= Isolation::Namespace && network.is_some_and(|network| network.value != Network::Host) {
        return refuse(
            "a test reaches the suite's cluster on the host's loopback, and this one has another network",
            "remove `network`, or write network = \"host\"",
        );
    }
    Ok(())
}
