//! A program of its own that makes a machine, uses it and removes it.
//!
//! It is its own supervisor: it is started again with `supervise …`, which it must pass on before anything else.
//!
//! ```sh
//! cargo build -p testyard-agent && cargo run -p testyard --example embedding -- namespace uname -a
//! ```

use std::process::ExitCode;

use testyard::{BackendName, MachineSpec, Options, Problem, Testyard};

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let options = match Options::from_process() {
        Ok(options) => Options { program: std::env::current_exe().unwrap_or(options.program.clone()), ..options },
        Err(problem) => return failed(&problem),
    };
    if arguments.first().is_some_and(|word| word == "supervise") {
        testyard::supervise_command(options, arguments.drain(1..))
    }
    match run(options, &arguments) {
        Ok(code) => ExitCode::from(code),
        Err(problem) => failed(&problem),
    }
}

fn run(options: Options, arguments: &[String]) -> Result<u8, Problem> {
    let (backend, argv) = arguments.split_first().map_or(("auto", &[][..]), |(first, rest)| (first.as_str(), rest));
    let argv: Vec<&str> = if argv.is_empty() { vec!["id"] } else { argv.iter().map(String::as_str).collect() };
    let backend: BackendName = backend.parse().map_err(|error| {
        let error: &dyn std::error::Error = &error;
        Problem::from_error(testyard::ProblemKind::Usage, error)
    })?;
    let yard = Testyard::open(options)?;
    let name = format!("embedded-{}", std::process::id()).parse().expect("letters, digits and a dash");
    let made = yard.machines().create(&name, &MachineSpec::new(backend))?;
    #[expect(clippy::print_stderr, reason = "an example talks")]
    {
        eprintln!("machine {name} is {} on backend {}", made.state, made.spec.backend);
    }
    let output = yard.connect(&name).and_then(|mut machine| machine.run(&argv));
    yard.machines().delete(&name, true)?;
    let output = output?;
    #[expect(clippy::print_stdout, reason = "an example talks")]
    {
        print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.finished.status.shell_code())
}

#[expect(clippy::print_stderr, reason = "an example talks")]
fn failed(problem: &Problem) -> ExitCode {
    eprintln!("error: {problem}");
    for line in problem.causes.iter().chain(&problem.hints) {
        eprintln!("  {line}");
    }
    ExitCode::FAILURE
}
