"""The options of calls that hand them on, for whoever checks types; what each means is said where it ends.

A test compares them with the calls themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable, Mapping, Optional, TypedDict

if TYPE_CHECKING:
    from ._place import Path, User
    from ._process import Target
    from .machine import Duration, Size


class MachineOptions(TypedDict, total=False):
    """Of `Machine.create`."""

    image: str
    backend: str
    user: User
    cpus: Optional[float]
    memory: Size
    disk: Size
    arch: Optional[str]
    privileged: bool
    expose: Iterable[Path]
    pass_env: Iterable[str]
    idle: Duration
    ttl: Duration
    hold: bool


class ClusterOptions(TypedDict, total=False):
    """Of `Cluster.create`."""

    kind: str
    nodes: int
    cpus: Optional[int]
    memory: Size
    partitions: Iterable[str]
    accounting: bool
    slurmrestd: bool
    gpus: Optional[int]
    cgroups: bool
    outbound: bool
    ssh_port: Optional[int]
    user: Optional[str]
    password: Optional[str]
    image: Optional[str]
    expose: Iterable[Path]
    ttl: Duration
    hold: bool


class ParkOptions(TypedDict, total=False):
    """Of `Machine.park`: what environments are that may be made ahead."""

    isolation: Optional[str]
    network: Optional[str]
    user: User
    limits: Optional[Mapping[str, Any]]
    host_name: Optional[str]
    source: Optional[Path]
    strict_limits: bool
    layer: Optional[str]
    cgroups: bool


class EnvironmentOptions(ParkOptions, total=False):
    """Of `Machine.environment`."""

    ports: int


class SpawnOptions(TypedDict, total=False):
    """Of `Machine.spawn`."""

    stdin: Target
    stdout: Target
    stderr: Target
    cwd: Optional[Path]
    env: Optional[Mapping[str, str]]
    user: User
    timeout: Optional[float]
    text: bool
    detach: bool


class PullOptions(TypedDict, total=False):
    """Of `Image.pull`."""

    name: Optional[str]
    user: Optional[str]
    password: Optional[str]
    scheme: Optional[str]
    timeout: Optional[float]
