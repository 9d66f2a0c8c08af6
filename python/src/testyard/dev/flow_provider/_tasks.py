"""What both versions of the SDK ask of a developer's machines, in the same words."""

from __future__ import annotations

from typing import Any, ClassVar, Optional

from flow.errors import ProviderError, RemoteExecutionError, TaskNotFoundError

from ...errors import TestyardError
from .._machines import Machines, Seen, is_missing

_STATUS = {
    "running": "RUNNING",
    "creating": "PENDING",
    "starting": "PENDING",
    "stopping": "PAUSED",
    "stopped": "PAUSED",
    "failed": "FAILED",
    "deleting": "CANCELLED",
}


class Tasks:
    """Machines as tasks."""

    __test__ = False
    #: The SDK's own classes.
    Task: ClassVar[Any]
    Status: ClassVar[Any]
    machines: Machines

    def get_task(self, task_id: str) -> Any:
        """One machine."""
        return self._task(self._find(task_id))

    def get_task_status(self, task_id: str) -> Any:
        """Its status."""
        return self._status(self._find(task_id))

    def list_tasks(self, status: Any = None, limit: int = 100, force_refresh: bool = False) -> list[Any]:
        """All developer's machines, newest first."""
        several = status if status is None or isinstance(status, (list, tuple, set, frozenset)) else [status]
        wanted = None if several is None else {str(getattr(one, "value", one)) for one in several}
        tasks = [self._task(seen) for seen in self.machines.all()]
        return [task for task in tasks if wanted is None or task.status.value in wanted][:limit]

    def _submitted(self, instance_type: str, config: Any, is_dev: bool, volumes: Any) -> Any:
        """The developer's machine that a task is, running. What prepares a cloud's machine is left out."""
        if not is_dev and (config.env or {}).get("FLOW_DEV_VM") != "true":
            raise ProviderError(
                "the provider testyard makes developer's machines only",
                suggestions=["use flow.dev", "run the task's command with flow.dev.exec(...)"],
            )
        if volumes:
            raise ProviderError("the provider testyard has no volumes", suggestions=["leave the volumes out"])
        try:
            return self._task(self.machines.ensure(config.name, instance_type), config)
        except TestyardError as error:
            raise ProviderError(str(error)) from error

    def _logs(self, task_id: str, tail: int) -> str:
        self._find(task_id)
        return "\n".join(self.machines.machine(task_id).logs().splitlines()[-tail:])

    def _find(self, task_id: str) -> Seen:
        try:
            return self.machines.find(task_id)
        except TestyardError as error:
            if is_missing(error):
                raise TaskNotFoundError(f"there is no developer's machine {task_id}") from None
            raise ProviderError(str(error)) from error

    def _status(self, seen: Seen) -> Any:
        return getattr(self.Status, _STATUS.get(seen.state, "PENDING"))

    def _ssh(self, seen: Seen) -> dict[str, Any]:
        """How the SDK is told to reach it."""
        raise NotImplementedError

    def _task(self, seen: Seen, config: Optional[Any] = None) -> Any:
        task = self.Task(
            task_id=seen.name,
            name=seen.name,
            status=self._status(seen),
            config=config,
            created_at=seen.created_at,
            started_at=seen.started_at if seen.state == "running" else None,
            instance_type=seen.instance_type,
            num_instances=1,
            region="local",
            cost_per_hour="$0.00",
            ssh_user="root",
            shell_command=f"testyard shell {seen.name}",
            **self._ssh(seen),
        )
        task._provider = self
        return task


def remote_error(error: TestyardError, task_id: str) -> Exception:
    """What the SDK calls an error of a command or file."""
    if is_missing(error):
        return TaskNotFoundError(f"there is no developer's machine {task_id}")  # type: ignore[no-any-return]
    return RemoteExecutionError(str(error))  # type: ignore[no-any-return]
