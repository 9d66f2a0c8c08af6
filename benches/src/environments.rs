//! Rows over one warm machine and its agent: environments, commands, memory, growth.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{Gid, Uid};
use testyard_linux::cgroup::{Group, Hierarchy};
use testyard_linux::process::{Credentials, SingleThreaded, become_user};
use testyard_model::{EnvironmentSpec, Problem, ProblemKind, UserSpec};
use testyard_protocol::{Exec, Place, StreamTarget};

use crate::bare_probe::{FullProbe, PlainProbe};
use crate::machine::{Client, Machine, client, strongest};
use crate::report::{Goal, Row};
use crate::static_program;
use crate::worker::{Task, Worker, told};
use crate::{Options, peers};
use testyard_measure::{Contender, Times, alternate, ratio, shown, timed};

/// What every environment runs.
pub(crate) const PAYLOAD: &str = "/bin/true";
/// Where the machine has the smallest program.
const SMALLEST: &str = "/usr/local/bin/testyard-smallest";
/// So many environments one after another are one measurement, with the end of the last.
const BLOCK: u32 = 10;
/// The ordinary user of the unprivileged row.
const ORDINARY: u32 = 1000;

/// The processes that are measured against, forked while this one is small.
struct Probes {
    plain: Worker,
    full: Option<Worker>,
    second: Option<Worker>,
    ordinary: Result<Worker, Problem>,
}

/// Measures them all.
///
/// # Errors
/// When there is no machine to measure.
pub(crate) fn rows(options: &Options, folder: &Path, rows: &mut Vec<Row>) -> Result<(), Problem> {
    let proof = SingleThreaded::check().map_err(|error| told(&error))?;
    let probes = Probes::start(proof, options, folder)?;
    let place = folder.join("machine");
    make_folder(&place)?;
    let machine = Machine::start(&place, options.agent.clone(), u64::from(std::process::id()))?;
    let measured = over(proof, options, &machine, &probes, rows);
    let removed = machine.remove();
    probes.stop();
    measured.and(removed)
}

impl Probes {
    fn start(proof: SingleThreaded, options: &Options, folder: &Path) -> Result<Self, Problem> {
        let program = || CString::new(PAYLOAD).map_err(|error| Problem::from_error(ProblemKind::Bug, &error));
        let plain = program()?;
        let plain = Worker::start(proof, || Ok(Box::new(PlainProbe::new(proof, plain))))?;
        let full = |name: &str| -> Result<Option<Worker>, Problem> {
            if !rustix::process::geteuid().is_root() {
                return Ok(None);
            }
            let (program, own) = (program()?, folder.join(name));
            make_folder(&own)?;
            let prepare = || -> Result<Box<dyn Task>, Problem> {
                Ok(Box::new(FullProbe::new(proof, program, own).map_err(|error| told(&error))?))
            };
            Worker::start(proof, prepare).map(Some)
        };
        let (full, second) = (full("probe-1")?, full("probe-2")?);
        let own = folder.join("ordinary");
        let agent = options.agent.clone();
        let ordinary = Worker::start(proof, || Ordinary::start(own, agent));
        Ok(Self { plain, full, second, ordinary })
    }

    fn stop(self) {
        self.plain.stop();
        let others = [self.full, self.second, self.ordinary.ok()];
        others.into_iter().flatten().for_each(Worker::stop);
    }
}

/// A machine of an ordinary user's.
struct Ordinary {
    machine: Machine,
    fresh: Fresh,
}

impl Ordinary {
    fn start(folder: PathBuf, agent: PathBuf) -> Result<Box<dyn Task>, Problem> {
        if !rustix::process::geteuid().is_root() {
            return Err(Problem::new(ProblemKind::Unsupported, "this is no comparison without root"));
        }
        make_folder(&folder)?;
        let owner = (Some(Uid::from_raw(ORDINARY)), Some(Gid::from_raw(ORDINARY)));
        rustix::fs::chown(&folder, owner.0, owner.1)
            .map_err(|error| testyard_linux::Error::new("give away", folder.display(), error).problem())?;
        let user = Credentials { uid: ORDINARY, gid: ORDINARY, groups: Vec::new() };
        become_user(&user, false).map_err(|error| told(&error))?;
        testyard_linux::process::set_dumpable(true).map_err(|error| told(&error))?;
        let machine = Machine::start(&folder, agent, u64::from(std::process::id()))?;
        let fresh = Fresh::over(&machine)?;
        Ok(Box::new(Self { machine, fresh }))
    }
}

