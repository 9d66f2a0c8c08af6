//! Abilities that follow from what the host is at this moment.

use testyard_model::ByteSize;

use crate::finding::{Done, Lacking, Outcome};
use crate::host::HostFacts;

const DISK: u64 = 1 << 30;
const MEMORY: u64 = 512 << 20;

pub(crate) fn root(host: &HostFacts) -> Outcome {
    if host.is_full_root {
        let known = if host.user_ids < u64::from(u32::MAX) {
            format!("this is root of a user namespace with {} ids", host.user_ids)
        } else {
            "this is root, with the right to administer the system".to_owned()
        };
        return Ok(Done::new(known));
    }
    if host.uid == 0 {
        return Err(Lacking::new("this is user 0 without the right to administer the system (CAP_SYS_ADMIN)")
            .provide("start the outer container with --privileged, or with --cap-add SYS_ADMIN"));
    }
    Err(Lacking::new(format!("this is user {}", host.uid)).provide("sudo testyard doctor"))
}

pub(crate) fn disk(host: &HostFacts) -> Outcome {
    let folder = host.state_folder.display();
    let Some(free) = host.state_free_bytes else {
        return Err(Lacking::new(format!("{folder} cannot be looked at")).provide("export TESTYARD_HOME=FOLDER"));
    };
    let sentence = format!("{} free for {folder}", ByteSize(free));
    if free >= DISK {
        Ok(Done::new(sentence))
    } else {
        Err(Lacking::new(sentence).provide("testyard image prune, or export TESTYARD_HOME=FOLDER on a larger disk"))
    }
}

pub(crate) fn local_state(host: &HostFacts) -> Outcome {
    let folder = host.state_folder.display();
    match &host.state_network_file_system {
        None => Ok(Done::new(format!("{folder} is on a local file system"))),
        Some(kind) => Err(Lacking::new(format!("{folder} is on {kind}, where locks and SQLite cannot be trusted"))
            .provide("export TESTYARD_HOME=FOLDER on a local disk")),
    }
}

pub(crate) fn memory(host: &HostFacts) -> Outcome {
    let sentence = format!("{} of {} available", ByteSize(host.memory_available_bytes), ByteSize(host.memory_bytes));
    if host.memory_available_bytes >= MEMORY { Ok(Done::new(sentence)) } else { Err(Lacking::new(sentence)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::tests::report;

    #[test]
    fn facts_are_judged() {
        let mut facts = report(0, &[]).host;
        assert!(root(&facts).is_ok() && disk(&facts).is_ok() && memory(&facts).is_ok() && local_state(&facts).is_ok());
        facts.is_full_root = false;
        assert!(root(&facts).expect_err("no root").reason.contains("CAP_SYS_ADMIN"));
        facts.uid = 1000;
        facts.state_free_bytes = Some(1 << 20);
        facts.memory_available_bytes = 1;
        facts.state_network_file_system = Some("nfs".to_owned());
        assert_eq!(root(&facts).expect_err("no root").reason, "this is user 1000");
        assert!(disk(&facts).is_err() && memory(&facts).is_err());
        assert!(local_state(&facts).expect_err("on nfs").reason.contains("nfs"));
    }
}
