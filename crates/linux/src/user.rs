//! Accounts, read from the text of `passwd`, `group` and `subuid` files.
//!
//! No name service: inside a machine the files of that machine's root are what counts, and a
//! static program cannot load a name service's modules.

use std::path::{Path, PathBuf};

/// A user as `/etc/passwd` and `/etc/group` describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The login name.
    pub name: String,
    /// The user id.
    pub uid: u32,
    /// The primary group's id.
    pub gid: u32,
    /// All groups' ids, the primary one first, none twice.
    pub groups: Vec<u32>,
    /// The home folder.
    pub home: PathBuf,
    /// The login shell; `/bin/sh` where the field is empty.
    pub shell: PathBuf,
}

/// A range of ids that a user may map into a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubordinateRange {
    /// The first id.
    pub start: u32,
    /// How many.
    pub count: u32,
}

/// Finds an account by name, else by number, in the texts of the two files.
///
/// Malformed lines are passed over, as the C library does.
#[must_use]
pub fn lookup(passwd: &str, group: &str, name_or_uid: &str) -> Option<Account> {
    let entries = || passwd.lines().filter_map(parse_passwd_line);
    let mut account = entries().find(|account| account.name == name_or_uid).or_else(|| {
        let uid = name_or_uid.parse::<u32>().ok()?;
        entries().find(|account| account.uid == uid)
    })?;
    for line in group.lines() {
        let mut fields = line.split(':');
        let (Some(_name), Some(_password), Some(gid), Some(members)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Ok(gid) = gid.parse::<u32>() else { continue };
        if !account.groups.contains(&gid) && members.split(',').any(|member| member.trim() == account.name) {
            account.groups.push(gid);
        }
    }
    Some(account)
}

fn parse_passwd_line(line: &str) -> Option<Account> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _password, uid, gid, _comment, home, shell] = fields.as_slice() else { return None };
    if name.is_empty() || name.starts_with('#') {
        return None;
    }
    let gid = gid.parse().ok()?;
    Some(Account {
        name: (*name).to_owned(),
        uid: uid.parse().ok()?,
        gid,
        groups: vec![gid],
        home: PathBuf::from(if home.is_empty() { "/" } else { home }),
        shell: PathBuf::from(if shell.is_empty() { "/bin/sh" } else { shell }),
    })
}

/// The account of a user id, from this root's `/etc/passwd` and `/etc/group`.
#[must_use]
pub fn account_of(uid: u32) -> Option<Account> {
    account_in(Path::new("/"), &uid.to_string())
}

/// The account of a name or number, from the files below another root.
///
/// Links in the path are followed. Whoever owns that root may have put anything there: what is no plain file, or is
/// too long to be a list of users, counts as missing, and nothing is waited for.
#[must_use]
pub fn account_in(root: &Path, name_or_uid: &str) -> Option<Account> {
    let read = |file: &str| {
        read_plain(&root.join(file)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    };
    lookup(&read("etc/passwd"), &read("etc/group"), name_or_uid)
}

/// No list of users is longer.
const LONGEST_LIST: u64 = 16 << 20;

/// The content of a plain file. A pipe or a device in its place would be waited for, perhaps for ever.
fn read_plain(path: &Path) -> Option<Vec<u8>> {
    use rustix::fs::{FileType, Mode, OFlags};
    use std::io::Read as _;

    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let facts = rustix::fs::fstat(&file).ok()?;
    if FileType::from_raw_mode(facts.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(LONGEST_LIST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The ranges that a `/etc/subuid` or `/etc/subgid` text gives to a user, by name or by number.
#[must_use]
pub fn subordinate_ranges(text: &str, user: &str, uid: u32) -> Vec<SubordinateRange> {
    let number = uid.to_string();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            let start = fields.next()?.parse::<u32>().ok()?;
            let count = fields.next()?.parse::<u32>().ok()?;
            let usable = fields.next().is_none() && count > 0 && start.checked_add(count - 1).is_some();
            ((owner == user || owner == number) && usable).then_some(SubordinateRange { start, count })
        })
        .collect()
}

/// The command of root's that gives a user a range of ids which nobody else on this host has.
#[must_use]
pub fn granting_command(user: &str) -> String {
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    let first = first_free_id(&[read("/etc/subuid"), read("/etc/subgid")]);
    let last = first + (RANGE - 1);
    format!("usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {user}")
}

/// How many ids accounts are usually given.
const RANGE: u32 = 65_536;

/// Where distributions begin to give ids to accounts.
const FIRST: u32 = 100_000;

/// The first id beyond all that are given to anybody.
fn first_free_id(texts: &[String]) -> u32 {
    let ends = texts.iter().flat_map(|text| text.lines()).filter_map(|line| {
        let mut numbers = line.trim().split(':').skip(1).map(str::parse::<u32>);
        let (start, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        start.checked_add(count)
    });
    // Where somebody has the last ids of all, those below are as good as any.
    ends.max().unwrap_or_default().clamp(FIRST, u32::MAX - RANGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_in_place_of_the_list_of_users_is_not_waited_for() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).expect("a folder");
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, etc.join("passwd"), fifo, rustix::fs::Mode::RWXU, 0).expect("a pipe");
        assert_eq!(account_in(root.path(), "0"), None);
    }

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\n#off:x:1:1::/:\nann:x:1000:1000:Ann,,,:/home/ann:\n\
                          1000:x:7:7::/odd:/bin/false\nbob:x:x:1::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nann:x:1000:\nkvm:x:104:ann,bob\nwheel:x:10: ann\nbad:x:y:ann\nann2:x:1000:ann\n";

    #[test]
    fn accounts_are_found_by_name_then_by_number() {
        let ann = lookup(PASSWD, GROUP, "ann").expect("listed");
        assert_eq!((ann.uid, ann.gid), (1000, 1000));
        assert_eq!(ann.groups, [1000, 104, 10]);
        assert_eq!(ann.shell, Path::new("/bin/sh"));
        assert_eq!(lookup(PASSWD, GROUP, "0").expect("listed").name, "root");
        assert_eq!(lookup(PASSWD, GROUP, "1000").expect("listed").uid, 7, "a name that is a number is a name first");
        for missing in ["bob", "#off", "", "broken", "4294967296", "-1"] {
            assert_eq!(lookup(PASSWD, GROUP, missing), None, "{missing}");
        }
    }

    #[test]
    fn this_process_may_ask_for_root() {
        assert_eq!(account_of(0).map(|account| account.uid), Some(0));
    }

    #[test]
    fn ranges_belong_to_names_or_numbers() {
        let text = "ann:100000:65536\n1000:300000:10\nbob:1:1\nann:x:1\nann:5\nann:4294967295:2\nann:1:0\n";
        assert_eq!(
            subordinate_ranges(text, "ann", 1000),
            [SubordinateRange { start: 100_000, count: 65536 }, SubordinateRange { start: 300_000, count: 10 }]
        );
        assert!(subordinate_ranges(text, "eve", 5).is_empty());
    }

    #[test]
    fn a_new_range_begins_beyond_those_of_others() {
        let first = |texts: &[&str]| first_free_id(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(first(&["", "broken\nann:x:y\n"]), 100_000);
        assert_eq!(first(&["ann:1000:10\n"]), 100_000);
        assert_eq!(first(&["ann:100000:65536\n", "bob:165536:65536\n"]), 231_072);
        assert_eq!(first(&["ann:4294901760:65535\n"]), u32::MAX - 65_536);
    }
}