impl Task for Ordinary {
    fn once(&mut self) -> Result<(), Problem> {
        self.fresh.once()
    }

    fn end(self: Box<Self>) {
        let Self { machine, fresh } = *self;
        drop(fresh);
        // What is left of it lies in the folder that the whole run removes.
        let _ = machine.remove();
    }
}

/// A block of environments, none made ahead of time.
struct Fresh(Client);

impl Fresh {
    fn over(machine: &Machine) -> Result<Self, Problem> {
        let mut fresh = Client::new(machine.connect()?, PAYLOAD, Place::Fresh(Box::new(strongest())))?;
        park(&mut fresh, 0)?;
        Ok(Self(fresh))
    }
}

impl Task for Fresh {
    fn once(&mut self) -> Result<(), Problem> {
        for _ in 0..BLOCK {
            self.0.once()?;
        }
        await_gone(&mut self.0)
    }
}

fn park(client_: &mut Client, count: u32) -> Result<(), Problem> {
    client_.connection().park(&strongest(), count).map_err(|error| client(&error))
}

fn await_gone(over: &mut Client) -> Result<(), Problem> {
    while over.connection().status().map_err(|error| client(&error))?.environments > 0 {}
    Ok(())
}

fn over(
    proof: SingleThreaded,
    options: &Options,
    machine: &Machine,
    probes: &Probes,
    rows: &mut Vec<Row>,
) -> Result<(), Problem> {
    let smallest = install_smallest(machine)?;
    let mut row = |row: Row| {
        (options.progress)(&row);
        rows.push(row);
    };
    if options.wants("fresh") {
        environments(options, machine, probes, &mut row)?;
    }
    if options.wants("commands") {
        commands(options, machine, probes, smallest, &mut row)?;
    }
    if options.wants("throughput") {
        throughput(proof, options, machine, probes, &mut row)?;
    }
    if options.wants("unprivileged") {
        unprivileged(options, machine, probes, &mut row)?;
    }
    if options.wants("peers") {
        // As users have it: what can be made ahead is.
        let mut client = Client::new(machine.connect()?, PAYLOAD, Place::Fresh(Box::new(strongest())))?;
        park(&mut client, 2)?;
        let mut fresh = Fresh(client);
        peers::rows(options, &mut || Task::once(&mut fresh).map(|()| BLOCK), &mut row)?;
    }
    if options.wants("growth") {
        row(memory_row("agent, resident", 3.0, resident_mb(machine.agent_pid()), String::new()));
        // A machine that has made none yet: what it keeps for reuse would make its first ones cheaper.
        let place = options.folder.join("growth");
        make_folder(&place)?;
        let young = Machine::start(&place, options.agent.clone(), u64::from(std::process::id()) + 1)?;
        let measured = growth(options, &young, &mut row);
        young.remove()?;
        measured?;
    }
    Ok(())
}

/// Writes the smallest program into the machine.
fn install_smallest(machine: &Machine) -> Result<bool, Problem> {
    let Some(program) = static_program::smallest() else { return Ok(false) };
    let system = |error: rustix::io::Errno| Problem::from_error(ProblemKind::System, &error);
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(system)?;
    // Less than a pipe holds.
    rustix::io::write(&write, &program).map_err(system)?;
    drop(write);
    let script = format!("cat > {SMALLEST} && chmod 755 {SMALLEST}");
    let exec = Exec {
        argv: ["sh", "-c", &script].map(Into::into).to_vec(),
        stdin: StreamTarget::Attached(0),
        user: Some(UserSpec::Root),
        ..Exec::default()
    };
    let captured = machine.connect()?.capture(exec, &[read.as_fd()]).map_err(|error| client(&error))?;
    match captured.finished.status.success() {
        true => Ok(true),
        false => Err(Problem::new(ProblemKind::System, "the smallest program could not be written into the machine")
            .because(String::from_utf8_lossy(&captured.stderr).into_owned())),
    }
}

