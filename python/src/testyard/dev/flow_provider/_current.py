"""The provider for version 3 of the SDK."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

from flow.adapters.providers.base import ProviderCapabilities
from flow.domain.models.enums import TaskStatus
from flow.domain.models.task import Task
from flow.errors import FlowTimeoutError, ProviderError, RemoteExecutionError, ValidationError
from flow.errors.remote import RemoteCommandExitError, RemoteTransportError
from flow.protocols.facets import ProviderFacets
from flow.utils.remote_exec import RemoteExecResult

from ..._process import Completed
from ...errors import TestyardError
from .._greeter import Greeter
from .._machines import Machines, Seen, is_missing, text_of
from ._tasks import Tasks, remote_error


class TestyardProvider(Tasks):
    """`flow.dev` on machines of Testyard: a task is a developer's machine, and nothing else is."""

    Task = Task
    Status = TaskStatus
    NAME = "testyard"

    def __init__(self, config: Any) -> None:
        self.name = self.NAME
        self.config = config
        self.machines = Machines()
        self.capabilities = ProviderCapabilities(
            requires_ssh_keys=False, supports_attached_storage=False, storage_types=[], supported_regions=["local"]
        )
        self._greeter = Greeter()
        self._remote = RemoteOperations(self.machines)

    @classmethod
    def from_config(cls, config: Any) -> TestyardProvider:
        """As the SDK's registry makes one."""
        return cls(config)

    def get_facets(self) -> Any:
        """What works: tasks, and commands and files on them."""
        return ProviderFacets(
            compute=self,
            task_lookup=self,
            task_control=self,
            logs=self,
            log_sources=self.capabilities,
            ssh=self,
            ssh_key_requirements=self.capabilities,
        )

    def submit_task(
        self,
        instance_type: str,
        config: Any,
        volume_ids: Optional[list[str]] = None,
        allow_partial_fulfillment: bool = False,
        chunk_size: Optional[int] = None,
        dryrun: bool = False,
    ) -> Any:
        """The developer's machine of this name, running."""
        if dryrun:
            raise ProviderError(
                "the provider testyard has no dry run", suggestions=["start the machine: it costs nothing"]
            )
        is_dev = bool(getattr(config, "dev_vm", False))
        volumes = volume_ids or getattr(config, "volumes", None)
        return self._submitted(instance_type, config, is_dev, volumes)

    def pause_task(self, task_id: str) -> bool:
        """Stops it; its files stay."""
        self._find(task_id)
        self.machines.stop(task_id)
        return True

    def unpause_task(self, task_id: str) -> bool:
        """Starts it again."""
        self._find(task_id)
        self.machines.start(task_id)
        return True

    def stop_task(self, task_id: str) -> bool:
        """As `pause_task`."""
        return self.pause_task(task_id)

    def cancel_task(self, task_id: str) -> None:
        """Deletes it, with its files, as a cloud would."""
        self._find(task_id)
        self.machines.delete(task_id)

    def get_task_logs(
        self, task_id: str, tail: int = 100, log_type: str = "stdout", *, node: Optional[int] = None
    ) -> str:
        """What its supervisor and agent wrote."""
        return self._logs(task_id, tail)

    def stream_task_logs(
        self, task_id: str, log_type: str = "stdout", follow: bool = True, tail: int = 10, *, node: Optional[int] = None
    ) -> Iterator[str]:
        """The same, line by line, up to now."""
        yield from self.get_task_logs(task_id, tail).splitlines()

    def get_remote_operations(self) -> RemoteOperations:
        """What runs commands on it."""
        return self._remote

    def resolve_ssh_endpoint(self, task_id: str, node: Optional[int] = None) -> tuple[str, int]:
        """Where something greets; no command goes there."""
        return "localhost", self._greeter.port

    def get_task_ssh_connection_info(self, task_id: str, task: Any = None) -> Optional[Path]:
        """No key opens it."""
        return None

    def get_ssh_tunnel_manager(self) -> Any:
        """There are no tunnels: a machine has the host's network."""
        raise NotImplementedError("a machine of Testyard has the host's network: connect to its port on localhost")

    def get_jupyter_tunnel_manager(self) -> Any:
        """The same."""
        return self.get_ssh_tunnel_manager()

    def find_instances(self, requirements: Mapping[str, Any], limit: int = 10) -> list[Any]:
        """There is nothing to choose from."""
        return []

    def close(self) -> None:
        """Closes what is open; machines go on running."""
        self.machines.close()
        self._greeter.close()

    def _ssh(self, seen: Seen) -> dict[str, Any]:
        return {"ssh_host": "localhost" if seen.state == "running" else None, "ssh_port": self._greeter.port}


