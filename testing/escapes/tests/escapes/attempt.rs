//! What the attempts share: machines to attack from inside, for each sort of user.

use std::time::Duration;

use testkit::{Ability, Output, TestHome, User};

/// How long one attempt may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// A machine of one home, called `m`.
pub(crate) struct Prison {
    pub(crate) home: TestHome,
}

impl Prison {
    pub(crate) fn of(user: User) -> Self {
        let home = TestHome::of(user);
        home.must_run(&["create", "m", "--backend", "namespace"]);
        Self { home }
    }

    /// Runs a script in an environment of its own, as `inside`.
    pub(crate) fn run(&self, inside: &str, options: &[&str], script: &str) -> Output {
        let mut words = vec!["env", "run", "m", "--user", inside];
        words.extend_from_slice(options);
        words.extend_from_slice(&["--", "sh", "-c", script]);
        Output::of(&mut self.home.cli(&words), DEADLINE)
    }

    /// Each line of the script is an attempt: it must fail. Made as root and as a user, in an environment and on the
    /// machine itself.
    pub(crate) fn refuses(&self, attempts: &[&str]) {
        let script: String = attempts
            .iter()
            .map(|attempt| format!("( {attempt} ) >/dev/null 2>&1 && echo \"ESCAPED: {}\"\n", quoted(attempt)))
            .collect();
        let script = format!("{script}echo tried");
        for inside in ["root", "1000"] {
            let output = self.run(inside, &[], &script);
            assert_eq!(output.stdout.trim(), "tried", "as {inside} in an environment: {output}");
        }
        // What root does to its machine stays done: so last.
        for inside in ["1000", "root"] {
            let words = ["exec", "m", "--user", inside, "--", "sh", "-c", &script];
            let output = Output::of(&mut self.home.cli(&words), DEADLINE);
            assert_eq!(output.stdout.trim(), "tried", "as {inside} on the machine: {output}");
        }
    }
}

fn quoted(attempt: &str) -> String {
    attempt.replace(['"', '$', '`', '\\'], "'")
}

/// Whoever can have a machine here: this user, and where that is root, the ordinary one too.
pub(crate) fn jailers() -> Vec<User> {
    if let Err(lack) = Ability::UserNamespaces.check() {
        let name = "escapes from namespaces";
        let forced_by_host = lack.forced_by_host;
        testkit::skip::Skip { name, reason: &lack.reason, forced_by_host, whole_test: true }.record();
        return Vec::new();
    }
    let mut users = vec![User::current()];
    users.extend(User::ordinary().filter(|user| *user != User::current()));
    users
}