fn environments(
    options: &Options,
    machine: &Machine,
    probes: &Probes,
    row: &mut dyn FnMut(Row),
) -> Result<(), Problem> {
    const FRESH: &str =
        "environment, private network, one after another, all gone: against the bare probe, all made fresh";
    const PARKED: &str = "the same from a parked environment";
    let Some(probe) = &probes.full else {
        for (name, goal) in [(FRESH, 1.3), (PARKED, 0.7)] {
            row(Row::skipped(name, Goal::AtMost(goal), "×", "the bare probe needs root"));
        }
        return Ok(());
    };
    let mut fresh = Fresh::over(machine)?;
    let contenders = vec![
        Contender::new("probe", || {
            probe.begin(BLOCK)?;
            Ok(probe.finish()? / BLOCK)
        }),
        Contender::new("environment", || timed(|| Task::once(&mut fresh))().map(|time| time / BLOCK)),
    ];
    let times = alternate(options.rounds(30), contenders)?;
    let detail = |times: &[Times]| format!("{} / {}", shown(times[1].median()), shown(times[0].median()));
    row(Row::measured(FRESH, Goal::AtMost(1.3), "×", times[1].ratio_to(&times[0]), detail(&times)));
    let mut parked = Client::new(machine.connect()?, PAYLOAD, Place::Fresh(Box::new(strongest())))?;
    let contenders = vec![
        Contender::new("probe", || probe.once()),
        Contender::new("parked", || {
            await_gone(&mut parked)?;
            park(&mut parked, 2)?;
            timed(|| parked.once())()
        }),
    ];
    let times = alternate(options.rounds(200), contenders)?;
    row(Row::measured(PARKED, Goal::AtMost(0.7), "×", times[1].ratio_to(&times[0]), detail(&times)));
    park(&mut parked, 0)
}

fn commands(
    options: &Options,
    machine: &Machine,
    probes: &Probes,
    smallest: bool,
    row: &mut dyn FnMut(Row),
) -> Result<(), Problem> {
    const SMALL: &str = "a command without a libc in a parked environment, request to status at the client";
    if smallest {
        let mut parked = Client::new(machine.connect()?, SMALLEST, Place::Fresh(Box::new(strongest())))?;
        let contender = Contender::new("smallest", || {
            await_gone(&mut parked)?;
            park(&mut parked, 2)?;
            timed(|| parked.once())()
        });
        let times = alternate(options.rounds(200), vec![contender])?;
        let figure = times[0].median().as_secs_f64() * 1e3;
        row(Row::measured(SMALL, Goal::AtMost(0.4), "ms", figure, shown(times[0].median())));
        park(&mut parked, 0)?;
    } else {
        row(Row::skipped(SMALL, Goal::AtMost(0.4), "ms", "no such program is known for this processor"));
    }
    let mut plain = Client::new(machine.connect()?, PAYLOAD, Place::Machine)?;
    let contenders =
        vec![Contender::new("fork+exec+wait", || probes.plain.once()), Contender::new("exec", timed(|| plain.once()))];
    let times = alternate(options.rounds(300), contenders)?;
    let detail = format!("{} / {}", shown(times[1].median()), shown(times[0].median()));
    let name = "plain exec in a warm machine, Rust client, against fork+exec+wait";
    row(Row::measured(name, Goal::AtMost(1.3), "×", times[1].ratio_to(&times[0]), detail));
    Ok(())
}

fn throughput(
    proof: SingleThreaded,
    options: &Options,
    machine: &Machine,
    probes: &Probes,
    row: &mut dyn FnMut(Row),
) -> Result<(), Problem> {
    const NAME: &str = "environments a second on both cores, against two probe loops side by side";
    let (Some(one), Some(two)) = (&probes.full, &probes.second) else {
        row(Row::skipped(NAME, Goal::AtLeast(0.75), "×", "the bare probe needs root"));
        return Ok(());
    };
    let rounds = options.rounds(100) as u32;
    let client = || -> Result<Worker, Problem> {
        let client = Client::new(machine.connect()?, PAYLOAD, Place::Fresh(Box::new(strongest())))?;
        Worker::start(proof, || Ok(Box::new(client)))
    };
    let clients = (client()?, client()?);
    let both = |pair: (&Worker, &Worker)| {
        pair.0.begin(rounds)?;
        pair.1.begin(rounds)?;
        Ok(pair.0.finish()?.max(pair.1.finish()?) / (2 * rounds))
    };
    let contenders = vec![
        Contender::new("probes", || both((one, two))),
        // As users have it: what can be made ahead is.
        Contender::new("clients", || both((&clients.0, &clients.1))),
    ];
    let times = alternate(5, contenders)?;
    let second = |times: &Times| 1.0 / times.median().as_secs_f64();
    let detail = format!("{:.0} / {:.0} a second", second(&times[1]), second(&times[0]));
    row(Row::measured(NAME, Goal::AtLeast(0.75), "×", times[0].ratio_to(&times[1]), detail));
    clients.0.stop();
    clients.1.stop();
    Ok(())
}

