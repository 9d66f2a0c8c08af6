"""Create, start, stop, delete and use VMs, with the one retry policy and the one table of limits."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

from testyard._retry import RETRY, is_transient, timeouts
from testyard.errors import ConnectionLost, MachineExists, MachineNotFound, TestyardError, WrongState

from .cleanup import forget, is_registered
from .images import available_image
from .names import VmName, unique_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from testyard import Completed, Machine

Result = TypeVar("Result")

_log = logging.getLogger("testyard.vms")
_last = threading.local()


def last_error() -> TestyardError | None:
    """Why the last helper of this thread returned False or raised; None where it succeeded."""
    error: TestyardError | None = getattr(_last, "error", None)
    return error


def create_vm_with_retry(
    image: str, vm_name: str, arch: str | None = None, user: str | None = None, auto_cleanup: bool = True
) -> bool:
    """Create a VM and wait until a command runs in it.

    `user` is whom its commands run as, `arch` its processor's architecture. With `auto_cleanup` it is deleted when
    this process is gone. False where it could not be created: nothing of it is left then, and `last_error` says why.
    """
    return _succeeds(f"create {vm_name}", lambda: _create(image, str(vm_name), arch, user, auto_cleanup))


def start_vm_with_retry(name: str) -> bool:
    """Start a VM and wait until a command runs in it; True at once where it runs already."""
    return _succeeds(f"start {name}", lambda: _start(str(name)))


def stop_vm_with_retry(name: str, force: bool = False) -> bool:
    """Stop a VM: its files stay. True at once where it is stopped. `force`: also while commands run in it."""
    return _succeeds(f"stop {name}", lambda: _stop(str(name), force))


def delete_vm_with_retry(name: str, force: bool = False) -> bool:
    """Delete a VM; True at once where there is none. `force`: also while commands run in it."""
    return _succeeds(f"delete {name}", lambda: _delete(str(name), force))


def create_test_vm(
    image: str = "ubuntu:22.04",
    name_prefix: str = "test-vm",
    arch: str | None = None,
    user: str | None = None,
    start: bool = True,
) -> VmName:
    """Create a VM under a name of its own, registered for clean-up, and return the name.

    With `start` false it is stopped when this returns. Raises the error with its cause where it cannot be created.
    """

    def created() -> VmName:
        name = VmName(unique_name(name_prefix))
        _create(image, name, arch, user, True)
        if not start:
            _stop(name, True)
        return name

    return _remembering(created)


def delete_test_vm(name: str) -> None:
    """Delete a VM that `create_test_vm` made, whatever still runs in it. No error where there is none."""
    _remembering(lambda: _delete(str(name), True))


def execute_with_retry(
    name: str,
    command: str | Sequence[str],
    *,
    timeout: float | None = None,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    input: str | bytes | None = None,
    text: bool = True,
    check: bool = False,
    repeatable: bool = False,
) -> Completed:
    """Run a command in a VM; its result has `returncode`, `stdout` and `stderr`.

    `timeout` is in seconds (`Timeouts.command` where it is None); a command that takes longer is ended, with all that
    it started, and has the returncode 124. Infrastructure errors are retried, a command's own failure never. A
    connection that is lost while the command may already run is retried only where it is `repeatable`. With `check`
    a returncode other than 0 raises `CommandFailed`.
    """
    limit = timeouts().command if timeout is None else timeout
    machine_name = str(name)

    def execute() -> Completed:
        with closing(_reached(machine_name)) as machine:
            try:
                return machine.run(
                    command, check=check, timeout=limit, cwd=cwd, env=env, user=user, input=input, text=text
                )
            except ConnectionLost as error:
                if repeatable:
                    raise
                raise _Begun(error) from None

    def whole() -> Completed:
        try:
            return _retrying(f"run a command in {machine_name}", execute)
        except _Begun as begun:
            raise begun.error from None

    return _remembering(whole)


class _Begun(Exception):
    """The connection was lost when the command may have begun."""

    def __init__(self, error: TestyardError) -> None:
        super().__init__(str(error))
        self.error = error


def _reached(name: str) -> Machine:
    """A machine whose agent answers right now. Its connection is at rest, for the next request."""
    from testyard import Machine

    machine = Machine.get(name)
    try:
        machine.status()
    except ConnectionLost:
        # Its supervisor may have died beside a living agent; a start gives a running machine another one.
        if machine.state == "running":
            machine.start()
        machine.close()
        raise
    except BaseException:
        machine.close()
        raise
    return machine


def _create(image: str, name: str, arch: str | None, user: str | None, auto_cleanup: bool) -> None:
    from testyard import Machine

    used = available_image(image)
    begun_ms = int(time.time() * 1000)
    attempts = 0
    holds = auto_cleanup or is_registered(name)

    def create() -> None:
        nonlocal attempts
        attempts += 1
        try:
            machine = Machine.create(name, image=used, arch=arch, user=user, hold=holds)
        except MachineExists:
            if attempts == 1:
                raise
            # The attempt before was thought lost, and was not: the machine is ours if it is as old as this call.
            machine = Machine.get(name)
            if machine.info().created_ms < begun_ms:
                machine.close()
                raise
            if holds:
                machine.hold()
        machine.close()

    _retrying(f"create {name}", create)
    forget(name)
    try:
        _wait_until_ready(name)
    except BaseException:
        _delete_quietly(name)
        raise


def _start(name: str) -> None:
    from testyard import Machine

    def start() -> None:
        with closing(Machine.get(name)) as machine:
            try:
                # Also where it seems to run: fine then, and a supervisor that died is replaced.
                machine.start()
            except WrongState:
                if machine.state != "running":
                    raise

    _retrying(f"start {name}", start)
    _wait_until_ready(name)


def _stop(name: str, force: bool) -> None:
    from testyard import Machine

    def stop() -> None:
        with closing(Machine.get(name)) as machine:
            try:
                if machine.state != "stopped":
                    machine.stop(force=force)
            except WrongState:
                if machine.state != "stopped":
                    raise

    _retrying(f"stop {name}", stop)


def _delete(name: str, force: bool) -> None:
    from testyard import Machine

    def delete() -> None:
        try:
            machine = Machine.get(name)
        except MachineNotFound:
            return
        with closing(machine):
            machine.delete(force=force, missing_ok=True)

    _retrying(f"delete {name}", delete)
    forget(name)


def _delete_quietly(name: str) -> None:
    try:
        _delete(name, True)
    except TestyardError as error:
        _log.warning("%s could not be deleted: %s", name, error)


def _wait_until_ready(name: str) -> None:
    """Until a command has run in it; `Timeouts.ready` bounds the attempts together."""

    def first() -> None:
        with closing(_reached(name)) as machine:
            machine.run(["/bin/sh", "-c", ":"], timeout=timeouts().ready)

    _retrying(f"run a first command in {name}", first, total=timeouts().ready)


def _retrying(what: str, action: Callable[[], Result], total: float | None = None) -> Result:
    def failed(error: BaseException, attempt: int, delay: float) -> None:
        _log.warning("attempt %d to %s failed, again in %.2f s: %s", attempt, what, delay, error)

    return RETRY.call(action, total=total, failed=failed, transient=is_transient)


def _remembering(action: Callable[[], Result]) -> Result:
    _last.error = None
    try:
        return action()
    except TestyardError as error:
        _last.error = error
        raise


def _succeeds(what: str, action: Callable[[], Any]) -> bool:
    try:
        _remembering(action)
    except TestyardError as error:
        _log.error("could not %s: %s", what, error)
        return False
    return True
