"""Which image a VM starts from where the one asked for is not there."""

from __future__ import annotations

import warnings
from typing import Iterator

import pytest

from support import Home
from testyard import Image, Machine, errors
from testyard._vms.images import ImageStandInWarning
from testyard.vms import (
    available_image,
    create_test_vm,
    create_vm_with_retry,
    delete_test_vm,
    last_error,
    set_project_image,
)


@pytest.fixture(autouse=True)
def no_setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No stand-in but the test's own."""
    monkeypatch.delenv("TESTYARD_IMAGE", raising=False)
    set_project_image(None)
    yield
    set_project_image(None)


def test_the_projects_setting_comes_before_the_variable(module_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTYARD_IMAGE", "of-the-variable")
    set_project_image("host")
    with pytest.warns(ImageStandInWarning, match="ubuntu:22.04 is not there: host stands in.*testyard_image says"):
        assert available_image("ubuntu:22.04") == "host"
    set_project_image(None)
    monkeypatch.setenv("TESTYARD_IMAGE", "host")
    with pytest.warns(ImageStandInWarning, match="as TESTYARD_IMAGE says"):
        assert available_image("ubuntu:22.04") == "host"


def test_a_suite_that_says_ubuntu_runs_on_what_stands_in(module_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTYARD_IMAGE", "host")
    with pytest.warns(ImageStandInWarning):
        name = create_test_vm()
    assert Machine.get(name).info().image == "host"
    delete_test_vm(name)


def test_an_image_that_is_there_needs_no_stand_in(module_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTYARD_IMAGE", "debian:12")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert available_image("host") == "host"


def test_neither_a_build_nor_a_stand_in_is_one_clear_error(module_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_archive(release: str) -> Image:
        raise errors.InfrastructureError(f"{release}: its archive does not answer", kind="unavailable")

    monkeypatch.setattr(Image, "build", staticmethod(no_archive))
    assert not create_vm_with_retry("ubuntu:22.04", "never")
    error = last_error()
    assert isinstance(error, errors.NotSupported)
    assert error.message == "image ubuntu:22.04 is neither stored here nor to be built here"
    assert error.causes == ("ubuntu:22.04: its archive does not answer",)
    assert any("TESTYARD_IMAGE" in hint for hint in error.hints)
    assert module_home.machines() == []


def test_an_image_that_no_distribution_has_is_refused_by_the_real_builder(module_home: Home) -> None:
    with pytest.raises(errors.NotSupported, match="image nothing:1 is neither stored here nor") as told:
        available_image("nothing:1")
    assert told.value.causes
