"""The developer's machine, and commands in containers on it."""

from __future__ import annotations

import enum
import os
import subprocess
import sys
import threading
import time
from datetime import datetime
from typing import Any, Callable, Mapping, NamedTuple, Optional, Sequence, TypedDict, Union

from .. import _binary
from .._given import milliseconds
from .._process import Completed
from ..errors import BinaryNotFound, ConnectionLost, InvalidInput, TestyardError, WrongState
from ..machine import Machine, machine_info
from ._containers import Containers
from ._machines import times_of
from ._running import LOGIN_SHELL, Found, Printer, Sink, exchange, fresh_name, run_contained
from .errors import DevContainerError, DevError, DevVMNotFoundError, DevVMStartupError

_DOCKER_FAILED = 125
_LONGEST_PAUSE = 4.0


class TaskStatus(str, enum.Enum):
    """What a task is doing."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPED = "stopped"


class DevTask(NamedTuple):
    """The machine, as the SDKs' tasks look."""

    name: str
    task_id: str
    status: TaskStatus
    instance_type: str
    #: The machine's own host name. Nothing listens there unless you start it: `dev.connect()` needs no sshd.
    ssh_host: str
    ssh_port: int
    created_at: datetime
    started_at: datetime


class DevStatus(TypedDict):
    """What `dev.status()` tells."""

    #: name, id, instance_type, status, uptime_hours; None where no machine runs.
    vm: Optional[dict[str, Any]]
    active_containers: int
    #: As `docker ps --format json` has them: Names, Status, Image, Command, CreatedAt, ID.
    containers: list[dict[str, Any]]