class RemoteOperations:
    """Commands and files on a developer's machine."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    def execute_command(
        self, task_id: str, command: str, timeout: Optional[float] = None, *, node: Optional[int] = None
    ) -> str:
        """What a command of the shell prints; its time is in seconds. Raises RemoteExecutionError where it fails."""
        done = self._run(task_id, command, timeout)
        if done.returncode != 0:
            raise RemoteExecutionError(text_of(done), exit_code=done.returncode)
        return str(done.stdout)

    def exec_command(
        self, task_id: str, command: str, timeout: Optional[float] = None, *, node: Optional[int] = None
    ) -> Any:
        """The same with its exit code and both streams."""
        done = self._run(task_id, command, timeout)
        return RemoteExecResult(exit_code=done.returncode, stdout=str(done.stdout), stderr=str(done.stderr))

    def put_file(
        self,
        task_id: str,
        local_path: Path,
        remote_path: str,
        *,
        timeout: Optional[float] = None,
        in_task_container: bool = False,
    ) -> None:
        """Copies one file to it, whole or not at all."""
        if not local_path.exists():
            raise FileNotFoundError(local_path)
        if local_path.is_dir():
            raise IsADirectoryError(local_path)
        if not local_path.is_file() or not remote_path or "\0" in remote_path:
            raise ValidationError(f"{local_path} cannot be copied to {remote_path!r}")
        with local_path.open("rb") as file:
            about = os.fstat(file.fileno())
            # What is appended meanwhile does not belong to it.
            content = file.read(about.st_size)
            if not content and file.read(1):
                raise ValidationError(f"{local_path} does not say its size, as files of the kernel's do not")
        mode = about.st_mode & 0o777
        try:
            self._machines.machine(task_id).write_file(_below_home(remote_path), content, mode=mode)
        except TestyardError as error:
            raise remote_error(error, task_id) from error

    def get_file(
        self,
        task_id: str,
        remote_path: str,
        local_path: Path,
        *,
        timeout: Optional[float] = None,
        in_task_container: bool = False,
    ) -> None:
        """Copies one file from it, whole or not at all."""
        if local_path.is_dir():
            raise IsADirectoryError(local_path)
        if not remote_path or "\0" in remote_path:
            raise ValidationError(f"{remote_path!r} is no file")
        try:
            content = self._machines.machine(task_id).read_file(_below_home(remote_path))
        except TestyardError as error:
            raise remote_error(error, task_id) from error
        new = local_path.with_name(f".{local_path.name}.new")
        new.write_bytes(content)
        new.replace(local_path)

    def upload_file(self, task_id: str, local_path: Path, remote_path: str) -> bool:
        """As `put_file`."""
        self.put_file(task_id, Path(local_path), remote_path)
        return True

    def download_file(self, task_id: str, remote_path: str, local_path: Path) -> bool:
        """As `get_file`."""
        self.get_file(task_id, remote_path, Path(local_path))
        return True

    def open_shell(
        self,
        task_id: str,
        command: Optional[str] = None,
        node: Optional[int] = None,
        progress_context: Any = None,
        record: bool = False,
        *,
        ssh_details: Any = None,
        tty: bool = False,
    ) -> None:
        """A shell, or a command, on this process's own streams."""
        try:
            code = self._machines.shell(task_id, command, terminal=tty or command is None)
        except TestyardError as error:
            if is_missing(error):
                raise remote_error(error, task_id) from error
            # As a connection that never began: nothing ran.
            raise RemoteTransportError(str(error)) from error
        if code != 0:
            raise RemoteCommandExitError(f"the command ended with exit code {code}", code, outcome_unknown=False)

    def _run(self, task_id: str, command: str, timeout: Optional[float]) -> Completed:
        try:
            done = self._machines.run(task_id, command, timeout)
        except TestyardError as error:
            raise remote_error(error, task_id) from error
        if done.timed_out:
            raise FlowTimeoutError(f"the command took longer than {timeout:g} s")
        return done


def _below_home(path: str) -> str:
    return path[2:] if path.startswith("~/") else path
