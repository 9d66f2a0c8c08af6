"""Live source on a cluster that sees nothing of this host: its tree and what that needs are copied, and never stale."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

from support import Home, needs_cluster, needs_root, programs_folder
from testyard import Cluster, InfrastructureError, live

# Says which interpreter jobs have, once the tree is placed, and after each line once it is refreshed.
CLIENT = """
import sys
from testyard import Cluster, live
name, tree, mode, *sources = sys.argv[1:]
placed = live.place(Cluster.get(name), tree, mode=mode, sources=sources or None)
print(placed.python, flush=True)
for _ in sys.stdin:
    placed = placed.refresh()
    print(placed.python, flush=True)
"""
BACKEND = """
import os, zipfile
def build_wheel(into, settings=None, metadata=None):
    name = "mine-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(into, name), "w") as wheel:
        wheel.write("src/mine.py" if os.path.exists("src") else "mine.py", "mine.py")
        wheel.writestr("mine-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: mine\\nVersion: 1\\n")
        wheel.writestr("mine-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("mine-1.dist-info/RECORD", "")
    return name
"""
STATE = "/home/slurm/.testyard"
BUILDS = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
SHOW = "import mine, needed; print(mine.VERSION, needed.VERSION); print(mine.__file__); print(needed.__file__)"


class Client:
    """A Python with a package of its own, which places a tree."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        # It has this interpreter's pip, and the package under test: beside what it has installed, not in it.
        found = importlib.util.find_spec("pip")
        assert found is not None and found.origin is not None
        tools = folder / "tools"
        tools.mkdir()
        (tools / "pip").symlink_to(Path(found.origin).parent)
        (tools / "testyard").symlink_to(Path(live.__file__).parent)
        program = str(programs_folder() / "testyard")
        self.variables = {**os.environ, "PYTHONPATH": str(tools), "TESTYARD_BINARY": program}
        self.packages = next(folder.glob("lib/python3*/site-packages"))

    def install(self, version: str) -> None:
        """As pip does it that reinstalls: the same names, of the same version."""
        new = self.packages / "needed.new"
        new.write_text(f'VERSION = "{version}"\n')
        new.rename(self.packages / "needed.py")

    def places(self, cluster: Cluster, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.python), "-c", CLIENT, cluster.name, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.variables,
            text=True,
        )


def placed(placing: subprocess.Popen[str]) -> str:
    """The client's answer to where it has placed, or refreshed, the tree."""
    assert placing.stdout is not None
    said = placing.stdout.readline().strip()
    assert said, "the client has failed"
    return said


def refreshed(placing: subprocess.Popen[str]) -> str:
    assert placing.stdin is not None
    print(file=placing.stdin, flush=True)
    return placed(placing)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(tmp_path_factory.mktemp("client") / "venv")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The only folder that the cluster shows."""
    return tmp_path_factory.mktemp("shown")


@pytest.fixture(scope="module")
def bare(module_home: Home, shown: Path) -> Iterator[Cluster]:
    """A cluster that shows nothing of the client's."""
    needs_root()
    needs_cluster()
    shown.chmod(0o755)
    with Cluster.create("bare", nodes=2, expose=[f"{shown}:ro"]) as cluster:
        yield cluster


def save(tree: Path, version: str) -> None:
    tree.mkdir(parents=True, exist_ok=True)
    (tree / "mine.py").write_text(f'VERSION = "{version}"\n')


def test_a_copied_tree_and_its_packages_are_never_stale(bare: Cluster, client: Client, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    save(tree, "1")
    client.install("a")
    # Two at once, as workers of one run are.
    with client.places(bare, str(tree), "sync") as placing, client.places(bare, str(tree), "sync") as other:
        python = placed(placing)
        assert placed(other) == python
        shown = ["srun", "-N2", python, "-c", SHOW]
        lines = bare.run(shown).stdout.splitlines()
        assert lines.count("1 a") == lines.count(f"{tree}/mine.py") == 2, lines
        # Not where the host has them.
        copies = [line for line in lines if line.endswith("needed.py")]
        assert len(copies) == 2 and all(line.startswith(f"{STATE}/packages-") for line in copies), lines
        save(tree, "2")
        client.install("b")
        # What a test has asked for once goes on to be right.
        assert refreshed(placing) == python
        assert bare.run(shown).stdout.splitlines().count("2 b") == 2
        assert len(bare.run(f"ls -d {STATE}/packages-*.*").stdout.split()) == 1


def test_a_child_of_a_job_has_the_copied_tree(bare: Cluster, client: Client, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    save(tree, "3")
    (tree / "show.sh").write_text(f"#!/bin/sh\nexec python -c '{SHOW}'\n")
    (tree / "job.sh").write_text(f"#!/bin/sh\nssh $(hostname) sbatch --wait -o child.out {tree}/show.sh\n")
    for script in ("show.sh", "job.sh"):
        (tree / script).chmod(0o755)
    client.install("c")
    with client.places(bare, str(tree), "sync") as placing:
        placed(placing)
        bare.run(["ssh", bare.head.name, f"srun {tree}/job.sh"], timeout=150)
        assert bare.run("cat child.out").stdout.startswith("3 c\n")


def test_a_refresh_keeps_what_was_asked_for(bare: Cluster, client: Client, tmp_path: Path) -> None:
    save(tmp_path / "tree" / "lib", "1")
    client.install("d")
    with client.places(bare, str(tmp_path / "tree"), "sync", "lib") as placing:
        python = placed(placing)
        save(tmp_path / "tree" / "lib", "2")
        assert refreshed(placing) == python
    assert bare.run([python, "-c", SHOW]).stdout.startswith("2 d\n")


def test_a_refresh_reaches_nodes_and_packages_that_came_later(bare: Cluster, client: Client, shown: Path) -> None:
    save(shown, "1")
    client.install("f")
    with client.places(bare, str(shown), "bind") as placing:
        show = ["srun", "-N3", placed(placing), "-c", SHOW]
        client.install("g")
        Cluster.get(bare.name).scale(3)
        assert refreshed(placing) == show[2]
        done = bare.run(show)
        bare.scale(2)
    assert done.stdout.splitlines().count("1 g") == 3, done.stdout


def test_a_wheel_is_what_was_built(bare: Cluster, client: Client, tmp_path: Path) -> None:
    save(tmp_path, "1")
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "pyproject.toml").write_text(BUILDS)
    client.install("e")
    with client.places(bare, str(tmp_path), "wheel") as placing:
        python = placed(placing)
        shown = ["srun", "-N2", python, "-c", SHOW]
        lines = bare.run(shown).stdout.splitlines()
        installed = f"{python.removesuffix('/bin/python')}/lib/{client.packages.parent.name}/site-packages/mine.py"
        assert lines.count("1 e") == lines.count(installed) == 2, lines
        save(tmp_path, "2")
        assert bare.run(shown).stdout.splitlines().count("1 e") == 2
        assert refreshed(placing) == python
        assert bare.run(shown).stdout.splitlines().count("2 e") == 2
    assert ".whl" not in bare.run(f"ls -R {STATE} --ignore=packages-*").stdout


def test_a_tree_that_does_not_build_is_told_before_anything_is_placed(bare: Cluster, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[build-system]\nrequires = []\nbuild-backend = "absent"\n')
    before = bare.run(f"ls {STATE}", check=False).stdout
    with pytest.raises(InfrastructureError, match="no wheel can be built") as told:
        live.place(bare, tmp_path, mode="wheel")
    assert any("absent" in cause for cause in told.value.causes), told.value.causes
    assert bare.run(f"ls {STATE}", check=False).stdout == before
