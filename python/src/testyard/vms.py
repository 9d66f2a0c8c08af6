"""The helpers that infrastructure suites write for themselves, done right: VMs created, used and deleted with retries.

    from testyard.vms import TestVMManager, create_vm_with_retry, execute_with_retry

A "VM" is a Testyard machine. Those helpers that return a bool never raise for what the infrastructure did: they log the
cause on the logger `testyard.vms` and keep it for `last_error`. What is retried, and how long things may take, is one
policy and one table: `RETRY` and `Timeouts`.
"""

from __future__ import annotations

from ._retry import RETRY, RetryPolicy, Timeouts, is_transient, set_timeouts, timeouts
from ._vms.cleanup import register_test_vm_for_cleanup
from ._vms.images import available_image, set_project_image
from ._vms.lifecycle import (
    create_test_vm,
    create_vm_with_retry,
    delete_test_vm,
    delete_vm_with_retry,
    execute_with_retry,
    last_error,
    start_vm_with_retry,
    stop_vm_with_retry,
)
from ._vms.manager import TestVMManager
from ._vms.names import VmName, unique_name

__all__ = [
    "RETRY",
    "RetryPolicy",
    "TestVMManager",
    "Timeouts",
    "VmName",
    "available_image",
    "create_test_vm",
    "create_vm_with_retry",
    "delete_test_vm",
    "delete_vm_with_retry",
    "execute_with_retry",
    "is_transient",
    "last_error",
    "register_test_vm_for_cleanup",
    "set_project_image",
    "set_timeouts",
    "start_vm_with_retry",
    "stop_vm_with_retry",
    "timeouts",
    "unique_name",
]
