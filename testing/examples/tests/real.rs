//! `examples/real`: a Python project's own tests, with the same counts under Testyard as under plain pytest.

use std::time::Duration;

use testkit::{Ability, Output, TestHome};

/// Fetching, one plain run and one run in environments, of an unoptimised build on two cores.
const DEADLINE: Duration = Duration::from_secs(1500);
/// What `fetch.sh` exits with where the package registry cannot be reached.
const NOT_REACHABLE: i32 = 77;

#[test]
fn counts_are_those_of_plain_pytest() {
    testkit::require!(Ability::UserNamespaces);
    testkit::require!(Ability::Program("python3"));
    let home = TestHome::new();
    let example = testkit::programs::source_folder().join("examples/real");
    let with_registry = |script: &str| {
        let mut command = home.command(example.join(script));
        // Where packages come from, and whom to trust there, is the host's own configuration.
        let pip = ["PIP_", "SSL_", "REQUESTS_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NO_PROXY"];
        command.envs(std::env::vars().filter(|(name, _)| pip.iter().any(|prefix| name.starts_with(prefix))));
        command.env("TESTYARD", testkit::programs::path("testyard"));
        command
    };
    let fetched = Output::of(&mut with_registry("fetch.sh"), DEADLINE);
    if fetched.code == NOT_REACHABLE {
        testkit::skip!("examples/real", host: "pip cannot reach its package registry");
    }
    assert_eq!(fetched.code, 0, "{fetched}");
    let output = Output::of(&mut with_registry("check.sh"), DEADLINE);
    assert_eq!(output.code, 0, "{output}");
    assert!(output.stdout.contains("517 passed, 0 failed"), "{output}");
    home.finish();
}
