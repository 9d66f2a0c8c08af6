"""What jobs import is the working tree of this moment, in a job, in a workflow and in a child of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from testyard import Cluster, InvalidInput, live

from .conftest import placing

SUBMIT = Path(__file__).with_name("submit_fresh.py")
TASKS = """
import fresh
from slurm import task
from slurm.decorators import workflow
from slurm.workflow import WorkflowContext


@task(time="00:01:00", mem="100M")
def version() -> str:
    return fresh.VERSION


# Held until it is submitted as a whole: slurm-sdk sends its Slurmfile after the job, which may be faster.
HELD = {"parent"}


@workflow(time="00:05:00", mem="100M", hold=None)
def parent(ctx: WorkflowContext):
    return [fresh.VERSION, version().get_result()]
"""


def edit(project: Path, version: str) -> None:
    """As an editor saves: another file takes the place of the old one, here of the same size and second."""
    source = project / "src" / "fresh" / "__init__.py"
    new = source.with_suffix(".new")
    new.write_text(f'VERSION = "{version}"\n')
    new.chmod(0o644)
    new.rename(source)


def submitted(clients: Path, cluster: Cluster, project: Path, *tasks: str) -> dict[str, object]:
    """What the public slurm-sdk, over SSH and without any packaging of its own, has for results."""
    where = json.dumps({**cluster.ssh._asdict(), "source": str(project / "src")})
    done = subprocess.run([str(clients), str(SUBMIT), where, *tasks], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def source(lab: Cluster, clients: Path, project: Path) -> Iterator[live.LiveSource]:
    """The project, live, with what the public clients' Python has installed; nobody else changes either."""
    with placing(project, alone=True):
        yield placed(lab, clients, project)


def placed(lab: Cluster, clients: Path, project: Path) -> live.LiveSource:
    (project / "src" / "fresh" / "tasks.py").write_text(TASKS)
    edit(project, "0")
    place = f"from testyard import Cluster, live; print(live.place(Cluster.get({lab.name!r}), {str(project)!r}).python)"
    done = subprocess.run([str(clients), "-c", place], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    python = done.stdout.strip()
    return live.LiveSource(lab, "bind", str(project), python, {"PATH": "/usr/bin:/bin"})


def test_an_edited_line_counts_in_the_next_job_and_in_a_nested_child(
    source: live.LiveSource, lab: Cluster, clients: Path, project: Path
) -> None:
    edit(project, "1")
    assert submitted(clients, lab, project, "version") == {"version": "1"}
    edit(project, "2")
    assert submitted(clients, lab, project, "version", "parent") == {"version": "2", "parent": ["2", "2"]}


def test_an_edit_within_the_second_counts_on_every_node(source: live.LiveSource, lab: Cluster, project: Path) -> None:
    show = [source.python, "-c", "import fresh; print(fresh.VERSION)"]
    for version in "345":
        edit(project, version)
        for node in lab.nodes:
            assert node.run(show, user=lab.user, cwd="/").stdout == f"{version}\n"
    assert not list(project.rglob("__pycache__"))


def test_a_job_cannot_write_to_the_tree(source: live.LiveSource, lab: Cluster, project: Path) -> None:
    for user in (lab.user, "root"):
        done = lab.run(["touch", str(project / "src" / "new")], user=user, check=False)
        assert done.returncode != 0 and "Read-only" in done.stderr
    assert not (project / "src" / "new").exists()


def test_mode_none_places_nothing(lab: Cluster, tmp_path: Path) -> None:
    assert live.place(lab, tmp_path, mode="none").python == "/usr/bin/python3"


def test_what_cannot_be_placed_is_refused(lab: Cluster, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no mode"):
        live.place(lab, tmp_path, mode="bound")
    with pytest.raises(InvalidInput, match="no working tree"):
        live.place(lab, tmp_path / "absent")
    with pytest.raises(InvalidInput, match="does not show") as told:
        live.place(lab, tmp_path)
    assert "--expose" in told.value.hints[0]
    with pytest.raises(InvalidInput, match="no folder to import from"):
        live.place(lab, tmp_path, sources=["absent"])
    with pytest.raises(InvalidInput, match="no working tree"):
        live.place(lab, "/")
