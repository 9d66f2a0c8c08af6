//! A suite's cluster, through the real binary: its tests share one, which goes with the run.

use testkit::TestHome;

const SUITE: &str = r#"format = 1
[suite]
name = "s"
[suite.defaults]
outputs = ["*.txt"]
[cluster]
nodes = 2
password = "secret"
[[test]]
name = "greeted"
command = ["bash", "./greet.sh"]
cluster = true
[[test]]
name = "also"
command = "echo $TESTYARD_CLUSTER > also.txt"
cluster = true
[[test]]
name = "without"
command = "test -z \"$TESTYARD_CLUSTER\""
"#;

const GREET: &str = r#"exec 3<>"/dev/tcp/$TESTYARD_CLUSTER_HOST/$TESTYARD_CLUSTER_PORT"
banner=$(head -c 8 <&3)
echo "$banner" $TESTYARD_CLUSTER $TESTYARD_CLUSTER_NODES $TESTYARD_CLUSTER_USER $TESTYARD_CLUSTER_PASSWORD > greeted.txt
"#;

#[test]
fn tests_of_a_suite_share_its_cluster_which_goes_with_the_run() {
    testkit::require!(testkit::Ability::Root);
    testkit::require_cluster!();
    let home = TestHome::new();
    std::fs::write(home.work().join("testyard.toml"), SUITE).expect("the home is ours");
    std::fs::write(home.work().join("greet.sh"), GREET).expect("the home is ours");
    let output = home.run_cli(&["run", "--json", "--no-skip"]);
    assert_eq!(output.code, 0, "{output}");
    let printed = |name: &str| {
        let text = std::fs::read_to_string(home.work().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        text.trim().to_owned()
    };
    let greeted = printed("greeted.txt");
    let words: Vec<&str> = greeted.split_whitespace().collect();
    let [banner, cluster, first, last, user, password] = words[..] else { panic!("{greeted}: {output}") };
    assert_eq!((banner, user, password), ("SSH-2.0-", "slurm", "secret"));
    assert_eq!((first, last), (&*format!("{cluster}-1"), &*format!("{cluster}-2")));
    assert_eq!(printed("also.txt"), cluster, "it is one for all");
    let left = home.run_cli(&["cluster", "list", "--json"]).expect_success().json();
    assert_eq!(left["clusters"], serde_json::json!([]));
    home.finish();
}
