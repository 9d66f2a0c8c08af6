"""A test VM for the length of a `with` block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lifecycle import create_test_vm, delete_test_vm

if TYPE_CHECKING:
    from .names import VmName


class TestVMManager:
    """Creates a VM on entry and deletes it at the end, whatever happened in between.

        with TestVMManager(image="debian:12") as manager:
            execute_with_retry(manager.vm_name, "uname -a")

    `vm_name` is None before the VM exists; `created` says whether it exists by this manager. Entering again where it
    exists, and deleting twice, do nothing.
    """

    #: Not a class of tests, though its users named it like one.
    __test__ = False

    def __init__(
        self,
        image: str = "ubuntu:22.04",
        name_prefix: str = "test-vm",
        *,
        arch: str | None = None,
        user: str | None = None,
        start: bool = True,
    ) -> None:
        self.image = image
        self.name_prefix = name_prefix
        self.arch = arch
        self.user = user
        self.start = start
        self.vm_name: VmName | None = None
        self.created = False

    def create(self) -> VmName:
        """Create the VM, where it does not exist yet, and return its name. Raises with the cause."""
        if self.vm_name is None or not self.created:
            self.vm_name = create_test_vm(self.image, self.name_prefix, self.arch, self.user, self.start)
            self.created = True
        return self.vm_name

    def delete(self) -> None:
        """Delete the VM, where it exists. Raises with the cause."""
        if self.created and self.vm_name is not None:
            delete_test_vm(self.vm_name)
            self.created = False

    def __enter__(self) -> TestVMManager:
        self.create()
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()

    def __str__(self) -> str:
        return str(self.vm_name or "")

    def __repr__(self) -> str:
        return f"TestVMManager(image={self.image!r}, vm_name={self.vm_name!r}, created={self.created})"
