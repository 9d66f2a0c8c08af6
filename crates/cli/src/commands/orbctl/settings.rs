//! `config get`, `set` and `show`: settings of this home, kept in the book.
//!
//! `cpu` and `memory_mib` are limits of machines made afterwards, `network.subnet4` is where their addresses come from,
//! `testyard.image_stand_in` says which image serves for one that cannot be had. The others have nothing here that they
//! could change: they are kept and read back.

use std::net::Ipv4Addr;

use testyard::Testyard;
use testyard_model::{MachineInfo, Problem, ProblemKind};

use super::book::Book;
use super::user::{check_user, default_user};
use super::words::{Rest, Words};
use super::{find, images};
use crate::commands::{DONE, Outcome};
use crate::output::Output;

/// Where addresses come from unless somebody says otherwise: a part of the loopback network, which every host answers on.
const SUBNET: &str = "127.42.0.0/16";
/// What other images serve for.
pub(super) const STAND_IN: &str = "testyard.image_stand_in";
const USERNAME: (&str, &str) = ("machine.", ".username");

/// What a setting's value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Count,
    Switch,
    Subnet,
    StandIns,
}

const KEYS: [(&str, Kind); 10] = [
    ("app.start_at_login", Kind::Switch),
    ("cpu", Kind::Count),
    ("docker.expose_ports_to_lan", Kind::Switch),
    ("machines.forward_ports", Kind::Switch),
    ("memory_mib", Kind::Count),
    ("network.https", Kind::Switch),
    ("network.subnet4", Kind::Subnet),
    ("rosetta", Kind::Switch),
    ("setup.use_admin", Kind::Switch),
    (STAND_IN, Kind::StandIns),
];

/// `config …`
pub(super) fn config(yard: &Testyard, words: Vec<std::ffi::OsString>, output: Output) -> Outcome {
    let words = Words::parse(&[], Rest::Ours, words)?;
    match words.texts()?.as_slice() {
        ["get", key] => output.data(&format!("{}\n", get(yard, key)?))?,
        ["set", key, value] => set(yard, key, value)?,
        ["show"] => output.data(&show(yard)?)?,
        _ => {
            return Err(Problem::new(
                ProblemKind::Usage,
                "write `config get KEY`, `config set KEY VALUE` or `config show`",
            ));
        }
    }
    DONE
}

fn get(yard: &Testyard, key: &str) -> Result<String, Problem> {
    if let Some(name) = machine_of(key) {
        let machine = find(yard, name)?;
        return Ok(username(&Book::load(yard)?, &machine));
    }
    let kind = kind_of(key)?;
    Ok(value(&Book::load(yard)?, key, kind))
}

fn set(yard: &Testyard, key: &str, value: &str) -> Result<(), Problem> {
    if let Some(name) = machine_of(key) {
        let machine = find(yard, name)?;
        check_user(value)?;
        return Book::change(yard, |book| {
            book.note(&machine.id).username = Some(value.to_owned());
            Ok(())
        });
    }
    let value = accepted(key, kind_of(key)?, value)?;
    Book::change(yard, |book| {
        book.settings.insert(key.to_owned(), value);
        Ok(())
    })
}

fn show(yard: &Testyard) -> Result<String, Problem> {
    let book = Book::load(yard)?;
    let mut lines: Vec<String> =
        KEYS.iter().map(|(key, kind)| format!("{key}: {}", value(&book, key, *kind)).trim_end().to_owned()).collect();
    for machine in yard.machines().list()? {
        lines.push(format!("{}{}{}: {}", USERNAME.0, machine.name, USERNAME.1, username(&book, &machine)));
    }
    lines.push(String::new());
    Ok(lines.join("\n"))
}

/// Whom a machine's commands run as.
pub(super) fn username(book: &Book, machine: &MachineInfo) -> String {
    let noted = book.about(&machine.id).and_then(|note| note.username.clone());
    noted.or_else(|| machine.spec.user.clone()).unwrap_or_else(default_user)
}

/// The limits of a new machine, where they were set: processors and mebibytes.
pub(super) fn limits(book: &Book) -> (Option<f64>, Option<u64>) {
    let number = |key: &str| book.settings.get(key).and_then(|value| value.parse::<u64>().ok());
    (number("cpu").map(|count| count as f64), number("memory_mib"))
}

