//! Examples copied into homes, so that nobody else's run can touch them.

use std::path::PathBuf;
use std::process::Command;

use testkit::TestHome;

/// A copy of an example, as it is in the repository: nothing that a run or a build of it has left is in it.
pub(crate) fn example(home: &TestHome, name: &str) -> PathBuf {
    let to = home.work().join(name);
    let from = testkit::programs::source_folder().join("examples").join(name);
    let status = Command::new("cp").args(["-r", "--"]).arg(&from).arg(&to).status().expect("cp starts");
    assert!(status.success());
    for left in ["template", "build"] {
        let left = to.join(left);
        if left.exists() {
            let status = Command::new("rm").args(["-r", "--"]).arg(&left).status().expect("rm starts");
            assert!(status.success());
        }
    }
    let mut folders = vec![to.clone()];
    while let Some(folder) = folders.pop() {
        home.give(&folder);
        for entry in std::fs::read_dir(&folder).expect("a folder of the copy") {
            let path = entry.expect("an entry of the copy").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                home.give(&path);
            }
        }
    }
    to
}
