"""The provider for version 0.0.3 of the SDK."""

from __future__ import annotations

from typing import Any, Iterator, Optional, Union

from flow.api.models import AvailableInstance, Task, TaskStatus
from flow.errors import ProviderError, RemoteExecutionError, TaskNotFoundError
from flow.errors import TimeoutError as FlowTimeoutError
from flow.providers.base import ProviderCapabilities

from ...errors import TestyardError
from .._machines import Machines, Seen, is_missing, text_of

_STATUS = {
    "running": TaskStatus.RUNNING,
    "creating": TaskStatus.PENDING,
    "starting": TaskStatus.PENDING,
    "stopping": TaskStatus.PAUSED,
    "stopped": TaskStatus.PAUSED,
    "failed": TaskStatus.FAILED,
    "deleting": TaskStatus.CANCELLED,
}


class TestyardProvider:
    """`flow.dev` on machines of Testyard: a task is a developer's machine, and nothing else is."""

    __test__ = False

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
        """The developer's machine of this name, running. What prepares a cloud's machine is left out."""
        if (config.env or {}).get("FLOW_DEV_VM") != "true":
            raise ProviderError(
                "the provider testyard makes developer's machines only",
                suggestions=["use flow.dev", "run the task's command with flow.dev.exec(...)"],
            )
        if volume_ids:
            raise ProviderError("the provider testyard has no volumes", suggestions=["leave the volumes out"])
        try:
            return self._task(self.machines.ensure(config.name, instance_type), config)
        except TestyardError as error:
            raise ProviderError(str(error)) from error

    def get_task(self, task_id: str) -> Any:
        """One machine."""
        return self._task(self._find(task_id))

    def get_task_status(self, task_id: str) -> Any:
        """Its status."""
        return _STATUS.get(self._find(task_id).state, TaskStatus.PENDING)

    def list_tasks(self, status: Any = None, limit: int = 100, force_refresh: bool = False) -> list[Any]:
        """All developer's machines, newest first."""
        wanted = None if status is None else {str(getattr(one, "value", one)) for one in _several(status)}
        tasks = [self._task(seen) for seen in self.machines.all()]
        return [task for task in tasks if wanted is None or task.status.value in wanted][:limit]

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
        self._find(task_id)
        return "\n".join(self.machines.machine(task_id).logs().splitlines()[-tail:])

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

    def _find(self, task_id: str) -> Seen:
        try:
            return self.machines.find(task_id)
        except TestyardError as error:
            if is_missing(error):
                raise TaskNotFoundError(f"there is no developer's machine {task_id}") from None
            raise ProviderError(str(error)) from error

    def _task(self, seen: Seen, config: Any = None) -> Any:
        task = Task(
            task_id=seen.name,
            name=seen.name,
            status=_STATUS.get(seen.state, TaskStatus.PENDING),
            config=config,
            created_at=seen.created_at,
            started_at=seen.started_at if seen.state == "running" else None,
            instance_type=seen.instance_type,
            num_instances=1,
            region="local",
            cost_per_hour="$0.00",
            # Nothing listens there: commands go to the machine's socket.
            ssh_host="localhost",
            ssh_user="root",
            shell_command=f"testyard shell {seen.name}",
        )
        task._provider = self
        return task


class RemoteOperations:
    """Commands and files on a developer's machine."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    def execute_command(self, task_id: str, command: str, timeout: Optional[float] = None) -> str:
        """What a command of the shell prints; its time is in seconds. Raises RemoteExecutionError where it fails."""
        try:
            done = self._machines.run(task_id, command, timeout)
        except TestyardError as error:
            raise _remote(error, task_id) from error
        if done.timed_out:
            raise FlowTimeoutError(f"the command took longer than {timeout:g} s")
        if done.returncode != 0:
            raise RemoteExecutionError(text_of(done), exit_code=done.returncode)
        return str(done.stdout)

    def retrieve_file(self, task_id: str, remote_path: str) -> bytes:
        """What is in a file on it."""
        try:
            return self._machines.machine(task_id).read_file(remote_path)
        except TestyardError as error:
            raise _remote(error, task_id) from error

    def open_shell(self, task_id: str, command: Optional[str] = None, node: Optional[int] = None, **_: Any) -> None:
        """A shell, or a command, on this process's own streams."""
        code = self._machines.shell(task_id, command, terminal=True)
        if code != 0 and command:
            raise RemoteExecutionError("the command failed", exit_code=code)


def _remote(error: TestyardError, task_id: str) -> Exception:
    if is_missing(error):
        return TaskNotFoundError(f"there is no developer's machine {task_id}")  # type: ignore[no-any-return]
    return RemoteExecutionError(str(error))  # type: ignore[no-any-return]


def _several(status: Any) -> Union[list[Any], tuple[Any, ...]]:
    return status if isinstance(status, (list, tuple)) else [status]
