"""What can go wrong on a developer's machine. The names are those of the SDKs that this mirrors."""

from __future__ import annotations

from typing import Optional, Sequence

from ..errors import TestyardError

__all__ = ["DevContainerError", "DevError", "DevVMNotFoundError", "DevVMStartupError"]


class DevError(TestyardError):
    """The root of them."""

    kind = "system"


class DevVMNotFoundError(DevError, LookupError):
    """No developer's machine is running."""

    kind = "not-found"

    def __init__(self, message: str = "no developer's machine is running", *, causes: Sequence[str] = ()) -> None:
        super().__init__(
            message, causes=causes, hints=["start it: dev.ensure_started(), or testyard dev ensure-started"]
        )


class DevVMStartupError(DevError):
    """The developer's machine did not start."""

    def __init__(
        self,
        message: str = "the developer's machine did not start",
        *,
        instance_type: Optional[str] = None,
        causes: Sequence[str] = (),
        hints: Sequence[str] = (),
    ) -> None:
        super().__init__(message, causes=causes, hints=hints or ["see what this host can do: testyard doctor"])
        self.instance_type = instance_type


class DevContainerError(DevError):
    """A container could not be made, or was lost: not a command that failed, whose exit code is returned."""

    def __init__(
        self,
        message: str,
        *,
        command: Optional[str] = None,
        image: Optional[str] = None,
        causes: Sequence[str] = (),
        hints: Sequence[str] = (),
        transient: bool = False,
    ) -> None:
        super().__init__(message, causes=causes, hints=hints)
        self.command = command
        self.image = image
        self.transient = transient
