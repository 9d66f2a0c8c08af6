"""What docs/dev.md shows of the real SDK, run; what it shows of `testyard.dev` itself, tests/docs runs."""

from __future__ import annotations

import re
from pathlib import Path

from support import Home, needs_environment, needs_program, needs_user_namespaces
from support.home import SYSTEM_PATH

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "dev.md"


def blocks(language: str) -> list[str]:
    """The document's blocks of one language that tests/docs leaves."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


def ran(home: Home, python: Path, *command: str, **variables: str) -> None:
    """A command that finds the SDK's own interpreter; it must end well."""
    quiet = {"USER": "somebody", "FLOW_DISABLE_KEYCHAIN": "1", "PATH": f"{python.parent}:{SYSTEM_PATH}"}
    done = home.run(list(command), timeout=240, variables={**quiet, **variables})
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_a_suite_of_the_sdk_runs_before_it_is_moved(home: Home) -> None:
    needs_user_namespaces()
    needs_program("make")
    python = needs_environment("flow-3")
    (before,) = [block for block in blocks("python") if block.startswith("from flow import")]
    project = "mkdir -p ~/project && echo 'test: ; @echo passed' > ~/project/Makefile"
    prepared = f"from flow import Flow\nFlow().dev.ensure_started()\nassert Flow().dev.exec({project!r}) == 0\n"
    ran(home, python, "python", "-c", prepared + before, FLOW_PROVIDER="testyard", FCP_API_KEY="local")


def test_the_command_line_of_the_sdk_runs_as_written(home: Home) -> None:
    needs_user_namespaces()
    (block,) = blocks("sh")
    install, command = block.splitlines()
    # The wheel is installed by tests/plumbing.
    assert install == "pip install testyard flow-compute"
    ran(home, needs_environment("flow-3"), "sh", "-euc", command, FCP_API_KEY="local")
    assert len(home.machines()) == 1
