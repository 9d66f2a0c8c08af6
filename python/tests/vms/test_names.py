"""Names of test VMs."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from testyard.errors import InvalidInput
from testyard.vms import VmName, create_vm_with_retry, last_error, unique_name


def test_names_are_unique_across_threads_and_forked_processes() -> None:
    reading, writing = os.pipe()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os.write(writing, "".join(f"{unique_name()}\n" for _ in range(50)).encode())
            os._exit(0)
        children.append(child)
    os.close(writing)
    with open(reading) as told:
        names = told.read().split()
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    with ThreadPoolExecutor(8) as threads:
        names += threads.map(lambda _: unique_name(), range(800))
    assert len(names) == 1000
    assert len(set(names)) == 1000
    assert all(name.startswith("test-vm-") for name in names)


@pytest.mark.parametrize("prefix", ["web", "a" * 63, "a" * 200, "x.y_z-"])
def test_every_name_is_one_that_a_machine_may_have(prefix: str) -> None:
    name = unique_name(prefix)
    assert len(name) <= 63
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
    assert name.startswith(prefix[:40])


@pytest.mark.parametrize("prefix", ["", "-x", "a b", "ü", "a/b"])
def test_a_prefix_that_no_name_can_have_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidInput):
        unique_name(prefix)


def test_a_vm_name_is_a_string_in_every_way() -> None:
    name = VmName("web")
    assert name == "web"
    assert isinstance(name, str)
    assert {name: 1}["web"] == 1
    assert f"{name}-1" == "web-1"


def test_what_is_no_text_is_told() -> None:
    with pytest.raises(InvalidInput, match="cannot begin with 3"):
        unique_name(3)  # type: ignore[arg-type]
    # Helpers that return a bool raise for nothing.
    assert not create_vm_with_retry(3, "web")  # type: ignore[arg-type]
    assert "3 is no name of an image" in str(last_error())
