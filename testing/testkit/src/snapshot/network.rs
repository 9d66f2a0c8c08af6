//! Links, listening ports and named Unix sockets of this network namespace.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::Kind;

type Things = BTreeMap<(Kind, String), String>;

/// Adds them.
pub(super) fn collect(things: &mut Things) {
    for entry in std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        things.insert((Kind::Link, entry.file_name().to_string_lossy().into_owned()), String::new());
    }
    for name in unix_socket_names() {
        things.insert((Kind::UnixSocket, name), String::new());
    }
    // 0A is LISTEN; UDP has no such state, a bound socket without a peer is 07.
    for (protocol, table, state) in
        [("tcp", "tcp", "0A"), ("tcp", "tcp6", "0A"), ("udp", "udp", "07"), ("udp", "udp6", "07")]
    {
        let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        for address in text.lines().skip(1).filter_map(|line| bound_address(line, state)) {
            things.insert((Kind::Port, format!("{protocol} {address}")), String::new());
        }
    }
}

/// Sockets whose path is below a folder.
pub(super) fn sockets_below(folder: &str) -> Vec<String> {
    let inside = |name: &String| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    unix_socket_names().into_iter().filter(inside).map(|name| format!("socket {name}")).collect()
}

fn unix_socket_names() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let names = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(7));
    // Names that the kernel chose (autobind) are five hexadecimal digits and come and go with their holders.
    let chosen_by_kernel =
        |name: &str| name.strip_prefix('@').is_some_and(|n| n.len() == 5 && n.bytes().all(|b| b.is_ascii_hexdigit()));
    names.filter(|name| !chosen_by_kernel(name)).map(str::to_owned).collect()
}

/// The local address of a line of `/proc/net/tcp` and its kind, if the socket is in this state.
fn bound_address(line: &str, state: &str) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if fields.get(3) != Some(&state) {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Vec<u32> = (0..address.len() / 8)
        .map(|index| u32::from_str_radix(&address[index * 8..index * 8 + 8], 16).map(u32::swap_bytes))
        .collect::<Result<_, _>>()
        .ok()?;
    match words[..] {
        [word] => Some(format!("{}:{port}", Ipv4Addr::from(word))),
        [a, b, c, d] => {
            let bits = (u128::from(a) << 96) | (u128::from(b) << 64) | (u128::from(c) << 32) | u128::from(d);
            Some(format!("[{}]:{port}", Ipv6Addr::from(bits)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let line = "0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1";
        assert_eq!(bound_address(line, "0A").as_deref(), Some("127.0.0.1:8080"));
        assert_eq!(bound_address(line, "01"), None);
        let line = "1: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0";
        assert_eq!(bound_address(line, "0A").as_deref(), Some("[::1]:22"));
        assert_eq!(bound_address("nonsense", "0A"), None);
    }
}