/// The address of the machine with this number.
pub(super) fn address(book: &Book, number: u32) -> Ipv4Addr {
    let set = book.settings.get("network.subnet4").and_then(|text| subnet(text));
    // An address elsewhere would need an interface of the host: then it stays where every host answers.
    let (base, bits) =
        set.filter(|(base, _)| base.is_loopback()).or_else(|| subnet(SUBNET)).unwrap_or((Ipv4Addr::LOCALHOST, 32));
    let places = 1_u64 << (32 - bits);
    let offset = if places > 2 { 1 + (u64::from(number).max(1) - 1) % (places - 2) } else { 0 };
    Ipv4Addr::from_bits(base.to_bits() + u32::try_from(offset).unwrap_or(0))
}

fn machine_of(key: &str) -> Option<&str> {
    key.strip_prefix(USERNAME.0)?.strip_suffix(USERNAME.1).filter(|name| !name.is_empty())
}

fn kind_of(key: &str) -> Result<Kind, Problem> {
    KEYS.iter().find(|(known, _)| *known == key).map(|(_, kind)| *kind).ok_or_else(|| {
        Problem::new(ProblemKind::NotFound, format!("no such key: {key}"))
            .hint("see those there are: orbctl config show")
    })
}

fn value(book: &Book, key: &str, kind: Kind) -> String {
    if let Some(value) = book.settings.get(key) {
        return value.clone();
    }
    match (key, kind) {
        ("cpu", _) => std::thread::available_parallelism().map_or(1, usize::from).to_string(),
        ("memory_mib", _) => memory_mib().to_string(),
        (_, Kind::Subnet) => SUBNET.to_owned(),
        ("machines.forward_ports", _) => "true".to_owned(),
        (_, Kind::StandIns) => String::new(),
        _ => "false".to_owned(),
    }
}

fn accepted(key: &str, kind: Kind, value: &str) -> Result<String, Problem> {
    let refused = |wanted: &str| Problem::new(ProblemKind::Usage, format!("{key} takes {wanted}, not {value:?}"));
    match kind {
        Kind::Count => match value.parse::<u32>() {
            Ok(1..) => Ok(value.to_owned()),
            _ => Err(refused("a whole number above 0")),
        },
        Kind::Switch if matches!(value, "true" | "false") => Ok(value.to_owned()),
        Kind::Switch => Err(refused("true or false")),
        Kind::Subnet => match subnet(value) {
            Some(_) => Ok(value.to_owned()),
            None => Err(refused("addresses such as 127.42.0.0/16")),
        },
        Kind::StandIns => images::check_stand_ins(value).map(|()| value.to_owned()),
    }
}

/// An IPv4 network: its first address and how many bits are the same in all.
fn subnet(text: &str) -> Option<(Ipv4Addr, u32)> {
    let (base, bits) = text.split_once('/')?;
    let base: Ipv4Addr = base.parse().ok()?;
    let bits: u32 = bits.parse().ok().filter(|bits| (1..=32).contains(bits))?;
    let inside = u32::MAX.checked_shr(bits).unwrap_or(0);
    (base.to_bits() & inside == 0).then_some((base, bits))
}

fn memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(1 << 20) >> 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_written_with_their_first_address() {
        assert_eq!(subnet("192.168.138.0/23"), Some((Ipv4Addr::new(192, 168, 138, 0), 23)));
        for bad in ["", "10.0.0.0", "10.0.0.1/24", "10.0.0/24", "::/64", "10.0.0.0/33", "10.0.0.0/0", "10.0.0.0/-1"] {
            assert_eq!(subnet(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses_follow_the_loopback_network_that_was_set() {
        let mut book = Book::default();
        assert_eq!(address(&book, 1).to_string(), "127.42.0.1");
        assert_eq!(address(&book, 300).to_string(), "127.42.1.44");
        book.settings.insert("network.subnet4".to_owned(), "127.9.8.0/29".to_owned());
        assert_eq!(address(&book, 6).to_string(), "127.9.8.6");
        assert_eq!(address(&book, 7).to_string(), "127.9.8.1");
        book.settings.insert("network.subnet4".to_owned(), "198.19.249.0/24".to_owned());
        assert_eq!(address(&book, 2).to_string(), "127.42.0.2");
    }

    #[test]
    fn values_are_checked_by_their_kind() {
        for (key, good, bad) in [
            ("cpu", "4", "0"),
            ("memory_mib", "2048", "lots"),
            ("rosetta", "true", "yes"),
            ("network.subnet4", "10.0.0.0/8", "10.0.0.0"),
        ] {
            let kind = kind_of(key).expect("known");
            assert_eq!(accepted(key, kind, good).expect(key), good);
            assert!(accepted(key, kind, bad).is_err(), "{key} {bad}");
        }
        assert!(kind_of("machine.web.colour").is_err());
        assert_eq!(machine_of("machine.web.1.username"), Some("web.1"));
        assert_eq!(machine_of("machine..username"), None);
    }
}
