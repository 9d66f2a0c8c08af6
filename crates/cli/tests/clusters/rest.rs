//! What a cluster has only where it was asked for: answers over HTTP, and memory that is held.

use serde_json::Value;
use testkit::{Ability, Output, TestHome, wait_until};

use super::{DEADLINE, as_root, cluster, create, held, listeners, on};

#[test]
fn jobs_come_in_over_http_and_end_where_they_take_too_much() {
    possible!();
    testkit::require!(Ability::Program("slurmrestd"));
    testkit::require!(Ability::Program("curl"));
    let home = TestHome::new();
    let made = create(&home, "held", &["--nodes", "1", "--cgroups", "--slurmrestd"]);
    let rest = Rest::of(&home, "held", &made);
    jobs_over_http(&home, &rest);
    drop(as_root(&home, "held", "1", "pkill -9 slurmrestd").expect_success());
    drop(cluster(&home, &["node", "restore", "held", "1"]).expect_success());
    rest.answers();
    memory_is_held(&home);
    held::allocations(&home, &made);
    drop(cluster(&home, &["delete", "held"]).expect_success());
    home.finish();
}

fn jobs_over_http(home: &TestHome, rest: &Rest<'_>) {
    rest.answers();
    let order = r##"{"script": "#!/bin/sh\nhostname; id -un\n", "job": {"name": "asked", "current_working_directory":
        "/home/slurm", "standard_output": "/home/slurm/asked", "environment": {"PATH": "/usr/bin:/bin"}}}"##;
    let (code, submitted) = rest.ask("POST", "job/submit", order);
    let job = submitted["job_id"].as_u64().unwrap_or_else(|| panic!("{code}: {submitted}"));
    let state = || rest.ask("GET", &format!("job/{job}"), "").1["jobs"][0]["job_state"].clone();
    assert!(wait_until(DEADLINE, || state() == "COMPLETED"), "{}", state());
    assert_eq!(on(home, "held", "1", "cat asked").expect_success().stdout, "held-1\nslurm\n");
    // Whoever has no token of this cluster's is nobody.
    let stranger = Rest { token: "eyJhbGciOiJIUzI1NiJ9.e30.AAAA".to_owned(), ..rest.clone() };
    let (code, refused) = stranger.ask("GET", "jobs", "");
    assert!(code >= 400 && refused["jobs"].as_array().is_none_or(Vec::is_empty), "{code}: {refused}");
}

/// A job that takes more than it asked for ends as out of memory, where control groups hold it; one that takes less does
/// not.
fn memory_is_held(home: &TestHome) {
    let take = |megabytes: u32| {
        let script = format!(
            "job=$(sbatch --parsable --wait --mem=100 --wrap \"python3 -c 'x = bytearray({megabytes} << 20)'\"); \
             scontrol show job $job | grep -o 'JobState=[A-Z_]*'"
        );
        on(home, "held", "1", &script)
    };
    let ended = take(400);
    assert_eq!(ended.stdout, "JobState=OUT_OF_MEMORY\n", "{ended}");
    let ended = take(20);
    assert_eq!(ended.stdout, "JobState=COMPLETED\n", "{ended}");
}

/// `slurmrestd`, as a user with a token asks it.
#[derive(Clone)]
pub(super) struct Rest<'h> {
    home: &'h TestHome,
    url: String,
    version: String,
    token: String,
}

impl<'h> Rest<'h> {
    /// Of a cluster as it was made.
    pub(super) fn of(home: &'h TestHome, cluster: &str, made: &Value) -> Self {
        let url = made["rest"].as_str().expect("an address");
        let token = on(home, cluster, "1", "scontrol token lifespan=600").expect_success().stdout;
        let token = token.trim().strip_prefix("SLURM_JWT=").unwrap_or_else(|| panic!("{token}")).to_owned();
        let newest = "ls /usr/lib/*/slurm-wlm/openapi_v*.so | sed 's/.*openapi_//; s/[.]so//; s/_/./g' | tail -n 1";
        let version = as_root(home, cluster, "1", newest).expect_success().stdout.trim().to_owned();
        let port = url.strip_prefix("http://127.0.0.1:").and_then(|port| port.parse().ok());
        assert_eq!(listeners(port.expect("a port")), ["0100007F"], "{url}");
        Self { home, url: url.to_owned(), version, token }
    }

    pub(super) fn answers(&self) {
        let (code, pinged) = self.ask("GET", "ping", "");
        assert_eq!((code, pinged["pings"][0]["ping"].as_str()), (200, Some("UP")), "{pinged}");
    }

    /// One request; the answer's code and body.
    fn ask(&self, method: &str, what: &str, body: &str) -> (u16, Value) {
        let Self { home, url, version, token } = self;
        let mut command = home.command("curl");
        command.args(["-sS", "-X", method, "-w", "\n%{http_code}", "-H", "X-SLURM-USER-NAME: slurm"]);
        command.args(["-H", &format!("X-SLURM-USER-TOKEN: {token}"), "-H", "Content-Type: application/json"]);
        if !body.is_empty() {
            command.args(["--data-binary", body]);
        }
        let answered = Output::of(command.arg(format!("{url}/slurm/{version}/{what}")), DEADLINE).expect_success();
        let (body, code) = answered.stdout.rsplit_once('\n').expect("a code");
        (code.parse().expect("a number"), serde_json::from_str(body).unwrap_or_default())
    }
}
