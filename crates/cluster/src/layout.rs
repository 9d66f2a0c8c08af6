//! Which nodes a cluster has, what they are called, and where they are.

use std::net::Ipv4Addr;

use testyard_model::MachineName;

use crate::names::ClusterName;
use crate::spec::{ClusterSpec, Partition};

/// A cluster's nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// The cluster's name.
    pub name: ClusterName,
    /// What was asked for.
    pub spec: ClusterSpec,
    /// The nodes, in order; the first is the controller.
    pub nodes: Vec<Node>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// From 1 on.
    pub number: u16,
    /// Its host name, and its machine's name.
    pub name: MachineName,
    /// Its address in the cluster's network.
    pub address: Ipv4Addr,
}

/// The bits that all nodes' addresses share. Networks of clusters never meet, so all of them have the same addresses.
pub const PREFIX: u8 = 24;

impl Node {
    /// The node of this number.
    ///
    /// # Panics
    /// The number is 0 or beyond [`ClusterSpec::MAX_NODES`].
    #[must_use]
    pub fn of(cluster: &ClusterName, number: u16) -> Self {
        let last = u8::try_from(number).ok().filter(|last| (1..=254).contains(last));
        let last = last.expect("a specification has at most 200 nodes");
        let name = format!("{cluster}-{number}").parse().expect("a cluster's name and a number are a host name");
        Self { number, name, address: Ipv4Addr::new(10, 77, 0, last) }
    }

    /// Whether the controller runs here.
    #[must_use]
    pub fn is_controller(&self) -> bool {
        self.number == 1
    }
}

impl Layout {
    /// Of a specification that was checked.
    #[must_use]
    pub fn new(name: &ClusterName, spec: &ClusterSpec) -> Self {
        let nodes = (1..=spec.nodes).map(|number| Node::of(name, number)).collect();
        Self { name: name.clone(), spec: spec.clone(), nodes }
    }

    /// The first node.
    ///
    /// # Panics
    /// The specification was not checked, and has no nodes.
    #[must_use]
    pub fn controller(&self) -> &Node {
        &self.nodes[0]
    }

    /// The node that somebody means: by its number, or by its whole name.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<&Node> {
        let number = text.strip_prefix("node").unwrap_or(text).parse::<u16>().ok();
        self.nodes.iter().find(|node| node.name.as_str() == text || Some(node.number) == number)
    }

    /// Nodes as Slurm writes them: `lab-[1-3]`.
    #[must_use]
    pub fn all(&self) -> String {
        match self.spec.nodes {
            1 => format!("{}-1", self.name),
            count => format!("{}-[1-{count}]", self.name),
        }
    }

    /// A partition's nodes as Slurm writes them.
    #[must_use]
    pub fn of_partition(&self, partition: &Partition) -> String {
        if partition.nodes.is_empty() {
            return self.all();
        }
        let ranges: Vec<String> = partition.nodes.iter().map(ToString::to_string).collect();
        format!("{}-[{}]", self.name, ranges.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_found_by_number_and_by_name() {
        let layout = Layout::new(&"lab".parse().expect("a name"), &ClusterSpec::new(3));
        for text in ["2", "node2", "lab-2"] {
            assert_eq!(layout.find(text).map(|node| node.address.to_string()).as_deref(), Some("10.77.0.2"), "{text}");
        }
        for text in ["", "0", "4", "lab", "lab-4", "node", "-1"] {
            assert_eq!(layout.find(text), None, "{text}");
        }
        assert!(layout.controller().is_controller() && !layout.nodes[1].is_controller());
    }

    #[test]
    fn nodes_are_written_as_slurm_does() {
        let layout = Layout::new(&"lab".parse().expect("a name"), &ClusterSpec::new(4));
        assert_eq!(layout.all(), "lab-[1-4]");
        assert_eq!(layout.of_partition(&"long:1-2+4".parse().expect("a partition")), "lab-[1-2,4]");
        assert_eq!(layout.of_partition(&"debug".parse().expect("a partition")), "lab-[1-4]");
        let one = Layout::new(&"lab".parse().expect("a name"), &ClusterSpec::new(1));
        assert_eq!(one.all(), "lab-1");
    }
}
