//! `[[service]]` as written, and what cannot be: unknown names, circles, services where there is no place for them.

use std::collections::{BTreeMap, HashMap};

use testyard_model::{Isolation, Network};

use super::error::{ConfigError, ConfigFault, nearest};
use super::{CommandLine, Located, Settings, SuiteFile};
use crate::service::{Readiness, ServiceScope, ServiceUser};

/// One `[[service]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceEntry {
    /// Its name, unique in the suite.
    pub name: Located<String>,
    /// What it runs.
    pub command: CommandLine,
    /// Variables it gets.
    pub env: BTreeMap<String, String>,
    /// Where it runs, relative to the suite's folder or absolute.
    pub cwd: Option<Located<String>>,
    /// Whom it runs as.
    pub user: ServiceUser,
    /// When it counts as ready.
    pub ready: Readiness,
    /// How long it may take until then, in milliseconds.
    pub patience_ms: u64,
    /// Whose it is.
    pub scope: ServiceScope,
    /// Services that are ready before it is started.
    pub after: Vec<Located<String>>,
    /// The number of the signal by which it is asked to end.
    pub stop_signal: i32,
    /// How long it may take to end after that, in milliseconds.
    pub stop_patience_ms: u64,
    /// It may end before the test does.
    pub may_end: bool,
}

/// How long a service may take to be ready that does not say.
pub(super) const PATIENCE_MS: u64 = 30_000;
/// How long a service may take to end that does not say.
pub(super) const STOP_PATIENCE_MS: u64 = 5_000;

/// The signals that `stop` knows by name.
pub(super) const SIGNALS: [(&str, i32); 7] =
    [("TERM", 15), ("INT", 2), ("QUIT", 3), ("HUP", 1), ("USR1", 10), ("USR2", 12), ("KILL", 9)];

/// Refuses services that could not be started, and tests that name them wrongly.
pub(super) fn check(file: &SuiteFile) -> Result<(), ConfigError> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    for service in &file.services {
        if let Some(first) = places.insert(&service.name.value, service.name.span.start) {
            let first_line = file.source.place(first).0;
            let fault = ConfigFault::DuplicateService { name: service.name.value.clone(), first_line };
            return Err(file.source.fault(service.name.span.clone(), fault));
        }
    }
    for service in &file.services {
        for earlier in &service.after {
            let found = find(file, earlier, "after")?;
            if service.scope == ServiceScope::Suite && found.scope == ServiceScope::Environment {
                let fault = ConfigFault::Combination(
                    "a service of the suite cannot come after one that each test has for its own",
                    "give both the same `scope`, or remove this `after`",
                );
                return Err(file.source.fault(earlier.span.clone(), fault));
            }
        }
    }
    for service in &file.services {
        no_circle(file, service, &mut vec![service])?;
    }
    let nothing = Settings::default();
    check_use(file, &file.defaults, &nothing)?;
    let tests = file.tests.iter().map(|test| &test.settings).chain(file.globs.iter().map(|glob| &glob.settings));
    tests.into_iter().try_for_each(|own| check_use(file, own, &file.defaults))
}

fn find<'a>(file: &'a SuiteFile, name: &Located<String>, key: &str) -> Result<&'a ServiceEntry, ConfigError> {
    let names = || file.services.iter().map(|service| service.name.value.as_str());
    file.services.iter().find(|service| service.name.value == name.value).ok_or_else(|| {
        let known = if file.services.is_empty() {
            "the names of [[service]] entries, and this suite has none".to_owned()
        } else {
            names().collect::<Vec<_>>().join(", ")
        };
        let nearest = nearest(&name.value, names()).map(str::to_owned);
        let fault = ConfigFault::UnknownWord { key: key.to_owned(), word: name.value.clone(), nearest, known };
        file.source.fault(name.span.clone(), fault)
    })
}

/// `path` leads from a service, by `after`, to the one that is looked at.
fn no_circle<'a>(
    file: &'a SuiteFile,
    service: &'a ServiceEntry,
    path: &mut Vec<&'a ServiceEntry>,
) -> Result<(), ConfigError> {
    for earlier in &service.after {
        let found = find(file, earlier, "after")?;
        if let Some(start) = path.iter().position(|one| std::ptr::eq(*one, found)) {
            let mut names: Vec<&str> = path[start..].iter().map(|one| one.name.value.as_str()).collect();
            names.push(&found.name.value);
            let fault = ConfigFault::ServiceCircle { circle: names.join(" after ") };
            return Err(file.source.fault(earlier.span.clone(), fault));
        }
        path.push(found);
        no_circle(file, found, path)?;
        path.pop();
    }
    Ok(())
}

fn check_use(file: &SuiteFile, own: &Settings, over: &Settings) -> Result<(), ConfigError> {
    // Where neither is the test's own, the defaults have been refused already.
    let Some(names) = own.services.as_ref().or(over.services.as_ref()) else { return Ok(()) };
    let isolation = own.isolation.as_ref().or(over.isolation.as_ref());
    let network = own.network.as_ref().or(over.network.as_ref());
    for name in names {
        let span = name.span.clone();
        let service = find(file, name, "services")?;
        let refuse = |what, hint| Err(file.source.fault(span.clone(), ConfigFault::Combination(what, hint)));
        let level = isolation.map_or_else(Isolation::default, |level| level.value);
        if level == Isolation::None {
            return refuse(
                "a test with isolation `none` has no environment for services to run in",
                "write isolation = \"namespace\" (or \"workspace\"), or services = []",
            );
        }
        let shared = order(file, std::slice::from_ref(&service.name.value))
            .into_iter()
            .any(|place| file.services[place].scope == ServiceScope::Suite);
        if shared && level != Isolation::Namespace {
            return refuse(
                "a service of the suite is reached through a network that takes isolation `namespace`",
                "write isolation = \"namespace\", or give the service scope = \"environment\"",
            );
        }
        if shared && network.is_some_and(|network| network.value != Network::Private) {
            return refuse(
                "a test that uses a service of the suite shares its network, and can have no other",
                "remove `network`, or give the service scope = \"environment\"",
            );
        }
    }
    Ok(())
}

/// The services that these names mean, with those that must be ready before them, in the order of their start: their
/// places in the file.
pub(crate) fn order(file: &SuiteFile, names: &[String]) -> Vec<usize> {
    fn add(file: &SuiteFile, name: &str, order: &mut Vec<usize>) {
        let Some(place) = file.services.iter().position(|service| service.name.value == name) else { return };
        if order.contains(&place) {
            return;
        }
        // There is no circle in a file that was checked.
        file.services[place].after.iter().for_each(|earlier| add(file, &earlier.value, order));
        order.push(place);
    }
    let mut found = Vec::new();
    names.iter().for_each(|name| add(file, name, &mut found));
    found
}
