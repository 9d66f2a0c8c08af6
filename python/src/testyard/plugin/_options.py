"""Options on the command line and keys of the ini file. Light: read whenever the plugin is there, used or not."""

from __future__ import annotations

import pytest


def add_options(parser: pytest.Parser) -> None:
    """Declares them."""
    group = parser.getgroup("testyard", "Testyard: machines and isolated environments")
    group.addoption("--testyard-image", metavar="IMAGE", help="what machines start from, such as debian:12 [host]")
    group.addoption("--testyard-backend", metavar="NAME", help="what makes machines: auto, namespace or host [auto]")
    group.addoption(
        "--testyard-machine", metavar="NAME", help="use this machine and leave it there, not one made for this run"
    )
    group.addoption(
        "--testyard-keep-failed",
        metavar="DURATION",
        nargs="?",
        const="1h",
        help="keep the environments of failed tests so long (1h where nothing is said), and say how to enter them",
    )
    group.addoption(
        "--testyard-no-skip",
        action="store_true",
        default=None,
        help="fail tests that would be skipped for what this host lacks",
    )
    group.addoption(
        "--testyard-cluster", metavar="NAME", help="use this cluster and leave it there, not one made for this run"
    )
    group.addoption("--testyard-cluster-nodes", metavar="N", help="how many nodes the run's cluster has [2]")
    group.addoption("--testyard-cluster-image", metavar="IMAGE", help="what the nodes of the cluster start from")
    group.addoption(
        "--testyard-cluster-ssh-port", metavar="PORT", help="the port of 127.0.0.1 that SSH takes [a free one]"
    )
    group.addoption(
        "--testyard-cluster-mode",
        metavar="MODE",
        help="how the source comes to the cluster: bind, sync, wheel or none [bind]",
    )
    _add_ini(parser)


def _add_ini(parser: pytest.Parser) -> None:
    parser.addini("testyard_cluster", "a cluster to use and leave there, instead of one made for each run")
    parser.addini("testyard_cluster_nodes", "how many nodes the run's cluster has")
    parser.addini("testyard_cluster_image", "what the nodes of the cluster start from")
    parser.addini("testyard_cluster_ssh_port", "the port of 127.0.0.1 that the cluster's SSH takes")
    parser.addini("testyard_cluster_user", "who logs in to the cluster [slurm]")
    parser.addini("testyard_cluster_password", "what opens the cluster [slurm]")
    parser.addini("testyard_cluster_accounting", "jobs of the cluster are accounted for", type="bool")
    parser.addini("testyard_cluster_mode", "how the source comes to the cluster: bind, sync, wheel or none")
    parser.addini("testyard_cluster_source", "the folder of the source, below that of the ini file")
    parser.addini("testyard_cluster_expose", "paths of this host that the nodes see, such as /srv/data:ro", type="args")
    parser.addini("testyard_image", "what machines start from, and what stands in for images that are not there")
    parser.addini("testyard_backend", "what makes machines: auto, namespace or host")
    parser.addini("testyard_machine", "a machine to use and leave there, instead of one made for each run")
    parser.addini("testyard_keep_failed", "how long environments of failed tests are kept, such as 1h")
    parser.addini("testyard_no_skip", "fail tests that would be skipped for what this host lacks", type="bool")
    parser.addini("testyard_source", "show the working tree in each environment, copy-on-write", type="bool")


def can_be_wrong(config: pytest.Config) -> bool:
    """Whether something was said that `settings_of` may refuse."""
    names = (
        "testyard_backend",
        "testyard_keep_failed",
        "testyard_cluster_nodes",
        "testyard_cluster_ssh_port",
        "testyard_cluster_mode",
    )
    return any(config.getoption(name) or config.getini(name) for name in names)