fn unprivileged(
    options: &Options,
    machine: &Machine,
    probes: &Probes,
    row: &mut dyn FnMut(Row),
) -> Result<(), Problem> {
    const NAME: &str = "unprivileged, through user namespaces, against the same as root";
    let ordinary = match &probes.ordinary {
        Ok(ordinary) => ordinary,
        Err(problem) => {
            row(Row::skipped(NAME, Goal::AtMost(1.3), "×", told_in_one_line(problem)));
            return Ok(());
        }
    };
    let mut fresh = Fresh::over(machine)?;
    let contenders = vec![
        Contender::new("root", || timed(|| Task::once(&mut fresh))().map(|time| time / BLOCK)),
        Contender::new("unprivileged", || ordinary.once().map(|time| time / BLOCK)),
    ];
    let times = alternate(options.rounds(30), contenders)?;
    let detail = format!("{} / {}", shown(times[1].median()), shown(times[0].median()));
    row(Row::measured(NAME, Goal::AtMost(1.3), "×", times[1].ratio_to(&times[0]), detail));
    Ok(())
}

/// A problem in a cell of the table.
pub(crate) fn told_in_one_line(problem: &Problem) -> String {
    let parts = [&problem.message].into_iter().chain(&problem.causes).cloned().collect::<Vec<_>>();
    parts.join(": ").replace(['|', '\n'], " ")
}

fn growth(options: &Options, machine: &Machine, row: &mut dyn FnMut(Row)) -> Result<(), Problem> {
    const SAMPLE: usize = 20;
    let count = options.rounds(1000).max(3 * SAMPLE);
    let pid = machine.agent_pid();
    // A kind of its own: none of it is parked.
    let spec = EnvironmentSpec { host_name: Some("growth".to_owned()), ..strongest() };
    let mut connection = machine.connect()?;
    // The first of all waits for the machine's files to be looked through.
    connection.environment(&spec).map_err(|error| client(&error))?;
    let before = (charged_mb(machine), available_mb());
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        connection.environment(&spec).map_err(|error| client(&error))?;
        times.push(start.elapsed());
    }
    let each = charged_mb(machine).zip(before.0).map(|(after, before)| (after - before) / count as f64);
    let available = (before.1 - available_mb()) / count as f64;
    let detail =
        format!("mean of {count}; the host's MemAvailable fell by {available:.2} MB each, others' changes included");
    row(memory_row(
        "an idle environment, all that is charged to the machine's cgroup, kernel memory too",
        0.5,
        each,
        detail,
    ));
    let first = Times::new("first", times[..SAMPLE].to_vec()).median();
    let last = Times::new("last", times[count - SAMPLE..].to_vec()).median();
    let name = format!("environment number {count} alive, against the first");
    let detail =
        format!("{} / {}; the agent then has {:.1} MB", shown(last), shown(first), resident_mb(pid).unwrap_or(0.0));
    row(Row::measured(&name, Goal::AtMost(1.5), "×", ratio(last, first), detail));
    Ok(())
}

fn memory_row(name: &str, limit: f64, figure: Option<f64>, detail: String) -> Row {
    match figure {
        Some(figure) => Row::measured(name, Goal::AtMost(limit), "MB", figure, detail),
        None => Row::skipped(name, Goal::AtMost(limit), "MB", "/proc does not say"),
    }
}

/// A process's resident memory in megabytes.
pub(crate) fn resident_mb(pid: i32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(kilobytes(&text, "VmRSS:")? / 1024.0)
}

fn available_mb() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kilobytes(&text, "MemAvailable:").unwrap_or(0.0) / 1024.0
}

/// What is charged to the machine's control group, in megabytes.
fn charged_mb(machine: &Machine) -> Option<f64> {
    let group = Group::open(&Hierarchy::detect().ok()?, &machine.group_name()).ok()?;
    Some(group.usage().memory_now? as f64 / f64::from(1 << 20))
}

fn kilobytes(text: &str, key: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.split_ascii_whitespace().next()?.parse().ok()
}

pub(crate) fn make_folder(path: &Path) -> Result<(), Problem> {
    std::fs::create_dir(path).map_err(|error| {
        Problem::new(ProblemKind::System, format!("cannot make folder {}", path.display())).because(error)
    })?;
    // Machines of other users are inside.
    File::open(path)
        .and_then(|folder| folder.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)))
        .map_err(|error| Problem::from_error(ProblemKind::System, &error))
}
