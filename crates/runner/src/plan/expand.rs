//! From a suite file to its tests: globs become files, templates commands, and every path is looked up.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use globset::{GlobBuilder, GlobMatcher};
use testyard_model::{EnvironmentLimits, Isolation, Network};

use super::error::PlanError;
use super::find::Found;
use super::variants;
use super::{PlannedSuite, PlannedTest};
use crate::job::Preparation;
use crate::service::Service;
use crate::suite::{
    CommandLine, ConfigFault, FILE_NAME, GlobEntry, Located, PLACEHOLDERS, ServiceEntry, Settings, SuiteFile,
    SuiteSource,
};

/// How long `prepare` and `restore` may take where the suite does not say.
const PREPARATION: Duration = Duration::from_secs(600);
/// After how long a test is called slow that does not say.
const SLOW_AFTER: Duration = Duration::from_secs(60);

/// A suite's tests, in the order of its file; those of one glob sorted by path.
pub(super) fn suite(found: &Found) -> Result<(PlannedSuite, Vec<PlannedTest>), PlanError> {
    let read = |source| PlanError::Read { path: found.file.clone(), source };
    let text = std::fs::read_to_string(&found.file).map_err(read)?;
    let file = crate::suite::parse(&text, &found.file)?;
    let root = found.file.parent().unwrap_or(Path::new("/")).to_owned();
    let folder_name = root.file_name().unwrap_or(OsStr::new("root")).to_string_lossy().into_owned();
    let name = file.name.as_ref().map_or(folder_name, |name| name.value.clone());
    let services = file.services.iter().map(|entry| service(&file, &root, entry)).collect::<Result<Vec<_>, _>>()?;
    let mut tests = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for entry in &file.tests {
        places.insert(entry.name.value.clone(), entry.name.span.start);
        let command = Command { argv: entry.command.argv(), file: None };
        tests.push(test(&file, &root, &services, entry.name.value.clone(), command, &entry.settings)?);
    }
    for entry in &file.globs {
        let first = entry.globs.first().map_or(0..0, |glob| glob.span.clone());
        // Thousands of files may match; what the entry says of all of them is worked out once.
        let none = Command { argv: Vec::new(), file: None };
        let alike = test(&file, &root, &services, String::new(), none, &entry.settings)?;
        let paths = matching(&file.source, &root, entry)?;
        // Growing step by step would copy all of them, and touch new memory, again and again.
        tests.reserve(paths.len());
        places.reserve(paths.len());
        for path in paths {
            let name = path.to_str().ok_or_else(|| not_text(&file.source, &root.join(&path), &first))?.to_owned();
            if let Some(first_place) = places.insert(name.clone(), first.start) {
                let fault = ConfigFault::DuplicateTest { name, first_line: file.source.place(first_place).0 };
                return Err(file.source.fault(first, fault).into());
            }
            let Command { argv, file } = command_for(&file, &root, entry, &name)?;
            tests.push(PlannedTest { name, argv, file, ..alike.clone() });
        }
    }
    let mut tests = variants::expand(&file, tests);
    variants::quarantine(&file, &mut tests)?;
    let preparation = preparation(&file);
    Ok((PlannedSuite { name, root, file: Arc::new(file), preparation, services }, tests))
}

fn preparation(file: &SuiteFile) -> Option<Arc<Preparation>> {
    let written = &file.preparation;
    let (prepare, restore) = (written.prepare.as_ref(), written.restore.as_ref());
    prepare.or(restore)?;
    Some(Arc::new(Preparation {
        prepare: prepare.map(CommandLine::argv),
        restore: restore.map(CommandLine::argv),
        inputs: written.inputs.clone(),
        env: file.defaults.env.clone(),
        user: file.defaults.user.unwrap_or_default(),
        network: file.defaults.network.as_ref().map_or_else(Network::default, |network| network.value),
        timeout: written.timeout_ms.map_or(PREPARATION, Duration::from_millis),
    }))
}

struct Command {
    argv: Vec<String>,
    file: Option<PathBuf>,
}

