"""Tests that do not get in each other's way on one developer's machine: own folder, ports, namespace and, with
`run_isolated_test`, own processes, network and view of the files."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Iterator, Mapping, Optional

from ..errors import InvalidInput, TestyardError
from ..ports import Ports
from ._running import run_contained
from .client import dev_of
from .environment import DevEnvironment

#: Below here each test has a folder; it outlives one command. Backend `host` shares it with other users of the host.
FOLDER = f"/tmp/testyard-tests-{os.getuid()}"
_PLAIN = re.compile(r"[^A-Za-z0-9]+")
#: Where tests begin that have a view of the files of their own: the same path for all, and each one's alone.
_OWN = f"{FOLDER}/isolated"
# It is there already, or `mkdir` would be one more process in each test.
_SCRIPT = 'cd "$1" 2>/dev/null || { mkdir -p "$1" && cd "$1"; } && TEST_COMMAND=$2 && shift 2 && eval "$TEST_COMMAND"'
# On a machine whose folders are the host's, the one that goes with the environment.
_SCRIPT_ON_HOST = (
    "TEST_WORKSPACE=$TESTYARD_WORKSPACE; export TEST_WORKSPACE; "
    'cd "$TEST_WORKSPACE" && TEST_COMMAND=$2 && shift 2 && eval "$TEST_COMMAND"'
)


@dataclass(frozen=True)
class TestResult:
    """How an isolated test ended. Its fields are there as items too: `result["passed"]`."""

    __test__ = False

    name: str
    #: Unique, also among tests of the same name at the same time.
    test_id: str
    passed: bool
    #: 128+n for signal n, 124 where its time was up; None where the machine failed and not the test.
    exit_code: Optional[int]
    stdout: str
    stderr: str
    #: Seconds.
    duration: float
    #: What failed, where it was the machine.
    error: Optional[str] = None

    @property
    def success(self) -> bool:
        """Whether it passed."""
        return self.passed

    def __getitem__(self, key: str) -> Any:
        try:
            return getattr(self, key)
        except AttributeError:
            raise KeyError(key) from None

    def as_dict(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


@dataclass
class IsolatedEnvironment:
    """A test's own place on a developer's machine."""

    name: str
    #: Unique, also among tests of the same name at the same time.
    test_id: str
    #: A folder on the machine that is this test's alone, empty at first.
    workspace: str
    #: A word for what needs a name of its own: containers, databases, queues.
    namespace: str
    #: Ports of the host that nobody else who asks Testyard is given meanwhile.
    ports: list[int]
    dev: Any
    _leases: Ports = field(repr=False)

    @property
    def port(self) -> int:
        """The first of its ports."""
        if not self.ports:
            raise InvalidInput(
                f"{self.name} was given no ports", hints=["isolated_test_environment(dev, name, ports=1)"]
            )
        return self.ports[0]

    @property
    def variables(self) -> dict[str, str]:
        """What its commands are told."""
        return {
            "TEST_ID": self.test_id,
            "TEST_NAMESPACE": self.namespace,
            "TEST_PORTS": ",".join(str(port) for port in self.ports),
            "TEST_WORKSPACE": self.workspace,
        }

    def exec(self, command: str, **options: Any) -> int:
        """`dev.exec` in its folder, with its variables; the exit code."""
        return int(self.dev.exec(self._placed(command), **options))

    def capture(self, command: str, **options: Any) -> Any:
        """`dev.capture` in its folder, with its variables."""
        return self.dev.capture(self._placed(command), **options)

    def close(self) -> None:
        """Removes its folder and gives its ports back. Fine to call twice."""
        workspace, self.workspace = self.workspace, ""
        try:
            if workspace:
                _quietly(self.dev, _removal(shlex.quote(workspace)))
        finally:
            self._leases.release()
            self.ports = []

    def _placed(self, command: str) -> str:
        if not self.workspace:
            raise InvalidInput(f"the environment of {self.name} is closed")
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.variables.items())
        return f"export {words}; cd {shlex.quote(self.workspace)} && {{ {command}\n}}"


@contextlib.contextmanager
def isolated_test_environment(client: Any, name: str, ports: int = 1) -> Iterator[IsolatedEnvironment]:
    """A place of its own for a test, removed at the end. `client` has a `.dev`, or is one.

    Raises InvalidInput, PortsExhausted, and what the machine says."""
    with IsolationManager(client) as manager:
        yield manager.create(name, ports=ports)


class IsolationManager:
    """Makes places for tests, and removes those that are left at its end."""

    def __init__(self, client: Any) -> None:
        self.dev = dev_of(client)
        self._lock = threading.Lock()
        self._started = False
        self._open: list[IsolatedEnvironment] = []

    @property
    def active(self) -> list[IsolatedEnvironment]:
        """Those that were made and not closed."""
        return [one for one in self._open if one.workspace]

    def create(self, name: str, ports: int = 1) -> IsolatedEnvironment:
        """A place for a test; its folder is there once this returns."""
        test_id = fresh_test_id(name)
        self._start()
        leases = Ports(key=test_id)
        environment = IsolatedEnvironment(
            name=name,
            test_id=test_id,
            workspace=f"{FOLDER}/{test_id}",
            namespace=namespace_of(test_id),
            ports=leases.take(ports) if ports else [],
            dev=self.dev,
            _leases=leases,
        )
        try:
            folder = shlex.quote(environment.workspace)
            # The last test of others may remove the folder above between its two steps.
            _quietly(self.dev, f"mkdir -p -- {folder} || mkdir -p -- {folder}", check=True)
        except BaseException:
            leases.release()
            raise
        self._open.append(environment)
        return environment

    def run_isolated_test(
        self,
        name: str,
        command: str,
        timeout: Optional[float] = None,
        *,
        network: str = "private",
        env: Optional[Mapping[str, str]] = None,
    ) -> TestResult:
        """Runs one command of the shell as a test: it passes with exit code 0.

        It has an environment of its own and sees what is in `/tmp` and at home, but what it writes there is its own
        and goes with it. In its `network` any port is free (`host` for a way out). `timeout` is in seconds. A machine
        that fails is an `error` of the result, and no exception."""
        test_id = fresh_test_id(name)
        if not isinstance(command, str) or not command.strip():
            raise InvalidInput(f"{command!r} is no command", hints=["give one line for the shell"])
        self._start()
        begun = time.monotonic()
        code: Optional[int] = None
        out = err = ""
        error: Optional[str] = None
        try:
            code, out, err = self._run(test_id, command, timeout, network, dict(env or {}))
        except InvalidInput:
            raise
        except TestyardError as told:
            error = str(told)
        return TestResult(
            name=name,
            test_id=test_id,
            passed=code == 0,
            exit_code=code,
            stdout=out,
            stderr=err,
            duration=time.monotonic() - begun,
            error=error,
        )

    def cleanup(self) -> None:
        """Removes every place that is left. Fine to call twice."""
        first: Optional[BaseException] = None
        while self._open:
            try:
                self._open.pop().close()
            except TestyardError as error:
                first = first or error
        if first is not None:
            raise first

    def __enter__(self) -> IsolationManager:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.cleanup()
        except TestyardError:
            # A test's own error says more than that of its removal.
            if kind is None:
                raise

    def _start(self) -> None:
        with self._lock:
            if not self._started:
                self.dev.ensure_started()
                if isinstance(self.dev, DevEnvironment) and self.dev.machine._strongest() != "workspace":
                    _quietly(self.dev, f"mkdir -p -- {_OWN}")
                self._started = True

    def _run(
        self, test_id: str, command: str, timeout: Optional[float], network: str, env: dict[str, str]
    ) -> tuple[int, str, str]:
        ours = isinstance(self.dev, DevEnvironment)
        workspace = _OWN if ours else f"{FOLDER}/{test_id}"
        variables = {"TEST_ID": test_id, "TEST_NAMESPACE": namespace_of(test_id), "TEST_WORKSPACE": workspace, **env}
        if not isinstance(self.dev, DevEnvironment):
            # Another SDK's: its own container, and only the folder is the test's.
            words = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
            where = shlex.quote(workspace)
            begin = f"export {words}; mkdir -p {where} && cd {where}"
            script = f"{begin} && ( {command}\n); code=$?; {_removal(where)}; exit $code"
            return int(self.dev.exec(f"sh -c {shlex.quote(script)}")), "", ""
        found = self.dev._machine()
        spec = self.dev.container_spec(network=network, shared=False)
        parts: tuple[list[bytes], list[bytes]] = ([], [])
        script = _SCRIPT_ON_HOST if spec["isolation"] == "workspace" else _SCRIPT
        done = run_contained(
            found,
            spec,
            command,
            lambda channel, data: parts[channel - 1].append(data),
            timeout=timeout,
            env=variables,
            words=["sh", "-c", script, "sh", workspace, command],
            cwd="/",
        )
        out, err = (b"".join(part).decode("utf-8", "replace") for part in parts)
        return done.returncode, out, err


def fresh_test_id(name: str) -> str:
    """A test's name as it may stand in paths and host names, and what no other has."""
    if not isinstance(name, str) or not name.strip():
        raise InvalidInput(f"{name!r} is no test's name", hints=['give a word, such as "test_login"'])
    plain = _PLAIN.sub("-", name).strip("-").lower()[:40].strip("-") or "test"
    return f"{plain}-{os.urandom(6).hex()}"


def namespace_of(test_id: str) -> str:
    """What a test may call its own things: letters, digits and underscores."""
    return f"test_{test_id.replace('-', '_')}"


def _removal(folder: str) -> str:
    """Removes a test's folder, and with the last one the folder above: `/tmp` may be the host's."""
    return f"rm -rf -- {folder}; rmdir -- {FOLDER} 2>/dev/null || true"


def _quietly(dev: Any, command: str, check: bool = False) -> None:
    """Runs a command whose output nobody wants."""
    if isinstance(dev, DevEnvironment):
        done = dev.capture(command, retries=2)
        if check and done.returncode != 0:
            from .errors import DevContainerError

            raise DevContainerError(f"the test's folder cannot be made: {done.stderr.strip()}", command=command)
    else:
        dev.exec(f"sh -c {shlex.quote(command)}")
