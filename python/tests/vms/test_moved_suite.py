"""What docs/lifecycle.md shows, run: the suite before and after it was moved over says the same."""

from __future__ import annotations

import re
import sys
import tarfile
from pathlib import Path

import pytest

from support import Home, needs_program
from testyard import Image

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "lifecycle.md"


def blocks(language: str = "python") -> list[str]:
    """The document's blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("which", ["before", "after"])
def test_the_suite_passes(module_home: Home, which: str) -> None:
    (block,) = [block for block in blocks() if block.startswith(f"# {which}: ")]
    suite = module_home.work / which
    suite.mkdir()
    file = suite / block.split(maxsplit=3)[2]
    file.write_text(block)
    done = module_home.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert module_home.machines() == []


def test_the_first_example_prints_the_machines_system(module_home: Home) -> None:
    (block,) = [block for block in blocks() if "uname -a" in block]
    done = module_home.run([sys.executable, "-c", block])
    assert done.stdout.startswith("Linux "), done.stderr
    assert module_home.machines() == []


def test_one_setting_lets_a_suite_run_on_another_image(module_home: Home) -> None:
    busybox = needs_program("busybox")
    with tarfile.open(module_home.work / "root.tar", "w") as out:
        for name in ("sh", "true"):
            out.add(busybox, f"bin/{name}")
    Image.import_("debian:12", module_home.work / "root.tar")
    suite = module_home.work / "image"
    suite.mkdir()
    (setting,) = blocks("ini")
    (suite / "pytest.ini").write_text(setting)
    (suite / "test_image.py").write_text(
        "def test_it_runs(test_vm_manager):\n"
        "    with test_vm_manager(image='ubuntu:22.04') as manager:\n"
        "        assert manager.vm_name.info().image == 'debian:12'\n"
    )
    done = module_home.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(suite)])
    assert "1 passed" in done.stdout and "ImageStandInWarning" in done.stdout, done.stdout + done.stderr
