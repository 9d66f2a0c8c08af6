"""What the fixtures of clusters do: the run's cluster, the project live on it, and where a test is to run."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Optional

import pytest

from testyard.errors import ClusterExists, ClusterNotFound, TestyardError, WrongState

from . import session_of
from ._session import Told, awaited

if TYPE_CHECKING:
    from testyard import Cluster
    from testyard._options import ClusterOptions
    from testyard.live import LiveSource

    from ._settings import Settings

#: Markers that choose where a test runs.
INTEGRATION = "integration"
WHEEL = "wheel_packaging"


class Clusters:
    """The run's cluster as this process has it."""

    def __init__(self, run: str, settings: Settings) -> None:
        self._settings = settings
        self._name = f"pytest-{run[:16]}"
        self._cluster: Optional[Cluster] = None
        self._held = False
        # A child of a fork holds nothing, and ends nothing.
        self._process = os.getpid()
        self._live: dict[str, LiveSource] = {}

    def cluster(self) -> Cluster:
        """The run's cluster; running, and held by this process unless the settings name one."""
        if self._cluster is None:
            named = self._settings.cluster.name
            if named:
                from testyard import Cluster

                self._cluster = Cluster.ensure(named, **self._options())
            else:
                self._cluster = self._shared()
                self._held = True
        return self._cluster

    def live(self) -> LiveSource:
        """The project on the run's cluster, in the mode of the settings."""
        from testyard import live

        mode = self._settings.cluster.mode
        known = self._live.get(mode)
        if known is None:
            known = self._live[mode] = live.place(self.cluster(), self._source(), mode=mode)
        return known

    def close(self) -> None:
        """Lets it go; whoever is the last of all workers deletes it."""
        cluster, self._cluster = self._cluster, None
        if cluster is None:
            return
        cluster.close()
        if self._held and os.getpid() == self._process:
            try:
                cluster.unhold()
            except TestyardError as error:
                warnings.warn(f"cluster {cluster.name} is left: {error}", stacklevel=1)

    def _source(self) -> str:
        return os.path.join(self._settings.root, self._settings.cluster.source or ".")

    def _options(self) -> ClusterOptions:
        from testyard import live

        said = self._settings.cluster
        return {
            "nodes": said.nodes,
            "image": said.image,
            "ssh_port": said.ssh_port,
            "user": said.user,
            "password": said.password,
            "accounting": said.accounting,
            "expose": sorted({*live.exposures(self._source(), said.mode), *said.expose}),
        }

    def _shared(self) -> Cluster:
        look = f"testyard cluster info {self._name}"
        late = WrongState(f"cluster {self._name} does not come up", hints=[look])
        return awaited(self._made_or_held, ClusterNotFound, late)

    def _made_or_held(self) -> Optional[Cluster]:
        """One step: it is made, or found running. None: not yet."""
        from testyard import Cluster, _hold

        try:
            options = self._options()
            options["hold"] = True
            cluster = Cluster.create(self._name, **options)
        except ClusterExists:
            _hold.hold_cluster(self._name)
            cluster = Cluster.get(self._name)
            if cluster._info.state != "running":
                return None
        # It is deleted by its last holder, never by this object.
        cluster._created = False
        return cluster


def slurm_cluster(request: pytest.FixtureRequest) -> Cluster:
    """The run's cluster."""
    session = session_of(request.config)
    with Told(session):
        return session.clusters.cluster()
    raise AssertionError("unreachable: an error ends the fixture")


def sdk_on_cluster(request: pytest.FixtureRequest) -> LiveSource:
    """The project on it."""
    session = session_of(request.config)
    with Told(session):
        return session.clusters.live()
    raise AssertionError("unreachable: an error ends the fixture")


def cluster_mode(request: pytest.FixtureRequest) -> str:
    """Where the test is to run; that is got ready."""
    if request.node.get_closest_marker(WHEEL) is not None:
        request.getfixturevalue("slurm_cluster")
        return "wheel"
    if request.node.get_closest_marker(INTEGRATION) is not None:
        return str(request.getfixturevalue("sdk_on_cluster").mode)
    return "local"
