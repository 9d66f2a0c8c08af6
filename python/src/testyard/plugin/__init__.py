"""Testyard's pytest plugin: machines and isolated environments as fixtures.

It is found by its entry point; nothing is to be imported. What it does before a test uses one of its fixtures is to
read options and to look at markers: no program is started, and what talks to machines is imported at the first use.
See `docs/pytest.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Generator, Iterator, Optional

import pytest

from ..isolate._options import add_options as add_isolation
from ._options import add_options, can_be_wrong

if TYPE_CHECKING:
    from testyard import Cluster, Machine, Ports
    from testyard.live import LiveSource
    from testyard.vms import TestVMManager, VmName

    from ._marker import Wishes
    from ._places import Folder, IsolatedEnv, Vm
    from ._session import Session

__all__ = [
    "cluster_mode",
    "isolated_env",
    "machine",
    "ports",
    "sdk_on_cluster",
    "slurm_cluster",
    "test_vm",
    "test_vm_manager",
    "vm",
    "vm_pool",
    "workspace",
]

SIGNATURE = (
    "testyard(needs, image, backend, limits, network, user, isolation, source): what a test's machine and environment "
    "must be; see docs/pytest.md"
)
INTEGRATION = "integration: the test runs on the cluster; see fixture `cluster_mode` in docs/clusters-python.md"
WHEEL = "wheel_packaging: the test builds and installs its wheel on the cluster; see fixture `cluster_mode`"
_SESSION = pytest.StashKey["Session"]()
_WISHES = pytest.StashKey["Wishes"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options `--testyard-…` and keys `testyard_…` of the ini file."""
    add_options(parser)
    add_isolation(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker, and refuses options that mean nothing."""
    for marker in (SIGNATURE, INTEGRATION, WHEEL):
        config.addinivalue_line("markers", marker)
    if can_be_wrong(config):
        from ._settings import settings_of

        settings_of(config)
    if config.getoption("testyard_isolate") is not None:
        from ..isolate import plugin

        if not config.pluginmanager.is_registered(plugin):
            config.pluginmanager.register(plugin, plugin.__name__)


def session_of(config: pytest.Config) -> Session:
    """What this process's tests share; made at its first use."""
    session = config.stash.get(_SESSION, None)
    if session is None:
        from ._session import Session
        from ._settings import settings_of

        session = config.stash[_SESSION] = Session(settings_of(config), getattr(config, "workerinput", None))
    return session


def wishes(item: pytest.Item) -> Wishes:
    """What a test's markers ask for."""
    known = item.stash.get(_WISHES, None)
    if known is None:
        from ._marker import wishes_of

        known = item.stash[_WISHES] = wishes_of(item)
    return known


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fails a test whose marker is wrong, and skips one that needs what this host has not."""
    if item.get_closest_marker("testyard") is None:
        return
    asked = wishes(item)
    if asked.mistakes:
        pytest.fail("\n".join(asked.mistakes), pytrace=False)
    if asked.needs:
        session_of(item.config).check_needs(asked.needs)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, None]:
    """Adds to a failure what its environments' last commands wrote, and keeps them where that is asked for."""
    if call.excinfo is not None and not item.config.getoption("fulltrace"):
        _end_in_the_test(call.excinfo.value)
    outcome = yield
    session = item.config.stash.get(_SESSION, None)
    if session is not None and call.when != "teardown":
        report = outcome.get_result()
        if report.failed:
            report.sections.extend(session.told_of_failure(item))


def _end_in_the_test(error: BaseException) -> None:
    """Ends the traceback of an error of ours where the test called this package: there the mistake is."""
    import os
    import sys

    errors = sys.modules.get("testyard.errors")
    if errors is None or not isinstance(error, errors.TestyardError):
        return
    ours, librarys = (os.path.dirname(path) + os.sep for path in (os.path.dirname(__file__), os.__file__))
    last, entry = None, error.__traceback__
    while entry is not None:
        name = entry.tb_frame.f_code.co_filename
        if not name.startswith(ours) and (not name.startswith(librarys) or "-packages" in name):
            last = entry
        entry = entry.tb_next
    # A fixture's own, which no test called, is left as it is.
    if last is not None and last.tb_frame.f_globals.get("__name__", "").split(".")[0] not in ("_pytest", "pluggy"):
        last.tb_next = None


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Lets the session's machines go; whoever is the last of all workers deletes them."""
    session: Optional[Session] = config.stash.get(_SESSION, None)
    if session is not None:
        session.close()


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest) -> Machine:
    """The run's machine, shared by all tests and all workers: a `testyard.Machine`. It ends with the run."""
    from . import _fixtures

    return _fixtures.machine(request)


