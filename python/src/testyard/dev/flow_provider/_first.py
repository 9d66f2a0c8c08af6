"""The provider for version 0.0.3 of the SDK."""

from __future__ import annotations

from typing import Any, Iterator, Optional

from flow.api.models import AvailableInstance, Task, TaskStatus
from flow.errors import RemoteExecutionError
from flow.errors import TimeoutError as FlowTimeoutError
from flow.providers.base import ProviderCapabilities

from ...errors import NotFound, TestyardError
from .._machines import Machines, Seen, is_missing, text_of
from ._tasks import Tasks, remote_error


class TestyardProvider(Tasks):
    """`flow.dev` on machines of Testyard: a task is a developer's machine, and nothing else is."""

    Task = Task
    Status = TaskStatus

    def __init__(self, config: Any) -> None:
        self.config = config
        self.machines = Machines()

    @classmethod
    def from_config(cls, config: Any) -> TestyardProvider:
        """As the SDK's registry makes one."""
        return cls(config)

    def prepare_task_config(self, config: Any) -> Any:
        """There is nothing to add."""
        return config

    def submit_task(self, instance_type: str, config: Any, volume_ids: Optional[list[str]] = None, **_: Any) -> Any:
        """The developer's machine of this name, running."""
        return self._submitted(instance_type, config, is_dev=False, volumes=volume_ids)

    def cancel_task(self, task_id: str) -> bool:
        """Deletes it, with its files, as a cloud would."""
        self._find(task_id)
        self.machines.delete(task_id)
        return True

    def stop_task(self, task_id: str) -> bool:
        """The same."""
        return self.cancel_task(task_id)

    def get_remote_operations(self) -> RemoteOperations:
        """What runs commands on it."""
        return RemoteOperations(self.machines)

    def get_task_logs(self, task_id: str, tail: int = 100, log_type: str = "stdout") -> str:
        """What its supervisor and agent wrote."""
        return self._logs(task_id, tail)

    def stream_task_logs(self, task_id: str, log_type: str = "stdout") -> Iterator[str]:
        """The same, line by line, up to now."""
        yield from self.get_task_logs(task_id, 1000).splitlines()

    def get_task_instances(self, task_id: str) -> list[Any]:
        """A machine has no instances."""
        return []

    def find_instances(self, requirements: dict[str, Any], limit: int = 10) -> list[Any]:
        """This host, whatever was asked for."""
        asked = requirements.get("instance_type") or "h100"
        return [AvailableInstance(allocation_id="testyard", instance_type=asked, region="local", price_per_hour=0.0)]

    def normalize_instance_request(
        self, gpu_count: int, gpu_type: Optional[str] = None
    ) -> tuple[str, int, Optional[str]]:
        """A word for what a machine stands for."""
        return (f"{gpu_count}x{gpu_type}" if gpu_type else "h100", 1, None)

    def resolve_instance_type(self, user_spec: str) -> str:
        """The same."""
        return user_spec

    def get_capabilities(self) -> Any:
        """What there is."""
        return ProviderCapabilities(requires_ssh_keys=False, supports_attached_storage=False, storage_types=[])

    def list_volumes(self, limit: int = 100) -> list[Any]:
        """There are none."""
        return []

    def is_volume_id(self, identifier: str) -> bool:
        """There are none."""
        return False

    def close(self) -> None:
        """Closes what is open; machines go on running."""
        self.machines.close()

    def _ssh(self, seen: Seen) -> dict[str, Any]:
        # Nothing listens there: commands go to the machine's socket.
        return {"ssh_host": "localhost"}


class RemoteOperations:
    """Commands and files on a developer's machine."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    def execute_command(self, task_id: str, command: str, timeout: Optional[float] = None) -> str:
        """What a command of the shell prints; its time is in seconds. Raises RemoteExecutionError where it fails."""
        try:
            done = self._machines.run(task_id, command, timeout)
        except TestyardError as error:
            raise remote_error(error, task_id) from error
        if done.timed_out:
            raise FlowTimeoutError(f"the command took longer than {timeout:g} s")
        if done.returncode != 0:
            raise RemoteExecutionError(text_of(done), exit_code=done.returncode)
        return str(done.stdout)

    def retrieve_file(self, task_id: str, remote_path: str) -> bytes:
        """What is in a file on it. Raises FileNotFoundError where there is none, as the SDK expects."""
        try:
            return self._machines.machine(task_id).read_file(remote_path)
        except TestyardError as error:
            if isinstance(error, NotFound) and not is_missing(error):
                raise FileNotFoundError(f"there is no file {remote_path} on {task_id}") from error
            raise remote_error(error, task_id) from error

    def open_shell(self, task_id: str, command: Optional[str] = None, node: Optional[int] = None, **_: Any) -> None:
        """A shell, or a command, on this process's own streams."""
        try:
            code = self._machines.shell(task_id, command, terminal=True)
        except TestyardError as error:
            raise remote_error(error, task_id) from error
        if code != 0 and command:
            raise RemoteExecutionError("the command failed", exit_code=code)
