//! No port is anybody's twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use proptest::prelude::*;
use testyard_registry::{PortError, PortLease, PortLeases};

use crate::support::{Yard, in_child, lines};

fn numbers(leases: &[PortLease]) -> Vec<u16> {
    leases.iter().map(PortLease::port).collect()
}

#[test]
fn a_key_keeps_its_ports_while_they_are_free() {
    let ports = PortLeases::new(17_000..=17_199).expect("a range");
    let first = ports.acquire_for("suite::a", 3).expect("free ports");
    let second = ports.acquire_for("suite::a", 3).expect("free ports");
    let (held, others) = (numbers(&first), numbers(&second));
    assert!(held.iter().all(|port| !others.contains(port)));
    // What is leased can be bound, by TCP and UDP.
    for port in &held {
        TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).expect("a free port");
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, *port)).expect("a free port");
    }
    drop((first, second));
    assert_eq!(numbers(&ports.acquire_for("suite::a", 3).expect("free ports")), held);
    assert!(ports.acquire_for("suite::a", 0).expect("nothing").is_empty());
}

#[test]
fn ports_that_others_use_are_passed_over() {
    let ports = PortLeases::new(17_200..=17_203).expect("a range");
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 17_200)).expect("a free port");
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 17_201)).expect("a free port");
    let v6 = TcpListener::bind(SocketAddr::from((Ipv6Addr::LOCALHOST, 17_202)));
    let free = if v6.is_ok() { 1 } else { 2 };
    let held = ports.acquire_for("x", free).expect("free ports");
    assert!(numbers(&held).contains(&17_203));
    let error = ports.acquire_for("y", 2).expect_err("all are taken");
    let PortError::Exhausted { wanted: 2, free: 0, leased, used, .. } = error else { panic!("{error}") };
    assert_eq!((leased, used), (free, 4 - free));
    assert!(error.to_string().contains("17200-17203"), "{error}");
    assert!(!error.problem().hints.is_empty());
    drop((tcp, udp));
    // Nothing of the failed try is kept.
    assert_eq!(ports.acquire_for("y", 2).expect("two are free again").len(), 2);
}

#[test]
fn the_kernels_own_ports_are_never_used() {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("/proc/sys");
    let range: Vec<u16> = text.split_whitespace().map(|number| number.parse().expect("a number")).collect();
    assert!(matches!(PortLeases::new(range[0]..=range[1]), Err(PortError::NoCandidates { .. })));
    let edge = PortLeases::new(range[0] - 1..=range[1]).expect("one is outside");
    assert_eq!(numbers(&edge.acquire_for("x", 1).expect("a free port")), [range[0] - 1]);
    PortLeases::standard().expect("some range is outside");
}

const RIVALS: usize = 5;

/// Each takes and keeps what it can of a small range: together they get every port once.
#[test]
fn no_port_is_handed_out_twice_across_processes() {
    if in_child().is_some() {
        let ports = PortLeases::new(17_300..=17_399).expect("a range");
        let mut kept = Vec::new();
        for turn in 0.. {
            match ports.acquire_for(&format!("test {turn}"), 1 + turn % 3) {
                Ok(leases) if turn % 4 == 3 => drop(leases),
                Ok(leases) => kept.extend(leases),
                Err(PortError::Exhausted { .. }) if turn % 3 > 0 => {}
                Err(PortError::Exhausted { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        println!("child: {}", kept.iter().map(|lease| lease.port().to_string()).collect::<Vec<_>>().join(" "));
        // Keeps them until the test has heard all.
        std::io::read_to_string(std::io::stdin()).expect("an end");
        return;
    }
    use std::io::{BufRead, BufReader};
    let yard = Yard::new();
    yard.registry();
    let mut children: Vec<_> =
        (0..RIVALS).map(|_| yard.child("ports::no_port_is_handed_out_twice_across_processes")).collect();
    let mut seen: BTreeMap<u16, usize> = BTreeMap::new();
    for (number, child) in children.iter_mut().enumerate() {
        let said = BufReader::new(child.stdout.as_mut().expect("piped"))
            .lines()
            .find_map(|line| line.expect("text").split_once("child: ").map(|(_, ports)| ports.to_owned()))
            .expect("the child's ports");
        for port in said.split_whitespace().map(|text| text.parse().expect("a port")) {
            let other = seen.insert(port, number);
            assert_eq!(other, None, "port {port} was given to {other:?} and {number}");
        }
    }
    assert!(seen.len() > 90, "{}", seen.len());
    children.into_iter().for_each(|child| drop(lines(child)));
    // Their deaths released them.
    assert_eq!(PortLeases::new(17_300..=17_399).expect("a range").acquire_for("x", 100).expect("all free").len(), 100);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_order_of_taking_and_dropping_keeps_them_apart(
        steps in prop::collection::vec(("[a-d]", 0_usize..6, any::<bool>()), 1..30),
    ) {
        let ports = PortLeases::new(17_400..=17_419).expect("a range");
        let mut held: Vec<Vec<PortLease>> = Vec::new();
        for (key, count, drops) in steps {
            if drops && !held.is_empty() {
                held.remove(0);
            }
            let free = 20 - held.iter().map(Vec::len).sum::<usize>();
            match ports.acquire_for(&key, count) {
                Ok(leases) => held.push(leases),
                Err(PortError::Exhausted { free: said, .. }) => {
                    prop_assert_eq!(said, free);
                    prop_assert!(count > free);
                }
                Err(error) => prop_assert!(false, "{}", error),
            }
            let all: Vec<u16> = held.iter().flat_map(|leases| numbers(leases)).collect();
            prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        }
    }
}
