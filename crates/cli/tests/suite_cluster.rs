//! A suite's cluster, through the real binary: its tests share one, log in to it and submit jobs; it goes with the run.

use testkit::{TestHome, User};

/// The tests beside the page's own: who is told what, and the working tree on the nodes while it is edited.
const TESTS: &str = r#"
[[test]]
name = "greeted"
command = ["bash", "./greet.sh"]
cluster = true
outputs = ["greeted.txt"]
[[test]]
name = "as root, in a workspace"
command = ["sh", "-c", 'ssh -F "$TESTYARD_CLUSTER_SSH" cluster hostname > "$1"', "sh", "also.txt"]
cluster = true
user = "root"
isolation = "workspace"
outputs = ["also.txt"]
[[test]]
name = "on the host"
command = 'ssh -F "$TESTYARD_CLUSTER_SSH" cluster srun -w ${TESTYARD_CLUSTER_NODES##* } cat $PWD/word > before.txt && echo new > word'
cluster = true
isolation = "none"
[[test]]
name = "sees the new word"
command = 'ssh -F "$TESTYARD_CLUSTER_SSH" cluster srun -w ${TESTYARD_CLUSTER_NODES##* } cat $PWD/word > after.txt'
cluster = true
outputs = ["after.txt"]
[[test]]
name = "without"
command = "test -z \"$TESTYARD_CLUSTER$TESTYARD_CLUSTER_SSH\""
"#;

const GREET: &str = r#"exec 3<>"/dev/tcp/$TESTYARD_CLUSTER_HOST/$TESTYARD_CLUSTER_PORT"
banner=$(head -c 8 <&3)
env | grep "PRIVATE KEY" && exit 1
echo "$banner" $TESTYARD_CLUSTER $TESTYARD_CLUSTER_NODES $TESTYARD_CLUSTER_USER $TESTYARD_CLUSTER_PASSWORD > greeted.txt
"#;

/// `docs/suite.md`'s `[cluster]` and the test that uses it, and more tests.
fn suite() -> String {
    let page = testkit::Page::load("suite");
    let example = page.first("toml");
    let table = |begins: &str| {
        let from = example.find(begins).unwrap_or_else(|| panic!("the page has no {begins}"));
        example[from..].split("\n\n").next().unwrap_or_default()
    };
    let (cluster, submits) = (table("[cluster]"), table("[[test]]\nname = \"submits\""));
    format!("format = 1\n{cluster}\n{submits}\noutputs = []\n{TESTS}")
}

#[test]
fn tests_of_a_suite_share_its_cluster_which_goes_with_the_run() {
    testkit::require!(testkit::Ability::Root);
    testkit::require_cluster!();
    share(&TestHome::new());
}

#[test]
fn an_ordinary_users_suite_has_a_cluster() {
    testkit::require_cluster!();
    testkit::require!(testkit::Ability::OrdinaryUser);
    testkit::require!(testkit::Ability::GrantedIds);
    share(&TestHome::of(User::ordinary().expect("just required")));
}

fn share(home: &TestHome) {
    // The cluster's user reads what everybody may read.
    for folder in [home.path(), &home.work()] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder, open).expect("the home is ours");
    }
    let write = |name: &str, text: &str| {
        let path = home.work().join(name);
        std::fs::write(&path, text).expect("the home is ours");
        home.give(&path);
    };
    write("testyard.toml", &suite());
    write("greet.sh", GREET);
    write("word", "old\n");
    let output = home.run_cli(&["run", "--json", "--no-skip", "--jobs", "1", "--order", "file"]);
    assert_eq!(output.code, 0, "{output}");
    let printed = |name: &str| {
        let text = std::fs::read_to_string(home.work().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        text.trim().to_owned()
    };
    let greeted = printed("greeted.txt");
    let words: Vec<&str> = greeted.split_whitespace().collect();
    let [banner, cluster, first, second, third, user, password] = words[..] else { panic!("{greeted}: {output}") };
    assert_eq!((banner, user, password), ("SSH-2.0-", "slurm", "secret"));
    let names = [1, 2, 3].map(|number| format!("{cluster}-{number}"));
    assert_eq!([first, second, third], names.each_ref().map(String::as_str));
    assert_eq!(printed("also.txt"), names[0], "it is one for all");
    assert_eq!((printed("before.txt"), printed("after.txt")), ("old".to_owned(), "new".to_owned()));
    let left = home.run_cli(&["cluster", "list", "--json"]).expect_success().json();
    assert_eq!(left["clusters"], serde_json::json!([]));
}