class DevEnvironment:
    """One machine per developer. Methods may be called from many threads at once.

    `name` is the machine's; without it `$TESTYARD_DEV_MACHINE`, else `dev-` and the user's name. `image` and
    `backend` are those
    of `Machine.create` for a machine that must be made. `client` is taken and left alone, as the SDKs' own class has
    it."""

    __test__ = False

    def __init__(
        self,
        client: Any = None,
        auto_stop: bool = False,
        *,
        name: Optional[str] = None,
        image: Optional[str] = None,
        backend: Optional[str] = None,
    ) -> None:
        self._client = client
        self._auto_stop = auto_stop
        self._name = name
        self._image = image
        self._backend = backend
        self._lock = threading.Lock()
        self._found: Optional[Found] = None
        self._task: Optional[DevTask] = None

    def start(
        self,
        instance_type: Optional[str] = None,
        ssh_keys: Optional[Sequence[str]] = None,
        max_price_per_hour: Optional[float] = None,
        force_new: bool = False,
    ) -> DevTask:
        """The machine, running: made where there is none, or anew with `force_new`, whose files are gone then.

        `instance_type` is a word that `status()` repeats; keys and prices are for clouds. Raises DevVMStartupError."""
        words = ["dev", "ensure-started", *self._named()]
        for option, value in (
            ("--image", self._image),
            ("--backend", self._backend),
            ("--instance-type", instance_type),
        ):
            if value is not None:
                words += [option, value]
        if force_new:
            words.append("--force-new")
            self._forget()
        try:
            answer = _binary.call(words)
        except (InvalidInput, BinaryNotFound):
            raise
        except TestyardError as error:
            raise DevVMStartupError(
                error.message, instance_type=instance_type, causes=error.causes, hints=error.hints
            ) from None
        found = self._adopt(answer["machine"])
        info = found.machine._info
        created, started = times_of(info)
        self._task = DevTask(
            name=info.name,
            task_id=info.id,
            status=TaskStatus.RUNNING,
            instance_type=answer["instance_type"],
            ssh_host=info.name,
            ssh_port=22,
            created_at=created,
            started_at=started,
        )
        return self._task

    def ensure_started(
        self,
        instance_type: Optional[str] = None,
        ssh_keys: Optional[Sequence[str]] = None,
        max_price_per_hour: Optional[float] = None,
    ) -> DevTask:
        """The machine, running. Whoever does the same at the same time gets the same one.

        Raises DevVMStartupError."""
        if self._task is not None and instance_type in (None, self._task.instance_type) and self._answers():
            return self._task
        return self.start(instance_type, ssh_keys, max_price_per_hour)

    def exec(
        self,
        command: str,
        image: Optional[str] = None,
        interactive: bool = False,
        retries: int = 1,
        *,
        timeout: Optional[float] = None,
        env: Optional[Mapping[str, str]] = None,
    ) -> int:
        """Runs a command of the shell in a fresh container, its output on this process's own streams; its exit code.

        With `image` the machine's docker runs it. `retries` is how often it is tried in all, where the machine fails
        and not the command. Raises DevVMNotFoundError, DevContainerError."""
        _check_command(command)
        if interactive:
            return self._interactively(command, image, timeout, env)
        printer = Printer()
        try:
            return self._retried(command, image, retries, printer, timeout, env).returncode
        finally:
            printer.end()

    def capture(
        self,
        command: str,
        image: Optional[str] = None,
        retries: int = 1,
        *,
        timeout: Optional[float] = None,
        env: Optional[Mapping[str, str]] = None,
    ) -> Completed:
        """As `exec`, with what the command wrote in the result instead."""
        _check_command(command)
        parts: tuple[list[bytes], list[bytes]] = ([], [])

        def sink(channel: int, data: bytes) -> None:
            parts[channel - 1].append(data)

        def begin() -> None:
            for part in parts:
                part.clear()

        done = self._retried(command, image, retries, sink, timeout, env, begin=begin)
        out, err = (b"".join(part).decode("utf-8", "replace") for part in parts)
        return done._replace(stdout=out, stderr=err)

    def run(
        self,
        command: Optional[str] = None,
        image: Optional[str] = None,
        instance_type: Optional[str] = None,
        **options: Any,
    ) -> Union[int, DevTask]:
        """Makes sure of the machine, and runs a command on it (its exit code) or opens a shell (the machine)."""
        task = self.ensure_started(instance_type, **options)
        if command is not None:
            return self.exec(command, image=image)
        self.connect()
        return task

    def connect(self, command: Optional[str] = None) -> None:
        """A shell on the machine itself, or a command, on this process's own streams. Returns when it ends."""
        machine = self._machine().machine
        words = ["exec", machine.name, *_terminal(), "--"]
        words += ["sh", "-c", command or LOGIN_SHELL]
        subprocess.run([_binary.program(), *words], check=False)

    def reset(self) -> None:
        """Ends every container on the machine, whoever runs it. The machine and its files stay."""
        self._machine()
        self._call("reset")

    def stop(self) -> bool:
        """Stops the machine, and what runs on it; its files stay. Whether it ran."""
        self._forget()
        return bool(self._call("stop")["stopped"])

    def delete(self) -> bool:
        """As `stop`, and its files go with it."""
        self._forget()
        return bool(self._call("stop", "--delete")["stopped"])

    def status(self) -> DevStatus:
        """The machine, and the containers that run on it now, whoever runs them."""
        told = self._call("status")
        return {"vm": told["vm"], "active_containers": told["active_containers"], "containers": told["containers"]}

    @property
    def machine(self) -> Machine:
        """The machine itself, for all that is not in this surface.

        Raises DevVMNotFoundError."""
        return self._machine().machine

    def close(self) -> None:
        """Closes what is open to the machine; it goes on running."""
        self._forget()

    def __enter__(self) -> DevEnvironment:
        self.ensure_started()
        return self

    def __exit__(self, *_: object) -> None:
        if self._auto_stop:
            self.stop()
        else:
            self.close()

    def _named(self) -> list[str]:
        return [] if self._name is None else ["--name", self._name]

    def _call(self, *words: str) -> dict[str, Any]:
        try:
            return _binary.call(["dev", words[0], *self._named(), *words[1:]])
        except TestyardError as error:
            if error.kind == "not-found" and not isinstance(error, BinaryNotFound):
                raise DevVMNotFoundError(error.message) from None
            raise

    def _adopt(self, told: Mapping[str, Any]) -> Found:
        info = machine_info(told)
        with self._lock:
            if self._found is None or self._found.machine._info.raw != info.raw:
                self._found = Found(Machine(info), Containers(info.socket or "", info.id, info.image))
            return self._found

    def _machine(self) -> Found:
        """The machine that runs, as it was last seen."""
        found = self._found
        if found is not None:
            return found
        vm = self._call("status")["vm"]
        if vm is None:
            raise DevVMNotFoundError()
        return self._adopt(_binary.call(["info", vm["name"]])["machine"])

    def _forget(self) -> None:
        with self._lock:
            found, self._found, self._task = self._found, None, None
        if found is not None:
            found.machine.close()
            found.containers.close()

    def _answers(self) -> bool:
        found = self._found
        if found is None:
            return False
        try:
            found.machine.status()
        except TestyardError:
            self._forget()
            return False
        return True

    def container_spec(self, *, network: str = "host", shared: bool = True) -> dict[str, Any]:
        """What a container of this machine is to be, in the protocol's words. `shared`: it sees `/tmp` and the home
        as they are."""
        machine = self._machine().machine
        isolation = machine._strongest()
        spec: dict[str, Any] = {"isolation": isolation, "network": network, "user": "machine"}
        if isolation == "workspace":
            # Everything is shared there, and nobody has a network of its own.
            spec["network"] = "host"
        elif shared:
            spec["shared"] = True
        return spec

    def _retried(
        self,
        command: str,
        image: Optional[str],
        retries: int,
        sink: Sink,
        timeout: Optional[float],
        env: Optional[Mapping[str, str]],
        begin: Callable[[], object] = lambda: None,
    ) -> Completed:
        if not isinstance(retries, int) or retries < 0:
            raise InvalidInput(f"retries={retries!r} is no number of tries", hints=["give 1 or more"])
        for attempt in range(max(1, retries)):
            begin()
            try:
                return self._once(command, image, sink, timeout, env)
            except DevContainerError as error:
                if not error.transient or attempt + 1 >= retries:
                    raise
                import random

                time.sleep(min(_LONGEST_PAUSE, 0.05 * 2**attempt) * random.uniform(0.5, 1.0))
        raise AssertionError("the last try returns or raises")

    def _once(
        self,
        command: str,
        image: Optional[str],
        sink: Sink,
        timeout: Optional[float],
        env: Optional[Mapping[str, str]],
    ) -> Completed:
        found = self._machine()
        try:
            if image is not None:
                return self._by_docker(found, command, image, sink, timeout, env)
            return run_contained(
                found, self.container_spec(), command, sink, timeout=timeout, env=env, cwd=self._home(found)
            )
        except (InvalidInput, DevError):
            raise
        except TestyardError as error:
            self._forget()
            raise self._lost(error, command, image) from None

    def _lost(self, error: TestyardError, command: str, image: Optional[str]) -> DevError:
        """A machine that was stopped meanwhile is another matter than one that failed."""
        if isinstance(error, (ConnectionLost, WrongState)) or error.kind == "not-found":
            try:
                self._machine()
            except DevVMNotFoundError as missing:
                return missing
            except TestyardError:
                pass
        return DevContainerError(
            f"the container failed: {error.message}",
            command=command,
            image=image,
            causes=error.causes,
            hints=error.hints,
            transient=error.transient,
        )

    def _home(self, found: Found) -> Optional[str]:
        """Where commands begin, where that is not the machine's own choice."""
        if found.machine._info.backend != "host":
            return None
        import pwd

        try:
            home = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            return "/"
        return home if os.path.isdir(home) else "/"

    def _by_docker(
        self,
        found: Found,
        command: str,
        image: str,
        sink: Sink,
        timeout: Optional[float],
        env: Optional[Mapping[str, str]],
    ) -> Completed:
        home = self._home(found) or "/root"
        words = [
            "docker",
            "run",
            "--rm",
            "--name",
            fresh_name(),
            "-v",
            f"{home}:{home}",
            "-w",
            home,
            "-e",
            f"HOME={home}",
        ]
        for name in env or ():
            words += ["-e", name]
        said: list[bytes] = []

        def heard(channel: int, data: bytes) -> None:
            if channel == 2:
                said.append(data)
            sink(channel, data)

        line = [*words, image, "sh", "-c", command]
        try:
            done = exchange(found, "machine", line, heard, timeout=timeout, env=env, cwd=None)
        except InvalidInput as error:
            if error.kind != "command":
                raise
            raise DevContainerError(
                "docker is not installed on the developer's machine", command=command, image=image, causes=error.causes
            ) from None
        text = b"".join(said).decode("utf-8", "replace")
        if done.returncode == _DOCKER_FAILED and "docker:" in text:
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            hints = [line[5:].strip() for line in lines if line.startswith("hint:")]
            causes = [line for line in lines if not line.startswith(("hint:", "Run 'docker"))]
            raise DevContainerError(
                f"image {image!r} cannot be run on the developer's machine",
                command=command,
                image=image,
                causes=causes,
                hints=hints,
            )
        return done

    def _interactively(
        self, command: str, image: Optional[str], timeout: Optional[float], env: Optional[Mapping[str, str]]
    ) -> int:
        limit = milliseconds(timeout, "a timeout")
        self._machine()
        words = ["dev", "exec", *self._named(), *_terminal()]
        if limit is not None:
            words += ["--timeout", f"{limit}ms"]
        for name, value in (env or {}).items():
            words += ["--env", f"{name}={value}"]
        if image is not None:
            words += ["--image", image]
        return subprocess.run([_binary.program(), *words, "--", "sh", "-c", command], check=False).returncode


def _check_command(command: Any) -> None:
    if not isinstance(command, str) or not command.strip():
        raise InvalidInput(
            f"{command!r} is no command", hints=["give one line for the shell, such as dev.exec('make test')"]
        )


def _terminal() -> list[str]:
    return ["--terminal"] if sys.stdin is not None and sys.stdin.isatty() else []
