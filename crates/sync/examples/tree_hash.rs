//! Measures tree hashes against `git status` on the same tree, in turns, and prints the ratios of the medians.
//!
//! `cargo run --release -p testyard-sync --example tree_hash -- [FOLDER] [FILES]`
//!
//! The tree is made in a temporary folder inside FOLDER (default: the temporary folder), 10,000 files unless said.
#![expect(clippy::print_stdout, reason = "a measurement's result is its output")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testyard_sync::{Tree, TreeOptions};

const ROUNDS: usize = 41;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let parent = arguments.next().map_or_else(std::env::temp_dir, Into::into);
    let files: usize = match arguments.next() {
        Some(text) => text.into_string().map_err(|_| "FILES is a number")?.parse()?,
        None => 10_000,
    };
    let folder = tempfile::TempDir::new_in(parent)?;
    let root = folder.path().join("tree");
    make_tree(&root, files)?;
    let options = TreeOptions { cache_folder: Some(folder.path().to_owned()), ..TreeOptions::for_user(folder.path()) };

    let start = Instant::now();
    let cold = Tree::open(&root, options.clone())?.scan()?;
    println!(
        "{:<34} {:>8.1} ms  ({} files read)",
        "tree hash, nothing remembered",
        millis(start.elapsed()),
        cold.cost.read
    );
    while Tree::open(&root, options.clone())?.scan()?.cost.read > 0 {}

    let mut times: [Vec<Duration>; 5] = Default::default();
    let tree = Tree::open(&root, options.clone())?;
    let mut before = tree.scan()?;
    let edited = root.join("package_3/module_17.py");
    for round in 0..ROUNDS {
        let mut take = |kind: usize, work: &mut dyn FnMut() -> Result<(), Box<dyn std::error::Error>>| {
            let start = Instant::now();
            work()?;
            times[kind].push(start.elapsed());
            Ok::<_, Box<dyn std::error::Error>>(())
        };
        take(0, &mut || git(&root, &["status", "--porcelain"]))?;
        take(1, &mut || {
            let scan = Tree::open(&root, options.clone())?.scan()?;
            if scan.cost.read == 0 { Ok(()) } else { Err("the tree is not warm".into()) }
        })?;
        take(2, &mut || {
            before = tree.scan_again(&before)?;
            Ok(())
        })?;
        // An editor's save: a new file renamed over the old one.
        let fresh = edited.with_extension("tmp");
        fs::write(&fresh, format!("round = {round}\n"))?;
        fs::rename(&fresh, &edited)?;
        take(3, &mut || git(&root, &["status", "--porcelain"]))?;
        take(4, &mut || Tree::open(&root, options.clone())?.scan().map(drop).map_err(Into::into))?;
        while Tree::open(&root, options.clone())?.scan()?.cost.read > 0 {}
        before = tree.scan_again(&before)?;
    }
    report(times);
    Ok(())
}

/// Medians, each beside git's of the same situation.
fn report(times: [Vec<Duration>; 5]) {
    let medians = times.map(|mut times| {
        times.sort();
        millis(times[times.len() / 2])
    });
    let names = [
        "git status, nothing changed",
        "tree hash, nothing changed",
        "changed since, in one process",
        "git status, one file saved",
        "tree hash, one file saved",
    ];
    for (index, name) in names.into_iter().enumerate() {
        let peer = if index < 3 { medians[0] } else { medians[3] };
        println!("{name:<34} {:>8.1} ms  {:.2}x git status", medians[index], medians[index] / peer);
    }
    println!(
        "goal: nothing changed <= 1.3x git status: {}",
        if medians[1] <= 1.3 * medians[0] { "met" } else { "NOT MET" }
    );
}

/// Packages of a hundred modules, some of them nested, with ignored caches beside them.
fn make_tree(root: &Path, files: usize) -> Result<(), Box<dyn std::error::Error>> {
    fs::create_dir_all(root)?;
    fs::write(root.join(".gitignore"), "__pycache__/\n*.pyc\n/build/\n.venv/\n")?;
    for number in 0..files {
        let package = root.join(format!("package_{}", number / 100)).join(if number % 3 == 0 { "inner" } else { "" });
        if number % 100 < 2 {
            fs::create_dir_all(package.join("inner"))?;
            fs::create_dir_all(package.join("__pycache__"))?;
            fs::write(package.join("__pycache__/x.pyc"), "x")?;
        }
        fs::write(
            package.join(format!("module_{}.py", number % 100)),
            format!("value = {number}\n").repeat(number % 200),
        )?;
    }
    git(root, &["init", "--quiet"])?;
    git(root, &["add", "."])?;
    git(root, &["-c", "user.name=x", "-c", "user.email=x@example", "commit", "--quiet", "-m", "x"])
}

fn git(root: &Path, arguments: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
    let status = Command::new("git").current_dir(root).args(arguments).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("git {arguments:?}: {status}").into()) }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