fn test(
    file: &SuiteFile,
    root: &Path,
    services: &[Arc<Service>],
    name: String,
    command: Command,
    own: &Settings,
) -> Result<PlannedTest, PlanError> {
    let settings = own.over(&file.defaults);
    let cwd = match &settings.cwd {
        None => root.to_owned(),
        Some(folder) => existing_folder(&file.source, root, folder)?,
    };
    let isolation = settings.isolation.as_ref().map_or_else(Isolation::default, |level| level.value);
    let uses_cluster = settings.cluster.as_ref().is_some_and(|used| used.value);
    let network = if isolation < Isolation::Namespace || uses_cluster {
        Network::Host
    } else {
        settings.network.as_ref().map_or_else(Network::default, |network| network.value)
    };
    let resources = settings.resources;
    let mut test = PlannedTest {
        suite: 0,
        name,
        file: command.file,
        argv: command.argv,
        cwd,
        env: settings.env,
        needs: Vec::new(),
        need_spans: Vec::new(),
        isolation,
        network,
        limits: EnvironmentLimits {
            memory: resources.memory,
            pids: resources.pids,
            cpus: resources.cpus,
            disk: resources.disk,
        },
        exclusive: resources.exclusive,
        user: settings.user.unwrap_or_default(),
        timeout: settings.timeout_ms.map(Duration::from_millis),
        tags: settings.tags,
        owner: settings.owner,
        retries: settings.retries.unwrap_or(0),
        outputs: settings.outputs,
        artifacts: settings.artifacts,
        inputs: settings.inputs,
        slow_after: settings.slow_after_ms.map_or(SLOW_AFTER, Duration::from_millis),
        variant: None,
        backend: file.backend.as_ref().map(|backend| backend.value.clone()),
        image: file.image.as_ref().map(|image| image.value.clone()),
        quarantine: None,
        repetition: None,
        known: None,
        services: used(file, services, settings.services.as_deref().unwrap_or_default()),
        cluster: file.cluster.clone().filter(|_| uses_cluster).map(Arc::new),
    };
    test.set_needs(settings.needs);
    Ok(test)
}

/// The services of these names, and those that must be ready before them.
fn used(file: &SuiteFile, services: &[Arc<Service>], names: &[Located<String>]) -> Vec<Arc<Service>> {
    if names.is_empty() {
        return Vec::new();
    }
    let names: Vec<String> = names.iter().map(|name| name.value.clone()).collect();
    crate::suite::order(file, &names).into_iter().map(|place| services[place].clone()).collect()
}

fn service(file: &SuiteFile, root: &Path, entry: &ServiceEntry) -> Result<Arc<Service>, PlanError> {
    let cwd = match &entry.cwd {
        None => root.to_owned(),
        Some(folder) => existing_folder(&file.source, root, folder)?,
    };
    Ok(Arc::new(Service {
        name: entry.name.value.clone(),
        argv: entry.command.argv(),
        cwd,
        env: entry.env.clone(),
        user: entry.user.clone(),
        ready: entry.ready.clone(),
        patience: Duration::from_millis(entry.patience_ms),
        scope: entry.scope,
        stop_signal: entry.stop_signal,
        stop_patience: Duration::from_millis(entry.stop_patience_ms),
        may_end: entry.may_end,
    }))
}

fn existing_folder(source: &SuiteSource, root: &Path, folder: &Located<String>) -> Result<PathBuf, PlanError> {
    let path = root.join(&folder.value);
    // Where a suite runs on an image, an absolute folder may be the image's; only its start can tell.
    if path.is_dir() || Path::new(&folder.value).is_absolute() {
        return Ok(path);
    }
    let reason = if path.exists() { "is not a folder" } else { "does not exist" };
    let fault = ConfigFault::MissingFile { key: "cwd", path, reason: reason.to_owned() };
    Err(source.fault(folder.span.clone(), fault).into())
}

