//! Measures what the registry, leases and ports cost; medians.
//!
//! `cargo run --release -p testyard-registry --example registry_cost -- [FOLDER]`
#![expect(clippy::print_stdout, reason = "a measurement's result is its output")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testyard_model::{BackendName, MachineId, MachineSpec, MachineState};
use testyard_registry::{
    Home, HomeEnvironment, KernelIdentity, Lease, LeaseKind, LeaseRequest, NewMachine, PortLeases, Registry,
    ResourceKind,
};

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("client".as_ref()) {
        let path = PathBuf::from(arguments.next().ok_or("a home")?);
        let number = arguments.next().and_then(|text| text.into_string().ok()).ok_or("a number")?;
        return one_client(&path, &number);
    }
    let folder = tempfile::TempDir::new_in(first.map_or_else(std::env::temp_dir, PathBuf::from))?;
    let path = folder.path().join("home");
    median("home and registry, the first time", 1, || load(&path))?;
    median("home found and verified", 500, || home(&path))?;
    median("registry opened and closed, nobody else", 500, || Ok(Registry::open(&home(&path)?)?))?;
    let registry = load(&path)?;
    median("registry opened and closed beside another", 500, || Ok(Registry::open(&home(&path)?)?))?;

    let mut number = 0;
    let mut ids = Vec::new();
    median("name reserved (a commit)", 1_000, || {
        number += 1;
        ids.push(registry.reserve_name(&machine(&format!("m{number}"))?)?);
        Ok(())
    })?;
    median("list of 1,000 machines", 100, || Ok(registry.list()?))?;
    let name = "m500".parse()?;
    median("a machine found by name", 1_000, || Ok(registry.find(&name)?))?;
    median("list of 1,000 from a fresh opening", 100, || Ok(load(&path)?.list()?))?;
    let mut next = ids.iter();
    median("state changed (a commit)", 1_000, || {
        let id = next.next().ok_or("a machine")?;
        Ok(registry.transition(id, MachineState::Creating, MachineState::Running)?)
    })?;
    let id = &ids[0];
    median("8 resources: intended, made, forgotten", 500, || {
        let intents = vec![(ResourceKind::Cgroup, PathBuf::from("/sys/fs/cgroup/memory/testyard/abcdefghij")); 8];
        let resources = registry.record_intents(id, &intents)?;
        let made: Vec<_> =
            resources.iter().map(|r| (*r, KernelIdentity::Inode { device: 30, inode: 12_345 })).collect();
        registry.record_made(&made)?;
        Ok(registry.forget_resources(&resources)?)
    })?;
    median("64 slots reserved", 500, || Ok(registry.reserve_slots(id, 64)?))?;
    let request =
        LeaseRequest { kind: LeaseKind::Machine, machine: Some(id.clone()), purpose: "x".into(), expires_ms: None };
    median("lease acquired and released", 500, || Ok(Lease::acquire(&registry, &request)?.release(&registry)?))?;
    median("cheap reaping pass over leases", 500, || Ok(registry.forget_abandoned_leases()?))?;
    let ports = PortLeases::standard()?;
    median("a port leased and released", 500, || Ok(ports.acquire_for("suite::test", 1)?))?;

    drop(registry);
    median("registry opened alone, its log as it is left", 500, || Ok(load(&path)?.find(&name)?))?;
    for clients in [1, 50] {
        median(&format!("{clients} processes: open, create, 6 commits, lease"), 5, || many_clients(&path, clients))?;
    }
    Ok(())
}

/// What one `create` does to the registry.
fn one_client(path: &Path, number: &str) -> Outcome {
    let registry = load(path)?;
    let id: MachineId = registry.reserve_name(&machine(number)?)?;
    let request =
        LeaseRequest { kind: LeaseKind::Supervisor, machine: Some(id.clone()), purpose: "x".into(), expires_ms: None };
    let lease = Lease::acquire(&registry, &request)?;
    let resources = registry.record_intents(&id, &vec![(ResourceKind::Cgroup, PathBuf::from("/x")); 6])?;
    let made: Vec<_> = resources.iter().map(|r| (*r, KernelIdentity::Inode { device: 1, inode: 2 })).collect();
    registry.record_made(&made)?;
    registry.transition(&id, MachineState::Creating, MachineState::Running)?;
    registry.begin_deletion(&id)?;
    registry.forget_resources(&resources)?;
    lease.release(&registry)?;
    Ok(registry.destroy(&id)?)
}

fn many_clients(path: &Path, clients: usize) -> Outcome {
    let program = std::env::current_exe()?;
    let children: Vec<_> = (0..clients)
        .map(|n| Command::new(&program).arg("client").arg(path).arg(format!("c{n}")).stdin(Stdio::null()).spawn())
        .collect::<Result<_, _>>()?;
    for mut child in children {
        if !child.wait()?.success() {
            return Err("a client failed".into());
        }
    }
    Ok(())
}

fn home(path: &Path) -> Result<Home, Box<dyn Error>> {
    let environment = HomeEnvironment { testyard_home: Some(path.into()), ..HomeEnvironment::from_process() };
    Ok(Home::load(&environment)?)
}

fn load(path: &Path) -> Result<Registry, Box<dyn Error>> {
    Ok(Registry::open(&home(path)?)?)
}

fn machine(name: &str) -> Result<NewMachine, Box<dyn Error>> {
    Ok(NewMachine {
        name: name.parse()?,
        spec: MachineSpec::new(BackendName::namespace()),
        backend_reason: Some("user namespaces work here".to_owned()),
        created_ms: 1,
        expires_ms: None,
    })
}

fn median<T>(what: &str, rounds: usize, mut work: impl FnMut() -> Result<T, Box<dyn Error>>) -> Outcome {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        drop(work()?);
        times.push(start.elapsed());
    }
    times.sort();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    println!("{what:<52} {:>9} us   95% {:>9} us", micros(at(50)), micros(at(95)));
    Ok(())
}

fn micros(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e6)
}