@pytest.fixture
def isolated_env(request: pytest.FixtureRequest) -> Iterator[IsolatedEnv]:
    """An environment of the test's own in the run's machine: own root, processes, network; made in a millisecond.

    `.run(cmd, check=True, timeout=None, cwd=None, env=None)`, `.spawn`, `.write_file`, `.read_file`, `.push`, `.pull`,
    `.workspace`, `.ports`, `.test_id`, `.machine`."""
    from . import _fixtures

    yield from _fixtures.isolated_env(request)


@pytest.fixture
def vm(request: pytest.FixtureRequest) -> Iterator[Vm]:
    """A place like a machine, fresh for the test: root inside, own loopback with every port free, own processes and
    mounts, control groups to run containers in. `.run`, `.spawn`, `.write_file`, `.read_file` and what `isolated_env`
    has."""
    from . import _fixtures

    yield from _fixtures.vm(request)


@pytest.fixture
def workspace(isolated_env: IsolatedEnv) -> Folder:
    """A folder in the test's environment that its commands may write in: its path there."""
    return isolated_env.workspace


@pytest.fixture
def ports(request: pytest.FixtureRequest) -> Iterator[Ports]:
    """`ports.take(n=1) -> list[int]`: free ports of the host, leased until the test ends, never given twice at once."""
    from . import _fixtures

    yield from _fixtures.ports(request)


@pytest.fixture
def test_vm(request: pytest.FixtureRequest) -> Iterator[VmName]:
    """A running machine of the test's own: its name, a `str` that also has `.run`, `.push`, `.pull`, `.info`."""
    from . import _fixtures

    yield from _fixtures.test_vm(request)


@pytest.fixture
def test_vm_manager(request: pytest.FixtureRequest) -> Iterator[Callable[..., TestVMManager]]:
    """A factory: `test_vm_manager(image="ubuntu:22.04", name_prefix="test-vm", **kwargs) -> TestVMManager`.

    All machines that its managers made are deleted when the test ends."""
    from . import _fixtures

    yield from _fixtures.test_vm_manager(request)


@pytest.fixture
def vm_pool(request: pytest.FixtureRequest) -> Iterator[Callable[..., list[VmName]]]:
    """A factory: `vm_pool(count, image="ubuntu:22.04") -> list` of running machines' names, made side by side."""
    from . import _fixtures

    yield from _fixtures.vm_pool(request)


@pytest.fixture(scope="session")
def slurm_cluster(request: pytest.FixtureRequest) -> Cluster:
    """The run's Slurm cluster, shared by all tests and all workers: a `testyard.Cluster`. It ends with the run."""
    from . import _clusters

    return _clusters.slurm_cluster(request)


@pytest.fixture(scope="session")
def sdk_on_cluster(request: pytest.FixtureRequest, slurm_cluster: Cluster) -> LiveSource:
    """The project on the run's cluster, importable in each job: a `testyard.live.LiveSource`, in the mode of
    `testyard_cluster_mode`."""
    from . import _clusters

    return _clusters.sdk_on_cluster(request)


@pytest.fixture
def cluster_mode(request: pytest.FixtureRequest) -> str:
    """Where the test runs, and how its source gets there: `local` without a marker, `wheel` with `wheel_packaging`,
    else, with `integration`, the mode of `testyard_cluster_mode`, the project being there."""
    from . import _clusters

    return _clusters.cluster_mode(request)