fn command_for(file: &SuiteFile, root: &Path, entry: &GlobEntry, name: &str) -> Result<Command, PlanError> {
    let source = &file.source;
    let path = root.join(name);
    let Some(command) = &entry.command else {
        let executable = std::fs::metadata(&path).is_ok_and(|data| data.permissions().mode() & 0o111 != 0);
        if !executable {
            let span = entry.globs.first().map_or(0..0, |glob| glob.span.clone());
            return Err(source.fault(span, ConfigFault::NotExecutable { path }).into());
        }
        let program = path.to_str().ok_or_else(|| not_text(source, &path, &(0..0)))?.to_owned();
        return Ok(Command { argv: vec![program], file: Some(path) });
    };
    let stem = Path::new(name).file_stem().and_then(OsStr::to_str).unwrap_or(name);
    let own_cwd = entry.settings.cwd.is_some() || file.defaults.cwd.is_some();
    // A path below the suite's folder reads best, and is right wherever the command runs there.
    let shown = if own_cwd { path.to_string_lossy().into_owned() } else { name.to_owned() };
    let values = [shown.as_str(), name, stem];
    let fill = |text: &str, quote: bool| {
        let mut filled = text.to_owned();
        for (placeholder, value) in PLACEHOLDERS.iter().zip(values) {
            let value = if quote { quoted(value) } else { value.to_owned() };
            filled = filled.replace(&format!("{{{placeholder}}}"), &value);
        }
        filled
    };
    let filled = match &command.value {
        CommandLine::Arguments(argv) => CommandLine::Arguments(argv.iter().map(|word| fill(word, false)).collect()),
        CommandLine::Shell(line) => CommandLine::Shell(fill(line, true)),
    };
    Ok(Command { argv: filled.argv(), file: Some(path) })
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,@%:=".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The files below the suite's folder that an entry means, relative to it, sorted.
fn matching(source: &SuiteSource, root: &Path, entry: &GlobEntry) -> Result<Vec<PathBuf>, PlanError> {
    let exclude: Vec<GlobMatcher> = entry.exclude.iter().filter_map(|pattern| matcher(&pattern.value)).collect();
    let mut all = Vec::new();
    for pattern in &entry.globs {
        let before = all.len();
        if let Some(glob) = matcher(&pattern.value) {
            let text = pattern.value.strip_prefix("./").unwrap_or(&pattern.value);
            let literal = literal_folder(text);
            let folders = text.matches('/').count().saturating_sub(literal.iter().count());
            let depth = if text.contains("**") { 64 } else { folders };
            let hidden = text.starts_with('.') || text.contains("/.");
            walk(root, &literal, depth, hidden, &mut |path| {
                if glob.is_match(path) && !exclude.iter().any(|glob| glob.is_match(path)) {
                    all.push(path.to_owned());
                }
            })
            .map_err(|error| PlanError::Read { path: root.join(&literal), source: error })?;
        }
        if all.len() == before {
            let fault = ConfigFault::EmptyGlob { pattern: pattern.value.clone(), folder: root.to_owned() };
            return Err(source.fault(pattern.span.clone(), fault).into());
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

fn matcher(pattern: &str) -> Option<GlobMatcher> {
    let pattern = pattern.strip_prefix("./").unwrap_or(pattern);
    // The parser has refused the others.
    GlobBuilder::new(pattern).literal_separator(true).build().ok().map(|glob| glob.compile_matcher())
}

/// The folders that a pattern begins with, as far as they are literal.
fn literal_folder(pattern: &str) -> PathBuf {
    let magic = pattern.find(['*', '?', '[', '{', '\\']).unwrap_or(pattern.len());
    let end = pattern[..magic].rfind('/').unwrap_or(0);
    PathBuf::from(&pattern[..end])
}

/// Every file below `root/folder`, relative to the root. Links to folders are not followed: they may lead round.
fn walk(
    root: &Path,
    folder: &Path,
    depth: usize,
    hidden: bool,
    take: &mut dyn FnMut(&Path),
) -> Result<(), std::io::Error> {
    let entries = match std::fs::read_dir(root.join(folder)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if (!hidden && name.as_encoded_bytes().starts_with(b".")) || name == FILE_NAME {
            continue;
        }
        let path = folder.join(&name);
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if depth > 0 {
                walk(root, &path, depth - 1, hidden, take)?;
            }
        } else if kind.is_file() || (kind.is_symlink() && root.join(&path).is_file()) {
            take(&path);
        }
    }
    Ok(())
}

fn not_text(source: &SuiteSource, path: &Path, span: &Range<usize>) -> PlanError {
    let reason = "has a name that is not UTF-8; rename it or `exclude` it".to_owned();
    source.fault(span.clone(), ConfigFault::MissingFile { key: "glob", path: path.to_owned(), reason }).into()
}
