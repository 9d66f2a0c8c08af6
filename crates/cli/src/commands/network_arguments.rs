//! What `testyard create` is told of the machine's network.

use std::path::PathBuf;
use std::str::FromStr;

use testyard_model::{
    HostEntry, InterfaceAddress, MachineNetwork, NetworkName, PrivateNetwork, Problem, ProblemKind, Publish,
};

/// Which network a machine is asked to be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Host,
    Private(NetworkName),
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "host" => Ok(Self::Host),
            None if text == "private" => Ok(Self::Private(NetworkName::default())),
            Some(("private", name)) => name.parse().map(Self::Private).map_err(|error| format!("{error}")),
            _ => Err("write host, private, or private:NAME".to_owned()),
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct NetworkArguments {
    /// host, or private[:NAME] for a network that it shares with the other machines of that name
    #[arg(long, value_name = "NETWORK", default_value = "host")]
    network: Asked,
    /// Its address in the private network, such as 10.77.0.2/24 [default: the next free one]
    #[arg(long)]
    address: Option<InterfaceAddress>,
    /// Lead this port of the host's 127.0.0.1 to one of the machine; without HOST to a free one; may be repeated
    #[arg(long, value_name = "[HOST:]MACHINE")]
    publish: Vec<Publish>,
    /// Give a machine with a private network a way out, too
    #[arg(long)]
    outbound: bool,
    /// Let every machine of the private network that says so have this folder in common; may be repeated
    #[arg(long, value_name = "FOLDER")]
    common: Vec<PathBuf>,
    /// A further name that all machines of the private network know; may be repeated
    #[arg(long, value_name = "ADDRESS=NAME")]
    host_entry: Vec<HostEntry>,
}

impl NetworkArguments {
    pub(super) fn network(self) -> Result<MachineNetwork, Problem> {
        let Self { network, address, publish, outbound, common, host_entry } = self;
        match network {
            Asked::Private(name) => Ok(MachineNetwork::Private(PrivateNetwork {
                name,
                address,
                hosts: host_entry,
                outbound,
                publish,
                share: common,
            })),
            Asked::Host => {
                let asked = [
                    (address.is_some(), "--address"),
                    (!publish.is_empty(), "--publish"),
                    (outbound, "--outbound"),
                    (!common.is_empty(), "--common"),
                    (!host_entry.is_empty(), "--host-entry"),
                ];
                match asked.into_iter().find(|(asked, _)| *asked) {
                    None => Ok(MachineNetwork::Host),
                    Some((_, option)) => {
                        let message = format!("{option} is for machines with a network of their own");
                        Err(Problem::new(ProblemKind::Usage, message).hint("add --network private"))
                    }
                }
            }
        }
    }
}
